"""Built-in components, registered through the same hooks as those of any plugin."""

from sobolev.builtin import estimators, objectives, reports, students, targets, theory, trackers
from sobolev.hookspecs import Register, hookimpl


@hookimpl
def register_target(register: Register) -> None:
    """Offer the built-in targets."""
    targets.targets(register)
    theory.targets(register)


@hookimpl
def register_estimator(register: Register) -> None:
    """Offer the built-in estimators."""
    estimators.estimators(register)


@hookimpl
def register_student(register: Register) -> None:
    """Offer the built-in students."""
    students.students(register)
    theory.students(register)


@hookimpl
def register_objective(register: Register) -> None:
    """Offer the built-in objective."""
    objectives.objectives(register)


@hookimpl
def register_tracker(register: Register) -> None:
    """Offer the built-in trackers."""
    trackers.trackers(register)


@hookimpl
def register_report(register: Register) -> None:
    """Offer the built-in reports."""
    reports.reports(register)


@hookimpl
def register_command(register: Register) -> None:
    """Offer the built-in commands that are about components of their own."""
    register(
        "check-data", "sobolev.builtin.check_data:check_data", summary="Compare partials with neighbouring values."
    )
