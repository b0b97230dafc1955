"""Training of teachers with Stable-Baselines3 (A2C or PPO), resumable at any moment."""

from __future__ import annotations

import copy
import json
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback

from sobolev import SobolevError
from sobolev_atari.cards import make_card
from sobolev_atari.environments import Environment, evaluate, find_environment
from sobolev_atari.networks import Policy
from sobolev_atari.sb3 import FastPolicy, GamesForTraining
from sobolev_atari.settings import TeachSettings
from sobolev_atari.teachers import write_teacher

CHECKPOINT = "checkpoint.pt"
LOG = "training.jsonl"


def teach(settings: TeachSettings, directory: Path, *, console: Console | None = None) -> Policy:
    """Train, or go on with the training in `directory`, and return the policy: x to logits, on the CPU, float32.

    Writes `training.jsonl` and `checkpoint.pt` (weights, optimizer, counters; replaced atomically) into `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    environment = find_environment(settings.environment)
    saved = _load_checkpoint(directory / CHECKPOINT, settings)
    steps_done = int(saved["steps"]) if saved else 0
    games = GamesForTraining(
        environment,
        settings.environments,
        seed=settings.seed + steps_done,  # an interrupted run goes on with new games, not with those already seen
        sticky=settings.sticky,
        clip_rewards=settings.clip_rewards,
        end_on_life_loss=settings.end_on_life_loss,
    )
    try:
        learner = _learner(settings, environment, games)
        if saved:
            learner.policy.load_state_dict(saved["policy"])
            learner.policy.optimizer.load_state_dict(saved["optimizer"])
            learner.num_timesteps = steps_done
            learner._n_updates = int(saved["updates"])
        if steps_done < settings.steps:
            record = _Record(settings, environment, directory, console or Console(), saved)
            with record.progress:
                learner.learn(settings.steps - steps_done, callback=record, reset_num_timesteps=not saved)
            record.log()
            record.save()
    finally:
        games.close()
    return policy_of(learner.policy)


def teach_and_write(
    settings: TeachSettings,
    directory: Path,
    path: Path,
    *,
    command: str = "",
    half: bool = False,
    episodes: int = 30,
    say: Callable[[str], None] = print,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train in `directory`, score the result over `episodes` whole games, write weights and card to `path`.

    The policy that is scored is the one that is written: rounded to half precision where `half` asks for it.
    """
    environment = find_environment(settings.environment)
    policy = teach(settings, directory, console=console)
    if half:
        policy = policy.half().float()
    score = evaluate(policy, environment, episodes=episodes, sticky=settings.sticky, seed=30_000)
    card = make_card(settings, environment, score, directory, command=command, half=half)
    write_teacher(policy, path, card, half=half)
    say(
        f"{environment.name}: return {score.mean:.1f} +- {score.spread:.1f} over {episodes} episodes; written to {path}"
    )
    return card


def policy_of(policy: Any) -> Policy:
    """The actor of a Stable-Baselines3 policy of ours as one stack of layers, a copy in float32 on the CPU."""
    network = Policy(*copy.deepcopy(policy.features_extractor.layers), copy.deepcopy(policy.action_net))
    for parameter in network.parameters():  # training keeps weights with channels last
        parameter.data = parameter.data.cpu().float().contiguous()
    return network.eval().requires_grad_(False)


def _learner(settings: TeachSettings, environment: Environment, games: GamesForTraining) -> Any:
    common: dict[str, Any] = dict(
        learning_rate=lambda remaining: settings.learning_rate * remaining,
        n_steps=settings.rollout,
        gamma=settings.discount,
        gae_lambda=settings.trace,
        ent_coef=settings.entropy,
        vf_coef=settings.value,
        seed=settings.seed,
        stats_window_size=100,
        policy_kwargs=dict(
            architecture=settings.architecture,
            scale=environment.scale,
            bfloat16=settings.bfloat16 and environment.frames,
        ),
    )
    if settings.algorithm == "a2c":
        learner: Any = A2C(FastPolicy, games, **common)
    else:
        learner = PPO(
            FastPolicy,
            games,
            batch_size=settings.minibatch,
            n_epochs=settings.epochs,
            clip_range=lambda remaining: settings.clip * remaining,
            **common,
        )
    learner.policy.to(memory_format=torch.channels_last)
    return learner


