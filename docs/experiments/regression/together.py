"""Trains the runs of a recipe together, several networks in one batched matrix product.

    python docs/experiments/regression/together.py recipes/paper/figure2-fast.yaml --set seeds=[0]

For small networks most of a step is overhead. Here the networks of several runs are stacked, so that one product
serves all. Points, initial weights, order of samples, losses, optimizer and evaluation are those of ``sobolev run``,
and so are the run directories, which ``sobolev run``, ``compare`` and the figures read;
``tests/reports/test_together.py`` compares the two. Only what Figure 2 needs is here: a ReLU network of linear layers
with one output, ``squared-l2`` losses, exact gradients. While training only the validation points are measured, the
test points at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sobolev.build import Experiment, build
from sobolev.components import RunInfo
from sobolev.distributed import connect
from sobolev.evaluate import default_splits, evaluate
from sobolev.host import Host, default_host
from sobolev.recipe.plan import RunPlan, load_plans
from sobolev.recording import MetricsFile, Recorder
from sobolev.records import record
from sobolev.rundir import RunDirectory
from sobolev.sampler import Sampler
from sobolev.vocabulary import Batch, Probe

_SECONDS = 60.0  # between two checkpoints


class Stack:
    """The networks of several runs: weights ``(S, out, in)``, biases ``(S, 1, out)``, S runs."""

    def __init__(self, modules: Sequence[nn.Sequential]) -> None:
        self.names = [f"{i}.{kind}" for i, layer in enumerate(modules[0]) if isinstance(layer, nn.Linear)
                      for kind in ("weight", "bias")]  # fmt: skip
        states = [module.state_dict() for module in modules]
        stacked = {name: torch.stack([state[name] for state in states]) for name in self.names}
        self.parameters = [t if t.dim() == 3 else t[:, None, :] for t in stacked.values()]
        self.parameters = [nn.Parameter(t.contiguous(), requires_grad=False) for t in self.parameters]

    def state(self, run: int) -> dict[str, Tensor]:
        """Return a copy of the weights of one run, as its module names them."""
        shown = zip(self.names, self.parameters, strict=True)
        return {name: (p[run] if "weight" in name else p[run, 0]).clone() for name, p in shown}

    def gradients(self, x: Tensor, f: Tensor, g: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """Set the gradients of every run's own loss; return its two terms, ``(S,)`` each.

        The network is linear around each sample: the same adjoints serve value and derivative, and the error of the
        derivative is pushed forward through the same masks.

        Args:
            x: ``(S, B, d)``.
            f: values ``(S, B, 1)``.
            g: gradients ``(S, B, d)``.
            weight: of the derivative term.
        """
        weights, biases = self.parameters[0::2], self.parameters[1::2]
        rows = x.shape[1]
        hidden, masks = [x], []
        for w, b in zip(weights[:-1], biases[:-1], strict=True):
            a = torch.baddbmm(b, hidden[-1], w.mT)
            masks.append((a > 0).to(a.dtype))
            hidden.append(a * masks[-1])
        error = torch.baddbmm(biases[-1], hidden[-1], weights[-1].mT) - f
        e = 2 / rows * error
        adjoint = weights[-1] * masks[-1]
        adjoints = [adjoint]
        for w, mask in zip(weights[-2:0:-1], masks[-2::-1], strict=True):
            adjoint = torch.bmm(adjoint, w) * mask
            adjoints.insert(0, adjoint)
        slope = torch.zeros(len(x))
        tangents: list[Tensor | float] = [0.0] * len(hidden)
        if weight:
            off = torch.bmm(adjoints[0], weights[0]) - g
            slope = off.square().sum(dim=2).mean(dim=1)
            tangent = 2 * weight / rows * off
            tangents[0] = tangent
            for i, mask in enumerate(masks):
                tangent = torch.bmm(tangent, weights[i].mT) * mask
                tangents[i + 1] = tangent
        for i, adjoint in enumerate(adjoints):
            weights[i].grad = torch.bmm(adjoint.mT, e * hidden[i] + tangents[i])
            biases[i].grad = (e * adjoint).sum(dim=1, keepdim=True)
        weights[-1].grad = (e * hidden[-1] + tangents[-1]).sum(dim=1, keepdim=True)
        biases[-1].grad = e.sum(dim=1, keepdim=True)
        return error.square().sum(dim=2).mean(dim=1), slope


class Group:
    """Runs that differ in target, seed and initial weights alone."""

    def __init__(self, plans: Sequence[RunPlan], host: Host, root: Path) -> None:
        self.host = host
        self.plans = plans
        self.recipe = plans[0].recipe
        world = connect("cpu")
        self.experiments = [build(p, host.registry, world, say=print, smoke=True) for p in plans]
        self.directories = [RunDirectory(root / p.directory) for p in plans]
        self.sites = [next(iter(e.sites)) for e in self.experiments]
        modules = [e.module[site] for e, site in zip(self.experiments, self.sites, strict=True)]
        self.stack = Stack([_checked(module) for module in modules])
        self.size = self.experiments[0].target.size("train")
        self.data = [torch.stack(parts) for parts in zip(*map(self._data, self.experiments), strict=True)]
        terms = self.recipe.objective.get("derivatives")
        self.weight = float(terms[0].get("weight", 1.0)) if terms else 0.0
        self.samplers = [Sampler(self.size, self.recipe.train.batch_size, p.seed) for p in plans]
        self.optimizer = host.registry.build("optimizer", self.recipe.train.optimizer)(self.stack.parameters)
        schedule = self.recipe.train.schedule
        made = host.registry.build("schedule", schedule) if schedule else None
        self.schedule = made(self.optimizer, self.recipe.train.steps) if made else None
        self.best: list[tuple[float, int, dict[str, Tensor]]] = [(float("inf"), 0, {})] * len(plans)
        key = hashlib.sha256(repr([str(d.path) for d in self.directories]).encode()).hexdigest()[:16]
        self.file = root / ".together" / f"{key}.pt"

    @staticmethod
    def _data(experiment: Experiment) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.arange(experiment.target.size("train"))
        points = experiment.target.points(Batch("train", ids), training=True)
        ((site, where),) = points.items()
        jet = experiment.reference(points, {site: Probe.full((("x",),))}, None)[site]
        return where.inputs["x"], jet.value, jet[("x",)][:, 0]

    def _batch(self, step: int) -> list[Tensor]:
        ids = torch.stack([sampler.ids(step) for sampler in self.samplers])
        return [torch.take_along_dim(part, ids[:, :, None], dim=1) for part in self.data]

    def train(self) -> None:
        """Take all steps and leave one run directory per run."""
        start = self._restore()
        recorders = [self._start(i, start) for i in range(len(self.plans))]
        try:
            self._steps(start, recorders)
        except BaseException:
            for recorder, directory in zip(recorders, self.directories, strict=True):
                directory.write_status("interrupted")
                recorder.finish("interrupted", {}, [], None)
            raise
        self.file.unlink(missing_ok=True)

    def _steps(self, start: int, recorders: Sequence[Recorder]) -> None:
        train, every = self.recipe.train, self.recipe.evaluate.every
        log_every = train.log_every or max(1, train.steps // 200)
        saved = time.monotonic()
        latest: list[dict[str, float]] = [{} for _ in self.plans]
        for step in range(start, train.steps):
            value, slope = self.stack.gradients(*self._batch(step), self.weight)
            self.optimizer.step()
            if self.schedule:
                self.schedule.step()
            taken = step + 1
            if taken % log_every == 0 or taken == train.steps:
                if not torch.isfinite(value + slope).all():
                    raise SystemExit(f"step {step}: the loss is not finite")
                for i, recorder in enumerate(recorders):
                    latest[i] = self._terms(i, float(value[i]), float(slope[i]))
                    recorder.log(taken, latest[i])
            if every and taken % every == 0 and taken < train.steps:
                for i, recorder in enumerate(recorders):
                    recorder.log(taken, self._evaluate(i, taken, ["validation"]))
            if time.monotonic() - saved > _SECONDS:
                self._save(taken)
                saved = time.monotonic()
        for i, recorder in enumerate(recorders):
            self._finish(i, recorder, latest[i])

    def _terms(self, run: int, value: float, slope: float) -> dict[str, float]:
        site = self.sites[run]
        terms = {"train/loss": value + self.weight * slope, f"train/{site}/value": value}
        if self.weight:
            terms[f"train/{site}/d/dx"] = slope
        return terms | {"lr": float(self.optimizer.param_groups[0]["lr"])}

    def _evaluate(self, run: int, step: int, splits: Sequence[str] = ()) -> dict[str, float]:
        self.experiments[run].module[self.sites[run]].load_state_dict(self.stack.state(run))
        metrics = self._measure(run, splits)
        name = self.recipe.evaluate.best
        if name and metrics[name] < self.best[run][0]:
            self.best[run] = (metrics[name], step, self.stack.state(run))
        return metrics

    def _measure(self, run: int, splits: Sequence[str] = ()) -> dict[str, float]:
        experiment = self.experiments[run]
        measured = splits or default_splits(experiment)
        return {k: v for split in measured for k, v in evaluate(experiment, split).items()}

    def _start(self, run: int, step: int) -> Recorder:
        plan, directory = self.plans[run], self.directories[run]
        if step == 0:
            directory.clear()
        directory.create(plan)
        engine = f"trained together: batched products over {len(self.plans)} runs"
        directory.write_status("running", engines={self.sites[run]: {"d/dx (full)": engine}})
        recorder = Recorder([("metrics.jsonl", MetricsFile())])
        config = plan.resolved()
        steps = self.recipe.train.steps
        recorder.start(RunInfo(plan.recipe.name, plan.variant, plan.seed, directory.path, config, steps), step or None)
        return recorder

    def _finish(self, run: int, recorder: Recorder, latest: dict[str, float]) -> None:
        steps, directory, experiment = self.recipe.train.steps, self.directories[run], self.experiments[run]
        metrics = self._evaluate(run, steps)
        recorder.log(steps, metrics)
        summary = {**latest, **metrics}
        _, best_step, best = self.best[run]
        if best:
            if best_step != steps:
                summary |= {f"last/{name}": v for name, v in summary.items() if not name.startswith("train/")}
                experiment.module[self.sites[run]].load_state_dict(best)
                summary |= self._measure(run)
            summary["best/step"] = float(best_step)
        save_file({k: v.contiguous() for k, v in experiment.module.state_dict().items()}, directory.student)
        for spec in self.recipe.figures:
            record(experiment, spec["use"], self.host.registry.build("report", spec), directory, print)
        directory.write_status("finished", step=steps, summary=summary)
        recorder.finish("finished", summary, [], directory.student)

    def _save(self, step: int) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {"step": step, "parameters": self.stack.parameters, "optimizer": self.optimizer.state_dict()}
        state["schedule"] = self.schedule.state_dict() if self.schedule else {}
        temporary = self.file.with_suffix(".tmp")
        torch.save({**state, "best": self.best}, temporary)
        temporary.replace(self.file)

    def _restore(self) -> int:
        if not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True)
        for own, saved in zip(self.stack.parameters, state["parameters"], strict=True):
            own.data.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        self.best = [tuple(best) for best in state["best"]]
        return int(state["step"])


def _checked(module: nn.Module) -> nn.Sequential:
    layers = list(module.children())
    good = all(type(layer) is (nn.ReLU if i % 2 else nn.Linear) for i, layer in enumerate(layers))
    if not isinstance(module, nn.Sequential) or not good or layers[-1].out_features != 1:
        raise SystemExit("only a ReLU network with one output is trained here; use sobolev run")
    return module


def groups(plans: Sequence[RunPlan], size: int) -> list[list[RunPlan]]:
    """Return runs of equal shape and settings together, at most ``size`` of them."""
    found: dict[str, list[RunPlan]] = {}
    for plan in plans:
        recipe = plan.recipe
        same = [recipe.train.model_dump(mode="json"), recipe.objective, recipe.student, recipe.estimator, recipe.dtype]
        samples = {k: v for k, v in recipe.target.items() if k != "use"}
        found.setdefault(json.dumps([same, samples], sort_keys=True), []).append(plan)
    return [members[i : i + size] for members in found.values() for i in range(0, len(members), size)]


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the runs of a recipe together.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", action="append", default=[], help="only variants that start so")
    parser.add_argument("--group", type=int, default=7, help="runs at once")
    given = parser.parse_args()
    torch.set_num_threads(1)
    host = default_host()
    plans = load_plans(given.recipe, host.registry, given.overrides)
    if given.only:
        plans = [plan for plan in plans if plan.variant.startswith(tuple(given.only))]
    pending = [plan for plan in plans if RunDirectory(given.runs / plan.directory).state(plan) != "finished"]
    print(f"{len(plans)} runs, {len(pending)} to train", flush=True)
    for members in groups(pending, given.group):
        started = time.monotonic()
        Group(members, host, given.runs).train()
        names = f"{members[0].directory} and {len(members) - 1} more"
        print(f"{time.strftime('%H:%M:%S')} {time.monotonic() - started:.0f} s  {names}", flush=True)


if __name__ == "__main__":
    main()
