"""How PyTorch is quickest with many points on one core: one thread, and all x, then all y, then all z in memory.

Points (n, 3) look the same to whoever asks for them; sums along a point, and choosing some of the points, take a
fraction of the time of PyTorch's own ways. On a GPU the same is done by what is as exact there: matrix products, which
training around it may have set to fewer digits, are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from threading import Lock

import numpy as np
import torch
from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch and the matrix products of NumPy with one thread, then with as many as before.

    On pieces as small as these threads wait for each other longer than they work; on busy cores, ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _PRODUCTS:
            yield
    finally:
        torch.set_num_threads(before)


class _OneThreadOfNumPy:
    """Matrix products with one thread while anyone is within: PyTorch asks each of its callers, these the process."""

    def __init__(self) -> None:
        self._lock, self._within = Lock(), 0

    @cached_property
    def _libraries(self) -> ThreadpoolController:
        return ThreadpoolController()  # to look for them takes a hundred times as long as to limit them

    def __enter__(self) -> None:
        with self._lock:
            if not self._within:
                self._limit = self._libraries.limit(limits=1, user_api="blas")
            self._within += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._within -= 1
            if not self._within:
                self._limit.restore_original_limits()


_PRODUCTS = _OneThreadOfNumPy()


def by_axis(points: torch.Tensor) -> torch.Tensor:
    """The same points (n, 3), with each coordinate in one piece."""
    return points.T.contiguous().T


def turned(points: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """`points @ matrix` (n, 3), for points `by_axis`."""
    if points.is_cpu:
        return (matrix.T @ points.T).T
    return torch.stack([along(points, column) for column in matrix.T]).T


def along(points: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """`points @ direction` (n,)."""
    if points.is_cpu:
        return points @ direction
    x, y, z = points.T
    return x * direction[0] + y * direction[1] + z * direction[2]


def length(vectors: torch.Tensor) -> torch.Tensor:
    """Of each vector (n, 3): (n,)."""
    x, y, z = vectors.T
    return torch.sqrt(x * x + y * y + z * z)


def where(mask: torch.Tensor) -> torch.Tensor:
    """Indices of what is true in a mask (n,)."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())) if mask.is_cpu else mask.nonzero()[:, 0]


def spread(values: torch.Tensor, chosen: torch.Tensor, count: int, beyond: float) -> torch.Tensor:
    """Of `count` points those that were chosen have `values`, the others `beyond`."""
    return values.new_full((count,), beyond).index_copy_(0, chosen, values)


def some(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Values (n,) or points (n, 3) at some of their indices."""
    return values.index_select(0, chosen) if values.dim() == 1 else values.T.index_select(1, chosen).T
