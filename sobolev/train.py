"""The train loop: one for every family of problems."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sobolev import checkpoint
from sobolev.build import Drawn, Experiment
from sobolev.components import Target
from sobolev.devices import single_precision, without_default
from sobolev.ensembles import Separate, Together, members
from sobolev.errors import ComponentError, NonFiniteError
from sobolev.evaluate import default_splits, evaluate, metric_named
from sobolev.noise import stream
from sobolev.nonfinite import broken_weights, report_nonfinite
from sobolev.recipe.model import Phase
from sobolev.recording import Recorder
from sobolev.registry import Registry
from sobolev.rundir import RunDirectory
from sobolev.sampler import Sampler
from sobolev.vocabulary import Batch, Jet, Mean

Progress = Callable[[int, int, Mapping[str, float]], None]

_SKIPS_SHOWN = 3


class Interrupted(Exception):
    """A signal asked the run to stop; it continues from its last checkpoint."""


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        status: ``finished`` or ``interrupted``.
        step: steps that were taken.
        summary: metrics of the end, and ``best/...`` where a best student is kept.
    """

    status: str
    step: int
    summary: dict[str, float] = field(default_factory=dict)


@dataclass
class _Best:
    """Early stopping and the best student so far; saved with checkpoints."""

    value: float = math.inf
    step: int = 0
    stale: int = 0
    stop_value: float = math.inf


