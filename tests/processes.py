"""Real processes that run ``sobolev`` and are interrupted.

``python processes.py`` imports torch once and forks a process for every run that it is told of: a kill costs
milliseconds instead of seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Server:
    """Starts runs in processes of their own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(
        self, *arguments: object, log: Path, kill_after: Callable[[], bool] | None = None,
        signum: int = signal.SIGKILL, environment: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        """Run ``sobolev`` with arguments; send a signal as soon as a condition holds. Returns the exit code.

        A process that a signal ended without a word gives the number of the signal, negative.
        """
        pid = self._ask(arguments=[str(a) for a in arguments], log=str(log), environment=environment or {})
        if kill_after is not None:
            while not kill_after() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
                time.sleep(0.001)
            os.kill(pid, signum)
        return self._ask(wait=pid)

    def _ask(self, **task: Any) -> int:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def server() -> Iterator[Server]:
    """A process that starts runs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    with process:  # which closes its input, and waits
        yield Server(process)


def _serve() -> None:
    import sobolev.builtin.students.mlp
    import sobolev.builtin.targets.functions
    import sobolev.run  # noqa: F401
    from sobolev.cli import main

    while line := sys.stdin.readline():
        task: dict[str, Any] = json.loads(line)
        if "wait" in task:
            print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.environ.update(task["environment"])
            log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for old, new in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(old, new)
            sys.argv = ["sobolev", *task["arguments"]]
            main()  # leaves by sys.exit
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
