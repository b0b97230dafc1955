"""The parts of one run, made from its plan and checked against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sobolev.components import Context, Estimator, Learner, Objective, Student, Target
from sobolev.devices import without_default
from sobolev.differentiate.cache import DerivativeCache
from sobolev.differentiate.contract import restrict
from sobolev.differentiate.measure import Measurer, Policy
from sobolev.distributed import World
from sobolev.errors import ComponentError
from sobolev.heads import Head
from sobolev.noise import Noise, stream
from sobolev.recipe.model import Train
from sobolev.recipe.plan import RunPlan
from sobolev.registry import Registry, did_you_mean
from sobolev.statistics import measure_statistics, neutral
from sobolev.vocabulary import Batch, Jet, Key, Points, Probe, Site

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Drawn:
    """What one batch compares: drawn once, measured as often as an optimizer asks.

    Attributes:
        points, probes: by site.
        reference: the target's jets, or None where they wait for the student's prediction.
    """

    points: Mapping[str, Points]
    probes: Mapping[str, Probe]
    reference: Mapping[str, Jet] | None

    def at(self, site: str) -> Drawn:
        """Return what one site compares."""
        reference = None if self.reference is None else {site: self.reference[site]}
        return Drawn({site: self.points[site]}, {site: self.probes[site]}, reference)


@dataclass
class Experiment(Learner):
    """Everything that one run trains with."""

    plan: RunPlan
    context: Context
    target: Target
    estimator: Estimator
    objective: Objective
    module: nn.ModuleDict
    measurers: dict[str, Measurer]
    sites: Mapping[str, Site]
    keys: dict[str, tuple[Key, ...]]
    _caches: dict[str, DerivativeCache | None] | None = None

    @property
    def trainable(self) -> list[nn.Parameter]:
        """Parameters of the student that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def outputs(self, site: str) -> int:
        """Return ``m``, the size of the value of a site."""
        return self.objective.head.outputs(self.sites[site].outputs)

    def wanted(self, site: str) -> tuple[Key, ...]:
        """Return the first-order keys of a site: what a learning target may read, and what evaluation measures."""
        return tuple((name,) for name in self.sites[site].differentiate)

    def draw(self, batch: Batch, step: int, training: bool) -> Drawn:
        """Draw points, probes and, unless it waits for the prediction, the reference of a training batch."""
        points = self.target.points(batch, training)
        probes = {}
        for site, where in points.items():
            noise = Noise(self.plan.seed, batch.split, step, site)
            probe = self.estimator.probe(where, self.outputs(site), self.keys[site], noise)
            probes[site] = restrict(probe, where)
        reference: Mapping[str, Jet] | None = None
        if "prediction" not in self.target.needs:
            reference = self._cached(batch, probes) or self.reference(points, probes, None)
        return Drawn(points, probes, reference)

    def _cached(self, batch: Batch, probes: Mapping[str, Probe]) -> Mapping[str, Jet] | None:
        """Return the target's jets from derivatives that are kept, or None where they are not."""
        if batch.split != "train" or not self.target.derivative_cache or not len(batch.ids):
            return None
        if self._caches is None:
            self._caches = {site: self._cache(site, probe.keys) for site, probe in probes.items()}
        caches = {site: self._caches.get(site) for site in probes}
        if any(cache is None for cache in caches.values()):
            return None
        return {site: cache.answer(batch, probes[site]) for site, cache in caches.items() if cache is not None}

    def _cache(self, site: str, keys: tuple[Key, ...]) -> DerivativeCache | None:
        target, count = self.target, self.target.size("train")
        own = answers(target) or type(self.estimator).differentiate is not Estimator.differentiate
        changes = type(target).advance is not Target.advance or not target.fixed_points
        if own or changes or not keys or any(len(key) != 1 for key in keys):
            return None
        size = DerivativeCache.bytes(self.sites[site], self.outputs(site), keys, count, self.context.dtype)
        if size > target.derivative_cache:
            return None
        return DerivativeCache(
            lambda ids: target.points(Batch("train", ids, target.load("train", ids)), False)[site],
            lambda where: self._value_of(site, where),
            count,
        )

    def reference(
        self, points: Mapping[str, Points], probes: Mapping[str, Probe], prediction: Mapping[str, Jet] | None
    ) -> Mapping[str, Jet]:
        """Return the target's jets: its own answer, or its value differentiated by the estimator."""
        if answers(self.target):
            waits = prediction is not None and "prediction" in self.target.needs
            seen = {site: jet.detach() for site, jet in prediction.items()} if prediction and waits else None
            return self.target.answer(points, probes, seen)
        return {
            site: self.estimator.differentiate(self._value_of(site, where), where, probes[site])
            for site, where in points.items()
        }

    def _value_of(self, site: str, points: Points) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda inputs: self.target.value(site, inputs, points)

    def predict(self, drawn: Drawn) -> dict[str, Jet]:
        """Measure the student with graph; derivatives that only the target needs come detached."""
        prediction = {}
        for site, where in drawn.points.items():
            probe = drawn.probes[site]
            extra: tuple[Key, ...] = ()
            if "gradient" in self.target.needs:
                extra = tuple(key for key in self.wanted(site) if key not in probe.contractions)
            if extra:
                probe = Probe({**probe.contractions, **Probe.full(extra).contractions})
            prediction[site] = self.measurers[site].measure(where, probe, detached=frozenset(extra))
        return prediction

    def seen(self, drawn: Drawn, prediction: Mapping[str, Jet]) -> dict[str, Jet]:
        """Return what the target may see of a prediction: detached, with full first derivatives if it needs them."""
        if "gradient" in self.target.needs and any(
            not drawn.probes[site].contractions[key].full
            for site in drawn.points
            for key in self.wanted(site)
            if key in drawn.probes[site].contractions
        ):
            return self.measure(drawn.points)
        return {site: jet.detach() for site, jet in prediction.items()}

    def value(self, site: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the student's value ``(B, m)``, without graph."""
        with torch.no_grad():
            return self.measurers[site].value(inputs)

    def measure(self, points: Mapping[str, Points]) -> dict[str, Jet]:
        """Measure value and full first derivatives, without graph."""
        return {
            site: self.measurers[site].measure(where, Probe.full(self.wanted(site)), create_graph=False)
            for site, where in points.items()
        }


def answers(target: Target) -> bool:
    """Return whether a target answers jets itself.

    Raises:
        ComponentError: it overrides both `answer` and `value`, or neither.
    """
    own_answer = type(target).answer is not Target.answer
    own_value = type(target).value is not Target.value
    if own_answer == own_value:
        which = "both 'answer' and 'value'" if own_answer else "neither 'answer' nor 'value'"
        raise ComponentError(f"target {type(target).__name__} defines {which}; exactly one is needed")
    return own_answer


@without_default
def build(
    plan: RunPlan,
    registry: Registry,
    world: World,
    *,
    output: Path | None = None,
    cache: Path = Path("runs/.cache"),
    say: Callable[[str], None] = print,
    smoke: bool = False,
    blank: bool = False,
    saved: Path | None = None,
    engines: Mapping[str, Mapping[str, str]] | None = None,
) -> Experiment:
    """Make the parts of a run.

    Args:
        plan: the run.
        registry: of components.
        world: the processes.
        output: the run's own directory.
        cache: folder for results worth keeping.
        say: shows a line to the user.
        smoke: nothing is compiled.
        blank: the student's weights and scaling will be read from a file, so that nothing of the data is measured.
        saved: the finished run's directory that they will be read from.
        engines: by site, what measured derivatives when the run began; a resumed run goes on with it.

    Raises:
        ComponentError: parts that do not fit together; says which and what would.
    """
    recipe = plan.recipe
    target: Target = registry.build("target", recipe.target)
    estimator: Estimator = registry.build("estimator", recipe.estimator)
    objective: Objective = registry.build("objective", recipe.objective)
    family: Student = registry.build("student", recipe.student)
    answers(target)
    _check_head(objective.head, target, recipe.target["use"])
    context = Context(
        device=world.device,
        dtype=DTYPES[recipe.dtype],
        world=world,
        seed=plan.seed,
        head=objective.head,
        directory=plan.file.parent.resolve(),
        cache=cache,
        output=output,
        saved=saved,
        say=say,
    )
    target.prepare(context)
    sites = target.sites()
    keys = {name: objective.keys(site) for name, site in sites.items()}
    _check_order(keys, target, recipe.target["use"])
    estimator.prepare(target, context)
    module = nn.ModuleDict()
    experiment = Experiment(plan, context, target, estimator, objective, module, {}, sites, keys)
    needed = family.needs | objective.needs
    if "statistics" in needed:
        if blank:
            statistics = neutral(sites, {name: experiment.outputs(name) for name in sites})
        else:
            statistics = measure_statistics(experiment, derivatives="statistics" in objective.needs)
        sites = {name: replace(site, statistics=statistics[name]) for name, site in sites.items()}
        experiment.sites = sites
    if not blank:
        objective.prepare(sites)
    for name, site in sites.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(plan.seed, "student", name))
            module[name] = family.build(site)
    module.to(device=world.device, dtype=context.dtype)
    world.broadcast(module)
    policy = Policy(
        steps=_evaluations(recipe.train, registry),
        compile="never" if smoke else recipe.train.compile,
        memory=estimator.memory,
        precision="autocast" if recipe.precision == "bfloat16-derivatives" else "float32",
        autocast=None if recipe.precision == "full" else torch.bfloat16,
    )
    began = engines or {}
    # Students of equal sites are built alike: what is compiled for one of them serves all.
    shapes = Counter(_shape(site) for site in sites.values())
    experiment.measurers = {
        name: Measurer(
            module[name],
            objective.head,
            site,
            replace(policy, steps=policy.steps * shapes[_shape(site)]),
            began.get(name),
        )
        for name, site in sites.items()
    }
    return experiment


def _shape(site: Site) -> tuple[Any, ...]:
    return tuple(site.inputs.items()), site.outputs


def _evaluations(train: Train, registry: Registry) -> int:
    """Return how often a run asks for its loss at most; optimizers that ask several times a step name ``max_iter``."""
    phases = [(phase.steps, registry.options("optimizer", phase.optimizer)) for phase in train.in_phases()]
    return sum(steps * getattr(options, "max_iter", 1) for steps, options in phases)


def _check_head(head: Head, target: Target, name: str) -> None:
    if head.name not in target.heads:
        raise ComponentError(
            f"objective: the target {name!r} answers for the head {' or '.join(target.heads)}, not {head.name!r}; "
            f"{did_you_mean(head.name, target.heads)}"
        )


def _check_order(keys: Mapping[str, tuple[Key, ...]], target: Target, name: str) -> None:
    highest = max((len(key) for site in keys.values() for key in site), default=0)
    if target.max_order is not None and highest > target.max_order:
        raise ComponentError(
            f"objective: a derivative of order {highest} is wanted, the target {name!r} has them up to order "
            f"{target.max_order}; lower the order or set its weight to 0"
        )
