"""Which scans come when, and which cohorts go together."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pretraining.memory_cohort import MemoryCohort, heads

from headct.cohort.ingest import ingest
from headct.failure import Misuse
from headct.preparing import recipes
from headct.pretraining import PretrainSettings
from headct.pretraining.processes import Processes
from headct.pretraining.scans import Scans, order
from headct.pretraining.step import order_of
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom


@pytest.mark.parametrize("scans", [10, 7, 3])
def test_every_scan_comes_once_an_epoch(scans: int) -> None:
    epochs = np.array(order(1, [scans], [1.0], range(5 * scans))).reshape(5, scans)
    assert all(sorted(epoch) == list(range(scans)) for epoch in epochs)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    first, second = (order(1, [20], [1.0], range(20 * epoch, 20 * epoch + 20)) for epoch in (0, 1))
    assert first != second
    assert first != order(2, [20], [1.0], range(20))
    assert first != list(range(20))
    assert first == order(1, [20], [1.0], range(20))


def test_a_place_has_one_scan_whoever_asks() -> None:
    whole = order(3, [5, 9], [1.0, 2.0], range(40))
    assert [order(3, [5, 9], [1.0, 2.0], [place])[0] for place in range(40)] == whole


def test_cohorts_get_their_shares_and_none_is_exhausted_before_another_round() -> None:
    seen = np.array(order(0, [10, 90], [0.5, 0.5], range(1000)))
    small, large = seen[seen < 10], seen[seen >= 10]
    assert len(small) == len(large) == 500
    assert all(sorted(epoch) == sorted([*range(10)] * 5) for epoch in small.reshape(-1, 50))
    first_round = np.unique(large[:90])  # an epoch takes 50 of them, so the first 90 are spread over two
    assert len(first_round) > 75
    assert all(count in (5, 6) for count in np.unique(large, return_counts=True)[1])


def test_a_share_that_gives_no_place_is_refused() -> None:
    scans = Scans([MemoryCohort(heads(3), name="night"), MemoryCohort(heads(2, seed=1), name="day")])
    for share, refused in ((0.01, True), (0.0, False), (1.0, False)):
        settings = PretrainSettings(steps=1, batch=2, shares={"night": share, "day": 1.0})
        with pytest.raises(Misuse, match="share of night is so small") if refused else nullcontext():
            order_of(scans, settings, Processes("cpu"))


def test_several_cohorts_are_one_pool() -> None:
    night, day = MemoryCohort(heads(3), name="night"), MemoryCohort(heads(2, seed=1), name="day")
    scans = Scans([night, day])
    assert len(scans) == 5
    assert [entry["cohort"] for entry in scans.provenance] == ["night", "day"]
    assert [entry["scans"] for entry in scans.provenance] == [3, 2]
    assert scans.spacing_mm == (2.0, 2.0, 2.0)


def test_cohorts_of_two_recipes_do_not_go_together() -> None:
    night = MemoryCohort(heads(3), name="night")
    fine = MemoryCohort(heads(3), name="fine", recipe=recipes["head-fine"])
    with pytest.raises(Misuse) as caught:
        Scans([night, fine])
    assert recipes["head"].id in str(caught.value)
    assert recipes["head-fine"].id in str(caught.value)
    assert "make fine again with --recipe head, or leave it out" in str(caught.value)
    assert "cohort fine" in caught.value.what


def test_another_name_of_the_same_recipe_is_the_same_recipe() -> None:
    other = replace(recipes["head"], name="ours")
    assert len(Scans([MemoryCohort(heads(1)), MemoryCohort(heads(1), recipe=other)])) == 2


@pytest.mark.parametrize("count", [0, 1])
def test_one_scan_is_not_enough(count: int) -> None:
    with pytest.raises(Misuse, match=f"at least 2 scans, got {count}"):
        Scans([MemoryCohort(heads(count))])


def test_arrays_must_be_hu_of_one_shape() -> None:
    with pytest.raises(Misuse, match="takes int16 HU"):
        Scans([MemoryCohort([array.astype(np.float32) for array in heads(2)])])
    mixed = Scans([MemoryCohort([*heads(1), *heads(1, shape=(20, 28, 24))])])
    with pytest.raises(Misuse, match="has the shape"):
        mixed.load(0, "scan-1")


class Tilted(MemoryCohort):
    """Three scans: tilted, of an older table, and stored with its first axis towards the left."""

    @property
    def scans(self) -> pd.DataFrame:  # type: ignore[override]
        return super().scans.assign(slice_normal=[[0.6, 0.0, 0.8], None, [0.6, 0.0, 0.8]])

    def affine(self, scan_id: str) -> np.ndarray:
        return np.diag([-2.0 if scan_id == "scan-2" else 2.0, 2.0, 2.0, 1.0])


def test_normals_of_slices_are_told_in_the_axes_of_the_array() -> None:
    scans = Scans([Tilted(heads(3)), MemoryCohort(heads(1), name="older")])
    found = [scans.load(case.cohort, case.scan_id).normal.tolist() for case in scans.cases]
    assert found == [[0.6, 0.0, 0.8], [0.0, 0.0, 0.0], [-0.6, 0.0, 0.8], [0.0, 0.0, 0.0]]


def test_a_cohort_keeps_the_normal_of_tilted_slices(tmp_path: Path) -> None:
    upright, tilted = (
        Phantom(1).scan(slices=30, rows=96, cols=96, pixel_mm=2.4),
        Phantom(1).scan(slices=30, rows=96, cols=96, pixel_mm=2.4, tilt_deg=20.0),
    )
    for number, scan in enumerate((upright, tilted)):
        write_dicom(scan, tmp_path / "in" / str(number))
    ingest([tmp_path / "in"], tmp_path / "cohort", workers=1, key=tmp_path / "key")
    scans = Scans([tmp_path / "cohort"])
    by_tilt = scans.cohorts[0].scans.set_index("scan_id")["tilt_deg"]
    for case in scans.cases:
        normal = scans.load(case.cohort, case.scan_id).normal
        turned = by_tilt[case.scan_id] > 10
        np.testing.assert_allclose(abs(normal), abs(tilted.normal if turned else upright.normal), atol=1e-4)
        assert np.sign(normal[1] * normal[2]) == (np.sign(tilted.normal[1] * tilted.normal[2]) if turned else 0)
