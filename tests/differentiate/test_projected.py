"""Random projections: what is unbiased, what is not, and on what the draw depends."""

from __future__ import annotations

import pytest
import torch
from deriv_support import points_of, vectors

from sobolev.differentiate.contract import contract
from sobolev.differentiate.projected import Projected
from sobolev.errors import ComponentError
from sobolev.noise import Noise
from sobolev.vocabulary import Points

N = 40000
M, D = 3, 4
X, XX = ("x",), ("x", "x")


def many(index: torch.Tensor | None = None) -> Points:
    """The same point, with many sample ids."""
    point = points_of((D,), M, rows=1)
    ids = torch.arange(N) if index is None else index
    return Points({"x": point.inputs["x"].expand(len(ids), -1)}, ("x",), ids)


def mean(values: torch.Tensor) -> tuple[float, float]:
    """Mean and five of its standard errors."""
    flat = values.reshape(-1)
    return float(flat.mean()), 5 * float(flat.std()) / len(flat) ** 0.5


def drawn(key: tuple[str, ...], step: int = 0, **options: object):
    return Projected(**options).probe(many(), M, (key,), Noise(0, "train", step, "site")).contractions[key]


def jacobian() -> torch.Tensor:
    return vectors(1, M, D, seed=3).expand(N, -1, -1)


def hessian() -> torch.Tensor:
    half = vectors(1, 1, D, D, seed=4)
    return (half + half.transpose(2, 3) + torch.eye(D)).expand(N, -1, -1, -1)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_squared_output_side_is_the_squared_norm_over_m(orthogonal: bool) -> None:
    result, _ = contract(jacobian(), drawn(X, probes=2, orthogonal=orthogonal))
    found, error = mean(result.square().sum(-1).mean(1))
    assert abs(found - float(jacobian()[0].square().sum()) / M) < error


def test_squared_input_side_is_the_squared_norm_over_d() -> None:
    result, _ = contract(jacobian(), drawn(X, side="input"))
    found, error = mean(result.square().sum(-1))
    assert abs(found - float(jacobian()[0].square().sum()) / D) < error


def test_squared_hessian_vector_product_is_the_squared_norm_over_d() -> None:
    result, _ = contract(hessian(), drawn(XX, side="input"))
    found, error = mean(result.square().sum((-1, -2)))
    assert abs(found - float(hessian()[0].square().sum()) / D) < error


def test_squared_contraction_is_the_squared_norm_over_d_squared() -> None:
    contraction = drawn(XX, side="input", last="contracted")
    v, w = contraction.inputs
    assert not torch.equal(v, w)
    result, _ = contract(hessian(), contraction)
    norm, trace = float(hessian()[0].square().sum()), float(hessian()[0, 0].trace())
    found, error = mean(result.square())
    assert abs(found - norm / D**2) < error
    # one vector twice would measure another functional
    same = torch.einsum("bmij,bki,bkj->bkm", hessian(), v, v)
    found, error = mean(same.square())
    assert abs(found - (2 * norm + trace**2) / (D * (D + 2))) < error
    assert abs(found - norm / D**2) > error


@pytest.mark.parametrize("power", [1, "l1"])
def test_no_factor_makes_norm_and_l1_exact(power: object) -> None:
    """The ratio of the projected loss and the whole one differs between two Jacobians of equal norm."""
    ratios = []
    contraction = drawn(X)
    for entries in (torch.ones(M, D), torch.eye(M, D)):
        whole = entries.double().expand(N, -1, -1)
        result, _ = contract(whole, contraction)
        if power == "l1":
            ratios.append(float(result.abs().sum(-1).mean() / whole[0].abs().sum()))
        else:
            ratios.append(float(result.norm(dim=-1).mean() / whole[0].norm()))
    assert abs(ratios[0] / ratios[1] - 1) > 0.05


def test_the_draw_depends_on_seed_step_and_sample_alone() -> None:
    def of(index: torch.Tensor, seed: int = 0, step: int = 3, site: str = "a") -> torch.Tensor:
        probe = Projected(probes=2).probe(many(index), M, (X,), Noise(seed, "train", step, site))
        return probe.contractions[X].output

    ids = torch.tensor([5, 17, 99, 2**40])
    whole = of(ids)
    assert torch.equal(whole, of(ids))
    assert torch.equal(whole.flip(0), of(ids.flip(0)))  # wherever in whatever batch
    assert torch.equal(whole[1:2], of(ids[1:2]))
    for other in (of(ids, seed=1), of(ids, step=4), of(ids, site="b"), of(ids + 1)):
        assert float((other - whole).abs().amax((1, 2)).min()) > 1e-3
    assert len(torch.unique(whole.reshape(-1, M), dim=0)) == 8


def test_vectors_have_unit_norm_and_orders_differ() -> None:
    probe = Projected(probes=3, side="input").probe(many(), M, (X, XX), Noise(0, "train", 0, "s"))
    first, second = probe.contractions[X].inputs[0], probe.contractions[XX].inputs[0]
    assert torch.allclose(first.norm(dim=-1), torch.ones(N, 3, dtype=first.dtype))
    assert float((first - second).abs().max()) > 1
    assert abs(float((first * second).sum(-1).mean())) < 0.01


def test_orthogonal_probes_recover_the_whole_norm() -> None:
    result, _ = contract(jacobian(), drawn(X, probes=M, orthogonal=True))
    assert torch.allclose(result.square().sum((1, 2)), jacobian().square().sum((1, 2)))


def test_fixed_directions_are_used_as_they_are() -> None:
    contraction = drawn(X, side="input", directions=[[1.0, 0, 0, 0], [0, 0, 2.0, 0]])
    result, _ = contract(jacobian(), contraction)
    assert torch.allclose(result[0, 0], jacobian()[0, :, 0])
    assert torch.allclose(result[0, 1], 2 * jacobian()[0, :, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 5, "orthogonal": True}, "5 orthogonal probes.*3 dimensions"),
        ({"directions": [[1.0, 2.0]]}, "hold 2 numbers each.*needs 3"),
        ({"directions": [[1.0], [1.0, 2.0]]}, "equal length"),
        ({"directions": [[1.0, 0, 0]], "orthogonal": True}, "does not go with"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ComponentError, match=message):
        drawn(X, **options)
