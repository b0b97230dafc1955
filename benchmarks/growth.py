"""Time and memory of a step as outputs, inputs and order grow.

    python benchmarks/growth.py [--quick] [--json FILE] [--figure FILE]

For m outputs and d inputs: one projected probe against the plain step of the same network, and the whole derivative
with and without a memory bound. Aims: the projected step over the plain step at m = 1000 is at most 1.2 times that
ratio at m = 2; `exact` stays below its bound. Peak memory is what a fresh process takes for the step (Linux).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _common import arguments, clock, interleaved, machine, median_ratio, shown, write

ROUNDS = 20
BATCH = 64
BOUND = 64 * 2**20
AIM = 1.2
OUTPUTS = (1, 2, 10, 100, 1000)
INPUTS = (2, 10, 100, 1000, 10000)
ORDERS = (1, 2, 3)
WHOLE = 64 * 2**20  # bytes of the largest derivative that is measured whole


def arm(name: str, d: int, m: int, order: int = 1) -> Callable[[], object] | None:
    """Return one step, or None where it would be too large: plain, projected, exact, bounded."""
    import torch
    from torch import nn

    from sobolev.differentiate.measure import Measurer, Policy
    from sobolev.heads import HEADS
    from sobolev.vocabulary import Contraction, Points, Probe, Site

    torch.set_num_threads(1)
    torch.manual_seed(0)
    whole = name in ("exact", "bounded")
    if whole and 4 * BATCH * m * d**order > WHOLE:
        return None
    network = nn.Sequential(nn.Linear(d, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, m))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    policy = Policy(steps=1, compile="never", memory=BOUND if name == "bounded" else None)
    measurer = Measurer(network, HEADS["identity"], Site({"x": (d,)}, m, ("x",)), policy)
    x, y = torch.randn(BATCH, d), torch.randn(BATCH, m)
    points = Points({"x": x}, ("x",), torch.arange(BATCH))
    key = ("x",) * order
    along = torch.nn.functional.normalize(torch.randn(order, BATCH, 1, d), dim=-1)
    out = torch.nn.functional.normalize(torch.randn(BATCH, 1, m), dim=-1)
    side = Contraction(out if m > 1 or order > 1 else None, (*along[: order - 1], None))
    contraction = Contraction(None, (None,) * order) if whole else side
    probe = Probe({} if name == "plain" else {key: contraction})

    def step() -> None:
        optimizer.zero_grad()
        jet = measurer.measure(points, probe)
        loss = torch.nn.functional.mse_loss(jet.value, y, reduction="sum") / BATCH
        if probe.contractions:
            loss = loss + jet[key].square().sum() / BATCH
        loss.backward()
        optimizer.step()

    return step


def peak(name: str, d: int, m: int, order: int) -> float | None:
    """Return the mebibytes that one step takes in a fresh process, or None where the system does not tell."""
    if sys.platform != "linux":
        return None
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import growth\n"
        "status = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key + ':'))\n"
        f"growth.arm({name!r}, 2, 2, 1)()\n"
        f"step = growth.arm({name!r}, {d}, {m}, {order})\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "before = status('VmRSS')\n"
        "step()\n"
        "print((status('VmHWM') - before) / 1024)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout)


def measured(options: Any, d: int, m: int, order: int, memory: bool) -> dict[str, Any]:
    """Return microseconds, ratios and mebibytes of all arms at one size."""
    arms = {name: arm(name, d, m, order) for name in ("plain", "projected", "exact", "bounded")}
    there = {name: step for name, step in arms.items() if step is not None}
    taken = interleaved(there, options.rounds, clock(options))
    row: dict[str, Any] = {"inputs": d, "outputs": m, "order": order}
    for name in there:
        row[name] = {"us": statistics.median(taken[name]), "ratio": median_ratio(taken, name, "plain")}
        if memory and name != "plain":
            row[name]["mib"] = peak(name, d, m, order)
    cells = [f"{name} {row[name]['ratio']:6.2f}x" for name in there if name != "plain"]
    cells += [f"{name} {row[name]['mib']:.0f} MiB" for name in there if row[name].get("mib") is not None]
    print(f"  d {d:>5}  m {m:>4}  order {order}  plain {row['plain']['us']:>7.0f} us  " + "  ".join(cells))
    return row


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw ratios and memory against outputs, inputs and order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sweeps = [("outputs", "outputs m (d = 16)"), ("inputs", "inputs d (m = 1)"), ("order", "order (d = 8, m = 2)")]
    colours = {"projected": "#1b6ca8", "exact": "#b3541e", "bounded": "#4f772d"}
    figure, axes = pyplot.subplots(2, 3, figsize=(10, 5.6), layout="constrained", sharex="col")
    for column, (sweep, label) in enumerate(sweeps):
        rows = result[sweep]
        for row_of_axes, quantity, what in (
            (0, "ratio", "time of a step / plain step"),
            (1, "mib", "peak memory, MiB"),
        ):
            axis = axes[row_of_axes][column]
            for name, colour in colours.items():
                seen = [(row[sweep], row[name][quantity]) for row in rows if row.get(name, {}).get(quantity)]
                marker = {"projected": "o", "exact": "s", "bounded": "^"}[name]
                axis.plot(*zip(*seen), marker=marker, color=colour, label=name, lw=1.4, ms=4) if seen else None
            if sweep != "order":
                axis.set_xscale("log")
            else:
                axis.set_xticks([1, 2, 3])
            if (quantity, sweep) == ("ratio", "inputs"):
                axis.set_ylim(0, None)  # too flat for a logarithmic axis
            else:
                axis.set_yscale("log")
                axis.set_ylim(bottom=1)  # less than 1 MiB is not resolved
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
            axis.grid(alpha=0.25)
            if not column:
                axis.set_ylabel(what)
            if row_of_axes:
                axis.axhline(BOUND / 2**20, color="#4f772d", lw=0.8, ls=":")
                axis.set_xlabel(label)
    axes[0][0].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    """Measure all sizes and print them."""
    figure = None
    if "--figure" in sys.argv:
        place = sys.argv.index("--figure")
        figure = Path(sys.argv[place + 1])
        del sys.argv[place : place + 2]
    options = arguments(__doc__, ROUNDS)
    outputs, inputs, orders = (OUTPUTS, INPUTS, ORDERS) if not options.quick else ((2, 1000), (2, 1000), (1, 2))
    memory = not options.quick
    result: dict[str, Any] = {}
    print(f"MLP 256-256 tanh, batch {BATCH}; whole derivatives where they take at most {WHOLE >> 20} MiB")
    result["outputs"] = [measured(options, 16, m, 1, memory) for m in outputs]
    result["inputs"] = [measured(options, d, 1, 1, memory) for d in inputs]
    result["order"] = [measured(options, 8, 2, order, memory) for order in orders]
    ratio = {row["outputs"]: row["projected"]["ratio"] for row in result["outputs"]}
    growth = ratio[1000] / ratio[2]
    result["aim"] = {"growth of projected / plain from m = 2 to 1000": growth, "aim": AIM, "met": growth <= AIM}
    print(f"projected / plain at m = 1000 over m = 2: {growth:.2f} (aim {AIM}{'' if growth <= AIM else ', MISSED'})")
    bounded = [r["bounded"]["mib"] for rows in (result[k] for k in ("outputs", "inputs", "order")) for r in rows
               if r.get("bounded", {}).get("mib") is not None]  # fmt: skip
    if bounded:
        kept = max(bounded) <= BOUND / 2**20
        result["bound"] = {"largest": max(bounded), "bound": BOUND / 2**20, "met": kept}
        print(f"largest peak under a bound of {BOUND >> 20} MiB: {max(bounded):.0f} MiB{'' if kept else ', MISSED'}")
    result["machine"] = machine(options)
    print(f"on {shown(result['machine'])}")
    write(options, json.loads(json.dumps(result)))
    if figure is not None:
        draw(result, figure)


if __name__ == "__main__":
    main()
