"""Uploads a run from its own files, in a process of its own: ``python -m sobolev_wandb.upload FILE LOG GRACE live``.

The training process only appends to a local file. This one follows that file to the server; when its standard input
is closed, because the training process has ended in whatever way, it has GRACE seconds left.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

DONE = "sobolev: uploaded"
FAILED = "sobolev: not uploaded"
GRACE = 30.0

# Files of this process that must stay open while it lives: closing them tells the uploads that it has ended.
_open: list[subprocess.Popen[bytes]] = []


def start(file: Path, log: Path, live: bool) -> None:
    """Begin to upload ``file``; what happens is written to ``log``.

    Args:
        file: the ``.wandb`` file of a run.
        log: text that `outcome` reads.
        live: whether the file is still being written.
    """
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sobolev_wandb.upload", str(file), str(log), str(GRACE), "live" if live else ""]
    # A session of its own: Ctrl-C is for the training, which closes its end of the pipe when it has stopped.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    _open[:] = [other for other in _open if other.poll() is None]
    _open.append(process)


def outcome(log: Path) -> str:
    """Return ``uploaded``, ``failed`` or ``running`` from a log."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "running"
    return "uploaded" if DONE in text else "failed" if FAILED in text else "running"


def address(log: Path) -> str:
    """Return the run's web page as the server gave it, or an empty text."""
    try:
        found = re.search(r"View run .* at (https?://\S+)", log.read_text(errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""


def follow(file: Path, log: Path, grace: float, live: bool) -> bool:
    """Upload a file; returns whether all of it arrived."""
    command = [sys.executable, "-m", "wandb", "beta", "sync", "--yes", *(["--live"] if live else []), str(file)]
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
        closed = threading.Event()
        threading.Thread(target=_watch, args=(closed,), daemon=True).start()
        deadline = None
        while process.poll() is None:
            if deadline is None and closed.is_set():
                deadline = time.monotonic() + grace
            if deadline is not None and time.monotonic() > deadline:
                _end(process)
                break
            time.sleep(0.2)
        done = process.returncode == 0
        stream.write(f"\n{DONE if done else FAILED}\n")
    return done


def _watch(closed: threading.Event) -> None:
    sys.stdin.buffer.read()
    closed.set()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(0 if follow(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "live") else 1)
