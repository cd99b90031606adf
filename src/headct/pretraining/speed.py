"""How fast a process works: floating-point operations a second, as a share of what its device could do, and its memory.

Counted are the operations of the model (multiplied and added counts two), not those that `recompute` does twice, as in
PaLM's model FLOP utilisation (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Callable, Mapping

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PEAKS: Mapping[str, Mapping[str, float]] = {
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "A10": {"bf16": 125e12, "fp32": 31.2e12},
    "A30": {"bf16": 165e12, "fp32": 10.3e12},
    "A40": {"bf16": 149.7e12, "fp32": 37.4e12},
    "L4": {"bf16": 121e12, "fp32": 30.3e12},
    "L40": {"bf16": 181e12, "fp32": 90.5e12},
    "L40S": {"bf16": 362e12, "fp32": 91.6e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "H100 NVL": {"bf16": 835e12, "fp32": 60e12},
    "H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
}
"""Operations a second by the words of a device's name: dense ones in bfloat16, and in float32 without TF32, which
PyTorch leaves off. From NVIDIA's data sheets, whose figures with sparsity are halved."""


def peak_of_name(name: str, precision: str) -> float | None:
    """Operations a second that the vendor states of a device of this name, or None where it is not listed."""
    words = set(re.split(r"[\s-]+", name))
    fitting = [known for known in PEAKS if set(known.split()) <= words]
    return PEAKS[max(fitting, key=len)][precision] if fitting else None


def peak_of(device: str, precision: str) -> float | None:
    """The same of the device itself; None for a CPU, whose peak depends on what else it does."""
    return peak_of_name(torch.cuda.get_device_name(device), precision) if device.startswith("cuda") else None


def operations(work: Callable[[], object]) -> float:
    """Floating-point operations of some work on tensors, backward passes included."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # fused attention is not counted on a CPU
        work()
    return float(counter.get_total_flops())


def memory_bytes(device: str) -> int:
    """The most that this process held so far: tensors on a GPU, all of its memory on a CPU. Nothing is waited for."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Pace:
    """What a process does between two looks at its numbers, when its device has ended the steps that lie between."""

    def __init__(self, flops: float, device: str, precision: str) -> None:
        self.flops = flops  # of a step, of this process
        self.device, self.peak = device, peak_of(device, precision)
        self._looked_s = time.monotonic()
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(device)

    def of(self, steps: int) -> dict[str, float]:
        """The rates of the last `steps`, which are over: `tflop_s`, `mfu` where the peak is known, and `memory_gb`."""
        now_s = time.monotonic()
        a_second = self.flops * steps / (now_s - self._looked_s)
        self._looked_s = now_s
        rates = {"tflop_s": a_second / 1e12, "memory_gb": memory_bytes(self.device) / 1e9}
        return rates if self.peak is None else {**rates, "mfu": a_second / self.peak}
