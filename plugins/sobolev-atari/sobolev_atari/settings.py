"""How a teacher is trained: the options of `sobolev teach`, and of a recipe whose target trains its own teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sobolev import RecipeError
from sobolev.recipe.source import Document, read
from sobolev.registry import problems_of

Architecture = Literal["paper", "small", "mlp"]


class TeachSettings(BaseModel):
    """Settings of one training. Learning rate and clipping range go linearly to 0 over `steps`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    environment: str = Field(description="a game such as pong, or a Gymnasium id with discrete actions")
    architecture: Architecture = Field(
        "paper", description="supplement 3's agent, its smaller student, or two tanh layers"
    )
    algorithm: Literal["ppo", "a2c"] = Field("ppo", description="of Stable-Baselines3; a2c is the synchronous A3C")
    steps: int = Field(1_500_000, ge=1, description="environment steps (an Atari step is four frames)")
    environments: int = Field(16, ge=1, description="games played in parallel")
    rollout: int = Field(64, ge=1, description="steps per game between updates")
    epochs: int = Field(4, ge=1, description="passes over a rollout (ppo)")
    minibatch: int = Field(256, ge=2, description="samples per update (ppo)")
    learning_rate: float = Field(5e-4, gt=0, description="at the start")
    clip: float = Field(0.1, gt=0, description="clipping range at the start (ppo)")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy")
    value: float = Field(0.5, ge=0, description="weight of the value loss")
    discount: float = Field(0.99, gt=0, le=1, description="gamma")
    trace: float = Field(0.95, ge=0, le=1, description="lambda of the advantage estimate")
    clip_rewards: bool = Field(True, description="learn from the sign of rewards")
    end_on_life_loss: bool = Field(True, description="a lost life ends an episode for the learner, not the game")
    sticky: float = Field(0.0, ge=0, lt=1, description="probability that the emulator repeats the last action")
    bfloat16: bool = Field(True, description="run convolutions in bfloat16 (frames only)")
    seed: int = Field(0, ge=0, description="of weights, games and actions")
    checkpoint_seconds: float = Field(120.0, gt=0, description="at least this often")
    evaluate_every: int = Field(250_000, ge=1, description="steps between evaluations")
    evaluate_episodes: int = Field(10, ge=0, description="episodes of each; 0 for none")


def read_teach_settings(file: Path) -> TeachSettings:
    """Read settings from a file of their own, or from `target.teacher` of a recipe.

    Raises `RecipeError` with the place of everything that is wrong.
    """
    document = read(file)
    path: tuple[str, ...] = ()
    data = document.data
    if "target" in data:
        path = ("target", "teacher")
        target = data["target"]
        data = target.get("teacher") if isinstance(target, dict) else None  # type: ignore[assignment]
        if not isinstance(data, dict):
            raise RecipeError(
                f"{document.mark(('target',))}: this recipe's target does not train a teacher: "
                "'target.teacher' must be a mapping with 'environment' and the settings of its training"
            )
    try:
        return TeachSettings(**data)
    except ValidationError as error:
        raise RecipeError(_explain(error, document, path)) from None


def _explain(error: ValidationError, document: Document, path: tuple[str, ...]) -> str:
    found = problems_of(error, path, {(): list(TeachSettings.model_fields)})
    return "\n".join(f"{document.mark(p.path, p.key)}: {p.message}" for p in found)
