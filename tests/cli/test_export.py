"""`headct export`, whole, in a world without a network and with a home of its own.

The runtimes report their use to their vendors: OpenVINO and NNCF from Python, ONNX Runtime from native code, which no
hook in Python sees. All of them leave an identifier in the home folder first, so an empty home is the witness.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from inputs.walls import WALL, namespace
from pretraining.memory_cohort import MemoryCohort, heads

from headct import encoders
from headct.checkpoints import Card, load, save
from headct.checkpoints.exported import ExportedEncoder
from headct.cli import app
from headct.preparing import recipes
from headct.preparing.recipe import Frame
from headct.preparing.windows import WINDOWS

Alone = Callable[[str], subprocess.CompletedProcess[str]]
SMALL = recipes["head"].with_steps(Frame(spacing_mm=(8.0, 8.0, 8.0), shape=(24, 28, 24)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    shape = {"depth": 2, "width": 48, "heads": 2, "mlp_width": 96, "patch": (6, 7, 6), "grid": (4, 4, 4)}
    save(tmp_path / "checkpoint", encoders.build("vit-tiny", **shape), Card(recipe=SMALL, windows=WINDOWS))
    return tmp_path / "checkpoint"


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    """Runs a Python script behind the walls, in the folder and with the home that the test finds afterwards."""
    for name in ("wall", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "wall" / "sitecustomize.py").write_text(WALL)
    (tmp_path / "egress.log").touch()

    def run(script: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "CI"))}
        environment |= {
            "HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(tmp_path / "wall"),
            "EGRESS_LOG": str(tmp_path / "egress.log"),
        }
        line = [*namespace(), sys.executable, "-c", script]
        return subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def kept(home: Path) -> list[str]:
    """Files that were left in a home, beside our own key of pseudonyms."""
    files = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
    return [name for name in files if not name.endswith("headct/pseudonym-key")]


@pytest.mark.slow
@pytest.mark.parametrize(("to", "precision"), [("onnx", "fp32"), ("openvino", "bf16"), ("openvino", "int8")])
def test_an_export_and_its_use_tell_nobody(
    to: str, precision: str, checkpoint: Path, alone: Alone, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime" if to == "onnx" else "nncf")
    line = ["export", str(checkpoint), "--to", to, "--precision", precision, "--out", "graph"]
    done = alone(
        f"from headct.cli.app import run; assert run({line}) == 0\n"
        "import headct; from headct.virtual.phantom import Phantom\n"
        "scan = Phantom(1).scan(slices=26, gap_mm=7.0, rows=96, cols=96, pixel_mm=2.4)\n"
        "print(headct.embed([scan], 'graph').vectors.shape)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "graph\n(1, 48)\n", "data and nothing else"
    assert "the cosine to the model is 0.999" in done.stderr or "the cosine to the model is 1.000" in done.stderr
    assert (tmp_path / "egress.log").read_text() == ""
    assert kept(tmp_path / "home") == []


@pytest.mark.slow
def test_the_witness_would_see_a_runtime_that_tells(alone: Alone, tmp_path: Path) -> None:
    """Without our switches ONNX Runtime does leave its identifier; else the test above could not fail."""
    pytest.importorskip("onnxruntime", minversion="1.31")
    alone("import onnxruntime; onnxruntime.SessionOptions()")
    assert any("onnxruntime" in name for name in kept(tmp_path / "home"))


def test_what_cannot_be_exported_is_told_before_anything_begins(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    for model, to, precision, out, says in (
        ("no-such-model", "tensorrt", "fp32", "new", "not 'tensorrt'"),
        ("no-such-model", "onnx", "bf16", "new", "onnx takes the precision fp32"),
        ("no-such-model", "hub", "bf16", "new", "hub takes the precision fp32"),
        ("no-such-model", "onnx", "fp32", "there", "exists already"),
    ):
        assert app.run(["export", model, "--to", to, "--precision", precision, "--out", str(tmp_path / out)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert says in said
    assert (
        app.run(["export", "no-such-model", "--to", "hub", "--calibrate", "night", "--out", str(tmp_path / "x")]) == 2
    )
    assert "--calibrate is for graphs" in capsys.readouterr().err


def test_a_graph_is_not_exported_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = load(checkpoint)
    graph.encoder = ExportedEncoder(graph.encoder, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr("headct.checkpoints.load", lambda name: graph)
    assert app.run(["export", str(checkpoint), "--to", "onnx", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.startswith("error: this model is an exported one")


def test_a_cohort_of_another_recipe_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("headct.cohort.Cohort", lambda path: MemoryCohort(heads(2), name=str(path)))
    line = ["export", str(checkpoint), "--to", "onnx", "--out", str(tmp_path / "x"), "--calibrate", "night"]
    assert app.run(line) == 2
    assert "cohort night uses recipe head" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
