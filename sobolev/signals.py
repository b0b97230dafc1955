"""Signals ask a run to stop; the loop looks at a flag, saves a checkpoint and leaves."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class StopFlag:
    """Catches SIGINT, SIGTERM and SIGUSR1 while it is entered; a second SIGINT stops at once.

    Attributes:
        signal: the number of the signal that came first, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._old: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal asked to stop."""
        return self.signal is not None

    def _catch(self, signum: int, _: FrameType | None) -> None:
        if self.signal is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signum

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._old = {signum: signal.signal(signum, self._catch) for signum in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
        self._old = {}


def exit_code(signum: int) -> int:
    """Return the conventional exit code of a process that a signal ended: 130, 143, 138."""
    return 128 + signum
