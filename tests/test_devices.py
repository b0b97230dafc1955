"""A default device that the caller has set does not reach the library's own tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from families import HOST, plan

from sobolev import SobolevRegressor, load
from sobolev.devices import full_precision, single_precision
from sobolev.distributed import World
from sobolev.export import export_run
from sobolev.run import Settings, execute


@pytest.fixture(autouse=True)
def _elsewhere() -> Iterator[None]:
    torch.set_default_device("meta")  # whatever is made there has no numbers
    yield
    torch.set_default_device(None)


def test_a_run_and_its_student(tmp_path: Path) -> None:
    made = plan(tmp_path, "target={use: mccormick, train: 20, test: 10}", "estimator={use: projected, side: input}")
    found = execute(made, HOST, World(torch.device("cpu")), Settings(tmp_path / "runs"), say=lambda _: None)
    assert found.status == "finished" and np.isfinite(found.summary["test/function/value"])
    jet = load(tmp_path / "runs" / made.directory, HOST)([[0.5, 1.0]])
    assert jet.value.isfinite().all() and jet["x",].shape == (1, 1, 2)
    (graph, _) = export_run(tmp_path / "runs" / made.directory, tmp_path, ["torch"])
    assert graph.name == "student.pt2"  # it agreed with the student
    assert torch.get_default_device().type == "meta"


def test_the_regressor() -> None:
    x = np.random.RandomState(0).rand(12, 2)
    model = SobolevRegressor(regime="exact", activation="silu").fit(x, x.prod(1), x[:, ::-1])
    assert np.isfinite(model.predict(x)).all() and model.predict_partials(x).shape == (12, 2)


@pytest.mark.parametrize("context", [single_precision, full_precision])
def test_convolutions_on_cuda_stay_in_single_precision(context: Callable[..., AbstractContextManager[object]]) -> None:
    flags = torch.backends.cudnn
    assert flags.allow_tf32  # torch's default, with or without a device
    with context(torch.device("cpu")):
        assert flags.allow_tf32
    with pytest.raises(KeyError), context(torch.device("cuda")):
        assert not flags.allow_tf32
        with context(torch.device("cuda")):
            assert not flags.allow_tf32
        raise KeyError
    assert flags.allow_tf32
    before = flags.rnn.fp32_precision
    flags.rnn.fp32_precision = "ieee"  # set apart: the caller knows
    try:
        with context(torch.device("cuda")):
            assert flags.conv.fp32_precision == "tf32"
    finally:
        flags.rnn.fp32_precision = before
    assert flags.allow_tf32
