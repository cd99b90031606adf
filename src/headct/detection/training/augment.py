"""Training scans as other scanners might have taken them, with labels that know left from right.

Draw, then apply: what is drawn depends on a generator alone. B scans, C channels, f findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from headct.checkpoints import PretrainedEncoder
from headct.detection.method import Scans
from headct.detection.training.network import spacing_of
from headct.encoders import as_input
from headct.pretraining.views import Crops, View, ViewSettings, crop, draw, rescanned, windowed


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training scan may differ from the one on disk, anew each time that it is seen.

    Arrays that a recipe has already scaled, or whose axes are not RAS, are mirrored and no more: what `views` change is
    measured in HU.
    """

    views: ViewSettings = field(default_factory=lambda: ViewSettings(mirror=0.5))
    zoom: float = (
        0.05  # share by which a head is enlarged or shrunk, up to; it is moved no further than that makes room
    )


def seen(
    encoder: PretrainedEncoder,
    scans: Scans,
    rows: np.ndarray,
    rng: np.random.Generator,
    augmentation: Augmentation,
    device: torch.device,
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Channels (B, C, X, Y, Z), voxel sizes (B, 3), and which scans were mirrored left to right, (B,)."""
    arrays = torch.from_numpy(np.ascontiguousarray(scans.arrays(rows))).to(device)
    windows, axes = list(encoder.card.windows.values()), encoder.recipe.axes
    if windows and axes == "RAS" and arrays.ndim == 4:
        return _viewed(arrays, np.asarray(scans.spacing_mm(rows), dtype=np.float64), rng, augmentation, windows)
    mirrored = rng.uniform(size=len(rows)) < augmentation.views.mirror
    x = as_input(arrays, windows)
    side = 2 + next(axis for axis, letter in enumerate(axes) if letter in "RL")
    flip = torch.from_numpy(mirrored).to(device)[:, None, None, None, None]
    return torch.where(flip, x.flip(side), x), spacing_of(scans, rows, device), mirrored


def _viewed(
    hu: Tensor,
    spacing_mm: np.ndarray,
    rng: np.random.Generator,
    augmentation: Augmentation,
    windows: Sequence[tuple[float, float]],
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Views of whole arrays hu (B, X, Y, Z), each on the grid of its array.

    Voxels are taken for cubes as wide as they are along X, so that a view has as many and as long ones; so only such
    axes may turn into each other as have voxels of the same length.
    """
    shape = (hu.shape[1], hu.shape[2], hu.shape[3])
    views, cropped = [], []
    for b, sizes_mm in enumerate(spacing_mm):
        side_mm = float(sizes_mm[0])
        edge_mm = shape[0] * side_mm
        crops = Crops(
            views=1,
            shape=shape,
            edge_mm=(edge_mm / (1 + augmentation.zoom), edge_mm * (1 + augmentation.zoom)),
            overhang=0.0,
        )
        box_mm = np.array([[-0.5] * 3, [n - 0.5 for n in shape]]) * side_mm
        view = _possible(draw(rng, augmentation.views, crops, box_mm), sizes_mm)
        views.append(view)
        cropped.append(crop(hu[b : b + 1], [view], crops, (side_mm,) * 3))
    image = windowed(rescanned(torch.cat(cropped), views), views, windows)
    zooms = np.array([view.voxel_mm for view in views]) / spacing_mm[:, 0]
    voxels_mm = torch.from_numpy((spacing_mm * zooms[:, None]).astype(np.float32)).to(hu.device)
    return image, voxels_mm, np.array([view.mirrored for view in views])


def _possible(view: View, sizes_mm: np.ndarray) -> View:
    """The view without turns that would shear the head, and with slices as thick as they are in mm along Z."""
    x, y, z = np.isclose(sizes_mm, np.roll(sizes_mm, -1)).tolist()  # X as long as Y, Y as Z, Z as X
    about_x, about_y, about_z = view.angles_deg
    angles_deg = (about_x * y, about_y * z, about_z * x)
    return replace(view, angles_deg=angles_deg, slice_mm=view.slice_mm * float(sizes_mm[0] / sizes_mm[2]))


def labels_seen(labels: np.ndarray, mirrored: np.ndarray, partners: Sequence[int]) -> np.ndarray:
    """Labels (B, f) as they are true of scans of which some are `mirrored` (B,).

    What was on the left is then on the right: a finding takes the label of its partner's column, and where that is -1
    its label is unknown.
    """
    columns = np.asarray(partners)
    swapped = np.where(columns >= 0, labels[:, columns], np.nan)
    return np.where(mirrored[:, None], swapped, labels)
