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
from typing import Any

from ruamel.yaml import YAML

from sobolev.components import RunRecord
from sobolev.errors import RecipeError
from sobolev.recipe.plan import RunPlan, difference
from sobolev.recipe.source import write

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
        lines = difference(read_yaml(saved), plan.resolved())
        if lines:
            shown = "\n".join(f"  {line}" for line in lines[:12]) + ("\n  ..." if len(lines) > 12 else "")
            raise RecipeError(
                f"{self.path} holds a run of another recipe:\n{shown}\n"
                "Give the recipe another 'name', choose another --runs folder, or start over with --force."
            )
        return "finished" if self.read_status().get("status") == "finished" else "unfinished"

    def create(self, plan: RunPlan, force: bool = False) -> None:
        """Make the directory with the resolved recipe and a description of the machine."""
        if force and self.path.exists():
            shutil.rmtree(self.path)
        for folder in (self.path, self.checkpoints, self.records, self.figures):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.path / "recipe.yaml").exists():
            (self.path / "env.json").write_text(json.dumps(environment(), indent=1) + "\n")
            write_atomic(self.path / "recipe.yaml", write(plan.resolved()))

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
    """Keeps a second process out of a run directory; a lock whose process is gone is taken over."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "lock.json"

    def __enter__(self) -> Lock:
        mine = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                descriptor = os.open(self.file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                owner = self._owner()
                if owner is not None:
                    raise RecipeError(
                        f"{self.file.parent} is in use by process {owner['pid']} on {owner['host']}; wait for it, or "
                        f"delete {self.file.name} there if that process is gone"
                    ) from None
                self.file.unlink(missing_ok=True)
                continue
            with os.fdopen(descriptor, "w") as stream:
                stream.write(mine)
            return self
        raise RecipeError(f"{self.file}: cannot be locked")

    def _owner(self) -> dict[str, Any] | None:
        """Return the living owner, or None where the lock is stale."""
        try:
            owner: dict[str, Any] = json.loads(self.file.read_text())
        except (OSError, ValueError):
            return None
        if owner.get("host") != socket.gethostname():
            return owner
        try:
            os.kill(int(owner["pid"]), 0)
        except (ProcessLookupError, ValueError, KeyError):
            return None
        except PermissionError:
            return owner
        return None if int(owner["pid"]) == os.getpid() else owner

    def __exit__(self, *_: object) -> None:
        self.file.unlink(missing_ok=True)


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
    """Read a resolved recipe."""
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(file.read_text()) or {}
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
    found = sorted(root.rglob("recipe.yaml"), key=lambda file: (file.stat().st_mtime_ns, str(file)))
    return [read_run(file.parent) for file in found]


def environment() -> dict[str, Any]:
    """Return what a run depends on besides its recipe."""
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
