"""The few-shot protocol: its promises as invariants, over cohorts that hypothesis invents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headct.detection.shots import draw_fractions, draw_shots
from headct.failure import Misuse


def cohort(seed: int, patients: int) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Labels of two findings, of patients with one to three scans at two sites."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    values = rng.choice([0.0, 1.0, np.nan], (len(owner), 2), p=[0.5, 0.4, 0.1])
    labels = pd.DataFrame(values, columns=["ich", "sdh"], index=[f"s{row}" for row in range(len(owner))])
    return labels, [f"p{one}" for one in owner], [f"site-{one % 2}" for one in owner]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), patients=st.integers(10, 60))
def test_draws_are_nested_balanced_true_and_by_patient(seed: int, patients: int) -> None:
    labels, owners, sites = cohort(seed, patients)
    shots = draw_shots(labels, owners, seed=seed, ks=(2, 4, 8, 64), draws=3, sites=sites)
    owner_of = dict(zip(labels.index, owners, strict=True))
    for finding, ks in shots.ks.items():
        for draw in range(3):
            smaller: set[str] = set()
            for k in ks:
                drawn = shots.labels(finding, k, draw)
                assert (drawn == 1).sum() == (drawn == 0).sum() == k
                assert (labels.loc[drawn.index, finding] == drawn).all()
                assert len({owner_of[scan] for scan in drawn.index}) == 2 * k
                assert smaller <= set(drawn.index)
                smaller = set(drawn.index)
    assert not any(64 in ks for ks in shots.ks.values())
    assert all("64" in sentence for sentence in shots.left_out)
    assert len(shots.left_out) == 2


def test_patients_with_many_scans_are_drawn_no_more_often_than_others() -> None:
    owners = ["many"] * 10 + [f"p{number}" for number in range(19)] + [f"n{number}" for number in range(20)]
    labels = pd.DataFrame({"ich": [1.0] * 29 + [0.0] * 20}, index=[f"s{row}" for row in range(49)])
    table = draw_shots(labels, owners, seed=0, ks=(4,), draws=400).table
    drawn = table[table["patient_id"] == "many"]
    assert 0.14 < len(drawn) / 400 < 0.26  # of 20 patients 4 are drawn; of 400 draws that is 80, sd 8
    assert drawn["scan_id"].nunique() == 10


def test_nobody_is_a_negative_who_has_a_positive_scan() -> None:
    labels = pd.DataFrame({"ich": [1.0, 0, 0, 0, 1]}, index=list("abcde"))
    shots = draw_shots(labels, ["p", "p", "q", "r", "s"], seed=0, ks=(2,), draws=20)
    assert set(shots.table.loc[shots.table["label"] == 0, "scan_id"]) == {"c", "d"}


def test_negatives_are_of_the_site_of_their_positive_while_it_has_some() -> None:
    labels = pd.DataFrame({"ich": [1.0] * 4 + [0.0] * 12}, index=[f"s{row}" for row in range(16)])
    site = ["a", "a", "a", "b", *["a"] * 2, *["b"] * 10]
    shots = draw_shots(labels, list(labels.index), seed=1, ks=(4,), draws=10, sites=site)
    site_of = dict(zip(labels.index, site, strict=True))
    for _, one in shots.table.groupby("draw"):
        negatives = one.loc[one["label"] == 0, "scan_id"].map(site_of)
        assert sorted(negatives) == ["a", "a", "b", "b"]


def test_a_draw_depends_on_nothing_but_seed_number_and_finding() -> None:
    labels, owners, _ = cohort(5, 40)
    shots = draw_shots(labels, owners, seed=7, ks=(2, 4), draws=4)
    order = np.random.default_rng(0).permutation(len(labels))
    alone = draw_shots(labels.iloc[order][["sdh"]], [owners[row] for row in order], seed=7, ks=(2,), draws=2)
    for draw in range(2):
        assert set(alone.labels("sdh", 2, draw).index) == set(shots.labels("sdh", 2, draw).index)
    assert set(shots.labels("sdh", 4, 0).index) != set(shots.labels("sdh", 4, 1).index)
    assert not shots.table.equals(draw_shots(labels, owners, seed=8, ks=(2, 4), draws=4).table)


def test_what_was_not_drawn_is_said(tmp_path: Path) -> None:
    labels, owners, _ = cohort(5, 12)
    shots = draw_shots(labels, owners, seed=7)
    assert all("K = " in sentence and "patients with it" in sentence for sentence in shots.left_out)
    with pytest.raises(Misuse, match="256 positives of 'ich' were not drawn"):
        shots.labels("ich", 256, 0)
    shots.write(tmp_path / "shots.csv")
    assert pd.read_csv(tmp_path / "shots.csv").columns.tolist() == shots.table.columns.tolist()


def test_fractions_are_nested_by_patient_and_say_what_is_too_few(tmp_path: Path) -> None:
    labels, owners, _ = cohort(2, 50)
    found = draw_fractions(labels, owners, seed=3, draws=10)
    assert found.shares == (0.1, 0.25, 1.0)
    assert [sentence.split(":")[0] for sentence in found.left_out] == ["1 %", "5 %"]
    for draw in range(10):
        tenth, quarter, all_of_them = (found.patients(share, draw) for share in found.shares)
        assert tenth < quarter < all_of_them == set(owners)
        assert (len(tenth), len(quarter)) == (5, 13)
    with pytest.raises(Misuse, match=r"0.01 was not drawn"):
        found.patients(0.01, 0)
    found.write(tmp_path / "fractions.csv")
    assert len(pd.read_csv(tmp_path / "fractions.csv")) == 10 * 50
