"""The tracker does what a tracker must do."""

from __future__ import annotations

from sobolev.testing import TrackerSuite


class TestTrackers(TrackerSuite):
    components = ["wandb"]
