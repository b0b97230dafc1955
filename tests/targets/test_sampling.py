"""Designs: in the box, a function of the seed, and each with the property that it is named for."""

import numpy as np
import pytest
import torch
from scipy.stats import qmc

from sobolev.builtin.sampling import DESIGNS, sample

LOW = torch.tensor([-1.0, 10.0, 0.0], dtype=torch.float64)
HIGH = torch.tensor([1.0, 20.0, 1e-3], dtype=torch.float64)


def unit(design: str, count: int, seed: int = 0) -> np.ndarray:
    return ((sample(design, count, LOW, HIGH, seed) - LOW) / (HIGH - LOW)).numpy()


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
def test_points_lie_in_the_box_and_depend_on_the_seed(design: str, count: int) -> None:
    x = sample(design, count, LOW, HIGH, 5)
    assert x.shape == (count, 3) and x.dtype == torch.float64
    assert ((x >= LOW) & (x <= HIGH)).all()
    assert torch.equal(x, sample(design, count, LOW, HIGH, 5))
    if count:
        assert not torch.equal(x, sample(design, count, LOW, HIGH, 6))


def test_latin_hypercube_visits_every_slice_once() -> None:
    slices = np.floor(unit("latin-hypercube", 20) * 20)
    for column in slices.T:
        assert sorted(column) == list(range(20))


def test_sobol_fills_the_box_more_evenly() -> None:
    spread = {design: np.mean([qmc.discrepancy(unit(design, 128, s)) for s in range(5)]) for design in DESIGNS}
    assert spread["sobol"] < 0.2 * spread["uniform"]
    assert spread["latin-hypercube"] < 0.5 * spread["uniform"]


def test_unknown_design_is_named() -> None:
    with pytest.raises(ValueError, match="'grid'; there are uniform, sobol, latin-hypercube"):
        sample("grid", 3, LOW, HIGH, 0)
