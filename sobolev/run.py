"""One run from its plan to its directory."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sobolev import checkpoint
from sobolev.build import Experiment, build
from sobolev.components import Report, RunInfo, Tracker
from sobolev.devices import without_default
from sobolev.distributed import World
from sobolev.errors import RecipeError, RunError, SobolevError
from sobolev.evaluate import check_names
from sobolev.host import Host
from sobolev.preflight import preflight
from sobolev.recipe.plan import RunPlan
from sobolev.recording import MetricsFile, Recorder
from sobolev.records import record
from sobolev.rundir import Lock, RunDirectory
from sobolev.train import Outcome, Progress, Trainer


@dataclass(frozen=True)
class Settings:
    """How runs are executed; the same for all runs of a command.

    Attributes:
        root: folder of all runs.
        force: start over where a directory holds something else.
        smoke: a smoke run; nothing is compiled.
    """

    root: Path = Path("runs")
    force: bool = False
    smoke: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        status: ``finished``, ``present`` (it was finished before), ``interrupted`` or ``failed``.
        message: for people, where it failed.
        summary: final metrics.
    """

    status: str
    message: str = ""
    summary: dict[str, float] = field(default_factory=dict)


@without_default
def execute(
    plan: RunPlan,
    host: Host,
    world: World,
    settings: Settings,
    progress: Progress = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train one run, or go on with it, or find that it is finished.

    Raises:
        SobolevError: a mistake in recipe or data; no directory is left behind if nothing was trained.
    """
    directory = RunDirectory(settings.root / plan.directory)
    state = "new" if settings.force else directory.state(plan)
    world.barrier()  # nobody looks after the first rank has begun to write
    if state == "finished":
        return Result("present", summary=_summary(directory))
    with ExitStack() as stack:
        locked = world.first and directory.path.exists()
        if locked:
            stack.enter_context(Lock(directory.path))
        loaded = checkpoint.load_newest(directory.checkpoints, say) if state == "unfinished" else None
        experiment = build(
            plan,
            host.registry,
            world,
            output=directory.path,
            cache=settings.root / ".cache",
            say=say,
            smoke=settings.smoke,
            engines=loaded.state.get("engines") if loaded else None,
        )
        stack.callback(experiment.target.close)
        trackers: list[tuple[str, Tracker]] = []
        reports: list[tuple[str, Report]] = []
        if world.first:
            trackers = [("metrics.jsonl", MetricsFile())]
            trackers += [(s["use"], host.registry.build("tracker", s)) for s in plan.recipe.track]
            reports = [(s["use"], host.registry.build("report", s)) for s in plan.recipe.figures]
        recorder = Recorder(trackers, say)
        trainer = Trainer(experiment, host.registry, directory, recorder, progress, stop)
        if loaded is None:
            check_names(experiment)
            if plan.recipe.train.preflight:
                preflight(experiment)
        if world.first:
            if not locked:  # only now, so that a mistake leaves no directory behind
                stack.enter_context(Lock(directory.path))
                if (directory.path / "recipe.yaml").exists():
                    raise RecipeError(f"{directory.path}: another process has begun this run meanwhile")
            if state == "new":
                directory.clear()
            directory.create(plan)
            directory.write_status("running", engines=_engines(experiment))
        world.barrier()
        stack.enter_context(_writable(directory, recorder))
        recorder.start(_info(plan, directory, trainer.steps), loaded.step if loaded else None)
        try:
            outcome = trainer.run(loaded)
        except SobolevError as error:
            if world.first:
                directory.write_status("failed", message=str(error))
            recorder.finish("failed", {}, [], None)
            raise
        if world.first:
            _leave(experiment, outcome, directory, reports, recorder)
        world.barrier()
        return Result(outcome.status, summary=outcome.summary)


@contextmanager
def _writable(directory: RunDirectory, recorder: Recorder) -> Iterator[None]:
    """Turn a disk that takes no more into a message; what was written stays.

    Raises:
        RunError: says what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        message = (
            f"{directory.path}: nothing more can be written ({error.strerror}: {error.filename or directory.path}). "
            "Make room and run the same command again: it goes on from the last checkpoint"
        )
        with suppress(OSError):
            directory.write_status("failed", message=message)
        with suppress(OSError, AttributeError):  # of files that could not even be opened
            recorder.finish("failed", {}, [], None)
        raise RunError(message) from error


def _engines(experiment: Experiment) -> dict[str, dict[str, str]]:
    return {name: measurer.describe() for name, measurer in experiment.measurers.items()}


def _leave(
    experiment: Experiment,
    outcome: Outcome,
    directory: RunDirectory,
    reports: list[tuple[str, Report]],
    recorder: Recorder,
) -> None:
    """Write what remains of a run: student, records for the figures, status."""
    student = None
    if outcome.status == "finished":
        student = directory.student
        temporary = student.with_suffix(".tmp")
        checkpoint.write_tensors({k: v.contiguous() for k, v in experiment.module.state_dict().items()}, temporary)
        temporary.replace(student)
        for name, report in reports:
            record(experiment, name, report, directory, recorder.warn)
    engines = _engines(experiment)
    directory.write_status(outcome.status, step=outcome.step, summary=outcome.summary, engines=engines)
    recorder.finish(outcome.status, outcome.summary, [], student)


def _summary(directory: RunDirectory) -> dict[str, float]:
    return {name: float(value) for name, value in directory.read_status().get("summary", {}).items()}


def _info(plan: RunPlan, directory: RunDirectory, steps: int) -> RunInfo:
    return RunInfo(
        plan.recipe.name, plan.variant, plan.seed, directory.path, plan.resolved(), steps, tuple(plan.recipe.tags)
    )