def _load_checkpoint(path: Path, settings: TeachSettings) -> dict[str, Any] | None:
    if not path.exists():
        return None
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    now = settings.model_dump()
    fixed = {k: v for k, v in now.items() if k not in ("checkpoint_seconds", "evaluate_every", "evaluate_episodes")}
    changed = [k for k, v in fixed.items() if saved["settings"].get(k) != v]
    if changed:
        raise SobolevError(
            f"{path}: this training was started with other settings ({', '.join(changed)}); "
            "give another output directory, or the settings it was started with"
        )
    return saved


class _Record(BaseCallback):
    """Log, checkpoints, evaluation and progress of one training."""

    def __init__(
        self,
        settings: TeachSettings,
        environment: Environment,
        directory: Path,
        console: Console,
        saved: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.settings, self.environment, self.directory = settings, environment, directory
        self.returns: deque[float] = deque(saved["returns"] if saved else (), maxlen=100)
        self.seconds_before = float(saved["seconds"]) if saved else 0.0
        self.steps_before = int(saved["steps"]) if saved else 0
        self.began = self.last_saved = self.last_logged = time.monotonic()
        self.next_evaluation = self.steps_before + settings.evaluate_every
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn(),
            console=console,
        )  # fmt: skip
        self.task = self.progress.add_task(f"teach {environment.name}", total=settings.steps, state="")

    @property
    def seconds(self) -> float:
        """Seconds of training, all parts of an interrupted run together."""
        return self.seconds_before + time.monotonic() - self.began

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.returns.append(info["episode"]["r"])
        return True

    def _on_rollout_end(self) -> None:
        now = time.monotonic()
        if now - self.last_logged > 10:
            self.last_logged = now
            self.log()
        if now - self.last_saved > self.settings.checkpoint_seconds:
            self.save()
        if self.settings.evaluate_episodes and self.num_timesteps >= self.next_evaluation:
            self.next_evaluation += self.settings.evaluate_every
            self._evaluate()

    def log(self) -> None:
        """Write a row of the log and show it."""
        last = list(self.returns)[-30:]
        row = {
            "seconds": round(self.seconds, 1),
            "steps": self.num_timesteps,
            "games": len(self.returns),
            "return_30": float(np.mean(last)) if last else None,
            "return_100": float(np.mean(self.returns)) if self.returns else None,
            "steps_per_second": round((self.num_timesteps - self.steps_before) / (time.monotonic() - self.began), 1),
        }
        self._write(row)
        shown = "-" if row["return_30"] is None else f"{row['return_30']:.1f}"
        self.progress.update(
            self.task, completed=self.num_timesteps, state=f"return {shown}  {row['steps_per_second']:.0f} steps/s"
        )

    def _evaluate(self) -> None:
        score = evaluate(
            policy_of(self.model.policy),
            self.environment,
            episodes=self.settings.evaluate_episodes,
            sticky=self.settings.sticky,
            seed=self.settings.seed + 10_000,
        )
        self._write({"steps": self.num_timesteps, "evaluation": score.mean, "spread": score.spread})

    def _write(self, row: dict[str, Any]) -> None:
        with (self.directory / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")

    def save(self) -> None:
        """Write the checkpoint, and replace the one before only when it is complete."""
        policy: Any = self.model.policy
        content = {
            "settings": self.settings.model_dump(),
            "steps": self.model.num_timesteps,
            "updates": getattr(self.model, "_n_updates", 0),
            "seconds": self.seconds,
            "returns": list(self.returns),
            "policy": policy.state_dict(),
            "optimizer": policy.optimizer.state_dict(),
        }
        partial = self.directory / (CHECKPOINT + ".partial")
        torch.save(content, partial)
        os.replace(partial, self.directory / CHECKPOINT)
        self.last_saved = time.monotonic()
