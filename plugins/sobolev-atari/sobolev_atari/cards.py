"""Model cards of teachers: what was trained, how, and what it scores beside random play and people."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import torch

from sobolev_atari.environments import Environment, Score, evaluate
from sobolev_atari.settings import TeachSettings

# A professional tester's and a random agent's mean return: Mnih et al. 2015, Extended Data Table 2.
PUBLISHED: dict[str, dict[str, float]] = {
    "pong": {"human": 9.3, "random": -20.7},
    "breakout": {"human": 31.8, "random": 1.7},
    "space_invaders": {"human": 1652.0, "random": 148.0},
}
_PACKAGES = ("sobolev-atari", "torch", "stable-baselines3", "ale-py", "gymnasium")


def make_card(
    settings: TeachSettings, environment: Environment, score: Score, directory: Path, *, command: str, half: bool
) -> dict[str, Any]:
    """Describe a teacher that was trained in `directory` (whose log is read) and scored."""
    chance = random_score(environment, sticky=settings.sticky)
    return {
        "environment": environment.name,
        "architecture": settings.architecture,
        "shape": list(environment.shape),
        "outputs": len(environment.actions),
        "actions": list(environment.actions),
        "input": f"observations divided by {environment.scale:g}",
        "command": command,
        "settings": settings.model_dump(),
        **_training(directory),
        "evaluation": "whole games, actions sampled from the policy, returns undiscounted and not clipped",
        "return_mean": round(score.mean, 3),
        "return_spread": round(score.spread, 3),
        "return_episodes": len(score.returns),
        "random_mean": round(chance.mean, 3),
        "random_spread": round(chance.spread, 3),
        "published": PUBLISHED.get(environment.name, {}),
        "weights": "float16" if half else "float32",
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def random_score(environment: Environment, *, episodes: int = 30, sticky: float = 0.0) -> Score:
    """The return of uniformly random actions."""
    outputs = len(environment.actions)
    return evaluate(lambda x: torch.zeros(len(x), outputs), environment, episodes=episodes, sticky=sticky, seed=40_000)


def _training(directory: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (directory / "training.jsonl").read_text().splitlines()]
    timed = [row for row in rows if "seconds" in row]
    saved = torch.load(directory / "checkpoint.pt", weights_only=True)
    return {
        "steps": saved["steps"],
        "training_seconds": round(saved["seconds"], 1),
        "log": [{"steps": row["steps"], "return_30": row["return_30"]} for row in _thinned(timed)],
    }


def _thinned(rows: list[dict[str, Any]], most: int = 20) -> list[dict[str, Any]]:
    """Rows of the log at about `most` moments of training; `return_30` is the mean of the last 30 games."""
    step = max(1, len(rows) // most)
    return [row for row in rows[step - 1 :: step] if row["return_30"] is not None]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
