"""The demo, whole: its oracle is what is left in the folder and said on the page."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from headct.cohort import Cohort
from headct.failure import Failure, Misuse
from headct.studies import demo as study


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    length = study.Length(patients=5, budget_s=3.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "QUICK", length)
        assert study.demo(out, quick=True) == out / "report.html"
    return out


@pytest.mark.slow
def test_every_accepted_scan_has_a_vector(walked: Path) -> None:
    cohort = Cohort(walked / "cohort")
    vectors = pd.read_parquet(walked / "embeddings.parquet")
    assert len(cohort) >= 5
    assert vectors["scan_id"].tolist() == list(cohort)
    assert len({tuple(vector) for vector in vectors["vector"]}) == len(cohort)


@pytest.mark.slow
def test_page_accounts_for_every_file_and_opens_offline(walked: Path) -> None:
    page = (walked / "report.html").read_text(encoding="utf-8")
    cohort = Cohort(walked / "cohort")
    assert f"from {len(cohort.files)} files" in page
    for code in cohort.rejections["code"].unique():
        assert f'id="rejected-{code}"' in page
    assert not re.findall(r'(?:src|href)="https?://', page)
    assert "not a medical device" in page
    assert "virtual" in page


@pytest.mark.slow
def test_called_again_it_changes_nothing(walked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "QUICK", study.Length(patients=5, budget_s=3.0))
    before = (walked / "report.html").read_bytes()
    study.demo(walked, quick=True)
    assert (walked / "report.html").read_bytes() == before


def test_a_folder_without_head_ct_fails_with_a_page_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter.txt").write_text("dear colleague")
    with pytest.raises(Failure, match="no usable head CT"):
        study.demo(tmp_path / "out", tmp_path / "data", quick=True)
    assert "unknown-format" in (tmp_path / "out" / "quality.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_folder_holds_one_demo(walked: Path, tmp_path: Path) -> None:
    before = (walked / "quality.html").read_bytes()
    with pytest.raises(Misuse, match="holds another demo"):
        study.demo(walked, data=tmp_path)
    assert (walked / "quality.html").read_bytes() == before
