"""Values between the points of a regular grid: most of what it costs to paint a patient.

PyTorch works them out one number after another. Where numba is installed (the extra `virtual` has it), a compiled loop
does the same sums in the same order for the channels of a point side by side: the same bytes, in less time. (On x86:
elsewhere PyTorch may round a product and a sum once, not twice.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from importlib.util import find_spec
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

LANES = 8
"""Several channels are padded to a multiple of as many, to be added side by side; more padding is more to read."""

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
        assert min(values.shape[:3]) > 1, "a grid has two points or more along each axis"
        self.channels = values.shape[-1]
        self._values = values
        self._steps = np.ones(self.channels, np.float32) if steps is None else np.array(steps, np.float32)
        self._lows = np.zeros(self.channels, np.float32) if lows is None else np.array(lows, np.float32)
        self._first = np.array(first, np.float32)
        self._factor = np.float32(2) / (np.array(last, np.float32) - self._first)
        self._held: dict[torch.device, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is worked out again, perhaps on a device that another machine does not have."""
        return {**{name: value for name, value in vars(self).items() if name != "_table"}, "_held": {}}

    def sample(self, points: torch.Tensor) -> torch.Tensor:
        """Values (channels, n) float32 at points (n, 3), which are x, y, z as `first` has them; trilinear.

        They are worked out on the device on which the points are.
        """
        if points.is_cpu and (loop := compiled_loop()):
            values = torch.empty((self.channels, len(points)))
            loop(*self._table, self._first, self._factor, points.numpy(), values.numpy())
            return values
        decoded, first, factor = self._on(points.device)
        place = (points - first) * factor - 1  # -1 to 1
        wanted = F.grid_sample(decoded, place[None, None, None], padding_mode="border", align_corners=True)
        return wanted[0, :, 0, 0]

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values, first point and factor on a device, brought there once."""
        if device not in self._held:
            parts = self._decoded, torch.from_numpy(self._first), torch.from_numpy(self._factor)
            values, first, factor = (part.to(device) for part in parts)
            self._held[device] = values, first, factor
        return self._held[device]

    @property
    def _decoded(self) -> torch.Tensor:
        """(1, channels, z, y, x); the channels of a point lie side by side in memory, as they are read together."""
        values = torch.empty(self._values.shape)
        for channel, (step, low) in enumerate(zip(self._steps, self._lows, strict=True)):  # one by one, for the memory
            values[..., channel] = torch.from_numpy(self._values[..., channel].astype(np.float32) * step + low)
        return values.permute(3, 0, 1, 2)[None]

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, steps and lows, padded."""
        more = (0, -self.channels % LANES if self.channels > 1 else 0)
        values = np.ascontiguousarray(np.pad(self._values, ((0, 0), (0, 0), (0, 0), more)))
        return values, np.pad(self._steps, more), np.pad(self._lows, more)


