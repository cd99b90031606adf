"""Vectors of the baselines of a protocol, which are kept; histograms of any recipe's arrays: not all are in HU."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headct.cohort import Cohort
from headct.cohort.journal import write_atomically
from headct.detection.method import Progress
from headct.detection.scans import OfCohorts
from headct.preparing.recipe import Recipe, Windows
from headct.studies.baselines import HIGHEST_HU, LOWEST_HU, REGIONS, histograms


def histogram_vectors(
    cohort: Cohort, scan_ids: Sequence[str], scans: OfCohorts, cache: Path, progress: Progress
) -> np.ndarray:
    """Histograms of 27 boxes of the grid, (n, F), kept in `cache`: a later call for the same scans finds them.

    Of HU as `headct.studies.baselines.histograms` says; of a published recipe's channels the bins are those of 0..1,
    to which their windows have scaled them. Windows that a recipe stacks along an axis are taken for channels.
    """

    def counted() -> np.ndarray:
        rows = []
        for row in range(len(scans)):
            array = scans.arrays(np.array([row]))[0]
            found = [histograms(_Lone(channel), REGIONS)[0] for channel in channels_hu(array, cohort.recipe)]
            rows.append(np.concatenate(found))
            progress(row + 1, len(scans))
        return np.stack(rows)

    of = (cohort.recipe.id, cohort.about["tables"]["scans"]["sha256"], list(scan_ids))
    return kept_vectors(cache, "histograms", of, counted)


def kept_vectors(cache: Path, what: str, of: Sequence[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Vectors (n, F) of a kind, made of these plain values and kept in `cache`: a later call finds the same."""
    path = cache / f"{what}-{hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]}.npy"
    if not path.is_file():
        content = io.BytesIO()
        np.save(content, make(), allow_pickle=False)
        write_atomically(path, content.getvalue())
    kept: np.ndarray = np.load(path, allow_pickle=False)
    return kept


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
