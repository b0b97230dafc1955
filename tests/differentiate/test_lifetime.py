"""Nothing of a step outlives it: what the passes keep is freed with the jet."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from deriv_support import contractions, head_of, measurer_of, network, points_of
from torch import nn

from sobolev.differentiate import functions
from sobolev.vocabulary import Probe


@pytest.mark.parametrize("name", ["identity", "log-softmax", "log-loss"])
@pytest.mark.parametrize("last", [nn.Identity, nn.Tanh])
@pytest.mark.parametrize("policy", [{}, {"memory": 2000}])
def test_batches_are_freed(
    name: str, last: type[nn.Module], policy: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[functions.Batch]] = []
    begin = functions.Batch.__init__

    def remembered(self: functions.Batch, *arguments: object) -> None:
        begin(self, *arguments)
        made.append(weakref.ref(self))

    monkeypatch.setattr(functions.Batch, "__init__", remembered)
    module = nn.Sequential(*network("tanh", 3), last())
    head, points = head_of(name), points_of((3,), 3)
    measurer = measurer_of(module, head, (3,), 3, **policy)
    for contraction in contractions((3,), head.outputs(3), 1).values():
        jet = measurer.measure(points, Probe({("x",): contraction}))
        (jet.value.square().sum() + jet["x",].square().sum()).backward()
    del jet
    gc.collect()
    assert made and not any(batch() is not None for batch in made)
    assert torch.is_grad_enabled()
