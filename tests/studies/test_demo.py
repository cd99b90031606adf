"""The demo, whole: its oracle is what is left in the folder and said on the page."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from inputs.walls import headct, run_walled

from headct.cohort import Cohort
from headct.detection import Detector
from headct.failure import Failure, Misuse
from headct.studies import demo as study
from headct.virtual import demonstration

pytestmark = pytest.mark.timeout(900)  # of a slow core that is shared


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As it is typed, in a world without a network."""
    folder = tmp_path_factory.mktemp("demo")
    done, tried = run_walled(folder, *headct("demo", "--quick", "--out", folder / "demo"))
    assert done.returncode == 0, done.stderr
    assert tried == []
    return folder / "demo"


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def text_of(page: Path) -> str:
    parser = _Text()
    parser.feed(page.read_text(encoding="utf-8"))
    return " ".join(" ".join(parser.parts).split())


@pytest.mark.slow
def test_every_contestant_is_tested_on_the_same_scans(walked: Path) -> None:
    table = pd.read_csv(walked / "results.csv")
    assert set(table["contestant"]) == {
        "pre-trained here",
        "pre-trained longer",
        "regional histogram",
        "histogram",
        "height of the head",
        "random weights",
        "from scratch",
    }
    assert set(table["site"]) == {"site-a", "site-b"}
    assert table["auroc"].between(0, 1).all()
    assert (table["low"] <= table["auroc"]).all()
    assert (table["auroc"] <= table["high"]).all()
    others = table["contestant"] != "pre-trained here"
    assert table.loc[others, "difference"].notna().all()
    splits = pd.read_csv(walked / "few-labels" / "splits.csv").set_index("patient_id")["split"]
    drawn = pd.read_csv(walked / "few-labels" / "shots.csv")["patient_id"]
    assert set(splits[drawn]) == {"train"}
    tested = [set(pd.read_parquet(path)["scan_id"]) for path in (walked / "few-labels").glob("*.parquet")]
    assert all(scans == tested[0] for scans in tested)


@pytest.mark.slow
def test_no_label_and_no_mask_of_a_finding_is_learned_from(walked: Path) -> None:
    """Patients without labels are others than those with, and the run may not know masks of findings."""
    unlabelled = set(Cohort(walked / "unlabelled").scans["patient_id"])
    labelled = {patient for site in ("site-a", "site-b") for patient in Cohort(walked / site).scans["patient_id"]}
    assert not unlabelled & labelled
    told = (walked / "run" / "settings.toml").read_text()
    assert re.search(r"^findings = false$", told, flags=re.MULTILINE)
    assert not re.search(r"probe", told)


@pytest.mark.slow
def test_page_accounts_for_every_file_and_opens_offline(walked: Path) -> None:
    page = (walked / "report.html").read_text(encoding="utf-8")
    cohort = Cohort(walked / "cohort")
    for code in cohort.rejections["code"].unique():
        assert f'id="rejected-{code}"' in page
    assert not re.findall(r'(?:src|href)="https?://', page)
    text = text_of(walked / "report.html")
    assert f"{len(cohort.files):,} files found" in text
    assert "not a medical device" in text
    for title in ("What few labels find", "Transfer to other sites", "Hits and misses", "Flow of scans"):
        assert title in text


@pytest.mark.slow
def test_the_answer_is_what_the_table_says(walked: Path) -> None:
    table = pd.read_csv(walked / "results.csv")
    text = text_of(walked / "report.html")
    for name, begins in (("pre-trained longer", "reaches a mean AUROC of"), ("pre-trained here", "short run, [^.,]*,")):
        ours = table.query(f"contestant == {name!r} and site == 'site-a'").sort_values("k").iloc[-1]
        said = re.escape(f"{ours['auroc']:.2f} ({ours['low']:.2f} to {ours['high']:.2f})")
        assert re.search(f"{begins} {said}", text)


@pytest.mark.slow
def test_called_again_it_changes_nothing(walked: Path) -> None:
    before = (walked / "report.html").read_bytes()
    study.demo(walked, quick=True)
    assert (walked / "report.html").read_bytes() == before


@pytest.mark.slow
def test_its_detector_looks_at_files(walked: Path) -> None:
    folder = next((walked / "virtual-patients").glob("patient-*"))
    said = Detector.load(walked / "detector").predict(folder / "head")
    assert said["probability"].between(0, 1).all()
    assert set(said["finding"]) <= set(study.QUICK.findings)


@pytest.mark.slow
def test_a_folder_holds_one_demo(walked: Path, tmp_path: Path) -> None:
    before = (walked / "quality.html").read_bytes()
    with pytest.raises(Misuse, match="holds another demo"):
        study.demo(walked, data=tmp_path)
    with pytest.raises(Misuse, match="holds another demo"):
        study.demo(walked, quick=True, checkpoint=tmp_path)
    assert (walked / "quality.html").read_bytes() == before


@pytest.mark.slow
def test_own_scans_without_labels_get_vectors_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "QUICK", replace(study.QUICK, own_budget_s=3.0))
    monkeypatch.setattr(demonstration, "PIXEL_MM", 2.4)
    demonstration.write_demonstration(tmp_path / "data", patients=3)
    page = study.demo(tmp_path / "out", tmp_path / "data", quick=True)
    cohort = Cohort(tmp_path / "out" / "cohort")
    vectors = pd.read_parquet(tmp_path / "out" / "embeddings.parquet")
    assert vectors["scan_id"].tolist() == list(cohort)
    assert len({tuple(vector) for vector in vectors["vector"]}) == len(cohort) >= 3
    text = text_of(page)
    assert f"from {len(cohort.files):,} files" in text
    assert "AUROC" not in text
    assert "Every patient on this page is virtual" not in text


def test_a_folder_without_head_ct_fails_with_a_page_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter.txt").write_text("dear colleague")
    with pytest.raises(Failure, match="no usable head CT"):
        study.demo(tmp_path / "out", tmp_path / "data", quick=True)
    assert "unknown-format" in (tmp_path / "out" / "quality.html").read_text(encoding="utf-8")
