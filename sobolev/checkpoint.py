"""Checkpoints that survive a crash at any instant, and hold no code: tensors and JSON, checksums last.

``step-00000042/`` holds ``student.safetensors``, ``state.safetensors`` (the tensors of the nested state, by path),
``state.json`` (the rest of it) and ``manifest.json`` (size and SHA-256 of each, written last). A checkpoint is
written beside its name, flushed to disk, renamed, and only then are older ones removed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sobolev.errors import CheckpointError

_FORMAT = 1
_MANIFEST = "manifest.json"
_FAULT = "SOBOLEV_CHECKPOINT_FAULT"
"""For tests: the process kills itself at ``written``, ``flushed``, ``renamed``, ``pruning``; ``@n``: the n-th time."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read and verified."""

    step: int
    student: dict[str, Tensor]
    state: dict[str, Any]
    path: Path


def save(directory: Path, step: int, student: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 3) -> Path:
    """Write a checkpoint and remove all but the newest ``keep``.

    Args:
        directory: of all checkpoints of a run.
        step: steps that were taken.
        student: parameters and buffers.
        state: nested dicts, lists and tuples of tensors, numbers, texts, truth values and None.
        keep: how many to keep, this one included.

    Raises:
        CheckpointError: something in ``state`` that cannot be written; says where.
        OSError: the disk is full or read-only; what was there before stays.
    """
    final = directory / f"step-{step:08d}"
    if _whole(final):  # steps are reproducible: there is nothing newer to write, and no moment without it
        return final
    temporary = directory / f"{final.name}.tmp-{os.getpid()}"
    tensors: dict[str, Tensor] = {}
    plain = _encode(dict(state), "state", tensors)
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write_tensors(_cpu(student), temporary / "student.safetensors")
        write_tensors(_cpu(tensors), temporary / "state.safetensors")
        (temporary / "state.json").write_text(json.dumps(plain))
        files = sorted(temporary.iterdir())
        content = {"format": _FORMAT, "step": step, "files": {f.name: _fingerprint(f) for f in files}}
        (temporary / _MANIFEST).write_text(json.dumps(content, indent=1))
        _fault("written")
        for file in (*files, temporary / _MANIFEST, temporary):
            _flush(file)
        _fault("flushed")
        if final.exists():  # a damaged one, which an older one was used instead of
            shutil.rmtree(final)
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(directory)
    _fault("renamed")
    for old in _steps(directory)[:-keep]:
        _fault("pruning")
        shutil.rmtree(old, ignore_errors=True)
    return final


def write_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file.

    Raises:
        OSError: as any other file would; safetensors has an error of its own for that.
    """
    try:
        save_file(dict(tensors), file)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def load_newest(directory: Path, say: Callable[[str], None]) -> Loaded | None:
    """Return the newest checkpoint that is whole, or None where there is none at all.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged; nothing is deleted.
    """
    if not directory.is_dir():
        return None
    for leftover in directory.glob("step-*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    found = _steps(directory)
    for path in reversed(found):
        try:
            return _read(path)
        except _DAMAGE as error:
            say(f"warning: checkpoint {path} is damaged ({error}); the one before it is used")
    if found:
        raise CheckpointError(f"all {len(found)} checkpoints in {directory} are damaged; start over with --force")
    return None


class _Damaged(Exception):
    """A file that is missing, or not what the manifest says."""


_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError, _Damaged)


def _whole(path: Path) -> bool:
    try:
        _read(path)
    except _DAMAGE:
        return False
    return True


def _read(path: Path) -> Loaded:
    if not (path / _MANIFEST).is_file():
        raise _Damaged(f"{_MANIFEST} is missing")
    manifest = json.loads((path / _MANIFEST).read_text())
    if manifest["format"] != _FORMAT:
        raise _Damaged(f"format {manifest['format']}, not {_FORMAT}")
    for name in ("student.safetensors", "state.safetensors", "state.json"):
        if not (path / name).is_file():
            raise _Damaged(f"{name} is missing")
        if _fingerprint(path / name) != manifest["files"][name]:
            raise _Damaged(f"{name} does not match its checksum")
    tensors = load_file(path / "state.safetensors")
    state = _decode(json.loads((path / "state.json").read_text()), tensors)
    return Loaded(int(manifest["step"]), load_file(path / "student.safetensors"), state, path)


def _steps(directory: Path) -> list[Path]:
    """Return complete checkpoints, oldest first."""
    found = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in directory.glob("step-*") if path.is_dir()]
    return [path for _, path in sorted((int(name[1]), path) for name, path in found if name)]


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"size": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Clones, because safetensors refuses tensors that share memory (tied weights).
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


_hits: dict[str, int] = {}


def _fault(point: str) -> None:
    wanted, _, time = os.environ.get(_FAULT, "").partition("@")
    if wanted == point:
        _hits[point] = _hits.get(point, 0) + 1
        if _hits[point] == int(time or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return the JSON form of nested data; tensors go into ``tensors`` under their path."""
    if isinstance(value, Tensor):
        name = path
        while name in tensors:  # a key with a dot in it, or 1 beside "1"
            name += "'"
        tensors[name] = value
        return {"$tensor": name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}
        return {
            "$items": [
                [_encode(key, f"{path}.key", {}), _encode(item, f"{path}.{key}", tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, list):
        return [_encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    raise CheckpointError(
        f"{path}: a checkpoint holds tensors, numbers, texts, lists, tuples and dicts, not {type(value).__name__}"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match next(iter(value), ""):
        case "$tensor":
            return tensors[value["$tensor"]]
        case "$float":
            return float(value["$float"])
        case "$tuple":
            return tuple(_decode(item, tensors) for item in value["$tuple"])
        case "$items":
            return {_decode(key, tensors): _decode(item, tensors) for key, item in value["$items"]}
    return {key: _decode(item, tensors) for key, item in value.items()}
