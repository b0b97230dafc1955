"""States that a policy met, kept as single observations in files that memory-map.

A dataset is a folder of NumPy files, each with the first two dimensions (streams E, steps T): one stream per parallel
environment, played from its own first step on. Stacks of frames are made when they are read, within an episode: frames
before its start are zero, as the emulator gives them. 100,000 decisions of Atari take 0.7 GB (stacks would take 2.8).

    frames.npy    uint8 (E, T, 84, 84) newest frame, or float32 (E, T, *shape) observations without frames
    actions.npy   int16 (E, T)         what was played
    logits.npy    float32 (E, T, m)    the teacher's output
    episodes.npy  int32 (E, T)         number of the episode, counted within a stream
    ages.npy      int32 (E, T)         decisions since the start of the episode
    meta.json                          how it was made, progress, and checksums once complete
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from sobolev import DataError
from sobolev_atari.environments import HISTORY

META = "meta.json"
FORMAT = 1


@dataclass(frozen=True)
class Meta:
    """What identifies a dataset; two datasets with equal fields were made in the same way.

    `teacher` is the content hash of the policy, `shape` that of one stored observation, `stacked` whether a state is
    the stack of the last four of them, `steps` the length of each of the `streams`.
    """

    environment: str
    teacher: str
    streams: int
    steps: int
    shape: tuple[int, ...]
    outputs: int
    stacked: bool
    scale: float
    sticky: float
    seed: int

    @property
    def size(self) -> int:
        """Number of decisions."""
        return self.streams * self.steps

    def files(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every file."""
        both = (self.streams, self.steps)
        return {
            "frames": ((*both, *self.shape), "uint8" if self.stacked else "float32"),
            "actions": (both, "int16"),
            "logits": ((*both, self.outputs), "float32"),
            "episodes": (both, "int32"),
            "ages": (both, "int32"),
        }


@dataclass
class Store:
    """An open dataset. `done` is the number of steps that every stream holds, `interruptions` where games were cut."""

    directory: Path
    meta: Meta
    arrays: dict[str, NDArray[Any]]
    done: int
    checksums: dict[str, int] = field(default_factory=dict)
    interruptions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        files = self.arrays
        self._frames = files["frames"].reshape(self.meta.size, *self.meta.shape)
        self._ages = np.asarray(files["ages"]).reshape(-1) if self.complete else np.zeros(0, dtype=np.int32)

    @property
    def complete(self) -> bool:
        """Whether all steps are there."""
        return self.done == self.meta.steps

    def flat(self, name: str) -> NDArray[Any]:
        """A file as one row per decision, stream after stream: the order of time of this dataset."""
        array = self.arrays[name]
        return array.reshape(self.meta.size, *array.shape[2:])

    def states(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """States of the decisions `rows` `(B,)`: uint8 stacks `(B, 4, 84, 84)`, newest last, or `(B, *shape)`."""
        if not self.meta.stacked:
            return np.asarray(self._frames[rows])
        back = np.arange(HISTORY - 1, -1, -1)
        wanted = rows[:, None] - back
        outside = back > self._ages[rows][:, None]
        stack = self._frames[np.where(outside, rows[:, None], wanted)]
        stack[outside] = 0
        return np.asarray(stack)

    def episode_ids(self) -> NDArray[np.int64]:
        """A number per decision `(N,)` that is unique to its episode."""
        ids = self.flat("episodes").astype(np.int64) + (np.arange(self.meta.size) // self.meta.steps << 32)
        return np.asarray(np.unique(ids, return_inverse=True)[1]).reshape(-1)

    def save_progress(self) -> None:
        """Flush the arrays, then record how far they are; with the last step, their checksums."""
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        if self.complete:
            self.checksums = {name: _checksum(array) for name, array in self.arrays.items()}
        content = {
            "format": FORMAT,
            "meta": asdict(self.meta),
            "done": self.done,
            "interruptions": self.interruptions,
            "checksums": self.checksums,
        }
        partial = self.directory / (META + ".partial")
        with partial.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.directory / META)


def create_store(directory: Path, meta: Meta) -> Store:
    """Make the files of a dataset, or open the unfinished one that is there for writing."""
    if (directory / META).exists():
        store = _open(directory, "r+")
        if store.meta != meta:
            different = [k for k, v in asdict(meta).items() if asdict(store.meta)[k] != v]
            raise DataError(
                f"{directory} holds a dataset made otherwise (differs in {', '.join(different)}); give another folder"
            )
        return store
    directory.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {
        name: open_memmap(directory / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in meta.files().items()
    }
    return Store(directory, meta, arrays, 0)


def open_store(directory: Path, *, verify: bool = True) -> Store:
    """Open a complete dataset for reading.

    Raises `DataError` where it is missing, unfinished, truncated, or, with `verify`, where a checksum does not hold.
    """
    store = _open(directory, "r")
    if not store.complete:
        raise DataError(
            f"{directory}: only {store.done} of {store.meta.steps} steps are there; the same `sobolev collect` goes on"
        )
    if verify:
        for name, array in store.arrays.items():
            if _checksum(array) != store.checksums.get(name):
                raise DataError(
                    f"{directory / name}.npy is damaged (its checksum differs): remove the folder, collect again"
                )
    return store


def _open(directory: Path, mode: str) -> Store:
    path = directory / META
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise DataError(f"{path}: format {content['format']} is not known here; this version reads format {FORMAT}")
        meta = Meta(**{**content["meta"], "shape": tuple(content["meta"]["shape"])})
    except FileNotFoundError as error:
        raise DataError(f"{directory} is no dataset: {META} is missing. `sobolev collect` makes one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    arrays: dict[str, NDArray[Any]] = {}
    for name, (shape, dtype) in meta.files().items():
        file = directory / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise DataError(f"{file} is missing or truncated ({error}): remove the folder and collect again") from error
        if array.shape != shape or array.dtype != np.dtype(dtype):
            raise DataError(f"{file} has shape {array.shape} and type {array.dtype}, expected {shape} and {dtype}")
        arrays[name] = array
    return Store(directory, meta, arrays, int(content["done"]), content["checksums"], content["interruptions"])


def _checksum(array: NDArray[Any]) -> int:
    value = 0
    for stream in array:  # one stream at a time, so that no copy of the whole is made
        value = zlib.crc32(np.ascontiguousarray(stream).data, value)
    return value
