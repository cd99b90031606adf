"""The names that help gives are those that there are: it cannot wait for PyTorch to ask."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from headct.cli.app import run
from headct.cli.pretrain import ENCODERS, OBJECTIVES
from headct.encoders import ARCHITECTURES
from headct.pretraining import PretrainSettings, objectives
from headct.pretraining.loop import Run


def names(text: str) -> list[str]:
    return sorted(re.split(r", | or ", text))


def test_help_names_every_objective_and_every_encoder() -> None:
    assert names(OBJECTIVES) == sorted(objectives.OBJECTIVES)
    assert names(ENCODERS) == sorted(ARCHITECTURES)


def test_an_encoder_beside_the_model_that_is_gone_on_from_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["pretrain", "cohort", "--encoder", "vit-tiny", "--continue-from", "model", "--out", str(tmp_path / "run")]
    assert run(line) == 2
    assert "--encoder and --continue-from both say what is trained" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_could_not_be_written_is_not_planned_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["pretrain", "cohort", "--dry-run", "--out", str(tmp_path / "file" / "run")]) == 1
    assert "error: cannot write" in capsys.readouterr().err


def test_a_run_that_a_monitor_has_stopped_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint is named all the same; how a run is stopped is told in tests/pretraining/test_loop.py."""
    ended = Run(
        tmp_path / "run" / "checkpoint", pd.DataFrame(), PretrainSettings(steps=1), stopped="every scan is alike"
    )
    monkeypatch.setattr("headct.pretraining.pretrain", lambda *_, **__: ended)
    assert run(["pretrain", "cohort", "--objective", "dino", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr()
    assert said.out.strip() == str(ended.checkpoint)
    assert "was stopped before its last step\n  why: every scan is alike" in said.err
