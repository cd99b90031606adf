"""`headct protocol` as it is typed."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from studies import protocol_trees as trees

from headct.cli.app import run
from headct.studies import protocol_job, protocol_page
from headct.studies.protocol import NAMES


def test_without_a_name_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["protocol"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert run(["protocol", "--json"]) == 0
    assert tuple(one["name"] for one in json.loads(capsys.readouterr().out)) == NAMES


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["cq500"], "did you mean fm-hct-cq500 or ct-fm-cq500?"),
        (["bhsd", "--data", "x"], "the protocol bhsd needs --model and --out"),
        (["bhsd", "--data", "x", "--model", "no-such-model", "--out", "y"], "no-such-model"),
    ],
)
def test_what_cannot_work_ends_with_2_and_what_to_do(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["protocol", *line]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "\n  do:  " in said


def test_a_page_that_cannot_be_written_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(protocol_job, "run_protocol", lambda *_, **__: None)
    monkeypatch.setattr(protocol_page, "write_page", full)
    line = ["--data", str(tmp_path), "--model", str(trees.model(tmp_path / "model")), "--out", str(tmp_path / "out")]
    assert run(["protocol", "ct-ich", *line, "--precision", "fp32", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert f"cannot write {tmp_path / 'out' / 'report.html'}" in said
    assert "free some space" in said


@pytest.mark.slow
def test_one_line_from_the_download_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model, out = trees.ct_ich(tmp_path / "download"), trees.model(tmp_path / "model"), tmp_path / "out"
    (tmp_path / "key").write_text("cd" * 32)
    line = ["protocol", "ct-ich", "--data", str(data), "--model", str(model), "--out", str(out), "--key"]
    line += [str(tmp_path / "key"), "--workers", "1", "--precision", "fp32", "--device", "cpu", "--methods", "linear"]
    assert run(line) == 0
    said = capsys.readouterr()
    assert "model, linear" in said.out
    assert "histogram, linear" in said.out
    assert "warning: ivh is left out" in said.err
    assert all((out / name).is_file() for name in ("table.csv", "metrics.json", "report.html", "protocol.json"))
    assert run([*line, "--json", "--quiet"]) == 0
    assert {row["method"] for row in json.loads(capsys.readouterr().out)} == {"linear"}
