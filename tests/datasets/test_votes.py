"""From findings to one. Oracles: every combination of three by Kleene's logic, and the published rule of CT-FM."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from headct.datasets.votes import any_column
from headct.evaluation.cells import combined

NONE = float("nan")


@pytest.mark.parametrize("labels", list(itertools.product((1.0, 0.0, NONE), repeat=3)))
def test_every_combination_of_three_findings(labels: tuple[float, ...]) -> None:
    """As a chain of `or` in Kleene's logic of three values."""
    expected = 1.0 if 1.0 in labels else 0.0 if labels == (0.0, 0.0, 0.0) else NONE
    np.testing.assert_equal(any_column(pd.DataFrame([labels])), [expected])


def test_the_label_rule_of_ct_fm(shared: Path):
    """The any-reader rule as published, and the majority beside it (recomputed by those who wrote the fixture)."""
    manifest = json.loads((shared / "fixtures" / "ct-fm" / "manifest.json").read_text())
    rule = manifest["files"]["tasks.npz"]["info"]["cq500_label_rule"]
    table = pd.DataFrame(rule["table"])
    by_finding = [
        table[[f"{reader}:{finding}" for reader in ("R1", "R2", "R3")]].to_numpy(float)
        for finding in ("ICH", "Fracture")
    ]
    published = any_column(pd.DataFrame({n: combined(votes.T, "any") for n, votes in enumerate(by_finding)}))
    ours = any_column(pd.DataFrame({n: combined(votes.T, "majority") for n, votes in enumerate(by_finding)}))
    assert published.tolist() == rule["published_any_reader_any_finding"]
    assert ours.tolist() == rule["majority_two_of_three_any_finding"]
