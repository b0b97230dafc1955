"""Estimators: which derivatives are compared, and how a target without its own is differentiated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sobolev.components import Estimator
from sobolev.hookspecs import Register
from sobolev.registry import Kind


def exact(
    *,
    memory: Annotated[
        int | None,
        Field(gt=0, description="bound in MiB for the derivatives of one measurement; recomputes them in chunks"),
    ] = None,
) -> Estimator:
    """Full gradients, Jacobians, Hessians (Eq. 1 of the paper).

    Args:
        memory: bound in MiB. Under it the student's derivatives are computed in chunks without graph and
            computed again in the backward pass: the same numbers, about twice the time of the derivative. A bound below
            the size of the derivative itself (B * m * d numbers) is an error.
    """
    from sobolev.differentiate.exact import Exact

    return Exact(memory=None if memory is None else memory * 2**20)


def projected(
    *,
    probes: Annotated[int, Field(ge=1, description="k, vectors per sample and step; their losses are averaged")] = 1,
    side: Annotated[
        Literal["output", "input"],
        Field(description="contract the outputs (gradient of <f, v>) or the inputs (directional derivative)"),
    ] = "output",
    last: Annotated[
        Literal["open", "contracted"],
        Field(description="order 2 and above: leave the last input slot open (Hessian-vector product) or contract it"),
    ] = "open",
    orthogonal: Annotated[bool, Field(description="make the k vectors of a sample orthonormal")] = False,
    directions: Annotated[
        list[list[float]] | None, Field(description="fixed vectors instead of random ones, one list per probe")
    ] = None,
) -> Estimator:
    """Random projections of the derivatives (Eq. 2 of the paper).

    Vectors are independent and uniform on the unit sphere, per sample, step, order and probe, a function of
    (seed, step, sample id). The squared norm of a projection is on average the exact one divided by m (output side)
    or d (each contracted input slot); the weight of the term is where a recipe makes up for that.

    Args:
        probes: k.
        side: ``output``: gradient of <f, v>, one backward pass per probe whatever m is (the paper's
            distillation loss). ``input``: derivative along v.
        last: what happens to the last input slot of orders 2 and above.
        orthogonal: k at most m (output side) or d (input side).
        directions: each of size m (output side) or d (input side), used as they are; replaces ``probes``.
    """
    from sobolev.differentiate.projected import Projected

    return Projected(probes=probes, side=side, last=last, orthogonal=orthogonal, directions=directions)


def finite_difference(
    *,
    of: Annotated[Estimator, Kind("estimator"), Field(description="estimator that says what is differentiated")],
    scheme: Annotated[
        Literal["central", "forward", "complex-step"], Field(description="which differences of the target's value")
    ] = "central",
    step: Annotated[
        float | None, Field(gt=0, description="step relative to the input's scale; from the dtype by default")
    ] = None,
    rows: Annotated[int, Field(ge=1, description="largest number of points per call of the target")] = 4096,
) -> Estimator:
    """Finite differences of the target's value, for targets without derivatives.

    The student is still differentiated by autograd. The number of target evaluations is recorded, so that
    comparisons can be made at equal budget.

    Args:
        of: what is asked: ``exact`` differences along the axes (2d evaluations per sample), ``projected``
            with ``side: input`` along random directions (2k).
        scheme: ``central`` (error h^2), ``forward`` (error h, half the evaluations), ``complex-step`` (machine
            precision, for functions that carry complex numbers through).
        step: relative to half the declared range of the input, or to max(1, abs(x)).
        rows: a multiple of the batch is used; at least one batch.
    """
    from sobolev.differentiate.finite_difference import FiniteDifference

    return FiniteDifference(of, scheme=scheme, step=step, rows=rows)


def estimators(register: Register) -> None:
    """Register the estimators."""
    register("exact", exact)
    register("projected", projected)
    register("finite-difference", finite_difference)
