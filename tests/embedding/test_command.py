"""`headct embed` as it is typed: what it checks before it begins, what it says at the end, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headct.cli.app import run
from headct.cohort.ingest import ingest
from headct.embedding import job
from headct.scan import REASONS


def line(inputs: list[Path], checkpoint: Path | str, out: Path) -> list[str]:
    options = ["--model", str(checkpoint), "--out", str(out), "--keep-ids", "--precision", "fp32", "--device", "cpu"]
    return ["embed", *map(str, inputs), *options]


def test_what_was_rejected_is_told_with_what_to_do(
    files: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line([files], checkpoint, tmp_path / "v.parquet")) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "2 scans embedded" in said.err
    assert REASONS["unknown-format"].remedy in said.err
    assert str(tmp_path / "v.rejections.parquet") in said.err


def test_nothing_embedded_ends_with_1_and_names_the_table(
    files: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line([files / "letter.txt"], checkpoint, tmp_path / "v.parquet")) == 1
    said = capsys.readouterr().err
    assert "why: unknown-format (1)" in said
    assert f"do:  see the sentences in {tmp_path / 'v.rejections.parquet'}" in said


def test_an_empty_folder_is_said_to_be_empty(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    assert run(line([tmp_path / "in"], checkpoint, tmp_path / "v.parquet")) == 1
    assert f"why: no files in {tmp_path / 'in'}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_cannot_work_is_told_before_the_model_is_loaded(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no such model, which is never found out."""
    (tmp_path / "file").write_text("")
    (tmp_path / "mine.parquet").write_text("mine")
    missing = tmp_path / "typo"
    for inputs, out, code, says in (
        ([files, missing], tmp_path / "v.parquet", 2, f"there is no file or folder {missing}"),
        ([files], tmp_path / "t.py", 2, "name "),
        ([files], tmp_path / "mine.parquet", 2, "is damaged, or not a table at all"),
        ([files], tmp_path / "file" / "v.parquet", 1, f"cannot write {tmp_path / 'file' / 'v.parquet'}"),
    ):
        assert run(line(inputs, "no-such-model", out)) == code
        said = capsys.readouterr().err
        assert says in said
        assert "\n  do:  " in said
        assert "no-such-model" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine.parquet"]


def test_options_of_files_do_not_pretend_to_change_a_cohort(
    files: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingest([files], tmp_path / "cohort", keep_ids=True, workers=1)
    assert run([*line([tmp_path / "cohort"], checkpoint, tmp_path / "v.parquet"), "--criteria", "fm-hct"]) == 2
    said = capsys.readouterr().err
    assert f"--criteria, --keep-ids cannot change the cohort {tmp_path / 'cohort'}" in said
    assert not (tmp_path / "v.parquet").exists()
    assert run(line([tmp_path / "cohort", files], checkpoint, tmp_path / "v.parquet")) == 0
    said = capsys.readouterr().err
    assert "warning: --keep-ids cannot change the cohort" in said
    assert "warning: the inputs overlap; left out as repeated: 2 scans" in said


def test_a_home_that_the_shell_left_is_found(
    files: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in --out=~/v.parquet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(checkpoint)
    (tmp_path / "scans").symlink_to(files)
    assert run(line([Path("~/scans")], "~/model", Path("~/v.parquet"))) == 0
    names = ["model", "scans", "v.parquet", "v.rejections.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_inputs_that_can_be_gone_through_once_are_left_alone(tmp_path: Path) -> None:
    inputs = iter([tmp_path / "typo"])
    job.check(tmp_path / "v.parquet", inputs)
    assert list(inputs) == [tmp_path / "typo"]
