"""Runs of one recipe: one after the other, or in parallel with one single-thread process each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from sobolev.errors import SobolevError
from sobolev.recipe.plan import RunPlan
from sobolev.run import Result, Settings

_INTERVAL = 0.25  # seconds between progress messages of a worker


class Display(Protocol):
    """What shows the progress of runs; runs are numbered as they are planned."""

    def started(self, index: int) -> None:
        """A run begins."""

    def progress(self, index: int, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """A run has taken a step."""

    def finished(self, index: int, result: Result) -> None:
        """A run has ended."""

    def say(self, text: str) -> None:
        """Show a line."""


@dataclass(frozen=True)
class HostOptions:
    """How a worker finds its plugins."""

    plugins_dir: Path | None = None


def run_all(
    plans: Sequence[RunPlan], jobs: int, device: str, settings: Settings, options: HostOptions, display: Display
) -> list[Result]:
    """Execute runs and return their results in order; stops early after a signal."""
    if jobs <= 1:
        return _in_process(plans, device, settings, options, display)
    return _Pool(plans, min(jobs, len(plans)), device, settings, options, display).run()


def _in_process(
    plans: Sequence[RunPlan], device: str, settings: Settings, options: HostOptions, display: Display
) -> list[Result]:
    from sobolev.distributed import connect
    from sobolev.host import load_host
    from sobolev.run import execute
    from sobolev.signals import StopFlag

    host = load_host(options.plugins_dir)
    world = connect(device)
    results: list[Result] = []
    try:
        with StopFlag() as flag:
            for index, plan in enumerate(plans):
                display.started(index)
                try:
                    result = execute(
                        plan,
                        host,
                        world,
                        settings,
                        limited(lambda *a, i=index: display.progress(i, *a)),
                        lambda: flag.requested,
                        display.say,
                    )
                except SobolevError as error:
                    result = Result("failed", str(error))
                display.finished(index, result)
                results.append(result)
                if flag.requested or result.status == "interrupted":
                    break
            if flag.signal is not None:
                results = _explained(results, flag.signal, len(plans))
    finally:
        world.close()
    return results


def _explained(results: Sequence[Result], signum: int, planned: int) -> list[Result]:
    """Return a result for every run that was planned; those that a signal kept from finishing say so."""
    stopped = Result("interrupted", f"signal {signum}")
    told = [replace(r, message=stopped.message) if r.status == "interrupted" else r for r in results]
    return told + [stopped] * (planned - len(told))


def limited(
    report: Callable[[int, int, Mapping[str, float]], None],
) -> Callable[[int, int, Mapping[str, float]], None]:
    """Return a progress function that passes on a few calls a second, and the last one."""
    last = 0.0

    def limited(step: int, steps: int, metrics: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _INTERVAL or step >= steps:
            last = now
            report(step, steps, metrics)

    return limited


def _worker(connection: Connection, device: str, settings: Settings, options: HostOptions) -> None:
    """Run plans that arrive through a pipe until it says stop; a vanished parent stops it too."""
    import torch

    from sobolev.distributed import connect
    from sobolev.host import load_host
    from sobolev.run import execute
    from sobolev.signals import StopFlag

    torch.set_num_threads(1)
    host = load_host(options.plugins_dir)
    world = connect(device)
    parent = multiprocessing.parent_process()
    looked = time.monotonic()

    def stop() -> bool:
        nonlocal looked
        if flag.requested:
            return True
        now = time.monotonic()
        if now - looked > 1.0:
            looked = now
            if parent is not None and not parent.is_alive():
                return True
        return False

    def send(*message: Any) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, OSError):
            pass  # the parent is gone; `stop` notices

    with StopFlag() as flag:
        while True:
            try:
                task = connection.recv()
            except EOFError:
                return
            if task is None:
                return
            try:
                result = execute(
                    task, host, world, settings, limited(lambda *a: send("progress", *a)), stop,
                    lambda text: send("say", text),
                )  # fmt: skip
            except SobolevError as error:
                result = Result("failed", str(error))
            send("result", result)
            if flag.requested:
                return


class _Pool:
    """A few persistent workers; one that dies is replaced, and its run counts as failed."""

    def __init__(
        self,
        plans: Sequence[RunPlan],
        jobs: int,
        device: str,
        settings: Settings,
        options: HostOptions,
        display: Display,
    ) -> None:
        self.plans = plans
        self.jobs = jobs
        self.arguments = (device, settings, options)
        self.display = display
        self.waiting = list(range(len(plans)))
        self.results: dict[int, Result] = {}
        self.workers: dict[Connection, tuple[Any, int]] = {}
        self.stopping: int | None = None

    def run(self) -> list[Result]:
        # Read by the numerical libraries when a worker starts: one thread each, or they fight for the cores.
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        handlers = {s: signal.signal(s, self._forward) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            for _ in range(min(self.jobs, len(self.waiting))):
                self._start()
            while self.workers:
                self._listen()
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            if before is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = before
            for process, _ in self.workers.values():
                process.terminate()
        results = [self.results.get(i, Result("interrupted")) for i in range(len(self.plans))]
        return results if self.stopping is None else _explained(results, self.stopping, len(self.plans))

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, *self.arguments), daemon=False)
        # Ctrl-C reaches the whole group; a worker that still starts must not answer it with a traceback.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, before)
        theirs.close()
        self._give(mine, process)

    def _give(self, connection: Connection, process: Any) -> None:
        """Hand the next run to a worker, or let it go."""
        if not self.waiting or self.stopping:
            self.workers.pop(connection, None)
            try:
                connection.send(None)
            except (BrokenPipeError, OSError):
                pass
            process.join()
            connection.close()
            return
        index = self.waiting.pop(0)
        self.workers[connection] = (process, index)
        self.display.started(index)
        connection.send(self.plans[index])

    def _listen(self) -> None:
        for connection in wait(list(self.workers), timeout=0.2):
            assert isinstance(connection, Connection)
            process, index = self.workers[connection]
            try:
                message = connection.recv()
            except (EOFError, OSError):
                self._died(connection, process, index)
                continue
            kind, *content = message
            if kind == "progress":
                self.display.progress(index, *content)
            elif kind == "say":
                self.display.say(content[0])
            else:
                self.results[index] = content[0]
                self.display.finished(index, content[0])
                self._give(connection, process)

    def _died(self, connection: Connection, process: Any, index: int) -> None:
        process.join()
        del self.workers[connection]
        code = process.exitcode
        how = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
        status = "interrupted" if self.stopping else "failed"
        result = Result(status, f"its process {how}; the same command continues from the last checkpoint")
        self.results[index] = result
        self.display.finished(index, result)
        if self.waiting and not self.stopping:
            self._start()

    def _forward(self, signum: int, _: Any) -> None:
        if self.stopping:  # asked twice: at once
            for process, _index in self.workers.values():
                process.kill()
            sys.exit(128 + signum)
        self.stopping = signum
        for process, _index in self.workers.values():
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM)
