"""Training from a Parquet file against the same steps on tensors that are already in memory.

    python benchmarks/table.py [--quick] [--json FILE] [--rounds N]

Each arm is a process of its own that trains one epoch; arms alternate. The Parquet arm begins with an empty cache: its
time holds opening, checking and converting the file, and every read. "Base" is the resident memory of the process
after its imports and three steps on a table of a few rows, before the file is opened.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INPUTS = 16
PART = 65536


def write_table(file: Path, rows: int, seed: int = 0) -> None:
    """Write inputs, a value and its partials by row groups."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"x{i}" for i in range(INPUTS)] + ["y"] + [f"dy/dx{i}" for i in range(INPUTS)]
    random = np.random.default_rng(seed)
    a = random.standard_normal(INPUTS) / 4
    with pq.ParquetWriter(file, pa.schema([(name, pa.float32()) for name in names])) as writer:
        for start in range(0, rows, PART):
            x = random.uniform(-1, 1, (min(PART, rows - start), INPUTS))
            s = x @ a
            columns = [*x.T, np.sin(3 * s) + s**2, *((3 * np.cos(3 * s) + 2 * s)[:, None] * a).T]
            writer.write_table(pa.table({n: c.astype(np.float32) for n, c in zip(names, columns, strict=True)}))


def memory(field: str) -> float:
    """Return ``VmRSS`` (resident now) or ``VmHWM`` (its peak) of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {field}")


def plan(folder: Path, file: str, batch: int, steps: int):
    """Return the plan of a run."""
    from sobolev.host import default_host
    from sobolev.recipe.plan import load_plans

    recipe = folder / f"{Path(file).stem}-{steps}.yaml"
    recipe.write_text(
        f"name: benchmark\ntarget: {{use: table, file: {file}, inputs: 'x*', values: y, partials: 'dy/d{{input}}',\n"
        f"  split: {{test: 0}}}}\nstudent: {{use: mlp, hidden: [256, 256]}}\n"
        f"train: {{steps: {steps}, batch_size: {batch}, compile: never, preflight: false}}\n"
    )
    return load_plans(recipe, default_host().registry)[0]


def train(made, cache: Path, target=None) -> dict[str, float]:
    """Build and train; return wall and processor seconds of it all."""
    from sobolev.build import build
    from sobolev.distributed import connect
    from sobolev.host import default_host
    from sobolev.train import Trainer

    registry = default_host().registry
    started = time.perf_counter(), time.process_time()
    experiment = build(made, registry, connect("cpu"), cache=cache, say=lambda _: None)
    if target is not None:
        experiment.target = target
        started = time.perf_counter(), time.process_time()
    Trainer(experiment, registry).run()
    return {"seconds": time.perf_counter() - started[0], "processor": time.process_time() - started[1]}


def arm(name: str, folder: Path, rows: int, batch: int) -> dict[str, float]:
    """Train one epoch; in this process."""
    import torch

    from sobolev import Batch, Points, Target
    from sobolev.differentiate.contract import contract
    from sobolev.vocabulary import Jet

    torch.set_num_threads(1)
    steps = -(-rows // batch)

    class InMemory(Target):
        """The same numbers as three tensors."""

        def __init__(self, table: torch.Tensor) -> None:
            self.x, self.y = table[:, :INPUTS].clone(), table[:, INPUTS : INPUTS + 1].clone()
            self.dy = table[:, INPUTS + 1 :].clone().reshape(-1, 1, INPUTS)

        def size(self, split: str) -> int:
            return len(self.x) if split == "train" else 0

        def points(self, batch: Batch, training: bool):
            ids = batch.ids
            return {"table": Points({"x": self.x[ids]}, ("x",), ids, context=(self.y[ids], self.dy[ids]))}

        def answer(self, points, probes, prediction):
            value, partials = points["table"].context
            found = {k: contract(partials, c)[0] for k, c in probes["table"].contractions.items()}
            return {"table": Jet(value, found)}

    write_table(folder / f"few-{os.getpid()}.parquet", 3 * batch)
    train(plan(folder, f"few-{os.getpid()}.parquet", batch, 3), folder / "cache-few")
    target = None
    if name == "memory":
        import numpy as np
        import pyarrow.parquet as pq

        table = pq.read_table(folder / "table.parquet")
        target = InMemory(torch.from_numpy(np.stack([c.to_numpy() for c in table.columns], axis=1)))
        made = plan(folder, f"few-{os.getpid()}.parquet", batch, steps)
        return train(made, folder / "cache-few", target)
    base = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        taken = train(plan(folder, "table.parquet", batch, steps), Path(cache))
    return {**taken, "base": base, "peak": memory("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 rows instead of 1,000,000; one round")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--arm", nargs=3, metavar=("NAME", "FOLDER", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        name, folder, rows = options.arm
        print(json.dumps(arm(name, Path(folder), int(rows), options.batch)))
        return
    rows, rounds = (100_000, 1) if options.quick else (1_000_000, options.rounds)
    found: dict[str, list[dict[str, float]]] = {"memory": [], "parquet": []}
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "table.parquet", rows)
        size = (Path(folder) / "table.parquet").stat().st_size / 1e6
        for _ in range(rounds):
            for name in found:
                command = [sys.executable, __file__, "--arm", name, folder, str(rows), "--batch", str(options.batch)]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
    pairs = list(zip(found["memory"], found["parquet"], strict=True))
    ratios = {clock: [m[clock] / p[clock] for m, p in pairs] for clock in ("seconds", "processor")}
    speed = {clock: statistics.median(values) for clock, values in ratios.items()}
    rate = {name: statistics.median(rows / r["processor"] for r in results) for name, results in found.items()}
    above = max(r["peak"] - r["base"] for r in found["parquet"])
    result = {
        "rows": rows, "inputs": INPUTS, "batch": options.batch, "file_mb": size, "rows_per_second": rate,
        "speed": speed, "ratios": ratios, "mb_above_base": above,
    }  # fmt: skip
    print(f"{rows:,} rows x {INPUTS} inputs with partials, {size:.0f} MB of Parquet, batch {options.batch}, one epoch")
    print(f"tensors in memory   {rate['memory']:10,.0f} rows per processor second")
    print(
        f"from Parquet        {rate['parquet']:10,.0f} rows per processor second, reading and first conversion included"
    )
    print(
        f"speed               {100 * speed['processor']:9.1f} % by processor time, "
        f"{100 * speed['seconds']:.1f} % by the clock"
    )
    print("                    (aim: at least 80; the clock says little on a machine with other work)")
    print(f"memory above base   {above:9.0f} MB (aim: under 300)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
