"""What to say, and keep, when a loss is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sobolev.build import Drawn
from sobolev.distributed import World
from sobolev.errors import NonFiniteError
from sobolev.vocabulary import VALUE, Jet, key_name


def broken_weights(student: nn.Module) -> list[str]:
    """Return the names of the parameters that hold a NaN or an infinity."""
    return [name for name, p in student.named_parameters() if not bool(p.detach().isfinite().all())]


def report_nonfinite(
    step: int,
    drawn: Drawn,
    prediction: Mapping[str, Jet],
    reference: Mapping[str, Jet],
    student: nn.Module,
    world: World,
    dump: Path | None,
) -> NonFiniteError:
    """Return the error that names the tensor and the samples, the same in all processes.

    Each process keeps its part of the batch in ``dump`` (.npz), if anything is not finite there.
    """
    found: list[str] = []
    arrays: dict[str, np.ndarray] = {}

    def look(name: str, tensor: Tensor, index: Tensor | None) -> None:
        tensor = tensor.detach()
        arrays[name.replace("/", "_")] = tensor.cpu().numpy()
        bad = ~torch.isfinite(tensor)
        if not bad.any():
            return
        if index is None:
            found.append(name)
            return
        ids = index[bad.reshape(len(bad), -1).any(dim=1).to(index.device)].tolist()
        shown = ", ".join(map(str, ids[:8])) + (", ..." if len(ids) > 8 else "")
        found.append(f"{name} (samples {shown})")

    for site, where in drawn.points.items():
        for name, tensor in where.inputs.items():
            look(f"input {name} of site {site}", tensor, where.index)
        if where.weight is not None:
            look(f"sample weights of site {site}", where.weight, where.index)
        for key, contraction in drawn.probes[site].contractions.items():
            for vector in (contraction.output, *contraction.inputs):
                if vector is not None:
                    look(f"estimator's probe for {key_name(key)} of site {site}", vector, where.index)
        for side, jets in (("target", reference), ("student", prediction)):
            for key in (VALUE, *jets[site].derivatives):
                look(f"{side}'s {key_name(key)} of site {site}", jets[site][key], where.index)
    found += [f"weight {name} of the student" for name in broken_weights(student)]
    if dump is not None and (found or world.first):
        arrays |= {f"index of site {site}": where.index.numpy(force=True) for site, where in drawn.points.items()}
        np.savez(dump, **arrays)  # type: ignore[arg-type]
    kept = f" The batch is kept in {dump}." if dump is not None else ""
    found = world.gather(found)
    first = "; ".join(found) if found else "the loss itself (its terms overflow)"
    return NonFiniteError(
        f"step {step}: not finite: {first}.{kept} Lower the learning rate, clip gradients (train.clip), check the "
        "target there, or set train.on_nonfinite: skip."
    )
