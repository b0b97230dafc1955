"""Students for frames."""

from __future__ import annotations

from torch import nn

from sobolev import Site, Student
from sobolev_atari.networks import policy_network
from sobolev_atari.settings import Architecture


class Convolutional(Student):
    """One of supplement 3's networks, for a site whose only input is x `(channels, height, width)`.

    Weights start as He et al. (2015) draw them for ReLU: the supplement does not say how. With torch's default, whose
    variance is six times smaller, these networks stay for hundreds of steps at the policy that looks at nothing. Biases
    are torch's, not 0: black parts of a frame would lie exactly on the kinks of the first layers.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def build(self, site: Site) -> nn.Module:
        """X `(B, *shape)` to logits `(B, outputs)`."""
        network = policy_network(self.architecture, site.inputs["x"], site.outputs)
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        return network
