"""Where an encoder runs, and in which precision: said in words, because it moves the last digits of every vector."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from headct.checkpoints.export import PRECISIONS as PRECISIONS_OF
from headct.checkpoints.exported import Runtime
from headct.failure import Misuse

PRECISIONS = ("auto", "fp32", "bf16")
NAMES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Machine:
    """A device and a precision. `why` is half a sentence for the user."""

    device: torch.device
    precision: str  # fp32 or bf16; of a graph also int8
    why: str
    of_graph: bool = False  # whose precision is its own affair

    def __str__(self) -> str:
        return f"{self.device.type} in {self.precision} ({self.why})"

    def arithmetic(self) -> AbstractContextManager[object]:
        """The context in which the encoder computes. Weights stay float32; what comes out may be bf16, to be cast."""
        if self.precision == "bf16" and not self.of_graph:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


def choose(precision: str | None = "auto", device: str | None = None, *, graph: Runtime | None = None) -> Machine:
    """The device that is there, a GPU before the CPU, and the precision asked for (None: fp32).

    "auto" is bf16 where the device multiplies bf16 matrices in hardware, for speed (`benchmarks/embed.py`), and fp32
    elsewhere. A `graph` runs on the CPU in the precision that it was exported in.
    Raises Misuse for a precision or a device that is not there, or that is not the graph's.
    """
    if graph is not None:
        return _of_graph(graph, precision, device)
    precision = precision or "fp32"
    if precision not in PRECISIONS:
        raise Misuse(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    place = _device(device)
    fast = _multiplies_bf16(place)
    found = f"the {NAMES[place.type]} {'has' if fast else 'has no'} bf16 units"
    if precision == "auto":
        return Machine(place, "bf16" if fast else "fp32", found)
    slow = slow_in(precision, place)
    return Machine(place, precision, f"as set; {slow}" if slow else "as set")


def _of_graph(graph: Runtime, precision: str | None, device: str | None) -> Machine:
    if precision not in (None, "auto", graph.precision):
        form = next((form for form in (graph.kind, *PRECISIONS_OF) if precision in PRECISIONS_OF[form]), None)
        again = f", or export the model again: --to {form} --precision {precision}"
        raise Misuse(
            f"this {graph.kind} graph computes in {graph.precision}, not in {precision}",
            do="leave out the precision" + (again if form else ""),
        )
    if device not in (None, "cpu"):
        raise Misuse(
            f"an exported graph runs on the CPU, not on {device}", do="name the checkpoint that it was made from"
        )
    return Machine(torch.device("cpu"), graph.precision, f"by {graph.kind}", of_graph=True)


def _device(name: str | None) -> torch.device:
    available = "cuda" if torch.cuda.is_available() else "cpu"
    if name is None:
        return torch.device(available)
    try:
        place = torch.device(name)
    except RuntimeError as error:
        raise Misuse(f"no device is called {name!r}", do="name cpu, cuda, or cuda:1") from error
    if place.type == "cuda" and not 0 <= (place.index or 0) < torch.cuda.device_count():
        raise Misuse(f"there is no device {name}", why=f"PyTorch sees {torch.cuda.device_count()} GPUs", do="name cpu")
    if place.type not in NAMES:
        raise Misuse(f"the device {name} is not supported", do="name cpu or cuda")
    return place


def slow_in(precision: str, place: torch.device) -> str:
    """That a processor is known to lack units for a precision, in words; empty where it has them, or who knows.

    Without them a convolution in bf16 takes ten and more times as long as in fp32.
    """
    known = place.type == "cpu" and "avx512_bf16" in torch.cpu.get_capabilities()
    if precision != "bf16" or not known or _multiplies_bf16(place):
        return ""
    return "the CPU has no bf16 units, so fp32 is many times faster"


def _multiplies_bf16(place: torch.device) -> bool:
    if place.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
