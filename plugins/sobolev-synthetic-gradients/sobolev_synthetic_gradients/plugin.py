"""What this package adds to `sobolev`; torch, timm and scikit-learn are imported where they are used."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sobolev import Kind, Register, Report, Student, Target, hookimpl
from sobolev_synthetic_gradients.settings import DataSettings

Width = Annotated[int, Field(ge=1)]
Stride = Annotated[int, Field(ge=1)]
SGD = {"use": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
CIFAR_CHANNELS = [64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]
CIFAR_STRIDES = [1, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1]


def synthetic_gradients(
    *,
    data: Annotated[DataSettings, Field(description="labelled images")],
    network: Annotated[Student, Kind("student"), Field(description="the main network, which the target trains")],
    split: Annotated[
        list[str], Field(min_length=1, description="layers after which the network is cut, one module each")
    ],
    reference: Annotated[
        Literal["loss", "gradient"], Field(description="what modules imitate: the loss, or its gradient directly")
    ] = "loss",
    gradient: Annotated[
        Literal["derivative", "output", "none", "backprop"],
        Field(
            description="what trains the lower parts: the module's derivative, its output, nothing, back-propagation"
        ),
    ] = "derivative",
    supervision: Annotated[
        Literal["backprop", "bootstrapped"], Field(description="by back-propagation, or by the module of the next cut")
    ] = "backprop",
    module: Annotated[
        Literal["before-update", "after-update"],
        Field(description="whose derivative is used: that of the module before its own update, or after it"),
    ] = "before-update",
    label_derivative: Annotated[bool, Field(description="the loss can be differentiated by the label y, too")] = False,
    optimizer: Annotated[Any, Kind("optimizer"), Field(description="of the main network")] = SGD,
    drops: Annotated[list[int], Field(description="steps after which the main network's learning rate drops")] = [],  # noqa: B006
    drop_factor: Annotated[float, Field(gt=0, lt=1, description="multiplies it at every drop")] = 0.1,
) -> Target:
    """The loss of a classifier that is trained in parts, by the derivatives of its imitation (synthetic gradients)."""
    from sobolev_synthetic_gradients.target import SyntheticGradients

    return SyntheticGradients(
        data,
        network,
        split,
        reference=reference,
        gradient=gradient,
        supervision=supervision,
        module=module,
        label_derivative=label_derivative,
        optimizer=optimizer,
        drops=drops,
        drop_factor=drop_factor,
    )


def class_predictor(
    *,
    channels: Annotated[list[Width], Field(description="of each 3x3 convolution, followed by ReLU")] = [128],  # noqa: B006
    strides: Annotated[list[Stride], Field(description="of each convolution; 1 by default")] = [],  # noqa: B006
    pool: Annotated[
        Literal["none", "average"], Field(description="what the last, linear layer reads: all, or means over places")
    ] = "none",
) -> Student:
    """Module that predicts the class from an activation; with the head log-loss, it predicts the loss."""
    from sobolev_synthetic_gradients.modules import ClassPredictor

    return ClassPredictor(channels, strides, pool)


def direct_gradient(
    *,
    channels: Annotated[int, Field(ge=1, description="of each 3x3 convolution but the last")] = 128,
    layers: Annotated[int, Field(ge=1, description="number of convolutions")] = 3,
    zero: Annotated[bool, Field(description="start with zeros in the last layer")] = True,
) -> Student:
    """Module whose output is the gradient, from the activation and the label (the synthetic-gradients paper's)."""
    from sobolev_synthetic_gradients.modules import DirectGradient

    return DirectGradient(channels, layers, zero)


def no_module() -> Student:
    """No parameters, always 0: for arms without synthetic gradients."""
    from sobolev_synthetic_gradients.modules import NoModule

    return NoModule()


def convolutional(
    *,
    channels: Annotated[list[Width], Field(description="of each 3x3 convolution")] = CIFAR_CHANNELS,
    strides: Annotated[list[Stride], Field(description="of each convolution")] = CIFAR_STRIDES,
    norm: Annotated[bool, Field(description="BatchNorm after every convolution")] = True,
) -> Student:
    """Classifier of images, by default the paper's for CIFAR-10; its layers are block1, block2, ..., classifier."""
    from sobolev_synthetic_gradients.networks import Convolutional

    return Convolutional(channels, strides, norm)


def timm_classifier(
    *, model: Annotated[str, Field(description="name in timm, such as resnet50")] = "resnet50"
) -> Student:
    """Classifier of images from timm, untrained."""
    from sobolev_synthetic_gradients.networks import TimmClassifier

    return TimmClassifier(model)


def methods_report(
    *,
    split: Annotated[
        Literal["auto", "train", "validation", "test"],
        Field(description="on which accuracy is shown; auto: test where it was measured, else validation, else train"),
    ] = "auto",
) -> Report:
    """Accuracy of every method with bands over seeds, cosines of gradients, and a table like the paper's Table 1."""
    from sobolev_synthetic_gradients.report import MethodsReport

    return MethodsReport(split)


@hookimpl
def register_target(register: Register) -> None:
    """Offer the target of this package."""
    register("synthetic-gradients", synthetic_gradients)


@hookimpl
def register_student(register: Register) -> None:
    """Offer modules and main networks."""
    register("class-predictor", class_predictor)
    register("direct-gradient", direct_gradient)
    register("no-module", no_module)
    register("convolutional", convolutional)
    register("timm-classifier", timm_classifier)


@hookimpl
def register_report(register: Register) -> None:
    """Offer the figure and table of methods."""
    register("synthetic-gradients", methods_report)
