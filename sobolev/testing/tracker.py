"""What a tracker must do."""

from __future__ import annotations

import copy
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sobolev.components import RunInfo, Tracker
from sobolev.errors import ComponentError
from sobolev.testing.findings import Checks
from sobolev.testing.subject import Component, Subject

_PATIENCE = 30.0  # seconds that a call may take without a network
_NOWHERE = "http://127.0.0.1:9"
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63606060f80f0001040100"
    "5fe5c34b0000000049454e44ae426082"
)


class TrackerCase:
    """A tracker under test, with a run directory to write into."""

    def __init__(self, component: Component, registry: object = None) -> None:
        self.subject = Subject("tracker", component, registry)  # type: ignore[arg-type]
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._count = 0

    def make(self) -> Tracker:
        """Return a new tracker; what it says is kept to itself."""
        tracker: Tracker = self.subject.make()
        tracker.say = lambda _: None
        return tracker

    def run(self) -> RunInfo:
        """Return a new run with a directory."""
        self._count += 1
        directory = Path(self._folder.name) / f"recipe-{self._count}" / "variant" / "seed-0"
        directory.mkdir(parents=True)
        (directory / "recipe.yaml").write_text("name: recipe\nvariant: variant\nseed: 0\n")
        config = {"name": "recipe", "train": {"steps": 10}, "variant": "variant", "seed": 0}
        return RunInfo("recipe", "variant", 0, directory, config, 10, ("a tag",))

    def picture(self, run: RunInfo) -> Path:
        """Return a figure."""
        file = run.directory / "figure.png"
        file.write_bytes(_PNG)
        return file

    def close(self) -> None:
        """Remove the directories."""
        self._folder.cleanup()


def _life(case: TrackerCase, tracker: Tracker, run: RunInfo) -> None:
    """A whole life: numbers, some of them not finite, a picture, a student, a comparison."""
    tracker.start(run, None)
    tracker.log(1, {"train/loss": 1.5, "lr": 1e-3})
    tracker.log(2, {"train/loss": math.nan, "test/function/value": math.inf})
    figure = case.picture(run)
    student = run.directory / "student.safetensors"
    student.write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    tracker.finish("finished", {"train/loss": 0.5, "test/function/value": math.nan}, [figure], student)
    table = "| variant | seeds |\n| --- | --- |\n| variant | 1 |"
    tracker.compare("recipe", table, [figure], run.directory.parents[1])


def check_options(case: TrackerCase) -> None:
    """Its options have descriptions."""
    made = case.subject.make()
    if not isinstance(made, Tracker):
        raise ComponentError(f"The factory returns a {type(made).__name__}, not a sobolev.Tracker.")
    case.subject.check_options()


def check_life(case: TrackerCase) -> None:
    """It records a run from start to finish, NaN and infinities included, and changes nothing that it is shown."""
    run = case.run()
    before = copy.deepcopy(dict(run.config))
    with offline():
        _life(case, case.make(), run)
    if dict(run.config) != before:
        raise ComponentError("It changes the configuration that RunInfo shows it.")
    if not (run.directory / "recipe.yaml").is_file():
        raise ComponentError("It removes files of the run directory.")


def check_interrupted(case: TrackerCase) -> None:
    """A run that was interrupted goes on: another process starts again at a step and records more."""
    run = case.run()
    with offline():
        first = case.make()
        first.start(run, None)
        first.log(1, {"train/loss": 1.0})
        first.log(5, {"train/loss": 0.9})
        first.finish("interrupted", {}, [], None)
        second = case.make()
        second.start(run, 4)
        second.log(5, {"train/loss": 0.9})
        second.finish("finished", {"train/loss": 0.9}, [], None)


def check_failed(case: TrackerCase) -> None:
    """A run that fails before its first number can be ended."""
    run = case.run()
    with offline():
        tracker = case.make()
        tracker.start(run, None)
        tracker.finish("failed", {}, [], None)


def check_outage(case: TrackerCase) -> None:
    """Without a network, a key or a home to write to, every call returns soon and raises nothing."""
    run = case.run()
    started = time.monotonic()
    with offline():
        try:
            _life(case, case.make(), run)
        except Exception as error:
            raise ComponentError(
                f"Without a network it raised {type(error).__name__}: {error}. Record on this machine first, and "
                "upload from there; the core would warn and go on without this tracker."
            ) from error
    spent = time.monotonic() - started
    if spent > _PATIENCE:
        raise ComponentError(f"Without a network a short run took {spent:.0f} s; a tracker must not wait for a server.")


@contextmanager
def offline() -> Iterator[None]:
    """Cut this process, and those it starts, off from the network, from keys and from the user's home."""

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1")):
            raise OSError(101, "Network is unreachable")
        own(self, address)

    own = socket.socket.connect
    hidden = [name for name in os.environ if name.endswith(("_API_KEY", "_TOKEN"))]
    kept = dict(os.environ)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        try:
            socket.socket.connect = refuse  # type: ignore[method-assign, assignment]
            for name in hidden:
                del os.environ[name]
            proxies = {f"{p}_proxy": _NOWHERE for p in ("http", "https", "all")}
            os.environ.update(proxies | {name.upper(): value for name, value in proxies.items()})
            os.environ.update({"HOME": home, "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"})
            yield
        finally:
            socket.socket.connect = own  # type: ignore[method-assign]
            os.environ.clear()
            os.environ.update(kept)


def check_close(case: TrackerCase) -> None:
    """After the end nothing of it remains: no open file in the run directory, no thread that keeps Python alive."""
    run = case.run()
    threads = set(threading.enumerate())
    with offline():
        tracker = case.make()
        tracker.start(run, None)
        tracker.log(1, {"train/loss": 1.0})
        tracker.finish("finished", {"train/loss": 1.0}, [], None)
    remaining = [t for t in threading.enumerate() if t not in threads and not t.daemon and _stays(t)]
    if remaining:
        raise ComponentError(
            f"After finish() the thread {remaining[0].name!r} still runs; end it there, or Python would not exit."
        )
    held = _open_files(run.directory)
    if held:
        raise ComponentError(f"After finish() {held[0].name} is still open; close it there.")


def _stays(thread: threading.Thread) -> bool:
    thread.join(timeout=3.0)
    return thread.is_alive()


def _open_files(directory: Path) -> list[Path]:
    """Return the files below a directory that this process holds open (where the system tells)."""
    found = []
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            file = descriptor.resolve()
        except OSError:
            continue
        if file.is_file() and file.is_relative_to(directory.resolve()):
            found.append(file)
    return found


CHECKS: Checks[TrackerCase] = {
    "options": check_options,
    "life": check_life,
    "interrupted": check_interrupted,
    "failed": check_failed,
    "outage": check_outage,
    "close": check_close,
}
