"""Which process this is among those that `torchrun` has started; one alone if it has not."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from headct.failure import Failure, Misuse

GONE = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited",
    "Timed out waiting", "timeout caused pair closure",
)  # fmt: skip
"""In the words of gloo and NCCL."""


@dataclass(frozen=True)
class Processes:
    """This process, `rank` of `ranks`, and the device it works on."""

    device: str
    rank: int = 0
    ranks: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """For all others to come here."""
        if self.ranks > 1:
            dist.barrier()

    def agreed(self, value: float) -> float:
        """The value of the first process, in all of them."""
        if self.ranks == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def most(self, value: float) -> float:
        """The largest value of any process."""
        if self.ranks == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return float(shared)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes."""
        if self.ranks > 1:
            dist.all_reduce(values)
            values = values / self.ranks
        return values

    def any(self, present: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.most(float(present)))


@contextlib.contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the others that `torchrun` has started (it says so in WORLD_SIZE, RANK and LOCAL_RANK).

    `device` is auto, cpu or cuda. Raises Misuse for a device that this machine lacks, Failure where another one dies.
    """
    kind = _kind(device)
    ranks, local = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("LOCAL_RANK", "0")
    if kind == "cuda":
        torch.cuda.set_device(int(local))
        kind = f"cuda:{local}"
    if ranks == 1 or dist.is_initialized():
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield Processes(kind, rank, dist.get_world_size() if dist.is_initialized() else 1)
        return
    dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    try:
        yield Processes(kind, dist.get_rank(), dist.get_world_size())
    except RuntimeError as error:
        if not _of_others(error):
            raise
        raise Failure(
            "another process of this run cannot be reached, and this one cannot go on without it",
            why=str(error).splitlines()[0],
            do="see what the other one said; the same line goes on from the last saved state",
        ) from error
    finally:
        dist.destroy_process_group()


def _of_others(error: RuntimeError) -> bool:
    """Whether it says that another process is gone; gloo and NCCL have no class of errors for this."""
    return isinstance(error, dist.DistNetworkError) or any(sign in str(error) for sign in GONE)


def _kind(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise Misuse(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise Misuse("PyTorch sees no GPU", do="run `headct doctor`, or set device to auto")
    return device
