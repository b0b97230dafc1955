"""Games: Atari through ale-py's native vector environment, and any Gymnasium environment with discrete actions.

Every environment is a `gymnasium.vector.VectorEnv` that resets an episode in the step that ends it (`SAME_STEP`), so
that an observation always belongs to the episode that goes on. Decisions are counted in environment steps: with action
repeat 4 one Atari step is four frames of the emulator.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sobolev import SobolevError

if TYPE_CHECKING:
    import gymnasium
    from torch import Tensor

HISTORY = 4
SIDE = 84
ACTION_REPEAT = 4
FRAME_LIMIT = 108_000  # thirty minutes of play, the usual cap of an Atari episode


@dataclass(frozen=True)
class Environment:
    """What is known of an environment before one is started.

    `shape` is the shape of one observation, `scale` the number that it is divided by to become a network's input x
    (255 for frames, so that x lies in [0, 1]; 1 elsewhere), `actions` the meaning of each output of a policy.
    """

    name: str
    kind: Literal["atari", "gymnasium"]
    shape: tuple[int, ...]
    scale: float
    actions: tuple[str, ...]

    @property
    def frames(self) -> bool:
        """Whether observations are stacks of uint8 frames."""
        return self.kind == "atari"


@dataclass(frozen=True)
class Score:
    """Undiscounted returns of whole episodes, rewards as the game gives them, and their lengths in steps."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def spread(self) -> float:
        """Standard deviation of the returns (divided by n - 1; 0 for one episode)."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0


def find_environment(name: str) -> Environment:
    """The environment called `name`: a game (`pong`, `ALE/Pong-v5`, `PongNoFrameskip-v4`) or a Gymnasium id.

    Raises `SobolevError` for an unknown name (with the nearest ones) and for continuous actions.
    """
    game = _game(name)
    if game is not None:
        from ale_py.vector_env import AtariVectorEnv

        probe = AtariVectorEnv(game, 1)
        actions = tuple(action.name for action in probe.ale.get_action_set())
        probe.close()
        return Environment(game, "atari", (HISTORY, SIDE, SIDE), 255.0, actions)
    import gymnasium
    from gymnasium.spaces import Box, Discrete

    if name not in gymnasium.registry:
        raise _unknown(name, list(gymnasium.registry))
    try:
        environment = gymnasium.make(name)
    except gymnasium.error.DependencyNotInstalled as error:
        raise SobolevError(f"environment {name!r} needs a package that is missing: {error}") from error
    actions_space, space = environment.action_space, environment.observation_space
    environment.close()
    if not isinstance(actions_space, Discrete) or not isinstance(space, Box):
        raise SobolevError(
            f"environment {name!r} has actions {actions_space} and observations {space}; "
            "a policy to distil needs discrete actions and a box of observations"
        )
    return Environment(name, "gymnasium", space.shape, 1.0, tuple(str(i) for i in range(int(actions_space.n))))


def make_environment(
    environment: Environment, count: int, *, sticky: float = 0.0, threads: int = 1, frame_limit: int = FRAME_LIMIT
) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
    """Start `count` parallel copies: whole games, rewards as they are.

    `sticky` is the probability that the emulator repeats the last action (Atari only). Observations of frames are uint8
    `(count, 4, 84, 84)`, newest frame last, frames before the start of an episode zero.
    """
    from gymnasium.vector import AutoresetMode

    if environment.frames:
        from ale_py.vector_env import AtariVectorEnv

        return AtariVectorEnv(
            environment.name,
            count,
            num_threads=threads,
            stack_num=HISTORY,
            img_height=SIDE,
            img_width=SIDE,
            frameskip=ACTION_REPEAT,
            repeat_action_probability=sticky,
            max_num_frames_per_episode=frame_limit,
            autoreset_mode=AutoresetMode.SAME_STEP,
            episodic_life=False,
            reward_clipping=False,
            use_fire_reset=True,
        )
    if sticky:
        raise SobolevError(f"sticky actions belong to the Atari emulator; {environment.name!r} has none: drop `sticky`")
    import gymnasium

    return gymnasium.make_vec(
        environment.name, count, vectorization_mode="sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}
    )


def evaluate(
    logits: Callable[[Tensor], Tensor],
    environment: Environment,
    *,
    episodes: int = 30,
    parallel: int = 10,
    greedy: bool = False,
    sticky: float = 0.0,
    seed: int = 0,
    frame_limit: int = FRAME_LIMIT,
) -> Score:
    """Play whole episodes with the policy softmax(logits(x)), x `(B, *shape)` float32 divided by the scale.

    Each parallel environment plays its share of the episodes, so that long episodes are not cut out of the mean.
    """
    import torch

    parallel = min(parallel, episodes)
    quota = np.array([episodes // parallel + (i < episodes % parallel) for i in range(parallel)])
    played = np.zeros(parallel, dtype=int)
    running, length = np.zeros(parallel), np.zeros(parallel, dtype=int)
    returns: list[list[float]] = [[] for _ in range(parallel)]
    lengths: list[list[int]] = [[] for _ in range(parallel)]
    generator = torch.Generator().manual_seed(seed)
    games = make_environment(environment, parallel, sticky=sticky, frame_limit=frame_limit)
    try:
        observation, _ = games.reset(seed=seed)
        while (played < quota).any():
            x = torch.as_tensor(np.asarray(observation)).float().div_(environment.scale)
            with torch.no_grad():
                output = logits(x).float().cpu()
            choice = output.argmax(1) if greedy else sample(output, generator)
            observation, reward, ended, cut, _ = games.step(choice.numpy())
            running += reward
            length += 1
            for i in np.flatnonzero(ended | cut):
                if played[i] < quota[i]:
                    returns[i].append(float(running[i]))
                    lengths[i].append(int(length[i]))
                played[i] += 1
                running[i] = length[i] = 0
    finally:
        games.close()
    return Score(tuple(chain.from_iterable(returns)), tuple(chain.from_iterable(lengths)))


def sample(logits: Tensor, generator: Any) -> Tensor:
    """One action per row, `(B,)` int64, drawn from softmax(logits) of shape `(B, m)`."""
    import torch

    return torch.multinomial(torch.softmax(logits, 1), 1, generator=generator).squeeze(1)


def final_observations(info: dict[str, Any], ended: NDArray[np.bool_]) -> dict[int, NDArray[Any]]:
    """The last observation of every episode that ended in this step, by environment."""
    return {int(i): np.asarray(info["final_obs"][i]) for i in np.flatnonzero(ended)}


def _game(name: str) -> str | None:
    """The ROM that `name` means, or None where it is no Atari game."""
    try:
        from ale_py import roms
    except ImportError:
        return None
    short = re.sub(r"^ALE/", "", name)
    short = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", short)
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", short).lower().replace(" ", "_").replace("-", "_")
    return snake if snake in roms.get_all_rom_ids() else None


def _unknown(name: str, known: list[str]) -> SobolevError:
    try:
        from ale_py import roms

        known = [*roms.get_all_rom_ids(), *known]
    except ImportError:
        return SobolevError(f"environment {name!r} is no Gymnasium id; the Atari games need ale-py: pip install ale-py")
    near = difflib.get_close_matches(name.lower().replace(" ", "_"), known, 3, 0.5) or [
        "pong",
        "breakout",
        "CartPole-v1",
    ]
    return SobolevError(f"unknown environment {name!r}; did you mean {', '.join(near)}?")
