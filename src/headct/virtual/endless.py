"""Virtual patients without end and without files: as an iterator of prepared arrays, and as a dataset of PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from headct.failure import Failure, Misuse
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import Recipe, named
from headct.virtual.labels import FINDINGS
from headct.virtual.places import one_thread
from headct.virtual.simulated import Simulated, Simulation

MOST_REJECTED = 100
"""In a row, until nothing else is waited for."""


def arrays(
    simulation: Simulation,
    recipe: str | Recipe = "head",
    *,
    start: int = 0,
    every: int = 1,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[np.ndarray, Simulated]]:
    """Prepared arrays, int16 (X, Y, Z) in HU, each with the scan it was made from: of patient `start` and all after it.

    With `every` n only each n-th patient is made. Scans that the recipe rejects are passed over. A `device` such
    as cuda paints and images patients, which is most of the work; the rest is the processor's. Raises Misuse at the
    first array, for a published recipe or a device that is not there, and Failure where so many are rejected in a row
    that no other may come.
    """
    recipe, device = named(recipe), _found(device)
    simulation = simulation.prepared_by(recipe)
    in_a_row = 0
    for index in count(start, every):
        for simulated in simulation.scans(index):
            simulated = replace(simulated, device=device)
            with one_thread():
                prepared = prepare(simulated.scan, recipe)
            if isinstance(prepared, Prepared):
                in_a_row = 0
                yield prepared.array, simulated
            elif (in_a_row := in_a_row + 1) == MOST_REJECTED:
                what, do = f"{MOST_REJECTED} virtual scans in a row were rejected", "name another recipe"
                raise Failure(what, why=prepared.sentence, do=do)


def _found(device: str | torch.device) -> torch.device:
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:  # the latter two where PyTorch was built without it
        why = str(error).splitlines()[0].split(". ")[0]
        forked = "give the DataLoader multiprocessing_context='spawn'"
        do = forked if "forked" in why else "leave the device out, name another, or make it available to PyTorch"
        raise Misuse(f"nothing can be painted on the device {device}", why=why, do=do) from error


class Endless(IterableDataset[dict[str, Any]]):
    """For a `DataLoader`: `hu`, `labels` and `scan_id` of one virtual scan after another; each iteration begins again.

    `hu` is int16 (X, Y, Z); `labels` float32, one for each of `findings`: 1, 0, or NaN where it can hardly be seen.
    Workers share the patients, so with another number of them the order differs; processes share them by
    `start=rank, every=ranks`. The same simulation gives the same patients. A `device` such as cuda:0 paints them,
    which was not measured on a GPU yet; what is yielded lies on the CPU all the same. Raises Misuse for an unknown or a
    published recipe.
    """

    findings = FINDINGS

    def __init__(
        self,
        simulation: Simulation,
        recipe: str | Recipe = "head",
        *,
        start: int = 0,
        every: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        simulation.prepared_by(named(recipe))  # what cannot be is refused at once, not in a worker
        self.simulation, self.recipe, self.start, self.every, self.device = simulation, recipe, start, every, device

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start, every = self.start + number * self.every, self.every * workers
        for hu, simulated in arrays(self.simulation, self.recipe, start=start, every=every, device=self.device):
            known = simulated.labels.findings
            labels = [np.nan if known[name] is None else known[name] for name in FINDINGS]
            yield {
                "hu": torch.from_numpy(hu),
                "labels": torch.tensor(labels, dtype=torch.float32),
                "scan_id": simulated.scan_id,
            }
