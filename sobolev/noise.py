"""Random numbers as functions of (seed, split, step, site, key, sample id): the same on any number of devices.

Generators per sample would cost 26 ms at batch 4096; one vectorised hash of counters costs 0.2 ms.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def stream(*parts: object) -> int:
    """Return a 63-bit number that identifies a stream by its parts."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator for the stream ``name`` of a seed."""
    made = torch.Generator()
    made.manual_seed(stream(seed, name))
    return made


def _mix(x: Tensor) -> Tensor:
    # The 32-bit finaliser of Hash Prospector ("lowbias32"), on the low half of int64: products stay below 2^63.
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)


@dataclass(frozen=True)
class Noise:
    """Noise of one step at one site.

    Attributes:
        seed, split, step, site: what the numbers depend on, besides key, sample id and position.
    """

    seed: int
    split: str
    step: int
    site: str

    def bits(self, index: Tensor, size: int, *names: object) -> Tensor:
        """Return ``(B, size)`` uniform 32-bit integers as int64, a function of ``names`` and of each sample's id."""
        key = stream(self.seed, self.split, self.step, self.site, *names)
        index = index.to(torch.int64)
        rows = _mix((index & _MASK) ^ (key & _MASK))
        rows = _mix(rows ^ (index >> 32) ^ (key >> 32))
        columns = torch.arange(size, device=index.device, dtype=torch.int64) * 0x9E3779B9 & _MASK
        return _mix(_mix(rows[:, None] ^ columns) ^ (key >> 16 & _MASK))

    def normal(self, index: Tensor, size: int, *names: object, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return ``(B, size)`` standard normal numbers (Box-Muller)."""
        half = (size + 1) // 2
        bits = self.bits(index, 2 * half, *names).to(dtype)
        first = (bits[:, :half] + 0.5) * 2.0**-32
        second = bits[:, half:] * (2.0**-32 * 2.0 * math.pi)
        if dtype == torch.float32:  # (2^32 - 1) + 0.5 rounds to 2^32 there, whose logarithm would be exactly 0
            first = first.clamp_max(1.0 - 2.0**-24)
        radius = (-2.0 * first.log()).sqrt()
        return torch.cat([radius * second.cos(), radius * second.sin()], dim=1)[:, :size]

    def sphere(
        self, index: Tensor, k: int, shape: tuple[int, ...], *names: object, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return ``(B, k, *shape)`` independent vectors, uniform on the unit sphere of ``prod(shape)`` dimensions."""
        size = math.prod(shape)
        normal = self.normal(index, k * size, *names, dtype=dtype).reshape(len(index), k, size)
        return torch.nn.functional.normalize(normal, dim=-1, eps=1e-30).reshape(len(index), k, *shape)
