"""FM-HCT's files: each layout gives the tokens that the published code gives, and nothing loads in part.

Oracle: the arrays of the published fixtures, whose weights come from a closed formula.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import published as formula
from safetensors.torch import save_file

from headct.checkpoints import CheckpointFailure, load, save
from headct.checkpoints.published import read, read_head, recognise
from headct.encoders.positions import sincos
from headct.failure import Misuse

Table = dict[str, torch.Tensor]
PREFIXES = ("module.", "_orig_mod.", "backbone.")


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "fm-hct"


@pytest.fixture(scope="module")
def layouts(fixtures: Path) -> dict[str, Any]:
    return dict(json.loads((fixtures / "layouts.json").read_text())["layouts"])


def bare(name: str) -> str:
    while start := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(start)
    return name


def table(shapes: dict[str, list[int]]) -> Table:
    """Tensors of a layout, filled by the formula under their bare names, positions by sines and cosines."""
    filled = {}
    for name, shape in shapes.items():
        if name.endswith("patch_embedding.position_embeddings"):
            filled[name] = sincos((round(shape[1] ** (1 / 3)),) * 3, shape[2])
        elif name.endswith("num_batches_tracked"):
            filled[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            filled[name] = torch.ones(shape)
        else:
            filled[name] = formula.weight(bare(name), tuple(shape))
    return filled


def written(layout: dict[str, Any], path: Path, **more: Any) -> Path:
    weights = table(layout["state_dict"])
    teacher = {name: tensor * 1.01 for name, tensor in weights.items() if not name.endswith("position_embeddings")}
    teacher |= {name: tensor for name, tensor in weights.items() if name.endswith("position_embeddings")}
    has_teacher = "momentum_model_state_dict" in layout.get("container", [])
    container = {"epoch": 3, "state_dict": weights, "momentum_model_state_dict": teacher if has_teacher else None}
    torch.save(container | more, path)
    return path


ENCODERS = {
    "dino_pretrain": "c_sincos_bias_reg4",
    "mae_pretrain": "b_sincos_bias",
    "downstream_backbone": "b_sincos_bias",
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_layout_gives_the_published_tokens(
    fixtures: Path, layouts: dict[str, Any], tmp_path: Path, name: str
) -> None:
    path = written(layouts[name], tmp_path / f"{name}.pt")
    assert recognise(path)
    found = read(path, weights="student", heads=4)
    case = formula.cases(fixtures, "vit_tiny.npz")[ENCODERS[name]]
    x = formula.volume(**case["input"])
    settings = {"registers": found.encoder.settings.registers, "last_norm_eps": found.encoder.settings.last_norm_eps}
    expected = formula.vit(case["params"], **settings)
    with torch.no_grad():
        tokens = found.encoder.sequence(x)[0]
        torch.testing.assert_close(tokens, expected.sequence(x)[0], atol=2e-5, rtol=0)
    if name != "mae_pretrain":  # whose encoder has another epsilon than the fixture of plain networks
        published = np.load(fixtures / "vit_tiny.npz")[f"{ENCODERS[name]}/out"]
        np.testing.assert_allclose(tokens.numpy(), published, atol=2e-5)
    assert not found.encoder.training
    assert found.card.recipe.name == "fm-hct"


def test_the_teacher_is_taken_and_said(layouts: dict[str, Any], tmp_path: Path) -> None:
    path = written(layouts["dino_pretrain"], tmp_path / "last.pt")
    teacher, student = read(path, heads=4), read(path, heads=4, weights="student")
    torch.testing.assert_close(teacher.encoder.class_token, student.encoder.class_token * 1.01)
    said = " ".join(teacher.notes)
    for words in ("the teacher was taken", "module. and backbone.", "left out: head", "sine and cosine"):
        assert words in said


@pytest.mark.slow
def test_the_file_on_request_loads_by_its_path(layouts: dict[str, Any], tmp_path: Path) -> None:
    weights = table(layouts["notebook_bare"]["state_dict_full_size"])
    torch.save(weights, tmp_path / "fm.pth")
    save_file({f"backbone.{name}": one for name, one in weights.items()}, tmp_path / "fm.safetensors")
    for name in ("fm.pth", "fm.safetensors"):
        encoder = load(tmp_path / name)
        assert sum(one.numel() for one in encoder.parameters()) + 512 * 768 == 89_404_416
        assert (encoder.settings.heads, encoder.settings.registers, encoder.settings.qkv_bias) == (12, 0, False)
        assert encoder.recipe.name == "fm-hct"
        assert any("12 attention heads" in note for note in encoder.notes)


def test_heads_of_an_unpublished_width_are_named_once(layouts: dict[str, Any], tmp_path: Path) -> None:
    """The remedy can be followed: `load` takes no number of heads, and needs none of a checkpoint."""
    path = written(layouts["downstream_backbone"], tmp_path / "a.pt")
    with pytest.raises(Misuse, match=r"do not divide its width of 48") as refused:
        load(path)
    for step in ("published.read(path, heads=...)", "save(folder, found.encoder, found.card)"):
        assert step in refused.value.do
    found = read(path, heads=4)
    save(tmp_path / "made", found.encoder, found.card)
    assert load(tmp_path / "made").settings == found.encoder.settings


def test_trained_positions_are_kept(layouts: dict[str, Any], tmp_path: Path) -> None:
    weights = table(layouts["downstream_backbone"]["state_dict"])
    name = next(name for name in weights if name.endswith("position_embeddings"))
    weights[name] = weights[name] + 0.1
    torch.save(weights, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt", heads=4)
    assert found.encoder.settings.positions == "learned"
    torch.testing.assert_close(found.encoder.positions.table, weights[name])
    assert any("by up to 0.1, and is kept as learned" in note for note in found.notes)


def test_half_precision_is_cast_and_said(layouts: dict[str, Any], tmp_path: Path) -> None:
    weights = table(layouts["downstream_backbone"]["state_dict"])
    torch.save({name: one.half() for name, one in weights.items()}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt", heads=4)
    assert next(found.encoder.parameters()).dtype == torch.float32
    assert any("float16 were cast" in note for note in found.notes)


@pytest.mark.parametrize(("name", "case"), [("linear", "linear"), ("attentive", "attn_q1")])
def test_a_head_gives_the_published_logits(
    fixtures: Path, layouts: dict[str, Any], tmp_path: Path, name: str, case: str
) -> None:
    written(layouts[f"downstream_classifier_{name}"], tmp_path / "x_classifier.pt")
    stored = np.load(fixtures / "heads.npz")
    head = read_head(tmp_path / "x_classifier.pt", heads=4 if name == "attentive" else None)
    keys = {
        "norm": "running_{}_after2",
        "token_norm": "bn1_{}",
        "found_norm": "bn2_{}",
    }
    about = formula.cases(fixtures, "heads.npz")[case]["input"]
    with torch.no_grad():
        for module_name, module in head.named_modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                for what in ("mean", "var"):
                    statistic = stored[f"{case}/{keys[module_name].format(what)}"]
                    getattr(module, f"running_{what}").copy_(torch.from_numpy(statistic))
        given = head(formula.signed(about["name"], about["shape"]))
    logits = stored[f"{case}/eval_logits" + ("_first4rows" if name == "linear" else "")]
    np.testing.assert_allclose(given[: len(logits)].numpy(), logits, atol=2e-5)


def _without(weights: Table) -> None:
    del weights["_orig_mod.norm.bias"]


def _renamed(weights: Table) -> None:
    weights["_orig_mod.blocks.1.attn.projection.bias"] = weights.pop("_orig_mod.blocks.1.attn.proj.bias")


def _transposed(weights: Table) -> None:
    weights["_orig_mod.blocks.0.mlp.linear1.weight"] = weights["_orig_mod.blocks.0.mlp.linear1.weight"].T


def _not_finite(weights: Table) -> None:
    weights["_orig_mod.blocks.0.mlp.linear1.weight"][0, 0] = float("nan")


def _lora(weights: Table) -> None:
    weights["_orig_mod.blocks.0.attn.lora_q.lora_matrix_A"] = torch.zeros(8, 48)


def _integers(weights: Table) -> None:
    weights["_orig_mod.norm.weight"] = weights["_orig_mod.norm.weight"].to(torch.int64)


def _lost_attention(weights: Table) -> None:
    del weights["_orig_mod.blocks.1.attn.qkv.bias"]


def _our_name_beside_theirs(weights: Table) -> None:
    weights["_orig_mod.class_token"] = torch.zeros(1, 1, 48)


def _far_block(weights: Table) -> None:
    weights["_orig_mod.blocks.20000.norm.bias"] = torch.zeros(48)


def _flat_kernel(weights: Table) -> None:
    weights["_orig_mod.patch_embedding.patch_embeddings.weight"] = torch.zeros(48, 3 * 12**3)


def _another_prefix(weights: Table) -> None:
    weights["module.norm.weight"] = weights.pop("_orig_mod.norm.weight")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without, "norm"),
        (_renamed, "blocks.1.attn.proj.bias is missing"),
        (_transposed, "blocks.0.mlp.linear1.weight is (48, 96)"),
        (_lost_attention, "blocks.1.attn.qkv.bias is missing"),
        (_our_name_beside_theirs, "class_token is not expected"),
        (_far_block, "blocks.2 is missing"),
        (_flat_kernel, "patch_embedding.patch_embeddings.weight is (48, 5184)"),
        (_not_finite, "not finite"),
        (_lora, "lora"),
        (_integers, "norm.weight"),
        (_another_prefix, ""),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    layouts: dict[str, Any], tmp_path: Path, damage: Callable[[Table], None], named: str
) -> None:
    weights = table(layouts["downstream_backbone"]["state_dict"])
    damage(weights)
    torch.save({"state_dict": weights}, tmp_path / "a.pt")
    with pytest.raises(CheckpointFailure) as refused:
        read(tmp_path / "a.pt", heads=4)
    assert named in str(refused.value)


def test_a_prefix_on_some_of_the_encoder_only_is_refused(layouts: dict[str, Any], tmp_path: Path) -> None:
    weights = table(layouts["dino_pretrain"]["state_dict"])
    torch.save({"state_dict": weights | {"module.cls_token": torch.zeros(1, 1, 48)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointFailure, match=r"beside backbone\.\* it has cls_token"):
        read(tmp_path / "a.pt", heads=4)


def test_what_the_shapes_were_taken_for_is_said(layouts: dict[str, Any], tmp_path: Path) -> None:
    weights = table(layouts["dino_pretrain"]["state_dict"])
    torch.save({"state_dict": weights}, tmp_path / "a.pt")
    said = "; ".join(read(tmp_path / "a.pt", heads=4).notes)
    assert "it holds no teacher" in said
    assert "read as 2 blocks of width 48 with LayerNorm, 4 registers, a bias on qkv" in said
    assert "not the published size" in said
    path = written(layouts["mae_pretrain"], tmp_path / "mae.pt")
    assert any("1e-5" in note for note in read(path, heads=4).notes)


@pytest.mark.parametrize(
    ("layout", "name", "shape"),
    [("linear", "linear.weight", (3,)), ("attentive", "cls_token", (48,)), ("linear", "lora_q.x", (2, 2))],
)
def test_a_head_of_another_shape_is_refused(
    layouts: dict[str, Any], tmp_path: Path, layout: str, name: str, shape: tuple[int, ...]
) -> None:
    weights = table(layouts[f"downstream_classifier_{layout}"]["state_dict"])
    torch.save({"state_dict": weights | {f"_orig_mod.{name}": torch.zeros(shape)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointFailure):
        read_head(tmp_path / "a.pt", heads=4)


@pytest.mark.parametrize("container", [[1, 2], torch.zeros(3), {}, {"state_dict": 1}, {1: torch.zeros(2)}, {"a": "b"}])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, container: Any) -> None:
    torch.save(container, tmp_path / "a.pt")
    for reader in (read, read_head):
        with pytest.raises(CheckpointFailure):
            reader(tmp_path / "a.pt")


def test_heads_that_no_file_tells_must_be_said(layouts: dict[str, Any], tmp_path: Path) -> None:
    path = written(layouts["downstream_backbone"], tmp_path / "a.pt")
    with pytest.raises(Misuse, match="how many attention heads"):
        read(path)


def test_a_classifier_is_no_encoder(layouts: dict[str, Any], tmp_path: Path) -> None:
    path = written(layouts["downstream_classifier_linear"], tmp_path / "a.pt")
    with pytest.raises(Misuse, match="classifier"):
        read(path)


class _Opens:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code of a stranger",)


def test_code_in_a_pickle_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": _Opens()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointFailure, match="cannot be read as weights"):
        read(tmp_path / "a.pt")
    assert "stranger" not in capsys.readouterr().out