@cache
def compiled_loop() -> Callable[..., None] | None:
    """`_trilinear`, compiled, if numba is there; kept beside this file, or in the user's cache, for other runs.

    What hinders that, or numba itself, is warned of: it costs time and changes nothing else.
    """
    if find_spec("numba") is None:
        return None
    try:
        import numba
    except ImportError as error:  # it refuses versions of NumPy that it does not know
        warnings.warn(f"virtual patients take longer, as numba cannot be used: {error}", RuntimeWarning, stacklevel=3)
        return None
    flat, many = "float32[::1]", "float32[:, ::1]"
    kinds = [f"void({kind}[:, :, :, ::1], {flat}, {flat}, {flat}, {flat}, float32[:, :], {many})"
             for kind in ("float32", "uint8")]  # fmt: skip
    try:
        compiled: Callable[..., None] = numba.njit(kinds, cache=True, error_model="numpy")(_trilinear)
    except (RuntimeError, OSError, EOFError, UnpicklingError) as error:
        # there is nowhere to keep it, or what was kept is damaged
        told = f"numba compiles in each process anew, for seconds, since its cache fails ({error!r})"
        warnings.warn(f"{told}; set NUMBA_CACHE_DIR to an empty folder", RuntimeWarning, stacklevel=3)
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
    """Sums as `torch.nn.functional.grid_sample` does, with its order and its rounding.

    It is written so that a compiler puts many of them side by side: those of points where there is one channel, else
    those of channels.
    """
    depth, height, width, channels = table.shape
    values = table.reshape(-1)
    one, two, none = np.float32(1), np.float32(2), np.float32(0)
    most_x, most_y, most_z = np.float32(width - 1), np.float32(height - 1), np.float32(depth - 1)
    last_x, last_y, last_z = np.int32(width - 2), np.int32(height - 2), np.int32(depth - 2)
    next_y, next_z = width * channels, height * width * channels
    first_x, first_y, first_z = first
    factor_x, factor_y, factor_z = factor
    corner = np.zeros(TOGETHER, np.int32)
    block = np.zeros((11, TOGETHER), np.float32)  # one array, so that the compiler knows what cannot overlap
    rows = np.zeros((TOGETHER, channels), np.float32)
    for start in range(0, len(points), TOGETHER):
        count = min(TOGETHER, len(points) - start)
        for j in range(count):
            block[0, j], block[1, j], block[2, j] = points[start + j, 0], points[start + j, 1], points[start + j, 2]
        for j in range(TOGETHER):  # always as many, so that they go side by side through the processor
            x = ((block[0, j] - first_x) * factor_x - one + one) / two * most_x
            y = ((block[1, j] - first_y) * factor_y - one + one) / two * most_y
            z = ((block[2, j] - first_z) * factor_z - one + one) / two * most_z
            x, y, z = x if x < most_x else most_x, y if y < most_y else most_y, z if z < most_z else most_z  # also NaN
            x, y, z = x if x > none else none, y if y > none else none, z if z > none else none
            x0, y0, z0 = min(np.int32(x), last_x), min(np.int32(y), last_y), min(np.int32(z), last_z)
            to_x, to_y, to_z = x - np.float32(x0), y - np.float32(y0), z - np.float32(z0)
            from_x, from_y, from_z = np.float32(x0 + 1) - x, np.float32(y0 + 1) - y, np.float32(z0 + 1) - z
            corner[j] = z0 * np.int32(next_z) + y0 * np.int32(next_y) + x0 * np.int32(channels)
            block[3, j] = from_x * from_y * from_z
            block[4, j] = to_x * from_y * from_z
            block[5, j] = from_x * to_y * from_z
            block[6, j] = to_x * to_y * from_z
            block[7, j] = from_x * from_y * to_z
            block[8, j] = to_x * from_y * to_z
            block[9, j] = from_x * to_y * to_z
            block[10, j] = to_x * to_y * to_z
        if channels == 1:  # neighbouring points side by side, instead of channels
            step, low = steps[0], lows[0]
            for j in range(TOGETHER):
                at = corner[j]
                total = (values[at] * step + low) * block[3, j]
                total += (values[at + 1] * step + low) * block[4, j]
                total += (values[at + next_y] * step + low) * block[5, j]
                total += (values[at + next_y + 1] * step + low) * block[6, j]
                total += (values[at + next_z] * step + low) * block[7, j]
                total += (values[at + next_z + 1] * step + low) * block[8, j]
                total += (values[at + next_z + next_y] * step + low) * block[9, j]
                total += (values[at + next_z + next_y + 1] * step + low) * block[10, j]
                block[0, j] = total
            for j in range(count):
                wanted[0, start + j] = block[0, j]
            continue
        for j in range(count):
            at = corner[j]
            here = values[at : at + 2 * channels]  # and the next along x
            behind = values[at + next_y : at + next_y + 2 * channels]
            above = values[at + next_z : at + next_z + 2 * channels]
            both = values[at + next_y + next_z : at + next_y + next_z + 2 * channels]
            row = rows[j]
            for k in range(channels):
                step, low = steps[k], lows[k]
                total = (here[k] * step + low) * block[3, j]
                total += (here[channels + k] * step + low) * block[4, j]
                total += (behind[k] * step + low) * block[5, j]
                total += (behind[channels + k] * step + low) * block[6, j]
                total += (above[k] * step + low) * block[7, j]
                total += (above[channels + k] * step + low) * block[8, j]
                total += (both[k] * step + low) * block[9, j]
                total += (both[channels + k] * step + low) * block[10, j]
                row[k] = total
        for k in range(len(wanted)):
            for j in range(count):
                wanted[k, start + j] = rows[j, k]
