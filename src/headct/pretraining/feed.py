"""Batches ahead of time: threads read and draw the next ones while the device works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headct.pretraining.objectives import Batch, Objective
from headct.pretraining.scans import VIEWS, Case, Loaded, Scans, order

AHEAD = 2
"""Batches that are being read while one is in use."""


@dataclass(frozen=True)
class Order:
    """All that decides which scans a process sees at which step, and what is drawn for them."""

    seed: int
    batch: int  # scans of a step, over all processes
    shares: Sequence[float]  # of each cohort
    rank: int = 0
    ranks: int = 1
    parts: int = 1  # of a step, one after the other

    def places(self, step: int, part: int) -> range:
        """The numbers of the scans of one part of a step, counted over the whole run.

        A run that goes on with another number of processes or parts sees the same scans in the same steps.
        """
        stride = self.ranks * self.parts
        return range(step * self.batch + part * self.ranks + self.rank, (step + 1) * self.batch, stride)

    def cases(self, scans: Scans, step: int) -> list[Case]:
        """All scans of a step, over all processes."""
        places = range(step * self.batch, (step + 1) * self.batch)
        return [scans.cases[index] for index in order(self.seed, scans.sizes, self.shares, places)]


def batch_of(scans: Scans, objective: Objective, order_: Order, step: int, part: int = 0) -> Batch:
    """The batch of one part of a step, on the CPU. Depends on its arguments alone."""
    places = order_.places(step, part)
    return _assembled(scans, objective, [_load(scans, objective, order_, place) for place in places])


def batches(
    scans: Scans, objective: Objective, order_: Order, steps: range, *, workers: int, device: str
) -> Generator[Batch]:
    """The batches of the steps, part by part, on the device; `workers` threads read `AHEAD` of the one in use."""
    pin = device.startswith("cuda")
    parts = iter([(step, part) for step in steps for part in range(order_.parts)])
    waiting: deque[Future[Batch]] = deque()
    with (
        ThreadPoolExecutor(max(1, workers), thread_name_prefix="feed") as readers,
        ThreadPoolExecutor(AHEAD, thread_name_prefix="feed-batch") as assemblers,
    ):

        def whole(step: int, part: int) -> Batch:
            jobs = [readers.submit(_load, scans, objective, order_, place) for place in order_.places(step, part)]
            batch = _assembled(scans, objective, [job.result() for job in jobs])
            return _mapped(batch, Tensor.pin_memory) if pin else batch  # from which a GPU can copy by itself

        try:
            while True:
                while len(waiting) <= AHEAD and (one := next(parts, None)) is not None:
                    waiting.append(assemblers.submit(whole, *one))  # all else would hold up the loop
                if not waiting:
                    return
                yield moved(waiting.popleft().result(), device)
        finally:
            for threads in (assemblers, readers):
                threads.shutdown(wait=False, cancel_futures=True)


def moved(batch: Batch, device: str) -> Batch:
    """The batch with its arrays on the device; from pinned memory without waiting for it."""
    return batch if device == "cpu" else _mapped(batch, lambda array: array.to(device, non_blocking=True))


def _mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    classes, template_mm = (None if one is None else change(one) for one in (batch.classes, batch.template_mm))
    return replace(batch, hu=change(batch.hu), classes=classes, template_mm=template_mm)


@dataclass(frozen=True)
class _Item:
    case: Case
    scan: Loaded
    partners: dict[str, Loaded]
    draw: Any


def _load(scans: Scans, objective: Objective, order_: Order, place: int) -> _Item:
    case = scans.cases[order(order_.seed, scans.sizes, order_.shares, [place])[0]]
    scan = scans.load(case.cohort, case.scan_id, objective.truth)
    partners = {
        kind: scans.load(case.cohort, case.partners[kind], objective.truth)
        for kind in objective.partners
        if kind in case.partners
    }
    boxes_mm = {"scan": scan.box_mm, **{kind: partner.box_mm for kind, partner in partners.items()}}
    draw = objective.draw(np.random.default_rng((order_.seed, VIEWS, place)), boxes_mm)
    return _Item(case, scan, partners, draw)


def _assembled(scans: Scans, objective: Objective, items: Sequence[_Item]) -> Batch:
    rows = [item.scan for item in items]
    partners: dict[str, tuple[int, ...]] = {}
    for kind in objective.partners:
        numbers = []
        for item in items:
            numbers.append(len(rows) if kind in item.partners else -1)
            rows += [item.partners[kind]] if kind in item.partners else []
        partners[kind] = tuple(numbers)

    def truth(kind: str) -> Tensor | None:
        if kind not in objective.truth:
            return None
        return torch.from_numpy(np.stack([row.truth[kind] for row in rows]))

    return Batch(
        scan_ids=tuple(row.scan_id for row in rows),
        hu=torch.from_numpy(np.stack([row.hu for row in rows])),
        spacing_mm=scans.spacing_mm,
        partners=partners,
        classes=truth("classes"),
        template_mm=truth("template_mm"),
        draws=[item.draw for item in items],
        normals=np.stack([row.normal for row in rows]),
        patients=tuple(item.scan.patient for item in items),
    )
