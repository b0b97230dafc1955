"""Students for frames."""

from __future__ import annotations

from torch import nn

from sobolev import Site, Student
from sobolev_atari.networks import policy_network
from sobolev_atari.settings import Architecture


class Convolutional(Student):
    """One of supplement 3's networks, for a site whose only input is x `(channels, height, width)`."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def build(self, site: Site) -> nn.Module:
        """X `(B, *shape)` to logits `(B, outputs)`."""
        return policy_network(self.architecture, site.inputs["x"], site.outputs)
