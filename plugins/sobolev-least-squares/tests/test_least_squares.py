"""Exact on affine and quadratic functions, converging elsewhere; what cannot be fitted is said."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from sobolev_least_squares.estimator import LeastSquares
from torch import Tensor

from sobolev import Batch, ComponentError, Context, DataError, Noise, Points, Probe, Site, Target
from sobolev.distributed import World
from sobolev.heads import HEADS

X, XX = ("x",), ("x", "x")
D = 2
MATRIX = torch.tensor([[1.5, -0.3], [0.4, 2.0], [-1.1, 0.2]], dtype=torch.float64)


class Scattered(Target):
    """Random samples of a function of two variables."""

    def __init__(self, function: Callable[[Tensor], Tensor], samples: int, line: bool = False) -> None:
        self.function = function
        self.x = torch.rand(samples, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        if line:
            self.x[:, 1] = self.x[:, 0]

    def sites(self) -> Mapping[str, Site]:
        return {"f": Site({"x": (D,)}, 3, ("x",))}

    def size(self, split: str) -> int:
        return len(self.x) if split == "train" else 0

    def points(self, batch: Batch, training: bool) -> Mapping[str, Points]:
        return {"f": Points({"x": self.x[batch.ids]}, ("x",), batch.ids)}

    def value(self, site: str, inputs: Mapping[str, Tensor], points: Points) -> Tensor:
        return self.function(inputs["x"])


def affine(x: Tensor) -> Tensor:
    return x @ MATRIX.T + 3.0


def quadratic(x: Tensor) -> Tensor:
    return affine(x) + (x[:, :1] ** 2 - 1.7 * x[:, :1] * x[:, 1:]) * torch.tensor([1.0, 2.0, -0.5])


def smooth(x: Tensor) -> Tensor:
    return torch.stack([torch.sin(2 * x[:, 0]) * x[:, 1], torch.exp(x[:, 0] - x[:, 1]), x.prod(1)], dim=1)


def prepared(target: Scattered, **options: object) -> LeastSquares:
    estimator = LeastSquares(**options)
    world = World(torch.device("cpu"))
    folder = Path.cwd()
    estimator.prepare(target, Context(world.device, torch.float64, world, 0, HEADS["identity"], folder, folder))
    return estimator


def inside(rows: int = 20) -> Points:
    x = 0.2 + 0.6 * torch.rand(rows, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Points({"x": x}, ("x",), torch.arange(rows))


def errors(function: Callable[[Tensor], Tensor], samples: int, keys: tuple[tuple[str, ...], ...], degree: int):
    points = inside()
    estimator = prepared(Scattered(function, samples), degree=degree)
    jet = estimator.differentiate(lambda inputs: function(inputs["x"]), points, Probe.full(keys))
    found = []
    for key in keys:
        order = torch.func.jacrev(lambda x: function(x[None])[0])
        if len(key) == 2:
            order = torch.func.jacrev(order)
        found.append(float((jet[key] - torch.func.vmap(order)(points.inputs["x"])).abs().mean()))
    return found


@pytest.mark.parametrize("degree", [1, 2])
def test_exact_on_affine_functions(degree: int) -> None:
    assert errors(affine, 60, (X,), degree)[0] < 1e-11


def test_exact_on_quadratic_functions_with_degree_two() -> None:
    first, second = errors(quadratic, 60, (X, XX), 2)
    assert first < 1e-10 and second < 1e-8
    assert errors(quadratic, 60, (X,), 1)[0] > 1e-2


@pytest.mark.parametrize(("degree", "slope"), [(1, 0.5), (2, 1.0)])
def test_converges_with_the_distance_of_neighbours(degree: int, slope: float) -> None:
    """In two variables the distance falls as the root of the number of samples: error N^(-1/2) and N^(-1)."""
    counts = (500, 8000)
    few, many = (errors(smooth, count, (X,), degree)[0] for count in counts)
    assert math.log(few / many) / math.log(counts[1] / counts[0]) > 0.8 * slope


def test_contractions_are_those_of_the_whole_derivative() -> None:
    from sobolev.differentiate.projected import Projected

    estimator = prepared(Scattered(smooth, 200), of=Projected(probes=2), degree=2)
    points = inside()
    probe = estimator.probe(points, 3, (X,), Noise(0, "train", 0, "f"))
    whole = estimator.differentiate(lambda i: smooth(i["x"]), points, Probe.full((X,)))
    jet = estimator.differentiate(lambda i: smooth(i["x"]), points, probe)
    expected = torch.einsum("bkm,bmd->bkd", probe.contractions[X].output, whole[X])
    assert torch.allclose(jet[X], expected)
    assert not jet[X].requires_grad


def test_no_evaluation_beyond_training_set_and_points() -> None:
    called: list[int] = []

    def counted(x: Tensor) -> Tensor:
        called.append(len(x))
        return smooth(x)

    estimator = prepared(Scattered(counted, 200))
    estimator.differentiate(lambda i: counted(i["x"]), inside(7), Probe.full((X,)))
    assert sum(called) == 207


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(DataError, match=r"6 neighbours, the training set has 5 samples"):
        prepared(Scattered(affine, 5))
    with pytest.raises(ComponentError, match=r"3 coefficients; set 'neighbours' to at least 3, not 2"):
        prepared(Scattered(affine, 50), neighbours=2)
    with pytest.raises(DataError, match=r"do not determine"):
        on_a_line = prepared(Scattered(affine, 50, line=True))
        on_a_line.differentiate(lambda i: affine(i["x"]), Scattered(affine, 9, line=True).points(
            Batch("train", torch.arange(9)), False)["f"], Probe.full((X,)))  # fmt: skip
    with pytest.raises(ComponentError, match=r"d2/dxdx needs a polynomial of degree 2"):
        LeastSquares().probe(inside(), 3, (XX,), Noise(0, "train", 0, "f"))


RECIPE = """
name: scattered
plugins: [sobolev-least-squares]
target: {use: mccormick, train: 200, test: 50}
student: {use: mlp, hidden: [16], activation: tanh}
estimator: {use: least-squares, degree: 2}
train: {steps: 30, batch_size: 20, compile: never}
"""


def test_a_recipe_runs(tmp_path: Path) -> None:
    from sobolev.build import build
    from sobolev.host import load_host
    from sobolev.recipe.plan import load_plans
    from sobolev.train import Trainer

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    host = load_host()
    (plan,) = load_plans(tmp_path / "recipe.yaml", host.registry)
    made = build(plan, host.registry, World(torch.device("cpu")), cache=tmp_path, say=lambda _: None, smoke=True)
    points = made.target.points(Batch("train", torch.arange(20)), True)
    exact = torch.func.vmap(torch.func.jacrev(lambda x: made.target.value("function", {"x": x[None]}, None)[0]))
    reference = made.reference(points, {"function": Probe.full((X,))}, None)["function"]
    wanted = exact(points["function"].inputs["x"])
    assert float((reference[X] - wanted).norm() / wanted.norm()) < 0.3
    assert Trainer(made, host.registry).run().status == "finished"
