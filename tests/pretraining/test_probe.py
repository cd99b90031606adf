"""The look at labels: against a loop, and without a trace in what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pretraining.memory_cohort import MemoryCohort, heads
from pretraining.test_loop import SMALL, same_bits, weights

from headct.failure import Misuse
from headct.pretraining import pretrain, read_settings
from headct.pretraining.probe import ProbeSettings, neighbour_scores, probe_of
from headct.pretraining.scans import Scans


def cohort() -> MemoryCohort:
    return MemoryCohort(heads(14))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.csv"
    ids = [f"scan-{number}" for number in range(14)]
    table = {"scan_id": ids, "age": [1] * 14, "ich": [0, 1] * 7, "sdh": [1] + [0] * 13, "iph": [0, 1] * 6 + [None] * 2}
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def test_scores_are_those_of_the_nearest_other_patients() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(12, 4)), rng.integers(0, 2, 12).astype(float)
    patients = np.repeat(np.arange(6), 2)
    found = neighbour_scores(torch.from_numpy(vectors), labels, patients, k=3)
    centred = vectors - vectors.mean(axis=0)
    for n in range(12):
        others = [m for m in range(12) if patients[m] != patients[n]]
        cosine = {m: centred[n] @ centred[m] / np.linalg.norm(centred[n]) / np.linalg.norm(centred[m]) for m in others}
        nearest = sorted(others, key=lambda m: -cosine[m])[:3]
        assert found[n] == pytest.approx(labels[nearest].mean())


def test_a_scan_with_two_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("scan_id,ich\nscan-1,0\nscan-1,1\n")
    with pytest.raises(Misuse, match="has 1 scans twice, such as scan-1"):
        probe_of(ProbeSettings(labels=str(tmp_path / "l.csv")), Scans([cohort()]), [(40.0, 80.0)], 0)


def test_a_run_looks_at_labels_and_learns_nothing_from_them(tmp_path: Path, labels: Path) -> None:
    probe = ProbeSettings(labels=str(labels), every=2)
    looked = pretrain([cohort()], tmp_path / "looked", replace(SMALL, steps=4, probe=probe))
    blind = pretrain([cohort()], tmp_path / "blind", replace(SMALL, steps=4))
    assert same_bits(weights(looked), weights(blind))
    knn = looked.history["knn"]
    assert knn.notna().tolist() == [False, True, False, True]
    assert knn.dropna().between(0, 1).all()
    assert {"knn_ich", "knn_iph"} <= set(looked.history.columns)
    assert "knn_sdh" not in looked.history.columns, "one positive says nothing"
    assert read_settings(tmp_path / "looked" / "settings.toml").probe == probe
    assert "Labels were looked at" in (tmp_path / "looked" / "report.html").read_text()


def test_labels_that_say_nothing_are_refused(tmp_path: Path, labels: Path) -> None:
    scans = Scans([cohort()])
    for settings, message in (
        (ProbeSettings(labels=str(tmp_path / "no.csv")), "is no table of labels"),
        (ProbeSettings(labels=str(labels), findings=("tumor",)), "has no column 'tumor'"),
        (ProbeSettings(labels=str(labels), findings=("sdh",)), "no finding with 5 scans"),
    ):
        with pytest.raises(Misuse, match=message):
            probe_of(settings, scans, [(40, 80)], 0)
