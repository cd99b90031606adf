"""A cohort that lies in memory, for tests that are not about files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headct.cohort import Cohort
from headct.preparing import Recipe, recipes
from headct.reading import Criteria


class MemoryCohort(Cohort):
    """Arrays under the ids scan-0, scan-1, ..., as if prepared by a recipe."""

    about: Mapping[str, Any] = {"criteria": Criteria().to_dict(), "pseudonyms": "none"}

    def __init__(
        self, arrays: Iterable[np.ndarray], *, recipe: Recipe = recipes["head"], name: str = "memory", mm: float = 2.0
    ) -> None:
        self.path = Path(name)
        self._arrays = {f"scan-{index}": array for index, array in enumerate(arrays)}
        self._recipe, self._mm = recipe, mm

    @property
    def recipe(self) -> Recipe:  # type: ignore[override]
        return self._recipe

    @property
    def scans(self) -> pd.DataFrame:  # type: ignore[override]
        ids = list(self._arrays)
        return pd.DataFrame({"scan_id": ids, "patient_id": [f"patient of {scan_id}" for scan_id in ids]})

    def __len__(self) -> int:
        return len(self._arrays)

    def array(self, scan_id: str) -> np.ndarray:
        return self._arrays[scan_id].copy()

    def affine(self, scan_id: str) -> np.ndarray:
        return np.diag([self._mm, self._mm, self._mm, 1.0])


def heads(count: int, shape: tuple[int, int, int] = (24, 28, 24), seed: int = 0) -> list[np.ndarray]:
    """Egg-shaped heads of different size, thickness of skull and brain, in int16 HU."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    made = []
    for _ in range(count):
        radii = generator.uniform(0.6, 0.9, 3)
        distance = np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)))
        brain_hu, skull = generator.uniform(25, 40), generator.uniform(0.8, 0.9)
        hu = np.where(distance < skull, brain_hu, np.where(distance < 1, 1000, -1000))
        hu = hu + generator.normal(0, 3, shape)
        made.append(hu.astype(np.int16))
    return made
