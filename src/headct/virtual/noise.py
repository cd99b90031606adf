"""The colour of noise: what back-projection and a kernel leave of it within a slice and from slice to slice.

Filtered back-projection weighs every spatial frequency with a ramp, so its noise is nearly without coarse parts; the
kernel then takes off the fine ones, as it does with the image itself. What is left is neither white nor blurred.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil, erf, exp, pi, sqrt

import numpy as np
import torch
from scipy import fft

FLOOR_PER_MM = 0.25
"""Below this frequency noise levels off rather than falling with the ramp: views are interpolated and rows averaged.

Slices of brain and of plastic from several makers are level from 0.05 to 0.2 per mm.
"""

UNSHARP_MM = 1.1
"""Sigma of the Gaussian whose difference to the image a sharpening kernel adds."""

SAMPLES = 64
"""Points along an axis, by which a smooth spectrum is summed."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """How reconstruction passes each spatial frequency."""

    blur_mm: float  # sigma of its softness, of image and noise alike
    sharpening: float
    noise_blur_mm: float  # sigma of what iterative reconstruction smooths in the noise alone
    limit_per_mm: float  # beyond it there is nothing

    def transfer(self, per_mm: np.ndarray) -> np.ndarray:
        """What is left of an image's amplitude at frequencies per mm."""
        sharper = 1 + self.sharpening * (1 - _gaussian(per_mm, UNSHARP_MM))
        return _gaussian(per_mm, self.blur_mm) * sharper

    def noise_power(self, per_mm: np.ndarray) -> np.ndarray:
        """Density of the noise's power at frequencies per mm, to an arbitrary scale."""
        passed = self.transfer(per_mm) * _gaussian(per_mm, self.noise_blur_mm)
        return (per_mm + FLOOR_PER_MM) * passed**2 * np.exp(-((per_mm / self.limit_per_mm) ** 8))

    def sampled_power(self, pixel_mm: float, size: int) -> np.ndarray:
        """Power (size, size // 2 + 1) of noise that is averaged over square pixels, as `rfft2` orders frequencies.

        What is finer than the pixels comes back as something coarser.
        """
        orders = range(-ceil(self.limit_per_mm * pixel_mm), ceil(self.limit_per_mm * pixel_mm) + 1)
        rows, cols = fft.fftfreq(size, pixel_mm)[:, None], fft.rfftfreq(size, pixel_mm)
        known = np.linspace(0, 2 * self.limit_per_mm, 1024)
        density = self.noise_power(known)
        power = np.zeros((size, size // 2 + 1))
        for down, across in product(orders, orders):
            row, col = rows + down / pixel_mm, cols + across / pixel_mm
            seen = np.sinc(row * pixel_mm) ** 2 * np.sinc(col * pixel_mm) ** 2
            power += np.interp(np.hypot(row, col), known, density, right=0.0) * seen
        return power / pixel_mm**2

    def spread(self, pixel_mm: float) -> float:
        """Standard deviation of noise averaged over pixels, to the scale of `noise_power`."""
        return sqrt(_mean(self.sampled_power(pixel_mm, SAMPLES)))


def _gaussian(per_mm: np.ndarray, sigma_mm: float) -> np.ndarray:
    """The Fourier transform of a Gaussian of unit weight."""
    return np.exp(-2 * (pi * sigma_mm * per_mm) ** 2)


def _mean(power: np.ndarray) -> float:
    """Over all frequencies of an even-sized plane, of which `rfft2` keeps half."""
    return float((2 * power[:, 1:-1].sum() + power[:, [0, -1]].sum()) / len(power) ** 2)


def noise_of(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    kernel: Kernel,
    pixel_mm: float,
    *,
    together: int = 1,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Noise of unit variance as a kernel leaves it, float32 (slices, rows, cols), every slice by itself.

    The numbers are the same, whatever the device, and however many slices it works on `together`.
    """
    _slices, rows, cols = shape
    size = fft.next_fast_len((max(rows, cols) + 1) // 2, real=True) * 2
    power = kernel.sampled_power(pixel_mm, size)
    amplitude = torch.from_numpy(np.sqrt(power / _mean(power)).astype(np.float32)).to(device)
    noise = torch.empty(shape, device=device)
    for planes in torch.split(noise, together):
        white = torch.from_numpy(rng.standard_normal((len(planes), size, size), dtype=np.float32)).to(device)
        planes.copy_(torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, (size, size))[:, :rows, :cols])
    return noise


def overlap_per_mm(thickness_mm: float, apart_mm: float, wings_mm: float) -> float:
    """How much of their measurements two slices share, or one has to itself (`apart_mm` 0), per mm.

    A slice's profile is a box whose edges are blurred with sigma `wings_mm`, as helical interpolation does. The noise
    of a slice varies as what it has to itself; the ratio to that is how far two slices are correlated.
    """
    spread = sqrt(2) * max(wings_mm, 1e-6)

    def mean_distance(mm: float) -> float:
        return spread * sqrt(2 / pi) * exp(-((mm / spread) ** 2) / 2) + mm * erf(mm / spread / sqrt(2))

    ends = mean_distance(apart_mm + thickness_mm) + mean_distance(apart_mm - thickness_mm)
    return (ends - 2 * mean_distance(apart_mm)) / (2 * thickness_mm**2)


def correlated(noise: torch.Tensor, correlation: float) -> torch.Tensor:
    """Slices of unit variance (n - 2, ...) that are correlated with the next on either side, of n that are not."""
    correlation = min(correlation, 0.7)  # more would take the next but one as well
    if correlation < 0.01:
        return noise[1:-1]
    share = (1 - sqrt(1 - 2 * correlation**2)) / (2 * correlation)
    return ((noise[:-2] + noise[2:]).mul_(share).add_(noise[1:-1])).mul_(1 / sqrt(1 + 2 * share**2))
