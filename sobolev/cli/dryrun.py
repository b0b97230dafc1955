"""``sobolev run --dry-run``: what would happen, and whether the parts fit."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sobolev.errors import SobolevError
from sobolev.rundir import RunDirectory

if TYPE_CHECKING:
    from rich.console import Console

    from sobolev.distributed import World
    from sobolev.host import Host
    from sobolev.recipe.plan import RunPlan

_TIMED_STEPS = 5


def dry_run(plans: list[RunPlan], host: Host, device: str, root: Path, console: Console) -> None:
    """List the runs, try the first seed of every variant on a few samples, and estimate the time.

    Raises:
        SobolevError: parts that do not fit together.
    """
    from rich.table import Table

    from sobolev.distributed import connect

    world = connect(device)
    made = Table(title="runs", title_justify="left")
    made.add_column("run", overflow="fold", min_width=24)
    for column in ("state", "steps", "gradient check", "ms per step", "about"):
        made.add_column(column)
    timings: dict[str, tuple[str, float, int]] = {}
    for plan in plans:
        if plan.variant not in timings:
            timings[plan.variant] = _rehearse(plan, host, world)
        checked, seconds, steps = timings[plan.variant]
        try:
            state = RunDirectory(root / plan.directory).state(plan)
        except SobolevError:
            state = "other recipe"
        made.add_row(str(plan.directory), state, str(steps), checked, f"{1e3 * seconds:.2f}", _span(seconds * steps))
    console.print(made)


def _rehearse(plan: RunPlan, host: Host, world: World) -> tuple[str, float, int]:
    """Return what the gradient check said, seconds per step and the number of steps."""
    import copy
    import tempfile

    from sobolev.build import build
    from sobolev.preflight import preflight
    from sobolev.train import Trainer

    short = copy.deepcopy(plan.recipe)
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(plan, host.registry, world, cache=Path(folder), say=lambda _: None, smoke=True)
        try:
            agreement = preflight(experiment)
            steps = Trainer(experiment, host.registry).steps
            short.train.phases = []
            short.train.steps = _TIMED_STEPS
            short.evaluate.splits = []
            experiment.plan = type(plan)(short, plan.variant, plan.seed, plan.file)
            times: list[float] = []
            trainer = Trainer(experiment, host.registry, progress=lambda *_: times.append(time.perf_counter()))
            trainer.run()
        finally:
            experiment.target.close()
    pairs = sorted(b - a for a, b in itertools.pairwise(times))
    checked = "no parameters" if agreement is None else "agrees"
    return checked, pairs[len(pairs) // 2] if pairs else 0.0, steps


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
