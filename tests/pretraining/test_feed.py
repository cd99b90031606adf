"""Batches: each scan is treated alike whatever batch, process or try it comes in, and partners stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from pretraining.memory_cohort import MemoryCohort, heads
from torch import Tensor

from headct.encoders import Encoder
from headct.failure import Misuse
from headct.pretraining.feed import Order, batch_of, batches
from headct.pretraining.objectives import Batch, Objective, Watched
from headct.pretraining.objectives.objective import UNKNOWN_CLASS
from headct.pretraining.scans import Scans


class Dice(Objective):
    """An objective that draws one number, and the boxes it was given."""

    @property
    def encoder(self) -> Encoder:
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, boxes_mm: Mapping[str, np.ndarray]) -> Any:
        return rng.integers(1_000_000), sorted(boxes_mm)

    def forward(self, batch: Batch, step: int, steps: int) -> tuple[Tensor, Watched]:
        raise NotImplementedError


class Compared(Dice):
    partners = ("rescan", "twin")


class Taught(Dice):
    truth = ("classes", "template_mm")


class VirtualCohort(MemoryCohort):
    """Two patients, each with a finding, without it, and with it again; their truth lies in a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(heads(6))
        self.path = path
        settings = {"twin": "iph", "rescan": "site-b"}
        self.about = {**self.about, "simulated": {"simulation": settings}}

    @property
    def scans(self) -> pd.DataFrame:  # type: ignore[override]
        return super().scans.assign(patient_id=["one"] * 3 + ["two"] * 3)


def seen(batch: Batch) -> list[tuple[str, Any, bytes]]:
    rows = zip(batch.scan_ids, batch.draws, batch.hu, strict=False)
    return [(scan_id, draw, hu.numpy().tobytes()) for scan_id, draw, hu in rows]


@pytest.mark.parametrize(("ranks", "parts"), [(2, 1), (1, 3), (2, 3)])
def test_processes_and_parts_share_out_the_same_step(ranks: int, parts: int) -> None:
    scans, dice = Scans([MemoryCohort(heads(5)), MemoryCohort(heads(4, seed=1))]), Dice()
    for step in (0, 1, 7):
        whole = seen(batch_of(scans, dice, Order(1, 12, (1.0, 2.0)), step))
        orders = [Order(1, 12, (1.0, 2.0), rank, ranks, parts) for rank in range(ranks)]
        shared = [
            one for order in orders for part in range(parts) for one in seen(batch_of(scans, dice, order, step, part))
        ]
        assert sorted(shared, key=str) == sorted(whole, key=str)


@pytest.mark.parametrize("workers", [1, 4])
def test_reading_ahead_changes_nothing_and_any_step_can_be_the_first(workers: int) -> None:
    scans, dice, order = Scans([MemoryCohort(heads(5))]), Dice(), Order(2, 4, (1.0,), parts=2)
    ahead = [seen(batch) for batch in batches(scans, dice, order, range(3, 9), workers=workers, device="cpu")]
    assert ahead == [seen(batch_of(scans, dice, order, step, part)) for step in range(3, 9) for part in range(2)]


def test_a_failure_while_reading_ahead_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans([MemoryCohort([*heads(3), *heads(1, shape=(20, 28, 24))])])
    with pytest.raises(Misuse, match="scan-3 has the shape"):
        list(batches(scans, Dice(), Order(0, 2, (1.0,)), range(4), workers=2, device="cpu"))


def test_partners_stand_behind_the_scans(tmp_path: Path) -> None:
    scans = Scans([VirtualCohort(tmp_path)])
    batch = batch_of(scans, Compared(), Order(0, 6, (1.0,)), 0)
    of = {"scan-0": ("scan-2", "scan-1"), "scan-1": (None, "scan-0"), "scan-2": ("scan-0", None)}
    of |= {"scan-3": ("scan-5", "scan-4"), "scan-4": (None, "scan-3"), "scan-5": ("scan-3", None)}
    assert sorted(batch.scan_ids[:6]) == sorted(of)
    for number, scan_id in enumerate(batch.scan_ids[:6]):
        rows = [batch.partners[kind][number] for kind in ("rescan", "twin")]
        assert [None if row < 0 else batch.scan_ids[row] for row in rows] == list(of[scan_id])
        boxes = [kind for kind, row in zip(("rescan", "twin"), rows, strict=True) if row >= 0]
        assert batch.draws[number][1] == sorted(["scan", *boxes])
    assert len(batch.hu) == len(batch.scan_ids) == 6 + 8
    assert torch.equal(batch.scans, batch.hu[:6])


def test_a_scan_whose_partner_was_rejected_has_none(tmp_path: Path) -> None:
    class Torn(VirtualCohort):
        @property
        def scans(self) -> pd.DataFrame:  # type: ignore[override]
            return super().scans[1:].reset_index(drop=True)

        def __len__(self) -> int:
            return 5

    scans = Scans([Torn(tmp_path)])
    assert [len(case.partners) for case in scans.cases] == [0, 0, 2, 1, 1]


def test_truth_comes_along_where_it_is_known(tmp_path: Path) -> None:
    virtual, real = VirtualCohort(tmp_path), MemoryCohort(heads(2, seed=3), name=str(tmp_path / "real"))
    shape = (24, 28, 24)
    classes = np.random.default_rng(0).integers(0, 13, shape).astype(np.uint8)
    template = np.random.default_rng(1).normal(0, 50, (*shape, 3)).astype(np.float32)
    for folder, values in (("masks", classes), ("deformation", template)):
        (tmp_path / folder).mkdir()
        for number in range(6):
            nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / folder / f"scan-{number}.nii.gz")
    batch = batch_of(Scans([virtual, real]), Taught(), Order(0, 8, (6.0, 2.0)), 0)
    assert batch.classes is not None
    assert batch.template_mm is not None
    assert batch.template_mm.shape == (8, 6, 7, 6, 3)
    unknown = [bool((one == UNKNOWN_CLASS).all()) for one in batch.classes]
    assert sum(unknown) == 2
    assert [bool(one.isnan().all()) for one in batch.template_mm] == unknown
    known = unknown.index(False)
    assert np.array_equal(batch.classes[known].numpy(), classes)
    np.testing.assert_allclose(
        batch.template_mm[known, 1, 2, 3].numpy(), template[4:8, 8:12, 12:16].mean((0, 1, 2)), rtol=1e-5
    )


def test_what_an_objective_needs_must_be_there(tmp_path: Path) -> None:
    plain = Scans([MemoryCohort(heads(2))])
    with pytest.raises(Misuse, match="headct simulate --twin"):
        plain.check(("twin",), ())
    with pytest.raises(Misuse, match="headct simulate --masks"):
        plain.check((), ("classes",))
    Scans([VirtualCohort(tmp_path)]).check(("twin", "rescan"), ())
