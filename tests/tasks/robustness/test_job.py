"""Heads seen twice: what an unchanged scan must give, what a changed one may, files, page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.cohort import Cohort
from headct.cohort.labels import read_labels
from headct.detection import AdaptSettings, Detector, adapt
from headct.embedding.machine import choose
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.tasks.robustness import Change, Robustness, Settings, icc, measure
from headct.tasks.robustness.job import _kinds_of_pairs, write

MACHINE = choose("fp32", "cpu")
FEW = Settings(changes=(Change("noise", 1.0), Change("noise", 60.0)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    cohort = made.make(folder / "cohort", 24)
    made.make(folder / "twice", 24, scans_each=2, noise_hu=3.0)
    made.truth(cohort).to_csv(folder / "labels.csv", index=False)
    torch.manual_seed(0)
    save(folder / "model", encoders.build("conv-tiny"), Card(recipe=recipes["head"], windows=WINDOWS))
    labels = read_labels(folder / "labels.csv", [cohort])
    settings = AdaptSettings(method="linear")
    adapt([cohort], labels, load(folder / "model"), MACHINE, folder / "cache", settings).save(folder / "detector")
    return folder


@pytest.fixture(scope="module")
def detector(place: Path) -> Detector:
    return Detector.load(place / "detector")


@pytest.fixture(scope="module")
def encoder(place: Path) -> PretrainedEncoder:
    return load(place / "model")


@pytest.fixture(scope="module")
def found(place: Path, detector: Detector) -> Robustness:
    return measure(Cohort(place / "cohort"), detector, MACHINE, FEW)


def one(table: pd.DataFrame, group: str, measured: str, finding: str = "") -> pd.Series:
    rows = table[(table["group"] == group) & (table["measure"] == measured) & (table["finding"] == finding)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_larger_change_moves_more(found: Robustness) -> None:
    assert found.perturbed  # every patient has one scan
    small, large = (one(found.table, group, "cosine") for group in ("noise 1 HU", "noise 60 HU"))
    assert large["value"] < small["value"] <= 1
    for finding in ("ich", "sdh"):
        agreed = [one(found.table, f"noise {size} HU", "icc", finding) for size in (1, 60)]
        assert agreed[1]["value"] < agreed[0]["value"]
        assert agreed[0]["low"] <= agreed[0]["value"] <= agreed[0]["high"]
        assert one(found.table, "noise 1 HU", "flips", finding)["value"] <= 0.2
    assert len(found.pairs) == 2 * 24


def test_predictions_are_those_of_the_detector(place: Path, detector: Detector, found: Robustness) -> None:
    """Oracle: `Detector.predict` on the same scans; and the table's numbers, computed again from the pairs."""
    pairs = found.pairs[found.pairs["size"] == 60]
    told = detector.predict(Cohort(place / "cohort"), precision="fp32", device="cpu")
    ich = told[told["finding"] == "ich"].set_index("scan_id")["probability"]
    np.testing.assert_allclose(pairs["ich_first"], ich.loc[pairs["first"]], atol=1e-5)
    both = pairs[["ich_first", "ich_second"]].to_numpy()
    assert one(found.table, "noise 60 HU", "icc", "ich")["value"] == pytest.approx(icc(both).agreement)
    point = detector.points[detector.findings.index("ich")]["balanced"]
    flips = ((both[:, 0] >= point) != (both[:, 1] >= point)).mean()
    assert one(found.table, "noise 60 HU", "flips", "ich")["value"] == pytest.approx(flips)
    assert one(found.table, "noise 60 HU", "cosine")["value"] == pytest.approx(pairs["cosine"].mean())
    assert one(found.table, "noise 60 HU", "first_of_all")["value"] == pytest.approx((pairs["rank"] == 1).mean())


def test_patients_who_were_scanned_twice_are_paired(place: Path, encoder: PretrainedEncoder) -> None:
    found = measure(Cohort(place / "twice"), encoder, MACHINE)
    assert not found.perturbed
    patients = Cohort(place / "twice").scans.set_index("scan_id")["patient_id"]
    assert (patients.loc[found.pairs["first"]].to_numpy() == patients.loc[found.pairs["second"]].to_numpy()).all()
    assert (found.pairs["first"] != found.pairs["second"]).all()
    assert one(found.table, "all", "cosine")["n"] == 24
    assert one(found.table, "all", "cosine")["value"] > one(found.table, "all", "cosine_of_others")["value"]
    assert set(found.table["finding"]) == {""}


