"""The hooks of a plugin: one per kind of component, and one for commands.

``register(name, factory)`` takes a callable with typed keyword arguments, or its address ``"package.module:name"``,
which is imported when a recipe asks for it.
"""

from collections.abc import Callable
from typing import Any

import pluggy

Register = Callable[..., None]

hookspec = pluggy.HookspecMarker("sobolev")
hookimpl = pluggy.HookimplMarker("sobolev")


@hookspec
def register_target(register: Register) -> Any:
    """Register targets: ``register(name, factory)``, the factory returning a `sobolev.Target`."""


@hookspec
def register_estimator(register: Register) -> Any:
    """Register derivative estimators: the factory returns a `sobolev.Estimator`."""


@hookspec
def register_student(register: Register) -> Any:
    """Register students: the factory returns a `sobolev.Student`."""


@hookspec
def register_objective(register: Register) -> Any:
    """Register objectives: the factory returns a `sobolev.Objective`."""


@hookspec
def register_tracker(register: Register) -> Any:
    """Register trackers: the factory returns a `sobolev.Tracker`."""


@hookspec
def register_report(register: Register) -> Any:
    """Register reports: the factory returns a `sobolev.Report`."""


@hookspec
def register_command(register: Register) -> Any:
    """Register commands of ``sobolev``: ``register(name, "package.module:click_command", summary="one line")``."""
