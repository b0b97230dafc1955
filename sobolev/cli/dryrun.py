"""``sobolev run --dry-run``: what would happen, and whether the parts fit."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from sobolev.errors import SobolevError
from sobolev.rundir import RunDirectory
from sobolev.wording import plural

if TYPE_CHECKING:
    from rich.console import Console

    from sobolev.build import Experiment
    from sobolev.distributed import World
    from sobolev.host import Host
    from sobolev.recipe.plan import RunPlan

_TIMED_STEPS = 5
_OTHER = "other recipe"
_SAID = 6  # lines that parts may say about themselves


@dataclass(frozen=True)
class _Rehearsal:
    """What one run of a variant showed: the gradient check, the number of steps, seconds for all of them."""

    checked: str
    steps: int
    seconds: float


def dry_run(plans: list[RunPlan], host: Host, device: str, root: Path, console: Console) -> None:
    """List the runs by variant, try the first seed of each on a few samples, and estimate the time.

    Nothing is written, except what a target keeps in the cache below ``root`` because it is expensive.

    Raises:
        SobolevError: parts that do not fit together.
    """
    from rich.table import Table

    from sobolev.distributed import connect

    world = connect(device)
    said: list[str] = []
    variants: dict[str, list[RunPlan]] = {}
    for plan in plans:
        variants.setdefault(plan.variant, []).append(plan)
    made = Table("variant", "seeds", "state", "steps", "gradient", "ms per step", "a run")
    for column in (3, 5, 6):
        made.columns[column].justify = "right"
    left, others = 0.0, 0
    for variant, members in variants.items():
        rehearsal = _rehearse(members[0], host, world, root / ".cache", said)
        states = [_state(root, plan) for plan in members]
        others += states.count(_OTHER)
        left += rehearsal.seconds * sum(state != "finished" for state in states)
        made.add_row(
            variant,
            _seeds([plan.seed for plan in members]),
            _counted(states),
            f"{rehearsal.steps:,}",
            rehearsal.checked,
            f"{1e3 * rehearsal.seconds / max(1, rehearsal.steps):.2f}",
            _span(rehearsal.seconds),
        )
    console.print(f"[bold]{plans[0].recipe.name}[/]: {plural(len(plans), 'run')}", highlight=False)
    for line in said[:_SAID]:
        console.print(line, markup=False, highlight=False)
    if len(said) > _SAID:
        console.print(f"... and {plural(len(said) - _SAID, 'more line')} of this kind", highlight=False)
    console.print(made)
    if others:
        console.print(
            f"{_OTHER}: {plural(others, 'run')} of a recipe that has changed since would be refused; give the recipe "
            "another name, choose another --runs folder, or start over with --force", style="yellow", highlight=False,
        )  # fmt: skip
    console.print(f"training that is left: {_span(left)}, one run after the other", highlight=False)


def _rehearse(plan: RunPlan, host: Host, world: World, cache: Path, said: list[str]) -> _Rehearsal:
    """Build a run, check its gradient and time a few steps; what parts say is added to ``said``, once."""
    from sobolev.build import build
    from sobolev.preflight import preflight

    def say(line: str) -> None:
        if line not in said:
            said.append(line)

    experiment = build(plan, host.registry, world, cache=cache, say=say, smoke=True)
    try:
        agreement = preflight(experiment)
        steps, seconds = _time(experiment, host)
    finally:
        experiment.target.close()
    without = "not finite" if experiment.trainable else "no parameters"
    return _Rehearsal(without if agreement is None else "agrees", steps, seconds)


def _time(experiment: Experiment, host: Host) -> tuple[int, float]:
    """Return all steps of a run and the seconds that they would take, from the first few of every phase."""
    import copy

    from sobolev.train import Trainer

    plan = experiment.plan
    whole = Trainer(experiment, host.registry)
    short = copy.deepcopy(plan.recipe)
    short.evaluate.splits = []
    short.train.phases = [p.model_copy(update={"steps": min(p.steps, 1 + _TIMED_STEPS)}) for p in whole.phases]
    experiment.plan = type(plan)(short, plan.variant, plan.seed, plan.file)
    times = [time.perf_counter()]
    Trainer(experiment, host.registry, progress=lambda *_: times.append(time.perf_counter())).run()
    spans = [b - a for a, b in itertools.pairwise(times)]
    seconds = 0.0
    for phase, timed in zip(whole.phases, short.train.phases, strict=True):
        mine, spans = spans[: timed.steps], spans[timed.steps :]
        seconds += phase.steps * median(mine[1:] or mine or [0.0])  # the first step of a phase sets things up
    return whole.steps, seconds if whole.steps else 0.0


def _state(root: Path, plan: RunPlan) -> str:
    try:
        return RunDirectory(root / plan.directory).state(plan)
    except SobolevError:
        return _OTHER


def _counted(states: Sequence[str]) -> str:
    """Return ``new``, or ``2 finished, 1 new`` where they differ."""
    counts = Counter(states)
    return states[0] if len(counts) == 1 else ", ".join(f"{count} {state}" for state, count in counts.items())


def _seeds(seeds: Sequence[int]) -> str:
    """Return ``0``, ``0-4`` or ``3, 11``."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def _span(seconds: float) -> str:
    if seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
