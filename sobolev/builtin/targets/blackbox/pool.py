"""Worker processes that evaluate a function point by point; one that hangs or dies is replaced."""

from __future__ import annotations

import atexit
import importlib.metadata
import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any

from sobolev.builtin.targets.blackbox.results import Point, Result, append
from sobolev.errors import ComponentError
from sobolev.registry import did_you_mean
from sobolev.wording import plural

GROUP = "sobolev.functions"
_START = 300.0  # seconds in which a worker must have imported the function
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Task:
    """What a worker evaluates.

    Attributes:
        function: name of the entry point.
        inputs: d names.
        outputs: m names.
        returned: whether the function returns partials too.
        file: where results are appended.
    """

    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    returned: bool
    file: Path


@dataclass(frozen=True)
class Failure:
    """A point that gave no result.

    Attributes:
        x: the point.
        reason: for people.
    """

    x: Point
    reason: str


def find(name: str) -> importlib.metadata.EntryPoint:
    """Return the entry point of a function.

    Raises:
        ComponentError: no installed package offers it; lists those that are.
    """
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in found:
        hint = did_you_mean(name, found)
        raise ComponentError(
            f"blackbox: no installed package offers a function {name!r}; {hint}{'' if hint.endswith('?') else '.'} A "
            f"package offers one by an entry point in its pyproject.toml:\n"
            f'  [project.entry-points."{GROUP}"]\n  {name} = "package.module:function"'
        )
    return found[name]


def load(name: str) -> Callable[..., Any]:
    """Import a function.

    Raises:
        ComponentError: it cannot be imported, or is nothing that can be called.
    """
    entry = find(name)
    try:
        function = entry.load()
    except Exception as error:
        raise ComponentError(
            f"blackbox: the function {name!r} ({entry.value}) cannot be imported: {type(error).__name__}: {error}"
        ) from None
    if not callable(function):
        raise ComponentError(f"blackbox: {name!r} ({entry.value}) is a {type(function).__name__}, not a function")
    made: Callable[..., Any] = function
    return made


def check(returned: Any, task: Task) -> Result:
    """Return what a function returned as a result.

    Raises:
        ValueError: another shape than was promised, or a number that is not finite.
    """
    import numpy as np

    m, d = len(task.outputs), len(task.inputs)
    partials = None
    if task.returned:
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(f"it must return (value, partials), not {type(returned).__name__} ('partials: returned')")
        returned, partials = returned
    elif isinstance(returned, tuple) and len(returned) == 2 and np.ndim(returned[1]) > np.ndim(returned[0]):
        raise ValueError("it returned two things, as (value, partials): set 'partials: returned', or return values")
    value = _numbers(returned, "value")
    if value.size != m:
        raise ValueError(f"it returned a value of shape {value.shape}, not {m} numbers ({', '.join(task.outputs)})")
    rows = None
    if partials is not None:
        jacobian = _numbers(partials, "partials")
        if jacobian.shape != (m, d) and not (m == 1 and jacobian.shape == (d,)):
            raise ValueError(f"it returned partials of shape {jacobian.shape}, not {(m, d)} (outputs, inputs)")
        rows = tuple(tuple(row) for row in jacobian.reshape(m, d).tolist())
    numbers = [*value.ravel().tolist(), *(n for row in rows or () for n in row)]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"it returned a number that is not finite: {numbers}")
    return Result(tuple(value.ravel().tolist()), rows)


def _numbers(returned: Any, what: str) -> Any:
    """Return real numbers as an array.

    Raises:
        ValueError: something else.
    """
    import numpy as np

    if returned is None:
        raise ValueError(f"it returned None as {what}: is there a 'return'?")
    try:
        array = np.asarray(returned)
    except ValueError:
        raise ValueError(f"it returned {what} of uneven lengths: {returned!r}"[:200]) from None
    if array.dtype.kind == "c":
        raise ValueError(f"it returned complex {what}: return the real part, or both parts as two values")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"it returned {what} that holds no numbers: {returned!r}"[:200]) from None


# -- in a worker -------------------------------------------------------------------------------------------------------


