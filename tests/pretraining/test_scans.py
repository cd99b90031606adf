"""Which scans come when, and which cohorts go together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pretraining.memory_cohort import MemoryCohort, heads

from headct.failure import Misuse
from headct.preparing import recipes
from headct.pretraining.scans import Scans, order


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
        mixed.load(0, "scan-1")
