"""Exported models: near the encoder they were made from, loaded like any model, and refused when changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from headct import encoders
from headct.checkpoints import Card, CheckpointFailure, PretrainedEncoder, load, save
from headct.checkpoints import export as export_module
from headct.checkpoints.export import drawn_heads, export
from headct.checkpoints.exported import cosine
from headct.encoders import Window
from headct.failure import Failure, Misuse
from headct.preparing import Recipe, recipes
from headct.preparing.recipe import Frame
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
    assert len({path.stat().st_mode for path in done.folder.iterdir()}) == 1, "some for one user only"
    graph = next(path for path in done.folder.iterdir() if path.suffix in (".onnx", ".bin"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointFailure, match="not the file that was exported"):
        load(done.folder)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_positions_in_mm_are_those_of_the_recipe(to: str, tmp_path: Path) -> None:
    """The graph has the spacing of the recipe's arrays in it, and is not given another one quietly."""
    pytest.importorskip("onnxruntime" if to == "onnx" else "openvino")
    model = in_mm(recipes["head"].with_steps(Frame(spacing_mm=(8.0, 8.0, 8.0), shape=(24, 28, 24))), WINDOWS)
    export(model, to, tmp_path / "graph")
    found = load(tmp_path / "graph")
    (head,) = drawn_heads(model.recipe, 1)
    array, spacing_mm = torch.from_numpy(head)[None], torch.full((1, 3), 8.0)
    with torch.no_grad():
        torch.testing.assert_close(
            found.see(array, spacing_mm).tokens, model.see(array, spacing_mm).tokens, atol=1e-4, rtol=0
        )
        elsewhere = model.see(array, spacing_mm / 4).tokens
        assert (elsewhere - model.see(array, spacing_mm).tokens).abs().max() > 1e-3, "the spacing is of no matter"
        with pytest.raises(Misuse, match=r"voxels of \(8.0, 8.0, 8.0\) mm"):
            found.see(array, spacing_mm / 4)


def test_positions_in_mm_need_a_recipe_with_one_spacing(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="needs the spacing"):
        export(in_mm(recipes["fm-hct"], {}), "onnx", tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []


def in_mm(recipe: Recipe, windows: Mapping[str, Window]) -> PretrainedEncoder:
    torch.manual_seed(0)
    shape = {"depth": 2, "width": 48, "heads": 2, "mlp_width": 96, "patch": (12, 14, 12), "grid": (2, 2, 2)}
    encoder = encoders.build("vit-tiny", **shape, positions="rotary-mm").eval()
    return PretrainedEncoder(encoder, Card(recipe=recipe, windows=windows), "")


@pytest.mark.slow
def test_a_graph_that_is_not_near_enough_leaves_nothing(
    model: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr(export_module, "NEAREST", {"bf16": 1.0})
    with pytest.raises(Failure, match="not near enough"):
        export(model, "openvino", tmp_path / "graph", precision="bf16", arrays=drawn_heads(model.recipe, 1))
    assert list(tmp_path.iterdir()) == []


def test_what_tells_scans_apart_is_compared_too() -> None:
    """Vectors that have much in common are near each other whatever they are; exchanged, they are opposite."""
    one, other = np.array([[1000.0, 1.0]]), np.array([[1000.0, -1.0]])
    assert cosine(one, other) > 0.999997
    assert export_module._centred([other, one], [one, other]) == pytest.approx(-1)
    assert export_module._centred([one, other], [one, other]) == pytest.approx(1)
    assert export_module._centred([one], [one]) is None


def test_the_folder_for_the_hub_is_a_checkpoint(model: PretrainedEncoder, tmp_path: Path) -> None:
    done = export(model, "hub", tmp_path / "hub")
    assert load(done.folder).sha256 == model.sha256
    assert (done.folder / "README.md").read_text().startswith("---\n")


@pytest.mark.parametrize(("to", "precision"), [("coreml", "fp32"), ("onnx", "int8")])
def test_what_cannot_be_written_is_said(model: PretrainedEncoder, tmp_path: Path, to: str, precision: str) -> None:
    with pytest.raises(Misuse):
        export(model, to, tmp_path / "x", precision=precision)
    assert not (tmp_path / "x").exists()
