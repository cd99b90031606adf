"""Surface distances beside MONAI's metrics, and beside every pair of surface points (scipy's cdist)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from numpy.testing import assert_allclose
from scipy.ndimage import binary_erosion, gaussian_filter
from scipy.spatial.distance import cdist

from headct.tasks.segmentation.surfaces import apart

SPACING_MM = (1.0, 0.7, 3.0)


def blobs(seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(14, 16, 10)), 1.5)
    return noise > np.quantile(noise, 0.85)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own, of MONAI's own argument
@pytest.mark.parametrize("seed", range(3))
def test_as_monai_measures(seed: int) -> None:
    found, true = blobs(seed), blobs(seed + 10)
    measured = apart(found, true, SPACING_MM)
    one_hot = [torch.from_numpy(np.stack([~mask, mask]))[None].float() for mask in (found, true)]
    told = {"include_background": False, "spacing": SPACING_MM}
    assert_allclose(
        measured.hausdorff_95_mm(), compute_hausdorff_distance(*one_hot, percentile=95, **told).item(), rtol=1e-5
    )
    assert_allclose(
        measured.average_mm(), compute_average_surface_distance(*one_hot, symmetric=True, **told).item(), rtol=1e-5
    )
    assert_allclose(
        measured.surface_dice(2.0), compute_surface_dice(*one_hot, class_thresholds=[2.0], **told).item(), rtol=1e-5
    )


def test_as_every_pair_of_points_says() -> None:
    found, true = blobs(1), blobs(2)
    points = [np.argwhere(mask & ~binary_erosion(mask)) * SPACING_MM for mask in (found, true)]
    distances = cdist(*points)
    measured = apart(found, true, SPACING_MM)
    assert_allclose(np.sort(measured.found_mm), np.sort(distances.min(axis=1)), atol=1e-9)
    assert_allclose(np.sort(measured.true_mm), np.sort(distances.min(axis=0)), atol=1e-9)


def test_a_shift_is_measured_in_mm() -> None:
    true = np.zeros((20, 20, 20), bool)
    true[5:12, 5:12, 5:12] = True
    measured = apart(np.roll(true, 2, axis=2), true, SPACING_MM)
    assert max(measured.found_mm) == pytest.approx(6.0)
    assert apart(true, true, SPACING_MM).average_mm() == 0
    assert apart(true, true, SPACING_MM).surface_dice(0.0) == 1
