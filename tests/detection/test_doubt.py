"""When to doubt. Oracles: scikit-learn's distance, ranks, and scans that are unlike by construction."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.preprocessing import StandardScaler

from headct.detection.ood import DOUBT, Familiar
from headct.detection.reasons import TELLING, Met, undecided, unfamiliar
from headct.scan import FLAGS


def test_distances_are_mahalanobis_with_the_shrunk_covariance() -> None:
    rng = np.random.default_rng(0)
    train = rng.normal(size=(80, 6)) @ rng.normal(size=(6, 6)) + 4
    held = rng.normal(size=(30, 6)) + 4
    found = Familiar.of(train, held, seed=0)
    scale = StandardScaler().fit(train)
    wanted = LedoitWolf(assume_centered=True).fit(scale.transform(train)).mahalanobis(scale.transform(held))
    np.testing.assert_allclose(found.distances(held), np.sqrt(wanted), rtol=1e-8)


def test_the_score_is_a_rank_among_validation_scans() -> None:
    rng = np.random.default_rng(1)
    train, held = rng.normal(size=(400, 5)), rng.normal(size=(200, 5))
    found = Familiar.of(train, held, seed=0)
    np.testing.assert_allclose(np.sort(found(held)), np.arange(200) / 200)
    assert found(rng.normal(size=(2000, 5))).mean() == pytest.approx(0.5, abs=0.06)
    assert (found(rng.normal(size=(50, 5)) + 6) == 1).all()
    again = Familiar.restore(found.tensors(), 5)
    np.testing.assert_array_equal(again(held), found(held))
    with pytest.raises(ValueError, match="does not fit vectors of 4"):
        Familiar.restore(found.tensors(), 4)


@pytest.mark.parametrize("validation", [7, 150, 1000])
def test_what_lies_beyond_the_usual_distance_is_what_is_doubted(validation: int) -> None:
    rng = np.random.default_rng(3)
    found = Familiar.of(rng.normal(size=(90, 5)), rng.normal(size=(validation, 5)), seed=0)
    scans = np.concatenate([rng.normal(size=(300, 5)), rng.normal(size=(300, 5)) * 1.6])
    beyond = found.distances(scans) > found.usual
    assert 0 < beyond.mean() < 1
    np.testing.assert_array_equal(beyond, found(scans) >= DOUBT)


def test_more_numbers_than_scans_and_constant_ones_are_no_trouble() -> None:
    rng = np.random.default_rng(2)
    train, held = rng.normal(size=(20, 60)), rng.normal(size=(10, 60))
    train[:, 3] = held[:, 3] = 5.0
    found = Familiar.of(train, held, seed=0)
    assert np.isfinite(found.distances(held)).all()
    assert 0.2 < found(rng.normal(size=(50, 60)) + 0.0).mean() < 0.8


def scans(**columns: object) -> pd.DataFrame:
    table = {"flags": [[]] * 40, "thickness_mm": 5.0, "coverage": 0.98, "manufacturer": "ACME", "contrast": None}
    return pd.DataFrame({**table, **columns})


def test_nothing_is_said_of_a_scan_like_those_of_training() -> None:
    met = Met.of(scans())
    same = {"flags": np.array([]), "thickness_mm": 5.0, "coverage": 0.97, "manufacturer": "Acme", "contrast": None}
    assert met.doubts(same) == []
    assert met.doubts({}) == []
    assert Met.from_dict(met.to_dict()) == met


@pytest.mark.parametrize(
    ("traits", "says"),
    [
        ({"thickness_mm": 10.0}, "slices of 10 mm; training had up to 5 mm"),
        ({"coverage": 0.7}, "about 70 % of the brain was scanned"),
        ({"manufacturer": "Other"}, "scanner of Other, which training hardly had"),
        ({"contrast": True}, "contrast agent, which training hardly had"),
        ({"flags": ["metal", "tilt"]}, "metal: values above 3071 HU"),
        ({"flags": ["not-a-number"]}, "not-a-number: voxels without a number were set to air"),
    ],
)
def test_what_training_did_not_have_is_said(traits: dict[str, object], says: str) -> None:
    assert Met.of(scans()).doubts(traits) == [says]


def test_what_training_had_often_is_not_said() -> None:
    often = Met.of(scans(flags=[["metal"]] * 3 + [[]] * 37, contrast=[True] * 4 + [False] * 36))
    assert often.doubts({"flags": ["metal"], "contrast": True}) == []
    once = Met.of(scans(flags=[["metal"]] + [[]] * 39))
    assert once.doubts({"flags": ["metal"]}) == ["metal: values above 3071 HU"]
    assert FLAGS.keys() >= TELLING


def test_words_about_rank_and_operating_point() -> None:
    assert unfamiliar(0.98, 100) == []
    assert unfamiliar(0.995, 400) == [
        "unlike the training scans: further from them than 99.5 % of 400 validation scans"
    ]
    assert unfamiliar(1.0, 9) == ["unlike the training scans: further from them than all of 9 validation scans"]
    assert undecided(0.2, 0.6, 0.5) == ["the answer might be the other: the interval holds the operating point 0.50"]
    assert undecided(0.2, 0.4, 0.5) == []
    assert undecided(0.5, 0.6, 0.5) == []  # yes all the way
    assert undecided(0.2, 0.4, None) == ["no operating point: validation lacks a class, so 0.5 is taken"]
