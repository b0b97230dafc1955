"""Signals set a flag; a second Ctrl-C is obeyed at once; afterwards everything is as it was."""

from __future__ import annotations

import os
import signal

import pytest

from sobolev.signals import StopFlag


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_sets_the_flag(signum: int) -> None:
    before = signal.getsignal(signum)
    with StopFlag() as flag:
        assert not flag.requested and flag.signal is None
        os.kill(os.getpid(), signum)
        assert flag.requested and flag.signal == signum
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.signal == signum, "the first one counts"
    assert signal.getsignal(signum) is before


def test_a_second_interrupt_stops_at_once() -> None:
    with StopFlag():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
