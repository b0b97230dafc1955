"""CIFAR-10 and CIFAR-100 as their authors distribute them: pickled arrays in a tar archive, checked, then read.

A pickle can run code when it is read. Only arrays, numbers, texts, lists and dicts are admitted here.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobolev import DataError
from sobolev_synthetic_gradients.data.augment import batch_generator, mirror, shift
from sobolev_synthetic_gradients.settings import Cifar

CHECKSUMS = "checksums.md5"
"""Beside an archive that is not the original one: its files' MD5 sums, one ``sum  name`` per line."""
_PADDING = 4


@dataclass(frozen=True)
class Layout:
    """How one of the two archives is laid out.

    Attributes:
        archive, folder: names of the archive and of the folder in it.
        train, test: names of the files, with the MD5 sums of the original ones.
        labels: key of the labels in every file.
        classes: how many there are.
    """

    archive: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    labels: bytes
    classes: int


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
        b"labels",
        10,
    ),
    "cifar100": Layout(
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        b"fine_labels",
        100,
    ),
}


class CifarImages:
    """Images ``(3, 32, 32)``, every channel shifted and scaled to mean 0 and variance 1 over the training images.

    Raises:
        DataError: files that are missing, damaged, or not what they should be.
    """

    shape: tuple[int, ...] = (3, 32, 32)

    def __init__(self, settings: Cifar, base: Path, seed: int) -> None:
        layout = LAYOUTS[settings.use]
        directory = base / Path(settings.directory).expanduser()
        self.classes = layout.classes
        files = _read_files(layout, directory)
        parts = [_images(files[name], layout, f"{directory}: {name}") for name in layout.train]
        images, labels = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
        left = len(images) - settings.validation
        train = left if settings.train is None else settings.train
        if not 0 < train <= left:
            raise DataError(
                f"target.data: {train} training and {settings.validation} validation images are wanted, "
                f"{directory} has {len(images)}"
            )
        self._data = {
            "train": (images[:train], labels[:train]),
            "validation": (images[left:], labels[left:]),
            "test": _images(files[next(iter(layout.test))], layout, f"{directory}: {next(iter(layout.test))}"),
        }
        self._mean, self._scale = _moments(images[:train])
        self._augment = settings.augment
        self._seed = seed

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._data[split][0])

    def load(self, split: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels."""
        images, labels = self._data[split]
        batch = (images[ids].float() - self._mean) / self._scale
        if split == "train" and self._augment:
            generator = batch_generator(self._seed, ids)
            batch = mirror(shift(batch, _PADDING, generator), generator)
        return batch, labels[ids]

    def close(self) -> None:
        """Nothing is open."""


def _moments(images: Tensor) -> tuple[Tensor, Tensor]:
    channels = images.transpose(0, 1).flatten(1)
    # In float64 and by parts: the 150 million numbers of all images would need a gigabyte at once.
    moments = [torch.stack([part.double().mean(1), part.double().square().mean(1)]) * part.shape[1]
               for part in channels.split(2**22, dim=1)]  # fmt: skip
    mean, square = torch.stack(moments).sum(0) / channels.shape[1]
    scale = (square - mean.square()).clamp_min(1e-12).sqrt()
    return mean.float()[:, None, None], scale.float()[:, None, None]


def _read_files(layout: Layout, directory: Path) -> dict[str, bytes]:
    """Return the contents of all files of a set, after a check of their sums."""
    expected = {**layout.train, **layout.test}
    archive, folder = directory / layout.archive, directory / layout.folder
    if folder.is_dir():
        files = {name: (folder / name).read_bytes() for name in expected if (folder / name).is_file()}
        where = folder
    elif archive.is_file():
        files, where = _unpack(archive, layout), archive
    else:
        raise DataError(
            f"target.data: {archive} is not there, nor the folder {layout.folder} in its place. Fetch "
            f'{layout.archive} ("python version") from its authors\' page https://www.cs.toronto.edu/~kriz/cifar.html '
            f"and put it there as it is; or name its folder: --set target.data.directory=FOLDER"
        )
    given = directory / CHECKSUMS
    if given.is_file():
        expected = {name: sum_ for sum_, name in (line.split() for line in given.read_text().splitlines())}
    for name in (*layout.train, *layout.test):
        if name not in files:
            raise DataError(f"{where} is damaged: it holds no {name}; fetch it again")
        if hashlib.md5(files[name], usedforsecurity=False).hexdigest() != expected.get(name):
            raise DataError(f"{where} is damaged: the MD5 sum of {name} is not {expected.get(name)}; fetch it again")
    return files


def _unpack(archive: Path, layout: Layout) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = Path(member.name)
                if member.isfile() and path.parent.name == layout.folder:
                    content = tar.extractfile(member)
                    assert content is not None
                    files[path.name] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{archive} is damaged ({error}); fetch it again") from error
    return files


class _Reader(pickle.Unpickler):
    _reconstruct = np.empty(0).__reduce__()[0]

    def find_class(self, module: str, name: str) -> Any:
        """Admit what numpy's arrays are made of, and nothing else."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return self._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "_codecs" and name == "encode":  # how texts of bytes are written by newer Pythons
            return lambda text, encoding: text.encode(encoding)
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")


def _images(content: bytes, layout: Layout, where: str) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 3, 32, 32)`` uint8 and labels ``(N,)`` of one file."""
    try:
        found = _Reader(io.BytesIO(content), encoding="bytes").load()
        data: NDArray[np.uint8] = np.asarray(found[b"data"])
        labels = torch.tensor(found[layout.labels], dtype=torch.int64)
    except Exception as error:
        raise DataError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072 or len(labels) != len(data):
        raise DataError(f"{where}: expected N rows of 3072 bytes and N labels, found {data.shape} and {len(labels)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < layout.classes:
        raise DataError(
            f"{where}: labels from {int(labels.min())} to {int(labels.max())}; {layout.classes} classes have labels "
            f"from 0 to {layout.classes - 1}"
        )
    return torch.from_numpy(data.copy()).reshape(-1, 3, 32, 32), labels
