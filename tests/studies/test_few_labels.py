"""The few-label study on vectors whose findings are known. Oracles: scikit-learn's AUROC, and what must be equal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from detection import made
from sklearn.metrics import roc_auc_score

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder
from headct.detection.scans import Held
from headct.detection.shots import draw_shots
from headct.detection.splits import split
from headct.embedding.machine import choose
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.studies import few_labels
from headct.studies.few_labels import Contestant, Study, StudySettings

MACHINE = choose("fp32", "cpu")
FINDINGS = ("ich", "tumor")
WINDOWS = {"brain": (40.0, 80.0), "soft": (100.0, 500.0), "all": (250.0, 2500.0)}


@pytest.fixture(scope="module")
def encoder() -> PretrainedEncoder:
    return PretrainedEncoder(
        encoders.build("conv-tiny"), Card(recipe=recipes["head-coarse"], windows=WINDOWS), "0" * 64
    )


@pytest.fixture(scope="module")
def study() -> Study:
    """120 patients at home, 60 at a second site, of whom four have the tumor, some labels unknown."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (180, 2)).astype(float)
    labels[120:, 1] = np.arange(60) < 4
    labels[::17, 0] = np.nan
    ids = [f"s{number:03d}" for number in range(180)]
    patients = np.array([f"p{number:03d}" for number in range(180)], dtype=object)
    sites = np.array(["home"] * 120 + ["away"] * 60, dtype=object)
    table = pd.DataFrame(labels, columns=list(FINDINGS), index=pd.Index(ids, name="scan_id"))
    parts = np.full(180, "test", dtype=object)
    shares = {"train": 0.5, "validation": 0.15, "test": 0.35}
    parts[:120] = split(labels[:120], patients[:120].tolist(), shares, 0)
    train = parts == "train"
    settings = StudySettings(findings=FINDINGS, ks=(4, 8), draws=3)
    shots = draw_shots(table[train], patients[train].tolist(), seed=0, ks=(4, 8), draws=3)
    return Study(settings, ids, table, patients, parts, sites, shots)


@pytest.fixture(scope="module")
def tables(study: Study, encoder: PretrainedEncoder) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(1)
    truth = np.nan_to_num(study.labels.to_numpy(), nan=0.5)
    telling = np.concatenate([truth * 1.5 + rng.normal(size=truth.shape), rng.normal(size=(180, 6))], axis=1)
    ours = Contestant("ours", Held(telling.astype(np.float32)), encoder)
    noise = few_labels.of_vectors("noise", rng.normal(size=(180, 8)).astype(np.float32), ours)
    return {one.name: few_labels.predicted(study, one, MACHINE) for one in (ours, noise)}


def test_every_area_is_that_of_scikit_learn(study, tables):
    areas = few_labels.results_of(study, tables).aurocs()
    assert len(areas) == 2 * 2 * 3 * 3  # contestants, K, draws; two findings at home and one away
    for row in areas.to_dict("records"):
        said = tables[row["contestant"]]
        chosen = said[
            (said[["k", "draw", "site", "finding"]] == [row[n] for n in ("k", "draw", "site", "finding")]).all(axis=1)
        ]
        truth = study.labels[row["finding"]].loc[chosen["scan_id"]].to_numpy()
        known = np.isfinite(truth)
        assert row["auroc"] == pytest.approx(roc_auc_score(truth[known], chosen["score"][known]))
        assert (row["n"], row["positives"]) == (known.sum(), truth[known].sum())


def test_what_tells_beats_what_does_not(study, tables):
    results = few_labels.results_of(study, tables)
    gain = results.difference("ours", "noise", "home", 8)
    assert gain.estimate.low > 0.05
    assert gain.p < 0.01
    noise = results.macro("noise", "home", 8)
    assert noise.low < 0.5 < noise.high
    table = results.table("ours").set_index(["contestant", "site", "k"])
    assert table.loc[("noise", "home", 8), "difference"] == pytest.approx(gain.estimate.value)
    assert table.loc[("ours", "home", 8), "auroc"] == pytest.approx(
        results.aurocs().query("contestant == 'ours' and site == 'home' and k == 8")["auroc"].mean()
    )
    itself = results.difference("ours", "ours", "home", 8)
    assert (itself.estimate.value, itself.p) == (0.0, 1.0)


def test_a_finding_of_four_patients_is_not_tested(study, tables):
    assert study.testable("home") == FINDINGS
    assert study.testable("away") == ("ich",)
    results = few_labels.results_of(study, tables)
    assert results.finding("ours", "away", 8, "tumor") is None
    assert results.finding("ours", "away", 8, "ich").n == study.labels["ich"][study.sites == "away"].notna().sum()


def test_nobody_is_learned_from_and_tested(study, tables):
    drawn = set(study.drawn.table["patient_id"])
    assert not drawn & set(study.patients[study.tested])
    for table in tables.values():
        assert set(table["scan_id"]) == {study.scan_ids[row] for row in study.tested}


def test_fewer_draws_are_paired_with_their_own(study, tables, encoder):
    results = few_labels.results_of(study, tables | {"one": tables["ours"][tables["ours"]["draw"] == 0]})
    assert results.draws("one", "home", 8) == 1
    assert results.difference("ours", "one", "home", 8).estimate.value == 0.0