def _serve(connection: Connection, task: Task) -> None:
    """Evaluate points that arrive through a pipe; a vanished parent ends the process."""
    import numpy as np

    for number in _SIGNALS:  # of the terminal; the parent decides what becomes of its workers
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    try:
        function = load(task.function)
    except ComponentError as error:
        connection.send(("broken", str(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            x = connection.recv()
        except (EOFError, OSError):
            return
        message: tuple[str, Any]
        try:
            result = check(function(np.array(x, dtype=np.float64)), task)
            append(task.file, x, result)
            message = ("done", result)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            theirs = len(frames) > 1 and frames[-1].filename != __file__  # else it is what the function returned
            where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if theirs else ""
            message = ("failed", f"{type(error).__name__}: {error}{where}")
        try:
            connection.send(message)
        except (BrokenPipeError, OSError):
            return


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


# -- in the parent -----------------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    process: Any
    ready: bool = False
    x: Point | None = None
    since: float = 0.0


class Pool:
    """Up to ``size`` workers, started when there is work.

    Args:
        task: what they evaluate.
        size: how many at the same time.
        timeout: seconds that one evaluation may take.
        patience: failures after which the rest is given up.
    """

    def __init__(self, task: Task, size: int, timeout: float, patience: int) -> None:
        self.task = task
        self.size = size
        self.timeout = timeout
        self.patience = patience
        self._workers: dict[Connection, _Worker] = {}
        self._stopped: int | None = None

    def evaluate(self, points: Sequence[Point]) -> list[Failure]:
        """Evaluate points; results are in the task's file, what gave none is returned.

        Raises:
            ComponentError: the function cannot be imported.
            KeyboardInterrupt: a signal asked to stop; results that came are kept.
        """
        waiting = list(reversed(points))
        failures: list[Failure] = []
        with _Signals() as signals:
            while waiting or any(w.x is not None for w in self._workers.values()):
                if signals.caught is not None:
                    self.close()
                    raise KeyboardInterrupt
                if len(failures) >= self.patience:
                    waiting.clear()
                for connection, worker in list(self._workers.items()):
                    if worker.ready and worker.x is None and waiting:
                        worker.x, worker.since = waiting.pop(), time.monotonic()
                        self._send(connection, worker)
                coming = sum(not worker.ready for worker in self._workers.values())
                for _ in range(min(self.size - len(self._workers), len(waiting) - coming)):
                    self._start()
                heard = wait(list(self._workers), timeout=0.1)
                for connection in [c for c in self._workers if c in heard]:
                    failed = self._hear(connection)
                    if failed is not None:
                        failures.append(failed)
                failures += self._overdue()
        return failures

    def close(self) -> None:
        """End all workers."""
        for connection, worker in self._workers.items():
            connection.close()
            worker.process.kill()
            worker.process.join()
        self._workers.clear()
        atexit.unregister(self.close)

    def _start(self) -> None:
        if not self._workers:
            atexit.register(self.close)  # before multiprocessing waits for its children
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.task), daemon=False)
        process.start()
        theirs.close()
        self._workers[mine] = _Worker(process, since=time.monotonic())

    def _send(self, connection: Connection, worker: _Worker) -> None:
        try:
            connection.send(worker.x)
        except (BrokenPipeError, OSError):
            pass  # it died in between; the next look at its pipe says so

    def _hear(self, connection: Connection) -> Failure | None:
        worker = self._workers[connection]
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            return self._gone(connection, worker)
        if kind == "broken":
            self.close()
            raise ComponentError(content)
        x, worker.x, worker.ready = worker.x, None, True
        return Failure(x, content) if kind == "failed" and x is not None else None

    def _gone(self, connection: Connection, worker: _Worker) -> Failure | None:
        del self._workers[connection]
        connection.close()
        code = worker.process.exitcode or 0
        how = (
            f"killed its process by signal {-code} ({_signal_name(-code)})"
            if code < 0
            else f"ended its process with {code}"
        )
        if worker.x is None:
            raise ComponentError(f"blackbox: the function {self.task.function!r} {how} when it was imported")
        return Failure(worker.x, how)

    def _overdue(self) -> list[Failure]:
        now, found = time.monotonic(), []
        for connection, worker in list(self._workers.items()):
            if worker.x is None and not worker.ready and now - worker.since > _START:
                self.close()
                raise ComponentError(
                    f"blackbox: the function {self.task.function!r} was not imported after {_START:.0f} seconds"
                )
            if worker.x is not None and now - worker.since > self.timeout:
                found.append(Failure(worker.x, f"did not return within {self.timeout:g} seconds and was stopped"))
                worker.process.kill()
                worker.process.join()
                connection.close()
                del self._workers[connection]
        return found


class _Signals:
    """Notes SIGINT and SIGTERM while it is entered, and hands them on to the handlers of before."""

    def __init__(self) -> None:
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught = number
        before = self._before.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def shown(x: Point, names: Sequence[str]) -> str:
    """Return a point for people, with all digits: ``a=0.1, b=2``."""
    return ", ".join(f"{name}={number!r}" for name, number in zip(names, x, strict=True))


def described(task: Task, failures: Sequence[Failure], kept: int, notes: Mapping[str, Any]) -> str:
    """Return the message of an evaluation that failed."""
    lines = [f"blackbox: the function {task.function!r} gave no result at {plural(len(failures), 'point')}:"]
    lines += [f"  {shown(failure.x, task.inputs)}: {failure.reason}" for failure in failures[:8]]
    if len(failures) > 8:
        lines.append(f"  and {len(failures) - 8} more")
    lines.append(f"{kept} results are kept in {notes['file']}; the same command goes on from there")
    return "\n".join(lines)
