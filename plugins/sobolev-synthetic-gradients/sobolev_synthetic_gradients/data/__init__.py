"""Labelled images: where they come from."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sobolev import Context
from sobolev_synthetic_gradients.settings import Cifar, DataSettings, Digits, Folder, Generated


class Images(Protocol):
    """Labelled images in three splits.

    Attributes:
        shape: of one image, ``(channels, height, width)``.
        classes: how many there are.
    """

    shape: tuple[int, ...]
    classes: int

    def size(self, split: str) -> int:
        """Return the number of images of a split."""

    def load(self, split: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return images ``(B, *shape)``, float32, and labels ``(B,)``, int64, on the CPU.

        Augmentation of training images depends on the run's seed and on the ids of the batch, so that an epoch differs
        from the one before, and a resumed run draws what it would have drawn.
        """

    def close(self) -> None:
        """Release what was acquired."""


def open_images(settings: DataSettings, context: Context) -> Images:
    """Read images as a recipe says.

    Raises:
        DataError: files that are missing or damaged; says where they belong.
    """
    if isinstance(settings, Digits):
        from sobolev_synthetic_gradients.data.digits import DigitImages

        return DigitImages(settings, context.seed)
    if isinstance(settings, Cifar):
        from sobolev_synthetic_gradients.data.cifar import CifarImages

        return CifarImages(settings, context.directory, context.seed)
    if isinstance(settings, Generated):
        from sobolev_synthetic_gradients.data.generated import generated_cifar

        return generated_cifar(settings, context)
    from sobolev_synthetic_gradients.data.folder import FolderImages, generated_folder

    if isinstance(settings, Folder):
        return FolderImages(settings, context.directory, context.seed)
    return generated_folder(settings, context)
