"""Hooks and factories; torch is imported when a recipe asks for the estimator."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sobolev import Estimator, Kind, Register, hookimpl


def least_squares(
    *,
    of: Annotated[
        Annotated[Estimator, Kind("estimator")] | None,
        Field(description="estimator that says what is asked; exact by default"),
    ] = None,
    degree: Annotated[Literal[1, 2], Field(description="of the local polynomial; second derivatives need 2")] = 1,
    neighbours: Annotated[
        int | None, Field(ge=2, description="samples per fit; twice the number of coefficients by default")
    ] = None,
) -> Estimator:
    """Derivatives of a target without any: local polynomials through its scattered training samples.

    Around every point a polynomial is fitted to the values of its nearest training samples by weighted least squares;
    its derivatives there are the answer (Kissel & Diepold, Sobolev training with approximated derivatives for black-box
    function regression with neural networks, 2020). It costs no evaluation of the target beyond its training set.

    Args:
        of: what is asked, contracted from the fitted derivatives.
        degree: 1 is exact on affine functions, with an error of the order of the neighbours' distance elsewhere;
            2 is exact on quadratic ones.
        neighbours: more of them average noise away, and reach further.
    """
    from sobolev_least_squares.estimator import LeastSquares

    return LeastSquares(of, degree, neighbours)


@hookimpl
def register_estimator(register: Register) -> None:
    """Offer the estimator."""
    register("least-squares", least_squares)
