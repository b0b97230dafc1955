"""The processes of one run: one, or several that share every step (data parallel).

A loss is a sum over samples divided by counts over all processes, so that masks and uneven shards average right:
local sums are divided by global counts, gradients are summed. Two processes then give the gradients of one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sobolev.errors import SobolevError
from sobolev.vocabulary import Mean, Term

_GRACE = 30.0  # seconds that the other processes get after one has failed
_SHORT_GRACE = 3.0  # where it ended with a message for its user, which the others would only repeat


class World:
    """A single process; `Processes` overrides what several have to agree on.

    Attributes:
        rank: number of this process.
        size: how many there are.
        device: where this process computes.
    """

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this process records."""
        return self.rank == 0

    def total(self, terms: Sequence[Term], own: bool = False) -> tuple[Tensor, dict[str, float]]:
        """Return the loss for backward (local sums over global counts) and global values for the records.

        The values are each term's mean without its weight, by name, and the weighted ``loss``. A term that has no
        sample anywhere contributes 0. With ``own`` the loss is the mean over this process's samples alone.
        """
        if not terms:
            return torch.zeros((), device=self.device), {"loss": 0.0}
        packed = torch.stack([t.sum.detach().double() for t in terms] + [t.count.detach().double() for t in terms])
        numbers = self.sum(packed).tolist()
        sums, counts = numbers[: len(terms)], numbers[len(terms) :]
        loss: Tensor = torch.zeros((), dtype=terms[0].sum.dtype, device=terms[0].sum.device)
        values = {"loss": 0.0}
        for term, total, count in zip(terms, sums, counts, strict=True):
            share = 1.0 / count if count else 0.0
            scale = (term.count > 0) / term.count.clamp_min(1e-30) if own and self.size > 1 else share
            loss = loss + term.sum * (term.weight * scale)
            values[term.name] = total * share
            values["loss"] += term.weight * total * share
        return loss, values

    def means(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """Return global means by name; a name that some process lacks counts there as empty."""
        names = self.gather(list(means))
        if not names:
            return {}
        zero = Mean(torch.zeros(()), torch.zeros(()))
        local = [means.get(name, zero) for name in names]
        device = self.device if self.device.type != "mps" else torch.device("cpu")  # it has no float64
        packed = torch.stack([part.to(device).double() for m in local for part in (m.sum, m.count)])
        numbers = self.sum(packed).tolist()
        return {
            name: total / count if count else float("nan")
            for name, total, count in zip(names, numbers[::2], numbers[1::2], strict=True)
        }

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return tensor

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(flag)

    def gather(self, items: list[str]) -> list[str]:
        """Return the texts of all processes, in the order of their ranks, each once."""
        return list(dict.fromkeys(items))

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""

    def share(self, module: nn.Module) -> None:
        """Let the processes of this machine hold one copy of the parameters, which each changes as it likes.

        Raises:
            SobolevError: the processes are on several machines, or compute on accelerators.
        """

    def barrier(self) -> None:
        """Wait for all processes."""

    def shard(self, ids: Tensor) -> Tensor:
        """Return this process's part of a batch; parts may be uneven, or empty."""
        return ids.tensor_split(self.size)[self.rank]

    def close(self) -> None:
        """Leave."""


class Processes(World):
    """Several processes, connected by ``torch.distributed``."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum; one that exists nowhere stays None, as in one process."""
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            group = [p for p in parameters if p.dtype == dtype]
            present = torch.tensor([float(p.grad is not None) for p in group], dtype=dtype, device=group[0].device)
            parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in group]
            flat = self.sum(torch.cat([*parts, present]))
            *summed, present = flat.split([p.numel() for p in group] + [len(group)])
            for parameter, gradient, somewhere in zip(group, summed, present.tolist(), strict=True):
                parameter.grad = gradient.view_as(parameter) if somewhere else None

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        tensor = torch.tensor(int(flag), dtype=torch.int32, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return bool(tensor.item())

    def gather(self, items: list[str]) -> list[str]:
        """Return the texts of all processes, in the order of their ranks, each once."""
        gathered: list[list[str]] = [[] for _ in range(self.size)]
        dist.all_gather_object(gathered, items)
        return list(dict.fromkeys(item for part in gathered for item in part))

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the first one's parameters and buffers."""
        with torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor, 0)

    def share(self, module: nn.Module) -> None:
        """Move the parameters into one file-backed tensor; the file has no name any more when this returns."""
        machines: list[str] = [""] * self.size
        dist.all_gather_object(machines, f"{socket.gethostname()} ({self.device.type})")
        if self.device.type != "cpu" or len(set(machines)) > 1:
            raise SobolevError(
                "train.update: hogwild: parameters are shared through the memory of one machine, by processes on its "
                f"CPUs; these run on {', '.join(sorted(set(machines)))}. Use one machine and --device cpu, or "
                "'update: sync'"
            )
        parameters = list(module.parameters())
        for dtype in sorted({p.dtype for p in parameters}, key=str):
            self._share([p for p in parameters if p.dtype == dtype], dtype)

    def _share(self, parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> None:
        starts = [0]
        for parameter in parameters:  # each begins at a multiple of 64 bytes or more
            starts.append(starts[-1] + -(-parameter.numel() // 64) * 64)
        name = [""]
        if self.first:
            folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
            descriptor, name[0] = tempfile.mkstemp(prefix="sobolev-", dir=folder)
            os.close(descriptor)
        dist.broadcast_object_list(name)
        if self.first:
            shared = torch.from_file(name[0], shared=True, size=starts[-1], dtype=dtype)
            for parameter, start in zip(parameters, starts, strict=False):
                shared[start : start + parameter.numel()] = parameter.detach().flatten()
        dist.barrier()
        if not self.first:
            shared = torch.from_file(name[0], shared=True, size=starts[-1], dtype=dtype)
        dist.barrier()
        if self.first:
            os.unlink(name[0])
        for parameter, start in zip(parameters, starts, strict=False):
            parameter.data = shared[start : start + parameter.numel()].view_as(parameter)

    def barrier(self) -> None:
        """Wait for all processes."""
        dist.barrier()

    def close(self) -> None:
        """Leave the process group, together: whoever leaves early breaks connections that others still read."""
        if dist.is_initialized():
            if dist.get_backend() == "gloo":
                with contextlib.suppress(RuntimeError):  # a process has failed: it is not waited for any longer
                    dist.monitored_barrier(timeout=timedelta(seconds=10))
            dist.destroy_process_group()


def connect(device: str = "auto") -> World:
    """Return the world of this process: torchrun's, or itself alone.

    Args:
        device: ``auto`` (an accelerator where there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        SobolevError: there is no such device.
    """
    chosen = _device(device)
    alone = "RANK" not in os.environ or "WORLD_SIZE" not in os.environ
    if chosen.type == "cuda":
        if not alone:
            chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            if chosen.index >= torch.cuda.device_count():
                raise SobolevError(
                    f"{os.environ['WORLD_SIZE']} processes, but this machine has {torch.cuda.device_count()} CUDA "
                    "device(s), and every process needs one of its own; start fewer, or use --device cpu"
                )
        if chosen.index is not None:
            torch.cuda.set_device(chosen)  # random numbers are seeded on the current device
    if alone:
        return World(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(chosen)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SobolevError(f"--device {name}: expected auto, cpu, cuda, cuda:<number> or mps") from None
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise SobolevError(f"--device {name}: there is no such device on this machine; use auto or cpu")
    return device


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def launch(devices: int, argv: Sequence[str]) -> int:
    """Run ``sobolev`` with these arguments in several processes on this machine; return the exit code.

    The first process speaks; what the others write to stderr is shown only if the first one did not fail itself.
    """
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(devices)}
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    command = [sys.executable, "-m", "sobolev", *argv]
    with tempfile.TemporaryFile("w+") as silent:
        processes = [
            subprocess.Popen(
                command,
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=None if rank == 0 else silent,
            )
            for rank in range(devices)
        ]

        def forward(signum: int, _: Any) -> None:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signum)

        handlers = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            code, blamed = _wait(processes)
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        if code and blamed:
            silent.seek(0)
            sys.stderr.write(silent.read())
        if code > 128 and processes[blamed].returncode < 0:
            sys.stderr.write(
                f"process {blamed} of {devices} was killed by signal {code - 128}; the same command continues "
                "from the last checkpoint\n"
            )
    return code


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Wait for all; after a failure the others get some time and are then ended. Returns (exit code, whose)."""
    failed: tuple[int, int] | None = None
    deadline = float("inf")
    while any(process.poll() is None for process in processes):
        for rank, process in enumerate(processes):
            code = process.poll()
            if code and failed is None:
                failed = (code if code > 0 else 128 - code, rank)
                deadline = time.monotonic() + (_SHORT_GRACE if code == 2 else _GRACE)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    if failed is None:
        failed = next(((c if c > 0 else 128 - c, rank) for rank, c in enumerate(codes) if c), (0, 0))
    return failed
