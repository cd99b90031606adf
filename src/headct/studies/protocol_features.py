"""What the baselines of a protocol see: the same encoder with random weights, and histograms of any recipe's arrays."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from headct import encoders
from headct.checkpoints import PretrainedEncoder
from headct.checkpoints.card import NOT_STATED
from headct.cohort import Cohort
from headct.cohort.journal import write_atomically
from headct.detection.method import Progress, Scans
from headct.detection.scans import OfCohorts
from headct.detection.training.network import inputs, parts
from headct.embedding.machine import Machine
from headct.encoders import Encoder
from headct.preparing.recipe import Recipe, Windows
from headct.pretraining.step import kept_random
from headct.studies.baselines import HIGHEST_HU, LOWEST_HU, histograms

BOXES = 3
"""Along each axis, of the histograms."""
SETTLED_ON, TOGETHER = 48, 8
"""Training scans by which BatchNorms of random weights learn what features look like, and how many are seen at once."""


def random_encoder(
    encoder: PretrainedEncoder, scans: Scans, train: np.ndarray, machine: Machine, seed: int
) -> PretrainedEncoder:
    """The same architecture, windows and recipe with weights of the seed alone, in evaluation mode.

    BatchNorms, where it has some, take their statistics from training rows: with those of nothing it would be no fair
    baseline. Its hash is that of its weights, so that its vectors are kept apart from all others.
    """
    with kept_random("cpu"):
        torch.manual_seed(seed)
        new = encoders.build(encoder.architecture, **json.loads(json.dumps(asdict(encoder.settings))))
    new.to(machine.device)
    norms = [part for part in new.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if norms:
        _settle(new, norms, encoder, scans, train[:SETTLED_ON], machine)
    card = replace(encoder.card, objective={}, data=(), licence=NOT_STATED)
    return PretrainedEncoder(new, card, _sha256(new), source=f"random weights of seed {seed}").eval()


@torch.no_grad()
def _settle(
    new: Encoder,
    norms: Sequence[nn.modules.batchnorm._BatchNorm],
    like: PretrainedEncoder,
    scans: Scans,
    rows: np.ndarray,
    machine: Machine,
) -> None:
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain mean over all that is seen
    new.train()
    for some in parts(rows, TOGETHER if like.recipe.shape else 1):  # only arrays of one shape go together
        new(*inputs(like, scans, some, machine.device))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def _sha256(encoder: Encoder) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def histogram_vectors(
    cohort: Cohort, scan_ids: Sequence[str], scans: OfCohorts, cache: Path, progress: Progress
) -> np.ndarray:
    """Histograms of 27 boxes of the grid, (n, F), kept in `cache`: a later call for the same scans finds them.

    Of HU as `headct.studies.baselines.histograms` says; of a published recipe's channels the bins are those of 0..1,
    to which their windows have scaled them. Windows that a recipe stacks along an axis are taken for channels.
    """
    asked = json.dumps([cohort.recipe.id, cohort.about["tables"]["scans"]["sha256"], list(scan_ids)])
    path = cache / f"histograms-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npy"
    if path.is_file():
        kept: np.ndarray = np.load(path, allow_pickle=False)
        return kept
    rows = []
    for row in range(len(scans)):
        array = scans.arrays(np.array([row]))[0]
        found = [histograms(_Lone(channel), BOXES)[0] for channel in channels_hu(array, cohort.recipe)]
        rows.append(np.concatenate(found))
        progress(row + 1, len(scans))
    made, content = np.stack(rows), io.BytesIO()
    np.save(content, made, allow_pickle=False)
    write_atomically(path, content.getvalue())
    return made


def channels_hu(array: np.ndarray, recipe: Recipe) -> list[np.ndarray]:
    """The channels of an array, each (X, Y, Z); those in 0..1 spread over the HU that histograms look at."""
    if array.ndim == 3:
        return [array]
    windows = recipe.step(Windows)
    stacked = windows is not None and windows.stacked_along == "first-axis"
    channels = np.split(array[0], len(windows.windows), axis=0) if windows is not None and stacked else list(array)
    return [LOWEST_HU + (HIGHEST_HU - LOWEST_HU) * channel.astype(np.float32) for channel in channels]


@dataclass(frozen=True)
class _Lone:
    """One array as the only scan."""

    array: np.ndarray

    def __len__(self) -> int:
        return 1

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("a histogram looks at arrays")

    def arrays(self, rows: np.ndarray) -> np.ndarray:
        return self.array[None]

    def spacing_mm(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("a histogram does not ask for sizes")
