"""Sliding windows beside MONAI's `sliding_window_inference`, the same in starts, weights and padding."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor

from headct.failure import Misuse
from headct.tasks.segmentation.windows import Sliding, slabs, starts, weights, window_for

CASES = [
    ((20, 17, 24), (8, 8, 8), 0.5, 1),
    ((20, 17, 24), (8, 12, 8), 0.625, 3),
    ((6, 17, 9), (8, 8, 8), 0.5, 2),  # padded along the first axis
    ((8, 8, 8), (8, 8, 8), 0.25, 1),  # one window
    ((7, 5, 6), (8, 8, 8), 0.25, 1),  # one window, padded
    ((9, 9, 9), (8, 8, 8), 0.0, 1),
]


def network(x: Tensor) -> Tensor:
    """Not the same at each place of a window, so that starts and weights matter."""
    place = torch.linspace(0, 1, x.shape[-1]) + torch.linspace(0, 3, x.shape[2])[:, None, None]
    return torch.cat([x * place, x.sin() + place], dim=1)


@pytest.mark.parametrize(("shape", "window", "overlap", "batch"), CASES)
def test_the_same_as_monai(
    shape: tuple[int, int, int], window: tuple[int, int, int], overlap: float, batch: int
) -> None:
    x = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))
    expected = sliding_window_inference(
        x, window, batch, network, overlap=overlap, mode="gaussian", sigma_scale=0.125, padding_mode="constant", cval=0
    )
    sliding = Sliding(window=window, overlap=overlap, batch=batch)
    for along in range(3):
        found = list(slabs(network, x, sliding, along))
        torch.testing.assert_close(torch.cat(found, dim=1 + along), expected[0], atol=1e-5, rtol=1e-5)
        assert all(slab.shape[1 + along] <= window[along] for slab in found)


def test_memory_does_not_grow_with_the_volume() -> None:
    """96 classes on a volume of 201 MB of float32: no more is held than of the planes of a window and of a slab."""
    code = """
import resource, sys, torch
from headct.tasks.segmentation.windows import Sliding, slabs
x, sliding = torch.zeros(1, 1, 128, 64, 64), Sliding(window=(16, 64, 64))
weight = torch.ones(1, 96, 1, 1, 1)
look = lambda window: window * weight
list(slabs(look, x[:, :, :4], sliding))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = sum(slab.argmax(dim=0).shape[0] for slab in slabs(look, x, sliding))
print(seen, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) == 128
    assert float(said[1]) < 120  # MB; 25 of a window's planes, twice for a window and its weighted sum, 13 of a slab


def test_every_voxel_is_seen_and_the_last_window_ends_at_the_border() -> None:
    for size, window, overlap in itertools.product(range(1, 40), (1, 5, 8), (0.0, 0.5, 0.9)):
        found = starts(size, window, overlap)
        seen = {place for start in found for place in range(start, start + window)}
        assert set(range(size)) <= seen
        assert found == sorted(set(found))
        assert found[-1] == max(0, size - window)


def test_a_constant_stays_one_and_the_middle_weighs_most() -> None:
    found = torch.cat(list(slabs(torch.ones_like, torch.zeros(1, 1, 13, 14, 15), Sliding(window=(5, 6, 7)))), dim=1)
    torch.testing.assert_close(found, torch.ones(1, 13, 14, 15))
    weight = weights((5, 5, 5), 0.125)
    assert weight.argmax() == 62
    assert weight.min() >= 1e-3


def test_windows_fit_the_network_and_the_scan() -> None:
    assert window_for((96, 112, 96), 16) == (96, 112, 96)
    assert window_for((48, 56, 48), 16) == (48, 64, 48)
    assert window_for((192, 224, 192), 16) == (96, 112, 96)
    assert window_for(None, 16) == (32, 128, 128)
    with pytest.raises(Misuse, match="window must be three positive whole numbers"):
        Sliding(window=(8, 0, 8))
    with pytest.raises(Misuse, match="overlap"):
        Sliding(window=(8, 8, 8), overlap=1.0)
