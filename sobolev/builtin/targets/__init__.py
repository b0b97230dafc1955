"""Built-in targets, as light factories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from sobolev.builtin.sampling import Sampling
from sobolev.builtin.targets import data
from sobolev.components import Target
from sobolev.hookspecs import Register
from sobolev.registry import Kind

_SUMMARIES = {
    "ackley": "Ackley's function on [-5, 5]^d: waves on a cone.",
    "beale": "Beale's function on [-4.5, 4.5]^2: a valley between steep corners.",
    "booth": "Booth's function on [-10, 10]^2: a quadratic bowl.",
    "bukin": "Bukin's function No. 6 on [-15, -5] x [-3, 3]: a sharp curved ridge.",
    "mccormick": "McCormick's function on [-1.5, 4] x [-3, 4].",
    "rosenbrock": "Rosenbrock's function on [-2, 2]^d: a curved valley.",
    "styblinski-tang": "Styblinski-Tang function on [-5, 5]^d: four basins in two dimensions.",
}


def _function(name: str) -> Callable[..., Target]:
    def factory(
        *,
        train: Annotated[int, Field(ge=1, description="training points, drawn anew for every seed")] = 100,
        test: Annotated[int, Field(ge=0, description="test points, the same for all runs")] = 10_000,
        validation: Annotated[int, Field(ge=0, description="validation points, the same for all runs")] = 0,
        dimension: Annotated[int, Field(ge=2, description="d, where the function generalises")] = 2,
        sampling: Annotated[Sampling, Field(description="design of the training points")] = "uniform",
    ) -> Target:
        from sobolev.builtin.targets.functions import FunctionTarget

        return FunctionTarget(name, train, test, validation, dimension, sampling)

    factory.__doc__ = _SUMMARIES[name] + "\n\n    One of the paper's benchmark functions (section 4.1, supplement 2)."
    factory.__name__ = factory.__qualname__ = name.replace("-", "_")
    return factory


def ensemble(
    *,
    of: Annotated[Target, Kind("target"), Field(description="target that every member imitates")],
    members: Annotated[int, Field(ge=2, description="students, which differ by their first weights")] = 3,
) -> Target:
    """Several students of one target on the same points; predictions are their mean, with a spread."""
    from sobolev.builtin.targets.ensemble import ensemble_of

    return ensemble_of(of, members)


# Bound here: importing a module of this package replaces the package's attribute of the same name.
_ENSEMBLE = ensemble


def targets(register: Register) -> None:
    """Register the built-in targets."""
    for name in _SUMMARIES:
        register(name, _function(name))
    register("ensemble", _ENSEMBLE)
    data.targets(register)
