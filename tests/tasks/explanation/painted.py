"""Small heads with a painted bleeding, and detectors that were told of it: quick to ask, and with a known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.detection import Detector
from headct.detection.calibration import Calibration
from headct.detection.linear import FittedLinear
from headct.detection.ood import Familiar
from headct.detection.reasons import Met
from headct.detection.scaling import Scaling
from headct.embedding.inputs import Ready
from headct.embedding.machine import choose
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS

MACHINE = choose("fp32", "cpu")
SHAPE, SPACING_MM = (32, 32, 32), np.array([4.0, 4.0, 4.0])
AFFINE = np.array([[4.0, 0, 0, -60], [0, 4, 0, -70], [0, 0, 4, 30], [0, 0, 0, 1]])
BLEEDING = (slice(18, 25), slice(8, 15), slice(10, 17))
TINY_VIT: dict[str, Any] = {"width": 24, "depth": 2, "heads": 2, "mlp_width": 48, "patch": (8, 8, 8), "grid": (4, 4, 4)}


def head(seed: int, *, bleeding: bool) -> np.ndarray:
    """Brain of 30 HU in a skull, with air above, and a bleeding of 75 HU."""
    hu = np.random.default_rng(seed).normal(30, 4, SHAPE)
    if bleeding:
        hu[BLEEDING] += 45
    for axis in range(2):
        np.moveaxis(hu, axis, 0)[[0, 1, -2, -1]] = 1200
    hu[:, :, 28:] = -1000
    return hu.astype(np.int16)


def lesion() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[BLEEDING] = True
    return mask


def ready(seed: int = 100, *, bleeding: bool = True) -> Ready:
    ids = {"scan_id": f"head-{seed}", "patient_id": "p", "study_id": "s", "series_id": "se"}
    return Ready(ids, head(seed, bleeding=bleeding), AFFINE)


def encoder_of(folder: Path, name: str = "conv-tiny", **settings: Any) -> PretrainedEncoder:
    """With random weights, which see enough of a painted bleeding."""
    torch.manual_seed(0)
    settings = settings or {"widths": (4, 8, 12), "blocks": (1, 1, 1)}
    save(folder, encoders.build(name, **settings), Card(recipe=recipes["head-coarse"], windows=WINDOWS))
    return load(folder)


def vectors_of(encoder: PretrainedEncoder, arrays: list[np.ndarray]) -> np.ndarray:
    stacked = torch.from_numpy(np.stack(arrays))
    with torch.no_grad():
        return encoder.see(stacked, torch.full((len(stacked), 3), 4.0)).scan.numpy()


def linear_detector(encoder: PretrainedEncoder) -> Detector:
    """Two findings: `iph`, by the way from heads without to heads with the bleeding, and `sdh`, the other way round."""
    labels = np.arange(16) % 2
    vectors = vectors_of(encoder, [head(seed, bleeding=bool(label)) for seed, label in enumerate(labels)])
    scaling = Scaling.of(vectors)
    scaled = scaling(vectors)
    towards = scaled[labels == 1].mean(axis=0) - scaled[labels == 0].mean(axis=0)
    towards *= 8 / np.linalg.norm(towards) ** 2
    middle = float(scaled.mean(axis=0) @ towards)
    fitted = FittedLinear(
        ("iph", "sdh"), scaling, np.stack([towards, -towards]), np.array([-middle, middle]), {"scans": 16}
    )
    return detector_of(encoder, fitted, vectors)


def detector_of(encoder: PretrainedEncoder, fitted: Any, vectors: np.ndarray) -> Detector:
    known = len(fitted.findings)
    met = Met(None, (), False, (), None)
    familiar = Familiar.of(vectors, vectors, 0)
    return Detector(encoder, fitted, (Calibration("none"),) * known, ({"balanced": 0.5},) * known, familiar, met)
