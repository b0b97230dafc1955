"""Collecting the states that a policy meets while it plays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sobolev_atari.environments import Environment, make_environment, sample
from sobolev_atari.store import Meta, Store, create_store

SAVE_EVERY = 500


def dataset_meta(
    environment: Environment, teacher: str, states: int, *, streams: int, sticky: float, seed: int
) -> Meta:
    """Describe the dataset of `states` decisions (rounded up to whole steps of all streams)."""
    streams = min(streams, states)
    return Meta(
        environment=environment.name,
        teacher=teacher,
        streams=streams,
        steps=-(-states // streams),
        shape=environment.shape[1:] if environment.frames else environment.shape,
        outputs=len(environment.actions),
        stacked=environment.frames,
        scale=environment.scale,
        sticky=sticky,
        seed=seed,
    )


def collect(
    logits: Callable[[Tensor], Tensor],
    environment: Environment,
    directory: Path,
    meta: Meta,
    *,
    progress: Callable[[int], None] = lambda done: None,
    threads: int = 1,
) -> Store:
    """Play with actions sampled from softmax(logits(x)) and store every decision.

    Goes on where an interrupted collection stopped. An interruption cuts the games that were being played:
    their episodes end there and new ones begin.

    Args:
        logits: x `(E, *shape)` float32, divided by the scale, to `(E, m)`.
        environment: what is played.
        directory: folder of the dataset.
        meta: from `dataset_meta`.
        progress: called with the number of decisions done.
        threads: of the emulator.
    """
    store = create_store(directory, meta)
    if store.complete:
        return store
    start = store.done
    if start:
        store.interruptions.append(start)
    generator = torch.Generator().manual_seed(meta.seed * 1_000_003 + start)
    episode = store.arrays["episodes"][:, start - 1].astype(np.int64) + 1 if start else np.zeros(meta.streams, np.int64)
    age = np.zeros(meta.streams, dtype=np.int64)
    arrays = store.arrays
    games = make_environment(environment, meta.streams, sticky=meta.sticky, threads=threads)
    try:
        observation, _ = games.reset(seed=meta.seed + start)
        for step in range(start, meta.steps):
            observation = np.asarray(observation)
            with torch.no_grad():
                x = torch.from_numpy(observation).float().div_(meta.scale)
                output = logits(x).float().cpu()
            action = sample(output, generator).numpy()
            arrays["frames"][:, step] = observation[:, -1] if meta.stacked else observation
            arrays["actions"][:, step] = action
            arrays["logits"][:, step] = output.numpy()
            arrays["episodes"][:, step] = episode
            arrays["ages"][:, step] = age
            observation, _, ended, cut, _ = games.step(action)
            over = ended | cut
            episode += over
            age = np.where(over, 0, age + 1)
            store.done = step + 1
            if store.done % SAVE_EVERY == 0 or store.complete:
                store.save_progress()
                progress(store.done * meta.streams)
    finally:
        games.close()
        if not store.complete:
            store.save_progress()
    return create_store(directory, meta)
