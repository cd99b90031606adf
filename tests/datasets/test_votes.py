"""From votes to labels. Oracles: every combination of three votes counted by hand, and the published rule of CT-FM."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headct.datasets.votes import any_column, any_reader, majority

NONE = float("nan")


@pytest.mark.parametrize("votes", list(itertools.product((1.0, 0.0, NONE), repeat=3)))
def test_every_combination_of_three_votes(votes):
    ones, zeros = votes.count(1.0), votes.count(0.0)
    expected_majority = 1.0 if ones >= 2 else 0.0 if zeros >= 2 else NONE
    expected_any = 1.0 if ones else 0.0 if zeros == 3 else NONE
    np.testing.assert_equal(majority(np.array([votes])), [expected_majority])
    np.testing.assert_equal(any_reader(np.array([votes])), [expected_any])


def test_two_readers_who_differ_are_no_majority():
    np.testing.assert_equal(majority(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])), [NONE, 1.0, 0.0])


def test_the_label_rule_of_ct_fm(shared: Path):
    """The any-reader rule as published, and the majority beside it (recomputed by those who wrote the fixture)."""
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    rule = manifest["files"]["tasks.npz"]["info"]["cq500_label_rule"]
    table = pd.DataFrame(rule["table"])
    by_finding = [
        table[[f"{reader}:{finding}" for reader in ("R1", "R2", "R3")]].to_numpy(float)
        for finding in ("ICH", "Fracture")
    ]
    published = any_column(pd.DataFrame({n: any_reader(votes) for n, votes in enumerate(by_finding)}))
    ours = any_column(pd.DataFrame({n: majority(votes) for n, votes in enumerate(by_finding)}))
    assert published.tolist() == rule["published_any_reader_any_finding"]
    assert ours.tolist() == rule["majority_two_of_three_any_finding"]
