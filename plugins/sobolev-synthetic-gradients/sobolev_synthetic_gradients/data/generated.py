"""Made-up images in CIFAR's own file format: for machines without the real ones, read by the same code."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sobolev import Context
from sobolev_synthetic_gradients.data.cifar import CHECKSUMS, LAYOUTS, CifarImages
from sobolev_synthetic_gradients.settings import Cifar, Generated

_SIDE = 32


def generated_cifar(settings: Generated, context: Context) -> CifarImages:
    """Return the images, written to the cache when they are first asked for."""
    use = "cifar10" if settings.classes == 10 else "cifar100"
    key = f"{use}-{settings.train}-{settings.test}-{settings.noise:g}-{settings.seed}"
    directory = (context.cache / "generated" / key).absolute()
    once(directory, lambda folder: write_archive(folder, settings))
    cifar = Cifar(use=use, directory=str(directory), train=None, validation=settings.validation,
                  augment=settings.augment)  # fmt: skip
    return CifarImages(cifar, context.directory, context.seed)


def once(directory: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a folder that appears whole or not at all, whoever else does the same."""
    if directory.is_dir():
        return
    temporary = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write(temporary)
    try:
        temporary.rename(directory)
    except OSError:  # another process was faster, with the same content
        shutil.rmtree(temporary)
        if not directory.is_dir():
            raise


def write_archive(directory: Path, settings: Generated) -> None:
    """Write the archive of a set, and the sums of its files beside it."""
    layout = LAYOUTS["cifar10" if settings.classes == 10 else "cifar100"]
    random = np.random.default_rng(settings.seed)
    sums = []
    with tarfile.open(directory / layout.archive, "w:gz", compresslevel=1) as tar:
        counts = [len(part) for part in np.array_split(np.arange(settings.train), len(layout.train))]
        for name, count in zip((*layout.train, *layout.test), (*counts, settings.test), strict=True):
            labels = random.permutation(np.arange(count) % settings.classes)
            held = {b"data": patterns(labels, settings.noise, random), layout.labels: labels.tolist()}
            content = pickle.dumps(held, protocol=2)
            member = tarfile.TarInfo(f"{layout.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            sums.append(f"{hashlib.md5(content, usedforsecurity=False).hexdigest()}  {name}\n")
    (directory / CHECKSUMS).write_text("".join(sums))


def patterns(labels: NDArray[np.int64], noise: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """Return images ``(N, 3072)``: stripes whose direction (and, of 100 classes, width) is the class.

    Phase, place, colour and contrast of the stripes are random, so that no pixel tells the class by itself.
    """
    count = len(labels)
    angle = np.pi * (labels % 10) / 10
    cycles = 3.0 + 0.9 * (labels // 10) + random.uniform(-0.3, 0.3, count)
    grid = (np.arange(_SIDE) + 0.5) / _SIDE - 0.5
    y, x = np.meshgrid(grid, grid, indexing="ij")
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    phase = random.uniform(0, 2 * np.pi, count)[:, None, None]
    stripes = np.sin(2 * np.pi * cycles[:, None, None] * along + phase)
    centre = random.uniform(-0.2, 0.2, (2, count, 1, 1))
    window = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 0.2**2))
    colour = random.normal(size=(count, 3, 1, 1))
    colour /= np.linalg.norm(colour, axis=1, keepdims=True)
    pictures = 0.5 + 0.35 * colour * (stripes * window)[:, None] + 0.15 * random.normal(size=(count, 3, 1, 1))
    pictures += noise * random.normal(size=(count, 3, _SIDE, _SIDE))
    levels: NDArray[np.uint8] = np.clip(255 * pictures, 0, 255).astype(np.uint8).reshape(count, -1)
    return levels
