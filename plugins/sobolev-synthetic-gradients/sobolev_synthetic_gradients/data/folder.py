"""ImageNet, or any folder with one folder per class, decoded and transformed by timm in processes of their own."""

from __future__ import annotations

import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sobolev import Context, DataError
from sobolev.optional import need
from sobolev_synthetic_gradients.data.augment import batch_generator
from sobolev_synthetic_gradients.data.generated import once
from sobolev_synthetic_gradients.optional import import_timm
from sobolev_synthetic_gradients.settings import Folder, GeneratedFolder

_FOLDERS = {"train": "train", "test": "val"}


class FolderImages:
    """Images ``(3, size, size)``: random crops as for Inception while training, the centre in evaluation.

    Raises:
        DataError: a folder that is missing, or holds another number of classes than expected.
    """

    def __init__(self, settings: Folder, base: Path, seed: int) -> None:
        need("PIL", "pillow", "target.data: image-folder")
        import_timm("target.data: image-folder")
        from timm.data.dataset import ImageDataset

        directory = base / Path(settings.directory).expanduser()
        self.shape: tuple[int, ...] = (3, settings.size, settings.size)
        self.classes = settings.classes
        self._sizes: dict[str, int] = {}
        for split, name in _FOLDERS.items():
            folder = directory / name
            if not folder.is_dir():
                raise DataError(
                    f"target.data: {folder} is not there; {directory} must hold train/CLASS/* and val/CLASS/*, "
                    "one folder of images per class. For ImageNet, unpack the archives of image-net.org into it, "
                    "or name their folder: --set target.data.directory=FOLDER"
                )
            found = sum(path.is_dir() for path in folder.iterdir())
            if found != settings.classes:
                raise DataError(
                    f"target.data: {folder} holds {found} class folders, {settings.classes} are expected; "
                    f"set target.data.classes"
                )
            self._sizes[split] = len(ImageDataset(str(folder)))  # type: ignore[no-untyped-call]
        self._seed = seed
        self._settings = settings
        self._directory = directory
        self._pool: ProcessPoolExecutor | None = None

    def size(self, split: str) -> int:
        """Return the number of images of a split; there is no validation split."""
        return self._sizes.get(split, 0)

    def load(self, split: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            arguments = (str(self._directory), self._settings.size, self._settings.crop)
            self._pool = ProcessPoolExecutor(self._settings.workers, context, _start, arguments)
        seeds = torch.randint(2**31, (len(ids),), generator=batch_generator(self._seed, ids)).tolist()
        chunk = max(1, len(ids) // (2 * self._settings.workers))
        try:
            rows = list(self._pool.map(_read, [split] * len(ids), ids.tolist(), seeds, chunksize=chunk))
        except BrokenProcessPool as error:
            raise DataError("target.data: a process that decodes images died; the run can be resumed") from error
        images, labels = zip(*rows, strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


_datasets: dict[str, Any] = {}  # of a decoding process


def _start(directory: str, size: int, crop: float) -> None:
    torch.set_num_threads(1)
    import_timm("target.data: image-folder")
    from timm.data.dataset import ImageDataset
    from timm.data.transforms_factory import create_transform

    for split, name in _FOLDERS.items():
        transform = create_transform(
            size, is_training=split == "train", interpolation="bilinear", crop_pct=crop, color_jitter=0.4
        )
        made = ImageDataset(str(Path(directory) / name), transform=transform)  # type: ignore[no-untyped-call]
        _datasets[split] = made


def _read(split: str, index: int, seed: int) -> tuple[NDArray[np.float32], int]:
    # timm's transforms draw from the global generators of this process.
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    image, label = _datasets[split][index]
    return image.numpy(), int(label)


def generated_folder(settings: GeneratedFolder, context: Context) -> FolderImages:
    """Return made-up images in class folders, written to the cache when they are first asked for."""
    directory = (context.cache / "generated" / f"folder-{settings.classes}-{settings.images}").absolute()
    once(directory, lambda folder: _write(folder, settings))
    folder = Folder(use="image-folder", directory=str(directory), classes=settings.classes, size=settings.size,
                    crop=0.875, workers=settings.workers)  # fmt: skip
    return FolderImages(folder, context.directory, context.seed)


def _write(directory: Path, settings: GeneratedFolder) -> None:
    need("PIL", "pillow", "target.data: generated-folder")
    from PIL import Image

    pixels = np.random.default_rng(0)
    for name in _FOLDERS.values():
        for label in range(settings.classes):
            folder = directory / name / f"class{label:04d}"
            folder.mkdir(parents=True)
            for i in range(settings.images):
                noise = pixels.integers(0, 256, (24, 32, 3), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{i}.jpg")
