"""What this package adds to `sobolev`; wandb is imported when a run starts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sobolev import Register, Tracker, hookimpl


def wandb(
    *,
    project: Annotated[str, Field(min_length=1, description="project on the server")] = "sobolev",
    entity: Annotated[str | None, Field(description="user or team; by default that of the login")] = None,
    mode: Annotated[
        Literal["auto", "online", "offline"],
        Field(description="auto is online where the user is logged in; WANDB_MODE is obeyed"),
    ] = "auto",
    tags: Annotated[list[str], Field(description="besides those of the recipe")] = [],  # noqa: B006
    student: Annotated[bool, Field(description="keep the trained student as an artifact")] = True,
    wait: Annotated[float, Field(ge=0, le=60, description="seconds that a command waits for its uploads")] = 5.0,
) -> Tracker:
    """Weights & Biases: one run per seed, grouped by recipe and variant, and one for the comparison.

    Everything is written below the run directory first and uploaded from there by a process of its own, so that no
    trouble with the network can reach the training.
    """
    from sobolev_wandb.tracker import WandbTracker

    return WandbTracker(project=project, entity=entity, mode=mode, tags=tags, student=student, wait=wait)


@hookimpl
def register_tracker(register: Register) -> None:
    """Offer the tracker."""
    register("wandb", wandb)
