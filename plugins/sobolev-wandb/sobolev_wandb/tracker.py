"""The tracker: records offline below the run directory, and starts the upload of what it records."""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import sobolev
from sobolev import RunInfo, Tracker
from sobolev_wandb import upload
from sobolev_wandb.settings import resolve_mode

STEP = "global_step"
NOTE = "wandb.json"
COMPARISON = "comparison.wandb.json"
_PATIENCE = 20.0  # seconds; nothing here needs the network, an offline run opens in less than one


class WandbTracker(Tracker):
    """One W&B run per `sobolev` run: group is the recipe, job type the variant, name ``variant/seed``.

    Args:
        project: on the server.
        entity: user or team, or None for that of the login.
        mode: ``auto``, ``online`` or ``offline``.
        tags: besides those of the recipe.
        student: whether the trained student is kept as an artifact.
        wait: seconds that `compare` waits for uploads.
    """

    def __init__(
        self, *, project: str, entity: str | None, mode: str, tags: Sequence[str], student: bool, wait: float
    ) -> None:
        self.project = project
        self.entity = entity
        self.mode = mode
        self.tags = list(tags)
        self.student = student
        self.wait = wait
        self.run: Any = None
        self._logged: set[str] = set()
        self._last = 0

    def start(self, run: RunInfo, resumed_at: int | None) -> None:
        """Open a W&B run, the same one again where the run directory names one."""
        earlier = _read(run.directory / NOTE)
        self._open(
            run.directory,
            NOTE,
            name=f"{run.variant}/{run.seed}",
            group=run.recipe,
            job_type=run.variant,
            tags=[*dict.fromkeys([*run.tags, *self.tags, f"sobolev-{sobolev.__version__}"])],
            config={**run.config, "steps": run.steps},
            id=earlier.get("id"),
            live=True,
        )
        self._last = resumed_at or 0
        if self.run is not None:
            # An axis of our own: W&B's step only rises, and would drop what a resumed run records again.
            self.run.define_metric(STEP)
            for summary in ("min", "last"):
                self.run.define_metric("*", step_metric=STEP, summary=summary)

    def _open(self, directory: Path, note: str, *, live: bool, id: str | None, **identity: Any) -> None:
        import wandb

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        base_url = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
        mode, reason = resolve_mode(self.mode, base_url)
        if mode == "disabled":
            return
        known = {"id": id or secrets.token_hex(8), "project": self.project, "entity": self.entity}
        known |= {"mode": mode, "reason": reason, "asked": self.mode}
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / note, known)  # before the first record, so that a killed run finds its id again
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, init_timeout=_PATIENCE
        )
        self.run = within(
            _PATIENCE + 5,
            lambda: wandb.init(
                project=self.project,
                entity=self.entity,
                dir=directory.resolve(),
                id=known["id"],
                mode="offline",
                resume="allow" if id else None,
                reinit="create_new",
                settings=settings,
                **identity,
            ),
        )
        file = _file(self.run)
        _write(directory / note, {**known, "file": str(file.relative_to(directory.resolve()))})
        self._live = live and mode == "online"
        if self._live:
            upload.start(file, _log(file), live=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers over ``global_step``."""
        if self.run is not None:
            self._last = step
            self._logged |= set(metrics)
            self.run.log({**metrics, STEP: step})

    def finish(self, status: str, summary: Mapping[str, float], figures: Sequence[Path], student: Path | None) -> None:
        """Record what is new at the end, pictures and the student; close the run."""
        if self.run is None:
            return
        final = {name: value for name, value in summary.items() if name not in self._logged}
        if final or figures:
            self.run.log({**final, **_images(figures), STEP: self._last})
        self.run.summary["status"] = status
        if self.student and student is not None and student.is_file():
            self._keep(student, summary)
        run, self.run = self.run, None
        within(_PATIENCE, lambda: run.finish(0 if status == "finished" else 1))

    def _keep(self, student: Path, summary: Mapping[str, float]) -> None:
        import wandb

        finite = {name: value for name, value in summary.items() if math.isfinite(value)}
        artifact = wandb.Artifact(f"student-{self.run.id}", type="student", metadata=finite)
        for file in (student, student.parent / "recipe.yaml"):
            if file.is_file():
                # "immutable" refers to the file where it lies, instead of copying it to the user's home first.
                artifact.add_file(str(file.resolve()), policy="immutable", skip_cache=True)
        self.run.log_artifact(artifact)

    def compare(self, recipe: str, table: str, figures: Sequence[Path], directory: Path) -> None:
        """Record the comparison as a run of job type ``compare``; say what was uploaded and what was not."""
        import wandb

        tags = [*self.tags, f"sobolev-{sobolev.__version__}"]
        self._open(
            directory, COMPARISON, name="compare", group=recipe, job_type="compare", tags=tags,
            config={"recipe": recipe}, id=_read(directory / COMPARISON).get("id"), live=False,
        )  # fmt: skip
        if self.run is None:
            return
        columns, rows = _rows(table)
        self.run.log({"comparison": wandb.Table(columns=columns, data=rows), **_images(figures), STEP: 0})
        file = _file(self.run)
        run, self.run = self.run, None
        within(_PATIENCE, lambda: run.finish(0))
        if _read(directory / COMPARISON)["mode"] == "online":
            upload.start(file, _log(file), live=False)
        self._conclude(directory)

    def _conclude(self, directory: Path) -> None:
        """Wait for the uploads of a recipe's runs, for a few seconds in all, and tell the user how things stand."""
        notes = [*sorted(directory.glob(f"*/*/{NOTE}")), directory / COMPARISON]
        known = [(note.parent, _read(note)) for note in notes]
        online = [_log(folder / note["file"]) for folder, note in known if note.get("mode") == "online"]
        deadline = time.monotonic() + self.wait
        while any(upload.outcome(log) == "running" for log in online) and time.monotonic() < deadline:
            time.sleep(0.1)
        states = Counter(upload.outcome(log) for log in online)
        by_hand = f"wandb sync {directory}/*/*/wandb/offline-run-* {directory}/wandb/offline-run-*"
        if states["failed"] + states["running"]:
            late = f"{states['failed'] + states['running']} of {len(online)}"
            self.say(
                f"warning: wandb: {late} uploads are not complete (see upload.log beside them); everything is recorded "
                f"on this machine and can be uploaded by: {by_hand}"
            )
        elif online:
            self.say(f"wandb             {upload.address(online[-1]) or 'uploaded'}")
        offline = [note for _, note in known if note.get("mode") == "offline"]
        if offline:
            asked = "warning: wandb: not logged in, so not online as asked; " if _disappointed(offline) else "wandb "
            self.say(f"{asked}recorded offline ({offline[0]['reason']}); to upload: wandb login && {by_hand}")


def _disappointed(notes: Sequence[Mapping[str, Any]]) -> bool:
    return any(note["asked"] == "online" and note["reason"] == "not logged in" for note in notes)


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what a call returns.

    Raises:
        TimeoutError: it takes longer; it is left to itself then, in a thread that keeps nobody from leaving.
    """
    future: Future[Any] = Future()

    def answer() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()
    try:
        return future.result(timeout=seconds)
    except TimeoutError:
        if future.done():
            raise
        raise TimeoutError(f"wandb did not answer within {seconds:.0f} s") from None


def _file(run: Any) -> Path:
    """Return the file that a W&B run is written to, absolute; wandb gives it relative to the current folder."""
    return Path(run.settings.sync_file).resolve()


def _log(file: Path) -> Path:
    return file.parent / "upload.log"


def _images(figures: Sequence[Path]) -> dict[str, Any]:
    import wandb

    pictures = [file for file in figures if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif")]
    return {f"figures/{file.stem}": wandb.Image(str(file)) for file in pictures}


def _rows(markdown: str) -> tuple[list[str | int], list[Iterable[Any]]]:
    """Return columns and rows of a Markdown table."""
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in markdown.splitlines() if line]
    return list(cells[0]), list(cells[2:])


def _read(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _write(file: Path, content: Mapping[str, Any]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(file)