def test_an_unchanged_scan_agrees_with_itself(place: Path, detector: Detector, monkeypatch) -> None:
    monkeypatch.setattr("headct.tasks.robustness.job.changed", lambda hu, *_: hu)
    found = measure(Cohort(place / "cohort"), detector, MACHINE, Settings(changes=(Change("noise", 5.0),)))
    assert one(found.table, "noise 5 HU", "cosine")["value"] == pytest.approx(1)
    assert one(found.table, "noise 5 HU", "icc", "ich")["value"] == 1
    assert one(found.table, "noise 5 HU", "flips", "ich")["value"] == 0
    assert one(found.table, "noise 5 HU", "first_of_all")["value"] == 1


def test_files_and_page(place: Path, detector: Detector, found: Robustness, tmp_path: Path) -> None:
    cohort = Cohort(place / "cohort")
    write(found, cohort, detector, MACHINE, 0, tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["noise 1 HU"]["ich"]["icc"].keys() == {"value", "low", "high", "n", "positives", "method"}
    assert metrics["noise 60 HU"]["cosine"]["n"] == 24
    assert len(pd.read_csv(tmp_path / "out" / "pairs.csv")) == 48
    table = pd.read_csv(tmp_path / "out" / "robustness.csv")
    assert set(table["measure"]) >= {"cosine", "rank", "first_of_all", "icc", "bias", "flips"}
    html = (tmp_path / "out" / "page.html").read_text()
    assert "Of 24 heads changed by known amounts" in html
    assert "Decisions flip at the operating point, most often: " in html
    assert html.count("<svg") == 2 + 2 * 2
    assert "white noise is added" in html
    assert "the head is turned" not in html  # kinds that were not used


def test_what_is_refused(place: Path, encoder: PretrainedEncoder, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(Misuse, match="holds scans of 1 patient\n"):
        measure(made.make(tmp_path / "one", 1), encoder, MACHINE)
    with pytest.raises(Misuse, match=r"there are two scans of 0 patients only"):
        measure(Cohort(place / "cohort"), encoder, MACHINE, Settings(perturb=False))
    with pytest.raises(Misuse, match="the model uses head"):
        measure(made.make(tmp_path / "other", 3, recipe=recipes["head-fine"]), encoder, MACHINE)
    twins = Cohort(place / "twice")
    twins.about = {**twins.about, "simulated": {"simulation": {"twin": "iph"}}}
    monkeypatch.setattr("headct.cohort.cohort.publish.read_about", lambda path: twins.about)
    with pytest.raises(Misuse, match="differ in iph"):
        measure(twins, encoder, MACHINE)
    monkeypatch.undo()
    with pytest.raises(Misuse, match="nothing to change"):
        Settings(changes=())
    see = encoder.see

    def broken(arrays: torch.Tensor, spacing_mm: torch.Tensor):
        seen = see(arrays, spacing_mm)
        return type(seen)(seen.scan * float("nan"), seen.tokens, seen.grid)

    monkeypatch.setattr(encoder, "see", broken)
    with pytest.raises(Failure, match=r"the vector of scan .* is not finite"):
        measure(Cohort(place / "cohort"), encoder, MACHINE, FEW)


def test_pairs_of_which_a_side_is_not_stated_are_of_no_kind() -> None:
    """Unstated and unstated is not the same kernel, nor is stated and unstated another one."""
    kernels = ["H30", "H30"] * 6 + ["H30", "H60"] * 5 + ["", ""] * 4 + ["H30", None] * 3
    names = [f"s{number}" for number in range(len(kernels))]
    table = pd.DataFrame({"scan_id": names, "kernel": kernels, "site": "", "manufacturer": "ACME"})
    table = table.assign(thickness_mm=5.0, tilt_deg=np.nan)
    kinds = _kinds_of_pairs(cast(Any, SimpleNamespace(scans=table)), names[::2], names[1::2])
    assert {name: int(chosen.sum()) for name, chosen in kinds.items()} == {
        "all": 18,
        "same kernel": 6,
        "other kernel": 5,
    }
