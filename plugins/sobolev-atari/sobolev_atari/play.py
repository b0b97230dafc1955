"""A film of a policy playing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobolev_atari.environments import Environment, make_environment, sample

_ENLARGE = 3
_MILLISECONDS = 50


def film(
    logits: Callable[[Tensor], Tensor],
    environment: Environment,
    path: Path,
    *,
    sticky: float = 0.0,
    seed: int = 0,
    most_frames: int = 400,
) -> bool:
    """Write the first decisions of one game as a GIF: the frames that the policy sees, enlarged.

    Only environments with frames are filmed; returns whether it did.
    """
    if not environment.frames:
        return False
    from PIL import Image

    frames: list[NDArray[Any]] = []
    generator = torch.Generator().manual_seed(seed)
    games = make_environment(environment, 1, sticky=sticky)
    try:
        observation, _ = games.reset(seed=seed)
        for _ in range(most_frames):
            frames.append(np.asarray(observation)[0, -1])
            x = torch.from_numpy(np.asarray(observation)).float().div_(environment.scale)
            with torch.no_grad():
                action = sample(logits(x).float().cpu(), generator)
            observation, _, ended, cut, _ = games.step(action.numpy())
            if (ended | cut).any():
                break
    finally:
        games.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (environment.shape[2] * _ENLARGE, environment.shape[1] * _ENLARGE)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.NEAREST) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=_MILLISECONDS, loop=0)
    return True
