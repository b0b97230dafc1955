"""scikit-learn's handwritten digits."""

from __future__ import annotations

import torch
from torch import Tensor

from sobolev import DataError
from sobolev.optional import need
from sobolev_synthetic_gradients.data.augment import batch_generator, shift
from sobolev_synthetic_gradients.settings import Digits


class DigitImages:
    """1,797 scans, ``(1, 8, 8)`` in [0, 1], split at random but always alike.

    Raises:
        DataError: none is left to test.
    """

    shape: tuple[int, ...] = (1, 8, 8)
    classes = 10

    def __init__(self, settings: Digits, seed: int) -> None:
        need("sklearn", "scikit-learn", "target.data: digits")
        from sklearn.datasets import load_digits

        found = load_digits()
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(found.target), generator=generator)
        self._images = torch.from_numpy(found.images).float()[:, None] / 16
        if settings.noise:
            self._images += settings.noise * torch.randn(self._images.shape, generator=generator)
        self._labels = torch.from_numpy(found.target).to(torch.int64)
        held = settings.train + settings.validation
        if held >= len(order):
            raise DataError(f"target.data: {held} digits train or validate, of {len(order)}: none is left to test")
        self._rows = {"train": order[: settings.train], "validation": order[settings.train : held],
                      "test": order[held:]}  # fmt: skip
        self._shift = settings.shift
        self._seed = seed

    def size(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._rows[split])

    def load(self, split: str, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels."""
        rows = self._rows[split][ids]
        images = self._images[rows]
        if split == "train":
            images = shift(images, self._shift, batch_generator(self._seed, ids))
        return images, self._labels[rows]

    def close(self) -> None:
        """Nothing is open."""
