"""What the benchmarks of the derivative engine share: one core before anything is imported, clocks, tables, records."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def arguments(description: str | None, rounds: int, devices: Sequence[str] = ("cpu",)) -> argparse.Namespace:
    """Parse the command line and bind this process to one core; call it before torch or JAX is imported.

    On an accelerator the process keeps all its cores, as autograd has a thread of its own there, and the clock is that
    on the wall.
    """
    assert "torch" not in sys.modules and "jax" not in sys.modules, "the core is chosen before libraries start threads"
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer cases and rounds: under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too")
    parser.add_argument("--core", type=int, default=0, help="the core that all arms share")
    parser.add_argument("--rounds", type=int, default=None, help=f"interleaved rounds ({rounds})")
    parser.add_argument(
        "--clock", choices=["cpu", "wall"], default="cpu", help="cpu: not disturbed by others on the core"
    )
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--device", choices=devices, default="cpu")
    parsed = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if parsed.device == "cpu":
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {parsed.core})
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        parsed.clock = "wall"
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if parsed.rounds is None:
        parsed.rounds = max(5, rounds // 5) if parsed.quick else rounds
    return parsed


def clock(options: argparse.Namespace) -> Callable[[], int]:
    """Return a clock in nanoseconds; on an accelerator it waits until all work is done."""
    if options.device == "cpu":
        return time.process_time_ns if options.clock == "cpu" else time.perf_counter_ns
    import torch

    def now() -> int:
        torch.cuda.synchronize()
        return time.perf_counter_ns()

    return now


def interleaved(
    arms: Mapping[str, Callable[[], object]], rounds: int, now: Callable[[], int], enough: float = 4e6
) -> dict[str, list[float]]:
    """Return per arm the microseconds of one step in every round; arms take turns in changing order.

    Args:
        arms: one step each.
        rounds: how often every arm takes its turn.
        now: clock in nanoseconds.
        enough: nanoseconds that one turn lasts at least.
    """
    repeats = {}
    for name, step in arms.items():
        for _ in range(3):
            step()
        start = now()
        step()
        repeats[name] = max(1, int(enough / max(1, now() - start)))
    taken: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            step, count = arms[name], repeats[name]
            step()  # its weights are in the cache again
            start = now()
            for _ in range(count):
                step()
            taken[name].append((now() - start) / count / 1e3)
    return taken


def median_ratio(taken: Mapping[str, Sequence[float]], arm: str, base: str) -> float:
    """Return the median over rounds of the ratio of two arms."""
    return statistics.median(a / b for a, b in zip(taken[arm], taken[base]))


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return on what the numbers were measured."""
    import torch

    model = ""
    if Path("/proc/cpuinfo").exists():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else ""
    found = {
        "processor": model or platform.processor() or platform.machine(),
        **({"core": options.core} if options.device == "cpu" else {"device": torch.cuda.get_device_name()}),
        "clock": options.clock,
        "rounds": options.rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name in ("jax", "optax"):
        if name in sys.modules:
            found[name] = sys.modules[name].__version__
    if hasattr(os, "getloadavg"):
        found["load"] = round(os.getloadavg()[0], 1)
    return found


def shown(found: Mapping[str, Any]) -> str:
    """Return what the numbers were measured on, as one line."""
    return ", ".join(f"{name} {value}" for name, value in found.items())


def write(options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    """Write the numbers where ``--json`` asks."""
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
