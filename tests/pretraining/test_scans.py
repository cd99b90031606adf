"""Which scans come when, and which cohorts go together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pretraining.memory_cohort import MemoryCohort, heads

from headct.failure import Misuse
from headct.preparing import recipes
from headct.pretraining.scans import Scans, order
from headct.pretraining.views import Crops, ViewSettings

VIEWS = ViewSettings(
    global_crops=Crops(views=2, shape=(8, 8, 8), edge_mm=(30, 40), overhang=0.1),
    local_crops=Crops(views=1, shape=(4, 4, 4), edge_mm=(10, 20), overhang=0.0),
)


@pytest.mark.parametrize(("scans", "batch"), [(10, 4), (7, 7), (3, 8)])
def test_every_scan_comes_once_an_epoch(scans: int, batch: int) -> None:
    seen = np.concatenate([order(seed=1, scans=scans, step=step, batch=batch) for step in range(scans)])
    epochs = seen.reshape(batch, scans)
    assert all(sorted(epoch) == list(range(scans)) for epoch in epochs)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    first, second = order(1, 20, 0, 20), order(1, 20, 1, 20)
    assert first != second
    assert first != order(2, 20, 0, 20)
    assert first != list(range(20))
    assert first == order(1, 20, 0, 20)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    scans = Scans([MemoryCohort(heads(5))])
    one, two = scans.batch(3, 7, 2, VIEWS), Scans([MemoryCohort(heads(5))]).batch(3, 7, 2, VIEWS)
    assert one.scan_ids == two.scan_ids
    assert one.draws == two.draws
    assert np.array_equal(one.hu, two.hu)
    assert scans.batch(3, 8, 2, VIEWS).draws != one.draws


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
        mixed.batch(0, 0, 2, VIEWS)
