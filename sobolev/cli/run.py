"""``sobolev run``."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sobolev.cli import host_of
from sobolev.wording import plural

if TYPE_CHECKING:
    from rich.console import Console

    from sobolev.host import Host
    from sobolev.recipe.plan import RunPlan
    from sobolev.run import Result, Settings


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Change a field of the recipe.")
@click.option("--smoke", is_flag=True, help="Apply the recipe's own 'smoke' changes: seconds instead of hours.")
@click.option("--dry-run", is_flag=True, help="List the runs, try the parts on a tiny batch, estimate the time.")
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), show_default=True,
              help="Folder of all run directories.")  # fmt: skip
@click.option("--jobs", "-j", type=click.IntRange(1), default=None,
              help="Runs at the same time, one process each.  [default: one per core, at most one a run]")  # fmt: skip
@click.option("--devices", type=click.IntRange(1), default=1, show_default=True,
              help="Processes that train one run together (data parallel).")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--only", multiple=True, metavar="VARIANT", help="Only these variants.")
@click.option("--force", is_flag=True, help="Start over, even where finished runs or runs of another recipe stand.")
@click.pass_context
def run(
    ctx: click.Context,
    recipe: Path,
    overrides: tuple[str, ...],
    smoke: bool,
    dry_run: bool,
    root: Path,
    jobs: int | None,
    devices: int,
    device: str,
    only: tuple[str, ...],
    force: bool,
) -> None:
    """Run RECIPE: train all its runs, compare them, draw its figures.

    A run that is finished is not repeated, one that was interrupted goes on from its last checkpoint. Ctrl-C stops
    after a checkpoint; a second one stops at once.
    """
    from sobolev.errors import RecipeError
    from sobolev.recipe.plan import load_plans
    from sobolev.registry import did_you_mean

    if devices > 1 and "RANK" not in os.environ:
        from sobolev.distributed import launch

        ctx.exit(launch(devices, sys.argv[1:]))
    host = host_of(ctx)
    plans = load_plans(recipe, host.registry, overrides, smoke)
    for name in only:
        if name not in {plan.variant for plan in plans}:
            raise RecipeError(f"--only {name}: {did_you_mean(name, {plan.variant for plan in plans})}")
    if only:
        plans = [plan for plan in plans if plan.variant in only]
    from rich.console import Console

    console = Console()
    if dry_run:
        from sobolev.cli.dryrun import dry_run as rehearse

        rehearse(plans, host, device, root, console)
        return
    ctx.exit(_run(ctx, plans, host, root, jobs, device, force, smoke, console))


def _run(
    ctx: click.Context,
    plans: list[RunPlan],
    host: Host,
    root: Path,
    jobs: int | None,
    device: str,
    force: bool,
    smoke: bool,
    console: Console,
) -> int:
    from sobolev.cli.display import RichDisplay
    from sobolev.jobs import HostOptions, run_all
    from sobolev.run import Settings
    from sobolev.rundir import RunDirectory

    settings = Settings(root, force, smoke)
    first = int(os.environ.get("RANK", "0")) == 0
    together = "RANK" in os.environ
    pending = [p for p in plans if force or RunDirectory(root / p.directory).state(p) != "finished"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = 1 if together else min(jobs or (cores if device in ("auto", "cpu") else 1), max(1, len(pending)))
    if not first:
        console.quiet = True
    name = plans[0].recipe.name
    console.print(f"[bold]{name}[/]: {plural(len(plans), 'run')}" + (f", {count} at a time" if count > 1 else ""))
    if len(pending) < len(plans):
        console.print(f"{len(plans) - len(pending)} of them were finished before and are not repeated")
    started = time.monotonic()
    results: list[Result] = []
    if pending:
        with RichDisplay(pending, console) as display:
            options = HostOptions(ctx.find_root().params.get("plugins_dir"))
            results = run_all(pending, count, device, settings, options, display)
        console.print(f"trained in {time.monotonic() - started:.0f} s")
    if first:
        _conclude(plans, host, settings, bool(pending), console)
    if any(result.status == "failed" for result in results):
        return 2
    if any(result.status == "interrupted" for result in results):
        console.print("interrupted; the same command continues from the last checkpoints")
        return _signal_code(results)
    return 0


def _signal_code(results: list[Result]) -> int:
    for result in results:
        if result.message.startswith("signal "):
            return 128 + int(result.message.split()[1])
    return 130


def _conclude(plans: list[RunPlan], host: Host, settings: Settings, trained: bool, console: Console) -> None:
    """Show the comparison, draw the figures, and say where everything is."""
    from sobolev.compare import compare, markdown, table
    from sobolev.recording import Recorder
    from sobolev.rundir import read_run

    paths = [settings.root / plan.directory for plan in plans]
    records = [read_run(path) for path in paths if (path / "recipe.yaml").is_file()]
    finished = [record for record in records if record.status == "finished"]
    if not finished:
        return
    recipe = plans[0].recipe
    home = settings.root / recipe.name
    comparison = compare(finished)
    several = any(count > 1 for count in comparison.seeds.values())
    title = f"{recipe.name}: mean ± standard deviation over seeds" if several else recipe.name
    console.print(table(comparison, title, console.width))
    text = markdown(comparison)
    (home / "comparison.md").write_text(text + "\n")
    figures: list[Path] = []
    for spec in recipe.figures:
        try:
            drawn = host.registry.build("report", spec).draw(finished, home / "figures")
            figures += drawn
            if not drawn:
                name = spec["use"]
                console.print(
                    f"figure {name}: nothing was recorded that it can show; `sobolev show {name}` says what it is for",
                    style="yellow", highlight=False,
                )  # fmt: skip
        except Exception as error:
            console.print(f"warning: figure {spec['use']}: {type(error).__name__}: {error}", style="yellow")
    if trained:
        trackers = [(s["use"], host.registry.build("tracker", s)) for s in recipe.track]
        Recorder(trackers, console.print).compare(recipe.name, text, figures, home)
    console.print(f"runs and records  {home}", highlight=False)
    for figure in figures:
        console.print(f"figure            {figure}", highlight=False)
