"""Exported models: near the encoder they were made from, loaded like any model, and refused when changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headct import encoders
from headct.checkpoints import Card, CheckpointFailure, PretrainedEncoder, load, save
from headct.checkpoints.export import drawn_heads, export
from headct.failure import Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    torch.manual_seed(0)
    shape = {"depth": 2, "width": 48, "heads": 2, "mlp_width": 96, "patch": (12, 14, 12), "grid": (8, 8, 8)}
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    save(folder, encoders.build("vit-tiny", **shape), Card(recipe=recipes["head"], windows=WINDOWS))
    return load(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "precision", "least"),
    [("onnx", "fp32", 0.999999), ("openvino", "fp32", 0.999999), ("openvino", "int8", 0.9995)],
)
def test_a_graph_gives_the_vectors_of_its_model(
    model: PretrainedEncoder, tmp_path: Path, to: str, precision: str, least: float
) -> None:
    pytest.importorskip("onnxruntime" if to == "onnx" else "nncf")
    done = export(model, to, tmp_path / "graph", precision=precision)
    found = load(done.folder)
    arrays = torch.stack([torch.from_numpy(head) for head in drawn_heads(model.recipe, 2)])
    with torch.no_grad():
        ours, theirs = found.see(arrays), model.see(arrays)
    assert torch.cosine_similarity(ours.scan, theirs.scan).min() >= least
    assert ours.grid == theirs.grid
    assert f"A graph for {to} in {precision}" in (done.folder / "README.md").read_text()
    graph = next(path for path in done.folder.iterdir() if path.suffix in (".onnx", ".bin"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointFailure, match="not the file that was exported"):
        load(done.folder)


def test_the_folder_for_the_hub_is_a_checkpoint(model: PretrainedEncoder, tmp_path: Path) -> None:
    done = export(model, "hub", tmp_path / "hub")
    assert load(done.folder).sha256 == model.sha256
    assert (done.folder / "README.md").read_text().startswith("---\n")


@pytest.mark.parametrize(("to", "precision"), [("coreml", "fp32"), ("onnx", "int8")])
def test_what_cannot_be_written_is_said(model: PretrainedEncoder, tmp_path: Path, to: str, precision: str) -> None:
    with pytest.raises(Misuse):
        export(model, to, tmp_path / "x", precision=precision)
    assert not (tmp_path / "x").exists()
