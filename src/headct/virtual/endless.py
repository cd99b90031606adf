"""Virtual patients without end and without files: as an iterator of prepared arrays, and as a dataset of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from headct.failure import Failure
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import Recipe, named
from headct.virtual.labels import FINDINGS
from headct.virtual.simulated import Simulated, Simulation

MOST_REJECTED = 100
"""In a row, until nothing else is waited for."""


def arrays(
    simulation: Simulation, recipe: str | Recipe = "head", *, start: int = 0, every: int = 1
) -> Iterator[tuple[np.ndarray, Simulated]]:
    """Prepared arrays, int16 (X, Y, Z) in HU, each with the scan it was made from: of patient `start` and all after it.

    With `every` n only each n-th patient is made. Scans that the recipe rejects are passed over. Raises Misuse for a
    published recipe, at the first array, and Failure where so many are rejected in a row that no other may come.
    """
    recipe = named(recipe)
    simulation = simulation.prepared_by(recipe)
    in_a_row = 0
    for index in count(start, every):
        for simulated in simulation.scans(index):
            prepared = prepare(simulated.scan, recipe)
            if isinstance(prepared, Prepared):
                in_a_row = 0
                yield prepared.array, simulated
            elif (in_a_row := in_a_row + 1) == MOST_REJECTED:
                what, do = f"{MOST_REJECTED} virtual scans in a row were rejected", "name another recipe"
                raise Failure(what, why=prepared.sentence, do=do)


class Endless(IterableDataset[dict[str, Any]]):
    """For a `DataLoader`: `hu`, `labels` and `scan_id` of one virtual scan after another; each iteration begins again.

    `hu` is int16 (X, Y, Z); `labels` float32, one for each of `findings`: 1, 0, or NaN where it can hardly be seen.
    Workers share the patients, so with another number of them the order differs; processes share them by
    `start=rank, every=ranks`. Patients are made on the CPU; the same simulation gives the same ones.
    """

    findings = FINDINGS

    def __init__(
        self, simulation: Simulation, recipe: str | Recipe = "head", *, start: int = 0, every: int = 1
    ) -> None:
        self.simulation, self.recipe, self.start, self.every = simulation, recipe, start, every

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start, every = self.start + number * self.every, self.every * workers
        for hu, simulated in arrays(self.simulation, self.recipe, start=start, every=every):
            known = simulated.labels.findings
            labels = [np.nan if known[name] is None else known[name] for name in FINDINGS]
            yield {
                "hu": torch.from_numpy(hu),
                "labels": torch.tensor(labels, dtype=torch.float32),
                "scan_id": simulated.scan_id,
            }
