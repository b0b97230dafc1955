"""What this package adds to `sobolev`; the modules behind the addresses are imported when a recipe asks for them."""

from sobolev import Register, hookimpl


@hookimpl
def register_target(register: Register) -> None:
    """Offer the target."""
    register("example", "sobolev_example.target:Ripple", summary="A wave that dies away, on [-2, 2]^2.")


@hookimpl
def register_estimator(register: Register) -> None:
    """Offer the estimator."""
    register("example", "sobolev_example.estimator:RandomAxes", summary="Derivatives by random coordinates.")


@hookimpl
def register_student(register: Register) -> None:
    """Offer the student."""
    register("example", "sobolev_example.student:Sines", summary="A layer of sines of random frequencies.")


@hookimpl
def register_objective(register: Register) -> None:
    """Offer the objective."""
    register("example", "sobolev_example.objective:LogCosh", summary="log cosh of every error.")


@hookimpl
def register_tracker(register: Register) -> None:
    """Offer the tracker."""
    register("example", "sobolev_example.tracker:Spreadsheet", summary="Numbers of a run as a CSV file.")


@hookimpl
def register_report(register: Register) -> None:
    """Offer the report."""
    register("example", "sobolev_example.report:Errors", summary="A Markdown table of final errors.")
