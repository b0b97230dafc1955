"""Built-in students, as light factories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sobolev.hookspecs import Register

if TYPE_CHECKING:
    from sobolev.components import Student

Activation = Literal["relu", "leaky-relu", "elu", "tanh", "sigmoid", "softplus", "silu", "gelu"]
Scale = Annotated[
    Literal["none", "inputs", "standard"],
    Field(description="fixed layers that standardise inputs, or inputs and values, by the training data"),
]


def mlp(
    *,
    hidden: Annotated[list[Annotated[int, Field(ge=1)]], Field(description="units of each hidden layer")] = [256, 256],  # noqa: B006
    activation: Annotated[Activation, Field(description="after every hidden layer")] = "relu",
    scale: Scale = "none",
) -> Student:
    """Fully connected network; the paper's regression student has two hidden layers of 256 ReLU units."""
    from sobolev.builtin.students.mlp import MLP

    return MLP(hidden, activation, scale)


def residual(
    *,
    width: Annotated[int, Field(ge=1, description="units of every layer")] = 64,
    blocks: Annotated[int, Field(ge=1, description="blocks of two layers that add to their input")] = 2,
    activation: Annotated[Activation, Field(description="inside every block and before the last layer")] = "silu",
    scale: Scale = "none",
) -> Student:
    """Fully connected network with skip connections."""
    from sobolev.builtin.students.residual import Residual

    return Residual(width, blocks, activation, scale)


def null() -> Student:
    """Student without parameters that answers 0, for arms that train none."""
    from sobolev.builtin.students.mlp import Null

    return Null()


# Bound here: importing a module of this package replaces the package's attribute of the same name.
_STUDENTS = {"mlp": mlp, "residual": residual, "null": null}


def students(register: Register) -> None:
    """Register the built-in students."""
    for name, factory in _STUDENTS.items():
        register(name, factory)
