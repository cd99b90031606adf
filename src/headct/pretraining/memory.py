"""How much memory a step takes: measured on a few scans, from which any batch follows."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of what is held and of all tensors made in the block: now, and the most at a time (CPU only)."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()
        for tensor in held:
            self._note(tensor)

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, made)
        return made

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            size = storage.nbytes()
            self._known[storage] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, size)
        return tensor

    def _gone(self, size: int) -> None:
        self.now -= size


def peak_bytes(step: Callable[[], object], module: nn.Module, kept: Iterable[Tensor], device: str) -> int:
    """The most that a step holds on the device at a time, the weights of the module and what else is kept included."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    with LiveBytes([*module.parameters(), *module.buffers(), *kept]) as live:
        step()
    return live.peak
