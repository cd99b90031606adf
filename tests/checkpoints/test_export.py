"""Exported models: near the encoder they were made from, loaded like any model, and refused when changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from headct import encoders
from headct.checkpoints import Card, CheckpointFailure, PretrainedEncoder, exported, load, save
from headct.checkpoints import export as export_module
from headct.checkpoints.export import drawn_heads, export
from headct.checkpoints.exported import Run, cosine
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


# The same without a runtime: the graph is a file of no matter, and what runs is the encoder itself


def eagerly(
    model: PretrainedEncoder, change: Callable[[np.ndarray, np.ndarray], None] = lambda scan, tokens: None
) -> Run:
    def run(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            features = model(torch.from_numpy(channels))
        scan, tokens = features.scan.numpy().copy(), features.tokens.numpy().copy()
        change(scan, tokens)
        return scan, tokens

    return run


@pytest.fixture
def runs(model: PretrainedEncoder, monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Decides what runs as the graph."""
    graph = exported.GRAPHS["onnx"][0]
    monkeypatch.setattr(export_module, "_convert", lambda *arguments: (arguments[-1] / graph).write_bytes(b"graph"))

    def put(run: Run) -> None:
        monkeypatch.setattr(exported, "start", lambda *_: run)

    put(eagerly(model))
    return put


def test_an_exported_model_is_another_model(
    model: PretrainedEncoder, runs: Callable[[Run], None], tmp_path: Path
) -> None:
    export(model, "onnx", tmp_path / "graph")
    found = load(tmp_path / "graph")
    assert found.runtime is not None
    assert found.decisive_sha256 != model.decisive_sha256
    other = PretrainedEncoder(model.encoder, model.card, found.sha256)
    assert found.decisive_sha256 != other.decisive_sha256, "the grid of the graph is of no matter"


CHANGES: dict[str, tuple[Callable[[dict], object], str]] = {
    "windows in another order": (
        lambda config: config.update(windows=dict(reversed(config["windows"].items()))),
        "is not what it was when the checkpoint was saved",
    ),
    "another window": (lambda config: config["windows"].update(brain=[50, 90]), "is not what it was"),
    "a window less": (lambda config: config["windows"].pop("brain"), "takes 3 channels, its card gives it 2"),
    "other pooling": (lambda config: config["settings"].update(pooling="mean"), "is not what it was"),
    "another grid": (lambda config: config["runtime"].update(grid=[8, 4, 16]), "is not what it was"),
    "another spacing": (lambda config: config["runtime"].update(spacing_mm=[1.0, 1.0, 1.0]), "is not what it was"),
    "other channels": (lambda config: config["runtime"]["shape"].__setitem__(0, 2), "its graph takes 2 channels"),
    "no hashes": (lambda config: config["runtime"].update(sha256=[]), "not the file that was exported"),
    "older format": (lambda config: config.update(format=1), "has the format 1"),
    "newer format": (lambda config: config.update(format=99), "update headct"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_is_bound_to_its_configuration(
    model: PretrainedEncoder, runs: Callable[[Run], None], tmp_path: Path, change: str
) -> None:
    edit, message = CHANGES[change]
    export(model, "onnx", tmp_path / "graph")
    config = json.loads((tmp_path / "graph" / "config.json").read_text())
    edit(config)
    (tmp_path / "graph" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointFailure, match=message) as caught:
        load(tmp_path / "graph")
    assert caught.value.do, "an error without a remedy"


def not_numbers(of: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """What gives no numbers from the second call on: a minimum in Python's own way passes over them."""
    calls: Iterator[int] = iter(range(100))

    def change(scan: np.ndarray, tokens: np.ndarray) -> None:
        if next(calls) > 0:
            (scan if of == "scan" else tokens)[0, 0] = np.nan

    return change


def exchanged(scan: np.ndarray, tokens: np.ndarray) -> None:
    tokens[:] = tokens[:, ::-1]


@pytest.mark.parametrize("change", [not_numbers("scan"), not_numbers("tokens"), exchanged])
def test_a_graph_whose_features_are_others_is_not_written(
    model: PretrainedEncoder,
    runs: Callable[[Run], None],
    tmp_path: Path,
    change: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    runs(eagerly(model, change))
    with pytest.raises(Failure, match="not near enough"):
        export(model, "onnx", tmp_path / "graph")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of", ["scan", "tokens"])
def test_a_graph_that_gives_no_numbers_is_not_loaded(
    model: PretrainedEncoder, runs: Callable[[Run], None], tmp_path: Path, of: str
) -> None:
    export(model, "onnx", tmp_path / "graph")
    change = not_numbers(of)
    change(np.zeros((1, 1)), np.zeros((1, 1)))
    runs(eagerly(model, change))
    with pytest.raises(CheckpointFailure, match="fails its self-test"):
        load(tmp_path / "graph")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_written_for_the_hub(model: PretrainedEncoder, tmp_path: Path) -> None:
    done = export(model.cuda(), "hub", tmp_path / "hub")
    assert load(done.folder).sha256 == model.sha256


def test_the_folder_for_the_hub_is_a_checkpoint(model: PretrainedEncoder, tmp_path: Path) -> None:
    done = export(model, "hub", tmp_path / "hub")
    assert load(done.folder).sha256 == model.sha256
    assert (done.folder / "README.md").read_text().startswith("---\n")


@pytest.mark.parametrize(("to", "precision"), [("coreml", "fp32"), ("onnx", "int8"), ("hub", "bf16")])
def test_what_cannot_be_written_is_said(model: PretrainedEncoder, tmp_path: Path, to: str, precision: str) -> None:
    with pytest.raises(Misuse):
        export(model, to, tmp_path / "x", precision=precision)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("to", ["hub", "onnx"])
def test_an_existing_folder_is_not_written_to(model: PretrainedEncoder, tmp_path: Path, to: str) -> None:
    with pytest.raises(Misuse, match="exists already"):
        export(model, to, tmp_path)