def test_what_was_kept_is_not_made_again(study, encoder, tmp_path, monkeypatch):
    one = Contestant("HU, 27 regions", Held(np.random.default_rng(2).normal(size=(180, 3)).astype(np.float32)), encoder)
    first = few_labels.kept_predictions(tmp_path, study, one, MACHINE)
    monkeypatch.setattr(few_labels, "predicted", None)
    pd.testing.assert_frame_equal(few_labels.kept_predictions(tmp_path, study, one, MACHINE), first)
    same = replace(MACHINE, why="the CPU has no bf16 units")  # said in other words
    pd.testing.assert_frame_equal(few_labels.kept_predictions(tmp_path, study, one, same), first)
    assert [path.name for path in tmp_path.iterdir()] == ["HU-27-regions.parquet"]


def test_a_killed_study_goes_on_with_the_next_draw(study, encoder, tmp_path, monkeypatch):
    one = Contestant("HU", Held(np.random.default_rng(2).normal(size=(180, 3)).astype(np.float32)), encoder)
    whole, learned, fit = few_labels.predicted(study, one, MACHINE), [], type(one.method).fit

    def killed_at_the_second(method, task):
        if learned:
            raise KeyboardInterrupt
        learned.append(task)
        return fit(method, task)

    with monkeypatch.context() as patch:
        patch.setattr(type(one.method), "fit", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            few_labels.kept_predictions(tmp_path, study, one, MACHINE)
    (draft,) = (tmp_path / "HU.drafts").iterdir()
    said = pd.read_parquet(draft)
    said["score"] = np.float32(0.5)  # to tell that it is taken as it is
    said.to_parquet(draft)  # with its terms
    found = few_labels.kept_predictions(tmp_path, study, one, MACHINE)
    again = (found["k"] == said["k"][0]) & (found["draw"] == said["draw"][0])
    assert (found["score"][again] == 0.5).all()
    pd.testing.assert_frame_equal(found[~again], whole[~again])
    assert [path.name for path in tmp_path.iterdir()] == ["HU.parquet"]


def test_what_was_kept_on_other_terms_is_not_taken(study, encoder, tmp_path):
    one = Contestant("HU", Held(np.random.default_rng(2).normal(size=(180, 3)).astype(np.float32)), encoder)
    few_labels.kept_predictions(tmp_path, study, one, MACHINE)
    with pytest.raises(Misuse, match="another study"):
        few_labels.kept_predictions(tmp_path, study, replace(one, method=replace(one.method, fallback=1.0)), MACHINE)
    with pytest.raises(Misuse, match="another study"):
        few_labels.kept_predictions(tmp_path, replace(study, labels=1 - study.labels), one, MACHINE)
    with pytest.raises(Misuse, match="another study"):
        few_labels.kept_predictions(tmp_path, study, replace(one, draws=1), MACHINE)
    with pytest.raises(Misuse, match="another study"):
        few_labels.kept_predictions(tmp_path, study, replace(one, scans=Held(one.scans.held_vectors + 1)), MACHINE)


def test_without_enough_test_patients_it_says_so(study, tables):
    unknown = study.labels * np.nan
    lacking = Study(study.settings, study.scan_ids, unknown, study.patients, study.parts, study.sites, study.drawn)
    with pytest.raises(Failure, match="enough test patients"):
        few_labels.results_of(lacking, tables)


def test_where_nothing_can_be_drawn_nothing_is_said(study, encoder, tmp_path):
    train = study.parts == "train"
    drawn = draw_shots(study.labels[train], study.patients[train].tolist(), seed=0, ks=(64,), draws=3)
    one = Contestant("HU", Held(np.zeros((180, 3), np.float32)), encoder)
    table = few_labels.kept_predictions(tmp_path, replace(study, drawn=drawn), one, MACHINE)
    assert table.empty
    assert few_labels.results_of(study, {"HU": table}).areas == {"HU": {}}


def test_of_cohorts(tmp_path: Path, encoder):
    """Blocks that are painted in: the split, the draws, and a network that begins with random weights."""
    home = made.make(tmp_path / "home", 40, recipe=recipes["head-coarse"])
    table = tmp_path / "home.csv"
    labels = pd.DataFrame([made.labels_of(number) for number in range(40)])
    labels.insert(0, "scan_id", home.scans["scan_id"].tolist())
    labels.to_csv(table, index=False)
    settings = StudySettings(findings=made.FINDINGS, ks=(2, 4, 64), draws=2)
    found = few_labels.study_of({"home": (home, table)}, settings)
    assert found.drawn.ks == {"ich": (2, 4), "sdh": (2, 4)}
    assert set(found.parts) == {"train", "validation", "test"}
    found.write(tmp_path / "written")
    assert len(pd.read_csv(tmp_path / "written" / "splits.csv")) == 40
    counts = found.counts().set_index(["place", "finding"])
    assert counts.loc[("home", "ich"), "n"] == (found.parts == "test").sum()

    arrays = np.stack([home.array(scan_id) for scan_id in found.scan_ids])
    scans = Held(np.zeros((40, 1), np.float32), arrays, np.full((40, 3), 4.0, np.float32))
    network = few_labels.from_scratch(
        "scratch", Contestant("ours", scans, encoder), "conv-tiny", steps=2, lr=2e-3, draws=1, looks=1
    )
    said = few_labels.predicted(found, network, MACHINE)
    assert set(said["draw"]) == {0}
    assert set(said["k"]) == {2, 4}

    with pytest.raises(Misuse, match="at several sites"):
        few_labels.study_of({"home": (home, table), "away": (home, table)}, settings)
    with pytest.raises(Misuse, match="no finding can be drawn at K = 64"):
        few_labels.study_of({"home": (home, table)}, StudySettings(findings=made.FINDINGS, ks=(64,)))
