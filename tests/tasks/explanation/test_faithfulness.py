"""Oracles: scores that are counted by hand, in orders whose best and worst are known; scipy's rank correlation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tasks.explanation import painted
from tasks.explanation.test_occlusion import Counting, judge_of

from headct.tasks.explanation.evening import evened_head
from headct.tasks.explanation.faithfulness import SHARES, Faith, curves, order_of, place_of, random_orders
from headct.tasks.explanation.judging import Unfit, looking, randomised
from headct.tasks.explanation.maps import Map
from headct.tasks.explanation.sanity import likeness

HU = painted.head(0, bleeding=True)
EVEN = evened_head(HU, painted.SPACING_MM)
DOMAIN = HU != EVEN


def test_curves_count_what_is_left(tmp_path: Path) -> None:
    """The score counts bright voxels in hundreds, so it falls by a hundredth for each of them that is evened out."""
    judge = judge_of(Counting(), tmp_path)
    bright = (HU > 55) & (HU < 100)
    ends = judge([HU, EVEN])
    total, places = int(bright.sum()), int(DOMAIN.sum())
    assert ends[:, 0].tolist() == [total / 100, 0]
    best = curves(judge, HU, EVEN, order_of(bright.astype(float), DOMAIN), ends)
    worst = curves(judge, HU, EVEN, order_of(-bright.astype(float), DOMAIN), ends)
    gone = [min(round(share * places), total) for share in SHARES]
    assert best.deletion[0] == pytest.approx([(total - one) / 100 for one in gone])
    assert best.insertion[0] == pytest.approx([one / 100 for one in gone])
    late = [max(0, round(share * places) - (places - total)) for share in SHARES]
    assert worst.deletion[0] == pytest.approx([(total - one) / 100 for one in late])
    random = [curves(judge, HU, EVEN, order, ends).areas for order in random_orders(DOMAIN, painted.SPACING_MM, 3, 0)]
    for down, up in random:
        assert best.areas[0] < down < worst.areas[0]
        assert worst.areas[1] < up < best.areas[1]


def test_ranks_among_random_orders_are_their_p() -> None:
    random = np.arange(19.0)
    faith = Faith(fall=1, deletion=-1, insertion=18.5, random_deletion=random, random_insertion=random)
    assert (faith.deletion_p, faith.insertion_p) == (0.05, 0.05)
    even = Faith(fall=1, deletion=0, insertion=18, random_deletion=random, random_insertion=random)
    assert (even.deletion_p, even.insertion_p) == (0.1, 0.1)  # ties count against a map


def test_random_orders_hold_every_voxel_once_and_come_again() -> None:
    first, second = (list(random_orders(DOMAIN, painted.SPACING_MM, 2, 7)) for _ in range(2))
    assert sorted(first[0].tolist()) == np.flatnonzero(DOMAIN).tolist()
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()


def test_a_map_of_the_lesion_lies_on_it_and_others_by_chance() -> None:
    mask, domain = painted.lesion(), np.ones(painted.SHAPE, bool)
    drawn = Map("occlusion", "iph", mask.astype(np.float32))
    assert drawn.peak(domain) == (21, 11, 13)  # the middle of the plateau
    place = place_of(drawn.values, drawn.peak(domain), mask, domain, [4, 4, 4])
    assert (place.hit, place.overlap, place.voxels) == (True, 1.0, 343)
    assert place.overlap_by_chance == pytest.approx(343 / 32**3)
    assert place.hit_by_chance == pytest.approx((343 + 6 * 49) / 32**3)  # within 5 mm: the next voxel along an axis
    off = Map("occlusion", "iph", -drawn.values)
    assert place_of(off.values, (0, 0, 0), mask, domain, [4, 4, 4]).overlap == 0
    rng = np.random.default_rng(0)
    noise = [place_of(rng.random(mask.shape), (0, 0, 0), mask, domain, [4, 4, 4]).overlap for _ in range(20)]
    assert np.mean(noise) == pytest.approx(343 / 32**3, abs=0.004)


def test_likeness_is_the_rank_correlation_of_what_is_shown() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 7, 8))
    domain = rng.random((6, 7, 8)) < 0.7
    first, second = first[domain], second[domain]
    shown, either = np.clip(first, 0, None), [np.clip(sign * second, 0, None) for sign in (1, -1)]
    assert likeness(first, second) == pytest.approx(max(spearmanr(shown, one).statistic for one in either))
    assert likeness(first, first) == pytest.approx(1)
    assert likeness(first, -first) == pytest.approx(1)  # the sign of random weights is a coin's
    assert likeness(np.zeros_like(first), first) == 0
    assert np.isnan(likeness(first, first * 1e-16))
    assert np.isnan(likeness(first, np.zeros_like(first)))  # a network that sees nothing is no witness


def test_random_weights_are_the_same_numbers_elsewhere(tmp_path: Path) -> None:
    detector = painted.linear_detector(painted.encoder_of(tmp_path / "model"))
    before = {name: one.clone() for name, one in detector.encoder.state_dict().items()}
    other = randomised(detector, 3, painted.MACHINE)
    for name, one in other.encoder.state_dict().items():
        torch.testing.assert_close(one.flatten().sort().values, before[name].flatten().sort().values)
        torch.testing.assert_close(detector.encoder.state_dict()[name], before[name])  # the given one is untouched
    kernels = [name for name, one in before.items() if one.ndim == 5]
    assert all((other.encoder.state_dict()[name] != before[name]).any() for name in kernels)
    assert (other.fitted.tensors()["weights"] != detector.fitted.tensors()["weights"]).any()
    again = randomised(detector, 3, painted.MACHINE)
    torch.testing.assert_close(again.encoder.state_dict()[kernels[0]], other.encoder.state_dict()[kernels[0]])


def test_into_an_exported_graph_nothing_can_look(tmp_path: Path) -> None:
    detector = painted.linear_detector(painted.encoder_of(tmp_path / "model"))
    detector.encoder.encoder.runtime = object()  # type: ignore[assignment]
    with pytest.raises(Unfit, match="exported graph"):
        looking(detector)
    with pytest.raises(Unfit, match="exported graph"):
        randomised(detector, 0, painted.MACHINE)
