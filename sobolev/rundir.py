"""The run directory: what a run leaves behind, readable without the program.

``runs/<recipe>/<variant>/seed-<n>/`` holds ``recipe.yaml`` (resolved), ``env.json``, ``status.json``,
``metrics.jsonl``, ``checkpoints/``, ``student.safetensors``, ``records/`` and ``figures/``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sobolev.components import RunRecord
from sobolev.errors import RecipeError
from sobolev.recipe.plan import RunPlan, difference
from sobolev.recipe.source import write

LOCK = "lock.json"
_ASIDE = ("description", "tags", "track", "figures")  # no number depends on them
_PACKAGES = ("sobolev", "torch", "numpy", "pydantic", "pluggy", "safetensors")


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object per line, with ``step``."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run continues from."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """Weights of the trained student."""
        return self.path / "student.safetensors"

    @property
    def records(self) -> Path:
        """Arrays that reports draw from."""
        return self.path / "records"

    @property
    def figures(self) -> Path:
        """Pictures of this run."""
        return self.path / "figures"

    def state(self, plan: RunPlan) -> str:
        """Return ``new``, ``finished`` or ``unfinished``.

        Raises:
            RecipeError: the directory holds a run of another recipe; shows the difference and the ways out.
        """
        saved = self.path / "recipe.yaml"
        if not saved.is_file():
            return "new"
        before, now = ({k: v for k, v in r.items() if k not in _ASIDE} for r in (read_yaml(saved), plan.resolved()))
        lines = difference(before, now)
        if lines and not self._worth_keeping():
            return "new"
        if lines:
            shown = "\n".join(f"  {line}" for line in lines[:12]) + ("\n  ..." if len(lines) > 12 else "")
            raise RecipeError(
                f"{self.path} holds a run of another recipe:\n{shown}\n"
                "Give the recipe another 'name', choose another --runs folder, or start over with --force."
            )
        return "finished" if self.read_status().get("status") == "finished" else "unfinished"

    def _worth_keeping(self) -> bool:
        """Return whether there is more than the trace of a run that failed before its first checkpoint."""
        failed = self.read_status().get("status") == "failed"
        return not failed or self.student.is_file() or any(self.checkpoints.glob("step-*"))

    def create(self, plan: RunPlan) -> None:
        """Make the directory with the resolved recipe and a description of the machine."""
        for folder in (self.path, self.checkpoints, self.records, self.figures):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.path / "recipe.yaml").exists():
            (self.path / "env.json").write_text(json.dumps(environment(plan.file), indent=1) + "\n")
            write_atomic(self.path / "recipe.yaml", write(plan.resolved()))

    def clear(self) -> None:
        """Remove all that an earlier run left, but not the lock."""
        for entry in self.path.iterdir() if self.path.is_dir() else ():
            if entry.name == LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def origin(self) -> Path:
        """Return the file that the recipe was read from, or the saved recipe where nobody knows any more."""
        try:
            return Path(json.loads((self.path / "env.json").read_text())["recipe"])
        except (OSError, ValueError, KeyError):
            return self.path / "recipe.yaml"

    def read_status(self) -> dict[str, Any]:
        """Return ``status.json``, empty where there is none."""
        try:
            loaded: dict[str, Any] = json.loads((self.path / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return loaded

    def write_status(self, status: str, **more: Any) -> None:
        """Write ``status.json`` in one piece; keys that are not given keep their value."""
        content = {**self.read_status(), "status": status, **more}
        write_atomic(self.path / "status.json", json.dumps(jsonable(content), indent=1) + "\n")


class Lock:
    """Keeps a second process out of a run directory.

    The operating system releases the lock when its process ends, in whatever way, so that none is ever stale; the
    file only says who holds it.

    Raises:
        RecipeError: another process is at work there.
    """

    def __init__(self, directory: Path) -> None:
        self.file = directory / LOCK
        self._stream: IO[str] | None = None

    def __enter__(self) -> Lock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        while self._stream is None:
            stream = self.file.open("a+")
            try:
                _lock(stream)
                # The one who had it may have removed the file since it was opened here.
                if os.path.samestat(os.fstat(stream.fileno()), self.file.stat()):
                    self._stream = stream
            except BlockingIOError:
                raise RecipeError(f"{self.file.parent} is in use by {_holder(stream)}; wait for it to end") from None
            except FileNotFoundError:
                pass
            finally:
                if self._stream is None:
                    stream.close()
        self._stream.truncate(0)
        self._stream.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        self._stream.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self.file.unlink(missing_ok=True)
            self._stream.close()
            self._stream = None


def _lock(stream: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(stream: IO[str]) -> str:
    stream.seek(0)
    try:
        owner = json.loads(stream.read())
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError):
        return "another process"


def write_atomic(file: Path, text: str) -> None:
    """Write a small file in one piece, so that no reader sees half of it."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def jsonable(value: Any) -> Any:
    """Return nested data with NaN and infinities as text: JSON has no word for them."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def number(value: Any) -> float:
    """Return a number that `jsonable` may have turned into text."""
    return float(value)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a resolved recipe.

    Raises:
        RecipeError: it is none, such as a recipe that a user wrote.
    """
    try:
        loaded = YAML(typ="safe", pure=True).load(file.read_text())
    except (YAMLError, ValueError) as error:
        raise RecipeError(f"{file}: not a saved recipe: {error}") from None
    if not isinstance(loaded, dict) or not {"name", "variant", "seed"} <= loaded.keys():
        raise RecipeError(f"{file.parent}: no run directory (its {file.name} is not that of a run)")
    return loaded


def read_metrics(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of ``metrics.jsonl``; a torn last line is left out."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def read_run(directory: Path) -> RunRecord:
    """Read a run directory.

    Raises:
        RecipeError: it is none.
    """
    if not (directory / "recipe.yaml").is_file():
        raise RecipeError(f"{directory}: no run directory (it has no recipe.yaml)")
    config = read_yaml(directory / "recipe.yaml")
    status = RunDirectory(directory).read_status()
    summary = {name: number(value) for name, value in status.get("summary", {}).items()}
    return RunRecord(config["variant"], config["seed"], directory, config, status.get("status", "running"), summary)


def find_runs(root: Path) -> list[RunRecord]:
    """Return all runs at or below a directory, variants in the order in which they were made."""
    found = []
    for file in sorted(root.rglob("recipe.yaml"), key=lambda file: (file.stat().st_mtime_ns, str(file))):
        try:
            found.append(read_run(file.parent))
        except RecipeError:  # a user's own recipe.yaml
            continue
    return found


def environment(recipe: Path) -> dict[str, Any]:
    """Return what a run depends on besides its recipe, and where that was read."""
    versions = {}
    for name in (*_PACKAGES, *sorted(e.dist.name for e in metadata.entry_points(group="sobolev") if e.dist)):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "commit": _commit(),
        "command": ["sobolev", *sys.argv[1:]],
        "recipe": str(recipe.resolve()),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
