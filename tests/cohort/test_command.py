"""`headct ingest` as it is typed: exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headct.cli.app import run
from headct.cohort import Cohort


def test_it_ends_with_tables_on_stderr(
    demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cohort"
    assert run(["ingest", str(demo / "patient-01"), "--out", str(out), "--key", str(key), "--workers", "1"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "scans per second" in said.err
    for code in Cohort(out).rejections["code"]:
        assert code in said.err


def test_json_is_the_only_thing_on_stdout(
    demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["ingest", str(demo / "patient-02"), "--out", str(tmp_path / "cohort"), "--key", str(key), "--json"]
    assert run([*line, "--quiet", "--workers", "1"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert (summary["scans"], summary["files_read"]) == (1, summary["files_found"])
    assert said.err == ""


def test_nothing_usable_ends_with_1_and_the_reasons(
    key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "letter.txt").write_text("hello")
    assert run(["ingest", str(tmp_path / "in"), "--out", str(tmp_path / "cohort"), "--key", str(key)]) == 1
    said = capsys.readouterr().err
    assert "error: no usable head CT was found" in said
    assert "unknown-format (1 files)" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "haed"], "did you mean head?"),
        (["--criteria", "nowhere.toml"], "nowhere.toml"),
        (["--workers", "0"], "--workers"),
        (["--bogus"], "--bogus"),
    ],
)
def test_wrong_usage_ends_with_2(
    arguments: list[str], says: str, demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cohort"
    assert run(["ingest", str(demo), "--out", str(out), "--key", str(key), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_criteria_come_from_a_file(demo: Path, key: Path, tmp_path: Path) -> None:
    """Both settings of the file decide: the series with contrast is taken, and the water cylinder."""
    criteria = tmp_path / "mine.toml"
    criteria.write_text('check_head = false\ncontrast = "any"\n')
    out = tmp_path / "cohort"
    line = ["ingest", str(demo / "patient-01"), str(demo / "quality"), "--out", str(out), "--key", str(key)]
    assert run([*line, "--criteria", str(criteria), "--site", "north", "--quiet", "--workers", "1"]) == 0
    cohort = Cohort(out)
    assert len(cohort) == 3
    assert cohort.scans["contrast"].eq(True).sum() == 1
    assert set(cohort.scans["site"]) == {"north"}
    by_study = cohort.scans.groupby("study_id")["preferred"].sum()
    assert by_study.tolist() == [1] * len(by_study)
