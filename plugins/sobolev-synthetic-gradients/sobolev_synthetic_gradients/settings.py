"""Where images come from, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Digits(_Strict):
    """Real scans of handwritten digits, 8x8, that come with scikit-learn: 1,797 of them."""

    use: Literal["digits"]
    train: int = Field(1200, ge=1, description="images that train")
    validation: int = Field(0, ge=0, description="images that validate; all that remain test")
    shift: int = Field(0, ge=0, le=3, description="training images are moved at random by up to this many pixels")
    noise: float = Field(0.0, ge=0, description="standard deviation of fixed noise on all images, which lie in [0, 1]")


class Cifar(_Strict):
    """CIFAR-10 or CIFAR-100 from the standard archive on disk, or from its unpacked folder."""

    use: Literal["cifar10", "cifar100"]
    directory: str = Field(description="holds cifar-10-python.tar.gz (or cifar-100-...), or the folder in it")
    train: int | None = Field(None, ge=1, description="only this many of the images that remain for training")
    validation: int = Field(0, ge=0, description="the last of the 50,000 training images, held out")
    augment: bool = Field(True, description="random crops after padding by 4, and mirroring, while training")


class Generated(_Strict):
    """Made-up 32x32 images, written once in CIFAR's own file format and read by the same code."""

    use: Literal["generated"]
    classes: Literal[10, 100] = Field(10, description="in the format of CIFAR-10 or CIFAR-100")
    train: int = Field(5000, ge=10, description="training images, validation included")
    validation: int = Field(0, ge=0, description="of them held out")
    test: int = Field(1000, ge=1, description="test images")
    noise: float = Field(0.1, ge=0, description="standard deviation of noise; the range of colours is 1")
    seed: int = Field(0, ge=0, description="of patterns and noise")
    augment: bool = Field(False, description="as for CIFAR")


class Folder(_Strict):
    """ImageNet, or any folder with one folder per class below `train` and below `val`, through timm."""

    use: Literal["image-folder"]
    directory: str = Field(description="holds the folders train/CLASS/*.jpg and val/CLASS/*.jpg")
    classes: int = Field(1000, ge=2, description="how many class folders are expected")
    size: int = Field(224, ge=8, description="side of the square that the network sees")
    crop: float = Field(0.875, gt=0, le=1, description="part of the image that is seen in evaluation")
    workers: int = Field(4, ge=1, description="processes that decode images")


class GeneratedFolder(_Strict):
    """Made-up images in class folders, to try the reading of ImageNet."""

    use: Literal["generated-folder"]
    classes: int = Field(1000, ge=2, description="class folders")
    images: int = Field(1, ge=1, description="images per class and split")
    size: int = Field(64, ge=8, description="side of the square that the network sees")
    workers: int = Field(1, ge=1, description="processes that decode images")


def _by_name(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


DataSettings = Annotated[
    Digits | Cifar | Generated | Folder | GeneratedFolder, Field(discriminator="use"), BeforeValidator(_by_name)
]
