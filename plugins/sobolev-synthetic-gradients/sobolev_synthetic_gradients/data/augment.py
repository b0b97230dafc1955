"""Random changes of training images, drawn from a generator of their own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def batch_generator(seed: int, ids: Tensor) -> torch.Generator:
    """Return a generator for one batch: a function of the run's seed and of all ids in it."""
    digest = hashlib.blake2b(ids.numpy().tobytes(), digest_size=8, key=seed.to_bytes(8, "little"))
    made = torch.Generator()
    made.manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
    return made


def shift(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of ``(B, C, H, W)`` by up to ``most`` pixels in both directions; what comes in is 0."""
    if most == 0:
        return images
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (most,) * 4)
    top, left = torch.randint(0, 2 * most + 1, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    samples = torch.arange(count)[:, None, None, None]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[samples, channels, rows, columns]


def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every other image of ``(B, C, H, W)``, at random, left to right."""
    turned = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(turned[:, None, None, None], images.flip(-1), images)