@dataclass
class _Seen:
    """What the evaluations of the loss in one step saw.

    Attributes:
        jets: (reference, prediction) of every micro-batch, of the first evaluation.
        values: the loss and its terms, of the last one.
    """

    jets: list[tuple[Mapping[str, Jet], Mapping[str, Jet]]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains one experiment.

    Args:
        experiment: the parts.
        registry: for optimizers and schedules.
        directory: where checkpoints go, or None for none.
        recorder: where numbers go.
        progress: called after every step with (steps taken, all steps, latest numbers).
        stop: whether a signal asked to stop.
    """

    def __init__(
        self,
        experiment: Experiment,
        registry: Registry,
        directory: RunDirectory | None = None,
        recorder: Recorder | None = None,
        progress: Progress = lambda *_: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.experiment = experiment
        self.world = experiment.context.world
        self.recipe = experiment.plan.recipe.train
        self.seed = experiment.plan.seed
        self.registry = registry
        self.directory = directory
        self.recorder = recorder or Recorder([])
        self.progress = progress
        self.stop = stop
        self.parameters = experiment.trainable
        self.members = members(experiment)
        self.phases = self.recipe.in_phases()
        self._phase, self._phase_began = 0, 0
        self.log_every = self.recipe.log_every or max(1, self.steps // 200)
        self.best = _Best()
        self.best_student: dict[str, Tensor] = {}
        self.latest: dict[str, float] = {}
        self.averaged = (
            AveragedModel(experiment.module, multi_avg_fn=get_ema_multi_avg_fn(self.recipe.ema))
            if self.recipe.ema and self.parameters
            else None
        )
        self.optimizer: Any = None
        self.schedule: Any = None
        self._step = 0
        self._evaluated_at = -1
        self._skipped = 0
        self._learns = type(experiment.target).advance is not Target.advance
        self._hogwild = self.recipe.update == "hogwild" and self.world.size > 1
        self._check_combination()
        if self._hogwild:
            self.world.share(experiment.module)

    def _check_combination(self) -> None:
        coupled = self._learns or "prediction" in self.experiment.target.needs
        closures = any(phase.optimizer["use"] == "lbfgs" for phase in self.phases)
        if coupled and (self.recipe.accumulate > 1 or closures):
            what = "train.accumulate above 1" if self.recipe.accumulate > 1 else "the optimizer lbfgs"
            raise ComponentError(
                f"{what}: the target {self.experiment.plan.recipe.target['use']!r} answers or learns from each "
                "prediction, which must then be made once per step; use a larger batch, or another optimizer"
            )
        if self.recipe.clip and closures:
            raise ComponentError(
                "train.clip and the optimizer lbfgs exclude each other: its line search needs the gradient as it is"
            )
        if self.recipe.stop and self.experiment.plan.recipe.evaluate.every is None:
            raise ComponentError("train.stop looks at evaluations: say by evaluate.every how often there is one")
        if self.recipe.update == "hogwild" and (closures or self.recipe.ema):
            what = "the optimizer lbfgs" if closures else "train.ema"
            raise ComponentError(
                f"{what} and train.update: hogwild exclude each other: processes that change one set of parameters "
                "without waiting have no common step; use 'update: sync'"
            )

    # -- the run ---------------------------------------------------------------------------------------------------

    @without_default
    def run(self, loaded: checkpoint.Loaded | None = None) -> Outcome:
        """Train from the start, or from a checkpoint, to the end or to a signal."""
        device = self.experiment.context.device
        forked = [device] if device.type == "cuda" else []
        rounded = self.experiment.plan.recipe.precision == "bfloat16-derivatives"
        precision = nullcontext() if rounded else single_precision(device)  # of the backward pass too
        with torch.random.fork_rng(devices=forked), precision, ThreadPoolExecutor(1) as self._ahead:
            state: Mapping[str, Any] | None = None
            if loaded is not None:
                state = loaded.state
                self._restore_common(loaded)
            self._saved_at = time.monotonic()
            try:
                while self._phase < len(self.phases):
                    phase = self.phases[self._phase]
                    end = self._phase_began + phase.steps
                    if self._step < end and not self._stale():
                        self._begin(phase)
                        if state is not None and self._step > self._phase_began:  # else it is of the phase before
                            self._restore_phase(state)
                        state = None
                        self._train(end)
                    self._end_phase()
                self._check_finite()
                return Outcome("finished", self._step, self._finish())
            except Interrupted:
                # Saved here, where nothing is half done: an evaluation may have had averaged weights in the student.
                if self._step and self.directory:
                    self._save()
                return Outcome("interrupted", self._step)

    @property
    def steps(self) -> int:
        """All steps: those that were taken in phases that have ended, and those of the others."""
        return self._phase_began + sum(phase.steps for phase in self.phases[self._phase :])

    def _train(self, end: int) -> None:
        """Take the steps up to ``end``, or until the student no longer gets better."""
        batches = self._batches(self._step, end)
        if self._evaluation_due():  # where the run was interrupted in the middle of it
            self._evaluate()
        while self._step < end and not self._stale():
            self._poll()
            values = self._update(next(batches), self._step)
            self._step += 1
            if self._step % self.log_every == 0 or self._step == self.steps:
                self.latest = {f"train/{name}": v for name, v in values().items()} | {"lr": self._rate()}
                self.recorder.log(self._step, self.latest)
            if self._evaluation_due():
                self._evaluate()
            self.progress(self._step, self.steps, self.latest)
            if self._save_due():
                self._save()

    def _end_phase(self) -> None:
        """Go on to the next phase: where this one was stopped, from the best student that was kept."""
        if self._stale() and self._phase + 1 < len(self.phases):
            if self.best_student:
                self.experiment.module.load_state_dict(self.best_student)
            self.best.stale = 0
        self._phase, self._phase_began = self._phase + 1, self._step

    def _evaluation_due(self) -> bool:
        # The evaluation after the last step is part of finishing.
        every = self.experiment.plan.recipe.evaluate.every
        return (
            every is not None
            and 0 < self._step < self.steps
            and self._step % every == 0
            and self._evaluated_at != self._step
        )

    def _stale(self) -> bool:
        return self.recipe.stop is not None and self.best.stale >= self.recipe.stop.patience

    def _poll(self) -> None:
        if self.world.any(self.stop()):
            raise Interrupted

    # -- one step --------------------------------------------------------------------------------------------------

    def _update(self, batches: list[Batch], step: int) -> Callable[[], dict[str, float]]:
        """Take one optimizer step; returns a function that gives its numbers, called where they are recorded."""
        # Dropout and the like: a function of (seed, step, rank), so that a resumed run draws the same.
        _seed(stream(self.seed, "step", step, self.world.rank), self.experiment.context.device)
        experiment = self.experiment
        drawn = [experiment.draw(batch, step, training=True) for batch in batches]
        counts = self._joint_counts(drawn) if len(drawn) > 1 else None

        def closure(seen: _Seen, only: str | None = None) -> float:
            parameters = self.parameters if only is None else self.members[only]
            for parameter in parameters:
                parameter.grad = None
            first = not seen.jets
            seen.values.clear()
            for part in drawn if only is None else [part.at(only) for part in drawn]:
                prediction = experiment.predict(part)
                reference = part.reference or experiment.reference(part.points, part.probes, prediction)
                if first:
                    shown = experiment.seen(part, prediction) if self._learns else prediction
                    seen.jets.append((reference, shown))
                terms = [
                    term
                    for site, where in part.points.items()
                    for term in experiment.objective.terms(
                        site, where, part.probes[site], prediction[site], reference[site]
                    )
                ]
                if counts:
                    terms = [replace(term, count=counts[term.name]) for term in terms]
                loss, recorded = self.world.total(terms, own=self._hogwild)
                if first and not math.isfinite(recorded["loss"]):
                    self._nonfinite(step, part, prediction, reference)
                if loss.requires_grad:
                    loss.backward()
                for name, value in recorded.items():
                    seen.values[name] = seen.values.get(name, 0.0) + value
            if not self._hogwild:
                self.world.sum_gradients(parameters)
            if self.recipe.clip:
                torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
            return seen.values["loss"]

        seen = _Seen()
        try:
            if isinstance(self.optimizer, Separate):
                seen = self._separately(closure, self.optimizer.optimizers, len(drawn))
            elif self.parameters:
                self.optimizer.step(partial(closure, seen))
            else:
                closure(seen)
        except _Skip:
            self._skipped += 1
            if self._skipped <= _SKIPS_SHOWN:
                more = "; further ones are counted as train/skipped alone" if self._skipped == _SKIPS_SHOWN else ""
                self.recorder.warn(f"warning: step {step}: the loss is not finite; the update was skipped{more}")
            return lambda: {**seen.values, "skipped": float(self._skipped)}
        if self.schedule:
            self.schedule.step()
        if self.averaged:
            self.averaged.update_parameters(experiment.module)
        learned: Mapping[str, Mean] = {}
        if self._learns:  # one batch; several are refused
            learned = experiment.target.advance(drawn[0].points, *seen.jets[0], experiment)

        def numbers() -> dict[str, float]:
            means: dict[str, Mean] = {}
            for part, (reference, prediction) in zip(drawn, seen.jets, strict=True):
                detached = {site: jet.detach() for site, jet in prediction.items()}
                for name, mean in experiment.target.metrics(part.points, reference, detached).items():
                    old = means.get(name)
                    means[name] = old + mean if old else mean
            skipped = {"skipped": float(self._skipped)} if self._skipped else {}
            return {**seen.values, **self.world.means({**means, **learned}), **self._counters(), **skipped}

        return numbers

    def _separately(self, closure: Callable[[_Seen, str], float], optimizers: Mapping[str, Any], batches: int) -> _Seen:
        """Let the optimizer of every member take its step, all or none of them; returns what all of them saw."""
        jets: list[tuple[dict[str, Jet], dict[str, Jet]]] = [({}, {}) for _ in range(batches)]
        values = {"loss": 0.0}
        module = self.experiment.module
        skips = self.recipe.on_nonfinite == "skip"
        before = copy.deepcopy((module.state_dict(), self.optimizer.state_dict())) if skips else None
        try:
            for site, optimizer in optimizers.items():
                seen = _Seen()
                optimizer.step(partial(closure, seen, site))
                for (references, predictions), (reference, prediction) in zip(jets, seen.jets, strict=True):
                    references |= reference
                    predictions |= prediction
                loss = values["loss"] + seen.values["loss"]
                values |= seen.values | {"loss": loss}
        except _Skip:
            assert before is not None
            module.load_state_dict(before[0])
            self.optimizer.load_state_dict(before[1])
            raise
        return _Seen([*jets], values)

    def _joint_counts(self, drawn: list[Drawn]) -> dict[str, Tensor]:
        """Return each term's count over all micro-batches; counts depend on the reference alone."""
        counts: dict[str, Tensor] = {}
        for part in drawn:
            assert part.reference is not None
            for site, where in part.points.items():
                jet = part.reference[site]
                for term in self.experiment.objective.terms(site, where, part.probes[site], jet, jet):
                    counts[term.name] = counts.get(term.name, torch.zeros_like(term.count)) + term.count
        return counts

    def _nonfinite(self, step: int, drawn: Drawn, prediction: Mapping[str, Jet], reference: Mapping[str, Jet]) -> None:
        broken = broken_weights(self.experiment.module)  # such a student would skip every step from now on
        if self.recipe.on_nonfinite == "skip" and not broken:
            raise _Skip
        rank = f"-rank-{self.world.rank}" if self.world.size > 1 else ""
        dump = self.directory.path / f"nonfinite-step-{step}{rank}.npz" if self.directory else None
        raise report_nonfinite(step, drawn, prediction, reference, self.experiment.module, self.world, dump)

    def _check_finite(self) -> None:
        """Refuse a student that the last update has broken; the loss of the next step would tell, if there is one.

        Raises:
            NonFiniteError: names its weights.
        """
        broken = broken_weights(self.experiment.module)
        if broken:
            shown = ", ".join(broken[:4]) + (f" and {len(broken) - 4} more" if len(broken) > 4 else "")
            raise NonFiniteError(
                f"step {self._step}: not finite after the update: {shown} of the student. Lower the learning rate, or "
                "clip gradients (train.clip)."
            )

    def _batches(self, start: int, end: int) -> Iterator[list[Batch]]:
        """Yield this rank's micro-batches of every step; data are read one step ahead in another thread."""
        target, size = self.experiment.target, self.experiment.target.size("train")
        if size < 1:
            raise ComponentError(f"target {self.experiment.plan.recipe.target['use']!r} has no training samples")
        micro = self.recipe.accumulate
        sampler = Sampler(size, self._batch_size, self.seed)

        def read(step: int) -> list[Batch]:
            parts = [sampler.ids(step * micro + i) for i in range(micro)]
            local = [self.world.shard(ids) for ids in parts]
            return [Batch("train", ids, target.load("train", ids)) for ids in local]

        if type(target).load is Target.load:
            for step in range(start, end):
                yield read(step)
            return
        future: Future[list[Batch]] = self._ahead.submit(read, start)
        for step in range(start, end):
            batches = future.result()
            if step + 1 < end:
                future = self._ahead.submit(read, step + 1)
            yield batches

    # -- evaluation and the end ------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        self._settle()
        with self._evaluated_weights():
            metrics: dict[str, float] = {}
            for split in default_splits(self.experiment):
                metrics |= evaluate(self.experiment, split, self._poll)
            self.latest = {**self.latest, **metrics}
            self.recorder.log(self._step, metrics)
            self._judge(metrics)
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            self.recorder.warn(f"warning: step {self._step}: not finite in evaluation: {', '.join(bad)}")
        self._evaluated_at = self._step
        self._settle()

    def _settle(self) -> None:
        """Wait until nobody changes parameters that are shared."""
        if self._hogwild:
            self.world.barrier()

    def _judge(self, metrics: Mapping[str, float]) -> None:
        """Keep the best student; count evaluations without improvement."""
        best = self.experiment.plan.recipe.evaluate.best
        if best is not None and metric_named(metrics, best) < self.best.value:
            self.best.value, self.best.step = metrics[best], self._step
            self.best_student = {k: v.detach().clone() for k, v in self.experiment.module.state_dict().items()}
        rule = self.recipe.stop
        if rule is not None:
            value, before = metric_named(metrics, rule.metric), self.best.stop_value
            # Small steps add up: the bar moves only where an improvement counts. NaN is no improvement.
            wanted = rule.min_improvement * abs(before) if math.isfinite(before) else 0.0
            if value < before - wanted:
                self.best.stop_value, self.best.stale = value, 0
            else:
                self.best.stale += 1

    @contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        """Put averaged weights into the student while it is looked at."""
        if not self.averaged:
            yield
            return
        module = self.experiment.module
        own = {k: v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.averaged.module.state_dict())
        try:
            yield
        finally:
            module.load_state_dict(own)

    def _finish(self) -> dict[str, float]:
        """Evaluate the student that is kept, and take the target's final scores."""
        if self._evaluated_at != self._step:  # else the run stopped, or was interrupted, right after it
            self._evaluate()
        summary = dict(self.latest)
        if self.averaged:
            self.experiment.module.load_state_dict(self.averaged.module.state_dict())
        if self.best_student and self.best.step != self._step:
            self.experiment.module.load_state_dict(self.best_student)
            summary |= {f"last/{name}": value for name, value in summary.items() if not name.startswith("train/")}
            for split in default_splits(self.experiment):
                summary |= evaluate(self.experiment, split, self._poll)
        if self.best_student:
            summary["best/step"] = float(self.best.step)
        self.experiment.module.eval()
        summary |= self.experiment.target.finish(self.experiment)
        return {**summary, **self._counters()}

    def _counters(self) -> dict[str, float]:
        """Return the estimator's counters, summed over the processes."""
        share = torch.tensor(1.0 / self.world.size, dtype=torch.float64)
        counters = self.experiment.estimator.metrics()
        return self.world.means(
            {name: Mean(torch.tensor(value, dtype=torch.float64), share) for name, value in counters.items()}
        )

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _begin(self, phase: Phase) -> None:
        if self.parameters:
            new = self.registry.build("optimizer", phase.optimizer)
            make = self.registry.build("schedule", phase.schedule) if phase.schedule else None
            if phase.optimizer["use"] == "lbfgs" and self.members:
                self.optimizer = Separate({site: new(parameters) for site, parameters in self.members.items()})
                schedules = [make(each, phase.steps) for each in self.optimizer.optimizers.values()] if make else []
                self.schedule = Together(schedules) if schedules else None
            else:
                self.optimizer = new(self.parameters)
                self.schedule = make(self.optimizer, phase.steps) if make else None
        self._batch_size = phase.batch_size or self.recipe.batch_size
        size = self.experiment.target.size("train")
        if phase.optimizer["use"] == "lbfgs" and isinstance(self._batch_size, int) and self._batch_size < size:
            self.recorder.warn(
                f"warning: lbfgs sees {self._batch_size} of {size} samples in a step, and another part in the next, "
                "for which its picture of the curvature is wrong; 'batch_size: all' is meant for it"
            )

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"]) if self.optimizer else 0.0

    def _save_due(self) -> bool:
        if self.directory is None or self._step == self.steps:
            return False
        rule = self.recipe.checkpoint
        if rule.every is not None and self._step % rule.every == 0:
            return True
        return bool(self.world.any(self.world.first and time.monotonic() - self._saved_at > rule.seconds))

    def _save(self) -> None:
        self._check_finite()
        target = self.experiment.target.state_dict()  # on every rank: it may gather
        if self.world.first and self.directory:
            state: dict[str, Any] = {
                "target": target,
                "estimator": self.experiment.estimator.state_dict(),
                "phase": [self._phase, self._phase_began],
                "best": vars(self.best),
                "best_student": self.best_student,
                "averaged": self.averaged.state_dict() if self.averaged else {},
                "optimizer": self.optimizer.state_dict() if self.optimizer else {},
                "schedule": self.schedule.state_dict() if self.schedule else {},
                "engines": {name: m.describe() for name, m in self.experiment.measurers.items()},
                "latest": self.latest,
                "evaluated_at": self._evaluated_at,
                "skipped": self._skipped,
            }
            student = self.experiment.module.state_dict()
            try:
                checkpoint.save(self.directory.checkpoints, self._step, student, state, self.recipe.checkpoint.keep)
            except OSError as error:
                self.recorder.warn(
                    f"warning: step {self._step}: no checkpoint could be written ({error}); those before it are kept"
                )
        self._saved_at = time.monotonic()

    def _restore_common(self, loaded: checkpoint.Loaded) -> None:
        self.experiment.module.load_state_dict(loaded.student)
        self.experiment.target.load_state_dict(loaded.state["target"])
        self.experiment.estimator.load_state_dict(loaded.state["estimator"])
        self._phase, self._phase_began = loaded.state["phase"]
        self.best = _Best(**loaded.state["best"])
        self.best_student = loaded.state["best_student"]
        if self.averaged:
            self.averaged.load_state_dict(loaded.state["averaged"])
        self._step = loaded.step
        self.latest = loaded.state["latest"]
        self._evaluated_at = loaded.state["evaluated_at"]
        self._skipped = loaded.state["skipped"]
        self._settle()

    def _restore_phase(self, state: Mapping[str, Any]) -> None:
        """Restore optimizer and schedule."""
        if self.parameters:
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule:
                self.schedule.load_state_dict(state["schedule"])


def _seed(seed: int, device: torch.device) -> None:
    # torch.manual_seed would queue a call, with a traceback, for every kind of accelerator that is not there.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class _Skip(Exception):
    """The update of this step is skipped."""
