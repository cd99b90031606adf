"""`headct ingest` as it is typed: exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from headct.cli.app import run
from headct.cohort import Cohort
from headct.preparing.recipe import recipes


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
    assert f"headct qc {out} --out cohort.html" in said.err.splitlines()[-1]


def test_each_number_stands_beside_its_name_whatever_the_cohort_is_called(
    demo: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["ingest", str(demo / "patient-02"), "--out", "cohort", "--key", str(key), "--workers", "1"]) == 0
    assert re.search(r"^ *scans, one per study +1 *$", capsys.readouterr().err, re.MULTILINE)


def test_json_is_the_only_thing_that_is_said(
    demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["ingest", str(demo / "patient-02"), "--out", str(tmp_path / "cohort"), "--key", str(key), "--json"]
    assert run([*line, "--workers", "1"]) == 0
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
    assert "unknown-format (1 file)" in said
    assert "headct qc" in said.splitlines()[-1]


def test_an_empty_folder_is_said_to_be_empty(key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "night").mkdir(parents=True)
    assert run(["ingest", str(tmp_path / "in"), "--out", str(tmp_path / "cohort"), "--key", str(key)]) == 1
    assert f"why: no files in {tmp_path / 'in'}" in capsys.readouterr().err
    assert not (tmp_path / "cohort").exists()


def test_a_place_that_cannot_be_written_is_told_before_anything_is_made(
    demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["ingest", str(demo), "--out", str(tmp_path / "file" / "cohort"), "--key", str(key)]) == 1
    said = capsys.readouterr().err
    assert f"cannot write {tmp_path / 'file' / 'cohort'}" in said
    assert f"why: {tmp_path / 'file'}: Not a directory" in said


def test_warnings_are_said_with_quiet_too(
    demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that changed after it was read; a site that comes too late for the scans that are there."""
    shutil.copytree(demo / "patient-02", tmp_path / "in")
    line = ["ingest", str(tmp_path / "in"), "--out", str(tmp_path / "cohort"), "--key", str(key), "--quiet"]
    assert run([*line, "--workers", "1"]) == 0
    assert capsys.readouterr().err == ""
    changed = next(path for path in (tmp_path / "in").rglob("*") if path.is_file())
    changed.touch()
    assert run([*line, "--workers", "1", "--site", "north"]) == 0
    said = capsys.readouterr()
    assert "warning: 1 file changed since being read" in said.err
    assert "warning: --site north is written for new scans only; 1 scan of these inputs" in said.err
    assert said.out == ""
    assert set(Cohort(tmp_path / "cohort").scans["site"].fillna("")) == {""}


def test_a_site_for_new_scans_is_no_reason_to_warn(
    demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--out", str(tmp_path / "cohort"), "--key", str(key), "--quiet", "--workers", "1"]
    assert run(["ingest", str(demo / "patient-01"), *line, "--site", "north"]) == 0
    assert run(["ingest", str(demo / "patient-02"), *line, "--site", "south"]) == 0
    assert run(["ingest", str(demo / "patient-02"), *line]) == 0
    assert capsys.readouterr().err == ""
    assert set(Cohort(tmp_path / "cohort").scans["site"]) == {"north", "south"}


def test_criteria_that_contradict_the_cohort_are_told_by_what_differs(
    demo: Path, key: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    criteria = tmp_path / "mine.toml"
    criteria.write_text("min_slices = 20\n")
    line = ["ingest", str(demo / "patient-02"), "--out", str(tmp_path / "cohort"), "--key", str(key), "--quiet"]
    assert run([*line, "--workers", "1"]) == 0
    assert run([*line, "--criteria", str(criteria)]) == 2
    assert 'it has criteria {"min_slices": 3}, this call has {"min_slices": 20}' in capsys.readouterr().err


def test_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ingest", "--help"]) == 0
    listed = capsys.readouterr().out.partition("Recipes: ")[2].partition("Arguments:")[0]
    assert set(re.findall(r"[a-z-]{4,}", listed)) & set(recipes) == set(recipes)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--recipe", "haed"], "did you mean head?"),
        (["--criteria", "nowhere.toml"], "there is no file nowhere.toml"),
        (["--criteria", "defualt"], "default, fm-hct, ct-fm"),
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
