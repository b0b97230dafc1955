"""Compression of classifiers on the digits."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from sobolev_atari.distillation import SITE, Distillation
from sobolev_atari.plugin import classifier

from sobolev import HEADS, Batch, ComponentError, Context, DataError, Probe, SobolevError


def prepared(tmp_path: Path, **options: object) -> Distillation:
    target = classifier(**options)  # type: ignore[arg-type]
    assert isinstance(target, Distillation)
    target.prepare(
        Context(
            device=torch.device("cpu"),
            dtype=torch.float32,
            world=None,  # type: ignore[arg-type]
            seed=0,
            head=HEADS["log-softmax"],
            directory=tmp_path,
            cache=tmp_path / "cache",
            say=lambda line: None,
        )
    )
    return target


def test_the_teacher_is_trained_once_and_knows_digits(tmp_path: Path) -> None:
    target = prepared(tmp_path, teacher_steps=200, teacher_train=500, train=300, validation=50)
    assert [target.size(s) for s in ("train", "validation", "test")] == [300, 50, 1297]

    class Perfect:
        def value(self, site: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return target.network(inputs["x"]).log_softmax(1)

    found = target.finish(Perfect())  # type: ignore[arg-type]
    assert found["accuracy"] == found["teacher-accuracy"] > 0.85
    again = prepared(tmp_path, teacher_steps=200, teacher_train=500, train=300, validation=50)
    assert again.version == target.version


def test_digits_are_split_without_overlap(tmp_path: Path) -> None:
    rows = prepared(tmp_path, teacher_steps=1, teacher_train=350, train=300, validation=50).source.rows
    assert len(np.unique(np.concatenate(list(rows.values())))) == 1797


def test_more_digits_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is left to test"):
        prepared(tmp_path, train=1700, validation=97)


def test_a_model_of_timm_is_a_teacher(tmp_path: Path) -> None:
    target = prepared(tmp_path, teacher="timm/test_resnet", size=32, teacher_steps=2, train=20)
    points = target.points(Batch("train", torch.arange(3), None), training=True)
    jet = target.answer(points, {SITE: Probe.full((("x",),))}, None)[SITE]
    assert jet.derivatives[("x",)].shape == (3, 10, 1, 32, 32) and bool(jet.derivatives[("x",)].any())


def test_unknown_networks_are_named(tmp_path: Path) -> None:
    with pytest.raises(ComponentError, match=r"timm has no model 'resnet5'; did you mean 'resnet50'"):
        prepared(tmp_path, teacher="timm/resnet5")
    with pytest.raises(ComponentError, match="'mlp', or 'timm/NAME'"):
        prepared(tmp_path, teacher="cnn")


@pytest.mark.parametrize(("package", "said"), [("sklearn", "pip install scikit-learn"), ("timm", "pip install timm")])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, said: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(SobolevError, match=said):
        prepared(tmp_path, teacher="timm/test_resnet", size=32)
    assert not list(tmp_path.rglob("*.safetensors"))
