"""The objective: a loss for the value and one for each derivative (paper, Eq. 1 and 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from sobolev.hookspecs import Register

if TYPE_CHECKING:
    from sobolev.components import Objective

DerivativeLoss = Literal["squared-l2", "l1", "norm", "huber"]
ValueLoss = Literal["squared-l2", "l1", "norm", "huber", "kl-student-teacher", "kl-teacher-student"]
HeadName = Literal["identity", "log-softmax", "log-loss"]


class _Term(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: float = Field(1.0, ge=0, description="factor in the total; a term of weight 0 is not computed")
    reduce: Literal["sum", "mean"] = Field("sum", description="over components; always the mean over samples")
    delta: float = Field(1.0, gt=0, description="where huber turns linear")


class ValueTerm(_Term):
    """How values are compared."""

    loss: ValueLoss = Field("squared-l2", description="loss of the value")


class DerivativeTerm(_Term):
    """How one derivative is compared."""

    loss: DerivativeLoss = Field("squared-l2", description="loss of the derivative")
    order: int = Field(1, ge=1, description="order K of the derivative")
    input: str | list[str] | None = Field(
        None, description="input that is differentiated (a list for mixed derivatives); the only one by default"
    )


Balance = Literal["none", "rms", "joint"]


def _by_loss(value: Any) -> Any:
    return {"loss": value} if isinstance(value, str) else value


def sobolev(
    *,
    head: Annotated[HeadName, Field(description="function of the student's output whose jet is compared")] = "identity",
    value: Annotated[ValueTerm, BeforeValidator(_by_loss), Field(description="loss of the value")] = ValueTerm(),  # noqa: B008
    derivatives: Annotated[
        list[Annotated[DerivativeTerm, BeforeValidator(_by_loss)]], Field(description="losses of derivatives")
    ] = [DerivativeTerm()],  # noqa: B006, B008
    balance: Annotated[
        Balance,
        Field(
            description="units in which errors count: none: the user's; rms: values by their deviation, every partial "
            "by its root mean square (Huge and Savine); joint: both as in standardised inputs and values"
        ),
    ] = "none",
) -> Objective:
    """Sobolev loss: a value term plus one term per derivative order."""
    from sobolev.builtin.objectives.sobolev import SobolevObjective

    return SobolevObjective(head, value, derivatives, balance)


# Bound here: importing a module of this package replaces the package's attribute of the same name.
_OBJECTIVES = {"sobolev": sobolev}


def objectives(register: Register) -> None:
    """Register the objective."""
    for name, factory in _OBJECTIVES.items():
        register(name, factory)
