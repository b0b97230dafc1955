"""Main networks: classifiers of images, built like students but trained by the target."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from sobolev import ComponentError, Site, Student
from sobolev_synthetic_gradients.optional import import_timm


def _image(site: Site, who: str) -> tuple[int, int, int]:
    shapes = list(site.inputs.values())
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise ComponentError(f"{who} takes one image (channels, height, width); it is given {dict(site.inputs)}")
    channels, height, width = shapes[0]
    return channels, height, width


class Convolutional(Student):
    """3x3 convolutions with BatchNorm and ReLU, then a linear layer (supplement 4.2).

    The layers are called ``block1``, ``block2``, ... and ``classifier``.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], norm: bool) -> None:
        if len(channels) != len(strides):
            raise ComponentError(
                f"convolutional: {len(channels)} channels but {len(strides)} strides; one of each per layer"
            )
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.norm = norm

    def build(self, site: Site) -> nn.Module:
        """Return an ``nn.Sequential``."""
        before, height, width = _image(site, "convolutional")
        network = nn.Sequential()
        for i, (channels, stride) in enumerate(zip(self.channels, self.strides, strict=True), 1):
            # BatchNorm has a bias of its own, so the convolution before it needs none.
            convolution = nn.Conv2d(before, channels, 3, stride, padding=1, bias=not self.norm)
            norm = [nn.BatchNorm2d(channels)] if self.norm else []
            network.add_module(f"block{i}", nn.Sequential(convolution, *norm, nn.ReLU()))
            before, height, width = channels, -(-height // stride), -(-width // stride)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(before * height * width, site.outputs))
        network.add_module("classifier", classifier)
        return network


class TimmClassifier(Student):
    """Any classifier of timm, without trained weights."""

    def __init__(self, model: str) -> None:
        self.model = model

    def build(self, site: Site) -> nn.Module:
        """Return the model for the site's images and classes.

        Raises:
            ComponentError: timm has no such model; offers the nearest names.
        """
        channels, height, _ = _image(site, "timm-classifier")
        timm = import_timm(f"the network {self.model}")
        known = timm.list_models()
        if self.model not in known:
            near = ", ".join(repr(n) for n in difflib.get_close_matches(self.model, known, n=3, cutoff=0.3))
            raise ComponentError(f"timm-classifier: timm has no model {self.model!r}; the nearest names are {near}")
        options = {"num_classes": site.outputs, "in_chans": channels}
        try:
            model: nn.Module = timm.create_model(self.model, **options, img_size=height)
        except TypeError:  # convolutional models take any size and refuse the option
            model = timm.create_model(self.model, **options)
        return model
