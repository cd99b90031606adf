"""`headct simulate` as it is typed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from headct.cli.app import run
from headct.virtual.findings.mixture import KINDS, PREVALENCE


def test_a_prevalence_changes_one_finding_alone(tmp_path: Path) -> None:
    none = [word for name in PREVALENCE if name != "iph" for word in ("--prevalence", f"{name}=0")]
    line = ["simulate", "--patients", "2", "--out", str(tmp_path / "out"), "--workers", "1", *none]
    assert run([*line, "--prevalence", "iph=1"]) == 0
    labels = pd.read_csv(tmp_path / "out" / "labels.csv")
    assert (labels["iph_ml"] > 0).all()
    assert (labels[["sdh_ml", "edh_ml", "infarct_ml", "fracture_ml"]] == 0).all(axis=None)


@pytest.mark.parametrize("asked", ["iph", "iph=much", "measles=0.1", "iph=2", "=0.5"])
def test_what_is_no_prevalence_is_refused(asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--patients", "1", "--out", str(tmp_path / "out"), "--prevalence", asked]) == 2
    said = capsys.readouterr().err
    assert "prevalence" in said
    assert asked.partition("=")[0] in said
    assert not (tmp_path / "out").exists()


def test_a_prevalence_that_is_given_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["simulate", "--patients", "1", "--out", str(tmp_path / "out"), "--prevalence", "iph=1"]
    assert run([*line, "--prevalence", "iph=0"]) == 2
    assert "iph is given twice" in capsys.readouterr().err


def test_help_names_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in KINDS)
