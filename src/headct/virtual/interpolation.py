"""Values between the points of a regular grid: most of what it costs to paint a patient.

PyTorch works them out one number after another. Where numba is installed (`pip install 'headct[fast]'`), a compiled
loop does the same sums in the same order for the channels of a point side by side: the same bytes, in less time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F

LANES, FEW = 16, 2
"""More channels than `FEW` are padded to a multiple of `LANES`, which a processor adds at once."""

TOGETHER = 128
"""Points whose values are worked out before they are put where they belong: so many fit into the nearest cache."""


class Grid:
    """Channels on a regular grid, to be sampled anywhere; beyond the grid its edge goes on.

    Args:
        values: (z, y, x, channels), float32, or uint8 codes with value = code * `steps` + `lows`.
        first: Coordinates x, y, z of the first point.
        last: Those of the last point.
        steps: Of the codes (channels,).
        lows: Of the codes (channels,).
    """

    def __init__(
        self,
        values: np.ndarray,
        first: Sequence[float],
        last: Sequence[float],
        *,
        steps: Sequence[float] | None = None,
        lows: Sequence[float] | None = None,
    ) -> None:
        self.channels = values.shape[-1]
        self._values = values
        self._steps = np.ones(self.channels, np.float32) if steps is None else np.array(steps, np.float32)
        self._lows = np.zeros(self.channels, np.float32) if lows is None else np.array(lows, np.float32)
        self._first = np.array(first, np.float32)
        self._factor = np.float32(2) / (np.array(last, np.float32) - self._first)

    def sample(self, points: torch.Tensor) -> torch.Tensor:
        """Values (channels, n) float32 at points (n, 3), which are x, y, z as `first` has them; trilinear."""
        if loop := compiled_loop():
            wanted = torch.empty((self.channels, len(points)))
            loop(*self._table, self._first, self._factor, points.numpy(), wanted.numpy())
            return wanted
        place = (points - torch.from_numpy(self._first)) * torch.from_numpy(self._factor) - 1  # -1 to 1
        return F.grid_sample(self._decoded, place[None, None, None], padding_mode="border", align_corners=True)[0, :, 0, 0]

    @cached_property
    def _decoded(self) -> torch.Tensor:
        """(1, channels, z, y, x); the channels of a point lie side by side in memory, as they are read together."""
        values = torch.empty(self._values.shape)
        for channel, (step, low) in enumerate(zip(self._steps, self._lows, strict=True)):  # one by one, for the memory
            values[..., channel] = torch.from_numpy(self._values[..., channel].astype(np.float32) * step + low)
        return values.permute(3, 0, 1, 2)[None]

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, steps and lows, padded."""
        more = (0, -self.channels % LANES if self.channels > FEW else 0)
        values = np.ascontiguousarray(np.pad(self._values, ((0, 0), (0, 0), (0, 0), more)))
        return values, np.pad(self._steps, more), np.pad(self._lows, more)


@cache
def compiled_loop() -> Callable[..., None] | None:
    """`_trilinear`, compiled, if numba is there; it is kept beside this file, or in the user's cache, for other runs."""
    if find_spec("numba") is None:
        return None
    import numba

    flat, many = "float32[::1]", "float32[:, ::1]"
    kinds = [f"void({kind}[:, :, :, ::1], {flat}, {flat}, {flat}, {flat}, float32[:, :], {many})"
             for kind in ("float32", "uint8")]  # fmt: skip
    try:
        compiled: Callable[..., None] = numba.njit(kinds, cache=True, error_model="numpy")(_trilinear)
    except RuntimeError:  # no place that may be written to
        compiled = numba.njit(kinds, error_model="numpy")(_trilinear)
    return compiled


def _trilinear(
    table: np.ndarray,  # (z, y, x, channels)
    steps: np.ndarray,
    lows: np.ndarray,
    first: np.ndarray,
    factor: np.ndarray,
    points: np.ndarray,  # (n, 3)
    wanted: np.ndarray,  # (channels without the padding, n), filled
) -> None:
    """Sums as `torch.nn.functional.grid_sample` does, with its order and its rounding."""
    depth, height, width, channels = table.shape
    values = table.reshape(-1)
    one, two, none = np.float32(1), np.float32(2), np.float32(0)
    most_x, most_y, most_z = np.float32(width - 1), np.float32(height - 1), np.float32(depth - 1)
    next_y, next_z = width * channels, height * width * channels
    corner = np.empty(TOGETHER, np.int64)
    weights = np.empty((8, TOGETHER), np.float32)
    rows = np.empty((TOGETHER, channels), np.float32)
    for start in range(0, len(points), TOGETHER):
        count = min(TOGETHER, len(points) - start)
        for j in range(count):
            x, y, z = points[start + j, 0], points[start + j, 1], points[start + j, 2]
            x = min(max(((x - first[0]) * factor[0] - one + one) / two * most_x, none), most_x)
            y = min(max(((y - first[1]) * factor[1] - one + one) / two * most_y, none), most_y)
            z = min(max(((z - first[2]) * factor[2] - one + one) / two * most_z, none), most_z)
            x0, y0, z0 = min(np.int32(x), width - 2), min(np.int32(y), height - 2), min(np.int32(z), depth - 2)
            to_x, to_y, to_z = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
            from_x, from_y, from_z = np.float32(x0 + 1) - x, np.float32(y0 + 1) - y, np.float32(z0 + 1) - z
            corner[j] = z0 * next_z + y0 * next_y + x0 * channels
            weights[0, j] = from_x * from_y * from_z
            weights[1, j] = to_x * from_y * from_z
            weights[2, j] = from_x * to_y * from_z
            weights[3, j] = to_x * to_y * from_z
            weights[4, j] = from_x * from_y * to_z
            weights[5, j] = to_x * from_y * to_z
            weights[6, j] = from_x * to_y * to_z
            weights[7, j] = to_x * to_y * to_z
        for j in range(count):
            at = corner[j]
            here = values[at : at + 2 * channels]  # and the next along x
            behind = values[at + next_y : at + next_y + 2 * channels]
            above = values[at + next_z : at + next_z + 2 * channels]
            both = values[at + next_y + next_z : at + next_y + next_z + 2 * channels]
            w0, w1, w2, w3 = weights[0, j], weights[1, j], weights[2, j], weights[3, j]
            w4, w5, w6, w7 = weights[4, j], weights[5, j], weights[6, j], weights[7, j]
            row = rows[j]
            for k in range(channels):
                step, low = steps[k], lows[k]
                total = (here[k] * step + low) * w0
                total += (here[channels + k] * step + low) * w1
                total += (behind[k] * step + low) * w2
                total += (behind[channels + k] * step + low) * w3
                total += (above[k] * step + low) * w4
                total += (above[channels + k] * step + low) * w5
                total += (both[k] * step + low) * w6
                total += (both[channels + k] * step + low) * w7
                row[k] = total
        for k in range(len(wanted)):
            for j in range(count):
                wanted[k, start + j] = rows[j, k]
