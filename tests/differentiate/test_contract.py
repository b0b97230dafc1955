"""Contraction of recorded derivatives, and what a missing entry masks."""

from __future__ import annotations

import deriv_reference as reference
import pytest
import torch
from deriv_support import assert_close, contractions, points_of, vectors

from sobolev.differentiate.contract import contract, restrict
from sobolev.errors import ComponentError
from sobolev.vocabulary import Contraction, Points, Probe

B, M = 3, 2
X = ("x",)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_stored_derivatives_answer_as_the_reference_contracts(shape: tuple[int, ...], order: int) -> None:
    stored = vectors(B, M, *shape * order, seed=9)
    for what, contraction in contractions(shape, M, order).items():
        found, known = contract(stored, contraction)
        assert known is None
        assert_close(found, reference.contracted(stored, contraction), what, 1e-12)


def holes() -> tuple[torch.Tensor, torch.Tensor]:
    """A Jacobian ``(3, 2, 4)``: complete, with one hole, with nothing at all."""
    known = torch.ones(B, M, 4, dtype=torch.bool)
    known[1, 0, 2] = False
    known[2] = False
    stored = vectors(B, M, 4, seed=9)
    stored[~known] = torch.nan
    return stored, known


def test_the_whole_derivative_keeps_its_mask_and_no_nan() -> None:
    stored, known = holes()
    found, mask = contract(stored, Contraction(None, (None,)), known)
    assert torch.equal(mask, known)
    assert torch.equal(found, torch.where(known, stored, 0.0))


def test_an_output_side_component_is_masked_if_it_needs_a_missing_entry() -> None:
    stored, known = holes()
    v = vectors(B, 2, M, seed=1)
    v[1, 1, 0] = 0.0  # does not need the entry that is missing
    found, mask = contract(stored, Contraction(v, (None,)), known)
    expected = torch.ones(B, 2, 4, dtype=torch.bool)
    expected[1, 0, 2] = False
    expected[2] = False
    assert torch.equal(mask, expected)
    assert torch.isfinite(found).all()
    whole, _ = contract(stored.nan_to_num(0.0), Contraction(v, (None,)))
    assert torch.equal(found[mask], whole[mask])


def test_input_side_directions_are_zero_where_nothing_is_known() -> None:
    stored, known = holes()
    points = points_of((4,), M)
    points = Points({"x": points.inputs["x"]}, ("x",), points.index, known={X: known})
    probe = restrict(Probe({X: Contraction(None, (vectors(B, 2, 4, seed=1),))}), points)
    (direction,) = probe.contractions[X].inputs
    assert (direction[0] != 0).all()
    assert (direction[1, :, 2] == 0).all() and (direction[1, :, [0, 1, 3]] != 0).all()
    assert (direction[2] == 0).all()
    found, mask = contract(stored, probe.contractions[X], known)
    expected = torch.ones(B, 2, M, dtype=torch.bool)
    expected[2] = False  # nothing was asked of it
    assert torch.equal(mask, expected)
    assert torch.allclose(found[1], torch.einsum("kd,md->km", direction[1], stored[1].nan_to_num(0.0)))


def test_output_side_probes_are_not_changed_by_masks() -> None:
    points = points_of((4,), M)
    points = Points({"x": points.inputs["x"]}, ("x",), points.index, known={X: holes()[1]})
    v = vectors(B, 2, M, seed=1)
    assert torch.equal(restrict(Probe({X: Contraction(v, (None,))}), points).contractions[X].output, v)


def test_second_order_products_of_a_hessian_with_holes() -> None:
    known = torch.ones(B, M, 3, 3, dtype=torch.bool)
    known[0, 1, 0, 2] = False
    stored = vectors(B, M, 3, 3, seed=5)
    stored[~known] = torch.nan
    v = vectors(B, 1, 3, seed=6)
    found, mask = contract(stored, Contraction(None, (v, None)), known)
    expected = torch.ones(B, 1, M, 3, dtype=torch.bool)
    expected[0, 0, 1, 2] = False
    assert torch.equal(mask, expected) and torch.isfinite(found).all()


@pytest.mark.parametrize(
    "contraction",
    [
        Contraction(torch.ones(B, 1, M + 1), (None,)),
        Contraction(None, (torch.ones(B, 1, 5),)),
        Contraction(None, (torch.ones(B, 1, 2, 2),)),
    ],
)
def test_vectors_of_another_size_are_refused(contraction: Contraction) -> None:
    with pytest.raises(ComponentError, match=r"\(3, 2, 4\).*cannot be contracted"):
        contract(torch.ones(B, M, 4), contraction)
