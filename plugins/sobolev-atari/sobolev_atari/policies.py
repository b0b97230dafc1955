"""Policies as a source for distillation: a teacher that plays, the states that it met, and the student's game score."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobolev import Context, DataError, Student
from sobolev_atari.collect import collect, dataset_meta
from sobolev_atari.environments import Environment, evaluate, find_environment
from sobolev_atari.locks import alone
from sobolev_atari.play import film
from sobolev_atari.settings import TeachSettings
from sobolev_atari.splits import Split, split_rows
from sobolev_atari.store import Meta, Store, open_store
from sobolev_atari.teachers import Teacher, check_fit, load_teacher, merged, read_safetensors

# Outputs that do the same in a game, where the paper has fewer than the emulator: its 3 of Pong are stay, right (up)
# and left (down); the emulator offers each with and without FIRE, which does nothing there.
PAPER_ACTIONS: dict[str, tuple[tuple[int, ...], ...]] = {"pong": ((0, 1), (2, 4), (3, 5))}


@dataclass
class PolicySource:
    """See `sobolev_atari.plugin.distillation` for the options."""

    teacher_name: str | TeachSettings
    environment_name: str | None
    network: Student | None
    data: str | None
    states_wanted: int
    streams: int
    sticky: float
    collect_seed: int
    merge_actions: bool
    split: Split
    train_percent: float
    validation_percent: float
    test_percent: float
    most_test: int | None
    episodes: int
    gif: bool
    bounded: bool = field(default=False, init=False)

    def prepare(self, context: Context) -> None:
        """Read or train the teacher, read or collect the states, split them."""
        environment = self._environment()
        given = None if self.data is None else open_store(context.directory / self.data)  # before anything long
        teacher = self._teacher(context)
        name = environment.name if environment else str(teacher.card.get("environment", ""))
        if environment is None:
            if not name:
                raise DataError("the teacher's file does not say what it plays: give 'environment'")
            environment = find_environment(name)
        label = self.teacher_name if isinstance(self.teacher_name, str) else f"of {environment.name}"
        check_fit(teacher, environment, label)
        self.environment = environment
        self.store = self._store(context, teacher, given)
        self.groups = PAPER_ACTIONS.get(environment.name) if self.merge_actions else None
        self.teacher = merged(teacher, self.groups) if self.groups else teacher
        self.shape, self.scale, self.bounded = environment.shape, environment.scale, environment.frames
        self.rows = split_rows(
            self.store.episode_ids(),
            split=self.split,
            train_percent=self.train_percent,
            validation_percent=self.validation_percent,
            test_percent=self.test_percent,
            most_test=self.most_test,
        )

    def _environment(self) -> Environment | None:
        name = self.environment_name
        if isinstance(self.teacher_name, TeachSettings):
            name = name or self.teacher_name.environment
        return find_environment(name) if name else None

    def _teacher(self, context: Context) -> Teacher:
        if isinstance(self.teacher_name, str):
            return load_teacher(self.teacher_name, context.directory, self.network)
        settings = self.teacher_name
        key = hashlib.sha256(json.dumps(settings.model_dump(), sort_keys=True).encode()).hexdigest()[:16]
        directory = context.cache / "teachers" / f"{settings.environment.replace('/', '-')}-{key}"
        with alone(directory):
            if not (directory / "teacher.safetensors").exists():
                from sobolev_atari.teach import teach_and_write

                context.say(f"training a teacher for {settings.environment}: {settings.steps} steps")
                teach_and_write(settings, directory, directory / "teacher.safetensors", say=context.say)
        return read_safetensors(directory / "teacher.safetensors")

    def _store(self, context: Context, teacher: Teacher, given: Store | None) -> Store:
        if given is not None:
            self._check_store(given.meta, teacher, given.directory)
            return given
        meta = dataset_meta(
            self.environment,
            teacher.digest,
            self.states_wanted,
            streams=self.streams,
            sticky=self.sticky,
            seed=self.collect_seed,
        )
        key = hashlib.sha256(repr(meta).encode()).hexdigest()[:16]
        directory = context.cache / "states" / f"{self.environment.name.replace('/', '-')}-{key}"
        with alone(directory):
            if not (directory / "meta.json").exists():
                context.say(f"collecting {meta.size} decisions of {self.environment.name}")
            network = teacher.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            collect(network, self.environment, directory, meta)
        return open_store(directory)

    def _check_store(self, meta: Meta, teacher: Teacher, where: Path) -> None:
        if meta.environment != self.environment.name:
            raise DataError(f"{where} holds states of {meta.environment}, the teacher plays {self.environment.name}")
        if meta.teacher != teacher.digest:
            raise DataError(f"{where} was collected with another teacher; collect again with this one")

    def states(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Observations, as stored."""
        return self.store.states(rows)

    def logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """The recorded logits, merged where the actions are."""
        recorded = np.asarray(self.store.flat("logits")[rows])
        if self.groups is None:
            return recorded
        together = [torch.from_numpy(recorded[:, list(group)]).logsumexp(1) for group in self.groups]
        return np.asarray(torch.stack(together, 1).numpy())

    def labels(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """None: states have no true action."""
        return None

    def finish(self, student: Any, context: Context) -> dict[str, float]:
        """The student's return over whole games, its actions sampled, and a film of the first game."""
        if not self.episodes:
            return {}
        outputs = len(self.environment.actions)
        groups = self.groups

        def play(x: Tensor) -> Tensor:
            chosen: Tensor = student(x)
            if groups is None:
                return chosen
            spread = chosen.new_full((len(x), outputs), -torch.inf)
            spread[:, [group[0] for group in groups]] = chosen
            return spread

        score = evaluate(play, self.environment, episodes=self.episodes, sticky=self.sticky, seed=context.seed + 20_000)
        if self.gif and context.output is not None and context.world.first:
            film(play, self.environment, context.output / "figures" / "play.gif", sticky=self.sticky)
        found = {"score": score.mean, "score-spread": score.spread, "score-episodes": float(self.episodes)}
        if "return_mean" in self.teacher.card:
            found["teacher-score"] = float(self.teacher.card["return_mean"])
        return found

    def close(self) -> None:
        """Files are unmapped with the object."""
