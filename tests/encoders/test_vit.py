"""The 3D vision transformer.

Oracles: the published FM-HCT network (fixtures `vit_tiny.npz`, `vit_base.npz`: weights by closed formula, outputs of
the published code; the manifest's tolerances, 2e-5 and 5e-5, are ten times the gap between float32 and float64), a
strided convolution for the patch embedding, a loop over heads for the attention, and invariants.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders.published import uniform, weight
from numpy.testing import assert_allclose
from torch import nn

from headct.encoders import ViT3D, ViTSettings, build
from headct.encoders.positions import resize, sincos
from headct.encoders.vit import Attention, PatchEmbedding

NAMES = {  # ours: published
    "class_token": "cls_token",
    "register_tokens": "register_tokens",
    "positions.table": "patch_embedding.position_embeddings",
    "embedding.linear": "patch_embedding.patch_embeddings",
    "attention_norm": "att_norm",
    "mlp_norm": "ffn_norm",
    "attention.qkv": "attn.qkv",
    "attention.out": "attn.proj",
    "mlp.0": "mlp.linear1",
    "mlp.2": "mlp.linear2",
}
POSITIONS = {"sincos": "sincos", "learnable": "learned", "none": "none"}


def published_name(name: str) -> str:
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def published(params: dict[str, Any]) -> ViT3D:
    """Our network with a fixture's settings, filled by the fixture's formula."""
    edge, patch, width = params["img_size"] // params["patch_size"], params["patch_size"], params["hidden_size"]
    settings = ViTSettings(
        width=width,
        depth=params["num_layers"],
        heads=params["num_heads"],
        mlp_width=params["mlp_dim"],
        channels=params["in_chans"],
        input_mean=0.0,
        input_std=1.0,
        patch=(patch, patch, patch),
        grid=(edge, edge, edge),
        registers=params.get("num_register_tokens", 0),
        qkv_bias=params.get("qkv_bias", False),
        positions=POSITIONS[params["pos_embed"]],
    )
    encoder = ViT3D(settings).eval()
    with torch.no_grad():
        for name, tensor in encoder.state_dict().items():
            shape = tuple(tensor.shape)
            if name == "embedding.linear.weight":
                shape = (width, params["in_chans"], patch, patch, patch)
            if tensor.numel():
                tensor.copy_(weight(published_name(name), shape).reshape(tensor.shape))
    return encoder


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "fm-hct"


def cases(fixtures: Path, file: str) -> dict[str, Any]:
    manifest = json.loads((fixtures / "manifest.json").read_text())
    return dict(manifest["files"][file]["meta"]["cases"])


@pytest.mark.parametrize(
    "case",
    ["a_sincos_nobias", "b_sincos_bias", "c_sincos_bias_reg4", "d_learnable", "e_none", "f_1chan", "k_img48_patch12"],
)
def test_tokens_equal_the_published_network(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "vit_tiny.npz")[case], np.load(fixtures / "vit_tiny.npz")
    encoder = published(about["params"])
    first_block: list[torch.Tensor] = []
    encoder.blocks[0].register_forward_hook(lambda module, inputs, output: first_block.append(output))
    x = torch.from_numpy(uniform(about["input"]["name"], tuple(about["input"]["shape"])).astype(np.float32))
    with torch.no_grad():
        tokens, _ = encoder.sequence(x)
    assert_allclose(first_block[0].numpy(), stored[f"{case}/hidden0"], atol=2e-5)
    assert_allclose(tokens.numpy(), stored[f"{case}/out"], atol=2e-5)


@pytest.mark.parametrize("case", ["l_interp_up", "m_interp_down", "m2_interp_48"])
def test_tokens_equal_at_another_size_than_the_table_was_made_for(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "vit_tiny.npz")[case], np.load(fixtures / "vit_tiny.npz")
    encoder = published(about["params"])
    x = torch.from_numpy(uniform(about["input"]["name"], tuple(about["input"]["shape"])).astype(np.float32))
    with torch.no_grad():
        tokens, grid = encoder.sequence(x)
    table = resize(encoder.positions.table, encoder.settings.grid, grid)
    assert_allclose(table.numpy(), stored[f"{case}/pos"], atol=2e-5)
    assert_allclose(tokens.numpy(), stored[f"{case}/out"], atol=2e-5)


@pytest.mark.parametrize("case", ["base_nobias", "base_bias_reg4"])
def test_base_size_equals_the_published_network(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "vit_base.npz")[case], np.load(fixtures / "vit_base.npz")
    encoder = published(about["params"])
    registers = encoder.settings.registers
    with torch.no_grad():
        x = torch.from_numpy(uniform("input", tuple(about["input"]["shape"])).astype(np.float32))
        tokens, _ = encoder.sequence(x)
        features = encoder(x)
    near = {"atol": 5e-5, "rtol": 1e-4}
    assert_allclose(features.scan.numpy(), stored[f"{case}/cls"], **near)
    assert_allclose(tokens[:, 1 : 1 + registers].numpy(), stored[f"{case}/registers"], **near)
    assert_allclose(features.tokens[:, [0, 73, 511]].numpy(), stored[f"{case}/patch_tokens_0_73_511"], **near)
    assert_allclose(features.tokens.mean(1).numpy(), stored[f"{case}/patch_mean"], **near)


def test_position_tables_equal_the_published_ones(fixtures: Path) -> None:
    stored = np.load(fixtures / "vit_tiny.npz")
    assert_allclose(sincos((2, 2, 2), 48).numpy(), stored["sincos_2x2x2_d48"], atol=1e-6)
    assert_allclose(sincos((3, 3, 3), 48).numpy(), stored["sincos_3x3x3_d48"], atol=1e-6)


def test_rows_of_the_table_match_their_cells_on_a_grid_that_is_not_a_cube() -> None:
    # the published table of such a grid is transposed; ours follows the formula, written here for one cell
    width, (i, j, k) = 12, (1, 3, 2)
    rates = [1.0, 10000.0**-0.5]
    expected = [wave(axis * w) for axis in (j, i, k) for wave in (math.sin, math.cos) for w in rates]
    row = sincos((2, 4, 5), width)[0, (i * 4 + j) * 5 + k]
    assert_allclose(row.numpy(), expected, atol=1e-6)


def test_table_of_a_width_that_six_does_not_divide_ends_in_zeros() -> None:
    assert torch.all(sincos((2, 2, 2), 1024)[0, :, 1020:] == 0)


def test_patch_embedding_is_a_strided_convolution() -> None:
    embedding = PatchEmbedding(2, (4, 2, 3), 5)
    convolution = nn.Conv3d(2, 5, (4, 2, 3), stride=(4, 2, 3))
    with torch.no_grad():
        convolution.weight.copy_(embedding.linear.weight.reshape(convolution.weight.shape))
        convolution.bias.copy_(embedding.linear.bias)
        x = torch.rand(2, 2, 8, 6, 9)
        tokens, grid = embedding(x)
        assert grid == (2, 3, 3)
        # float32 sums of 24 products: 1e-6 is ten roundings
        torch.testing.assert_close(tokens, convolution(x).flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_the_input_is_standardised_first() -> None:
    plain, standard = PatchEmbedding(1, (2, 2, 2), 3), PatchEmbedding(1, (2, 2, 2), 3, mean=0.3, std=0.5)
    standard.load_state_dict(plain.state_dict())
    x = torch.rand(1, 1, 4, 4, 4)
    torch.testing.assert_close(standard(x)[0], plain((x - 0.3) / 0.5)[0])


def test_a_volume_that_patches_do_not_divide_is_padded_with_air() -> None:
    embedding = PatchEmbedding(1, (4, 4, 4), 6)
    x = torch.rand(1, 1, 7, 4, 5)
    padded = torch.zeros(1, 1, 8, 4, 8)
    padded[:, :, :7, :, :5] = x
    tokens, grid = embedding(x)
    assert grid == (2, 1, 2)
    assert torch.equal(tokens, embedding(padded)[0])


def test_attention_is_the_loop_over_heads() -> None:
    attention = Attention(12, heads=3, qkv_bias=True)
    tokens = torch.randn(1, 5, 12)
    q, k, v = attention.qkv(tokens)[0].split(12, dim=1)
    mixed = [
        torch.softmax(q[:, part] @ k[:, part].T / 4**0.5, dim=1) @ v[:, part]
        for part in (slice(0, 4), slice(4, 8), slice(8, 12))
    ]
    expected = attention.out(torch.cat(mixed, dim=1))
    torch.testing.assert_close(attention(tokens)[0], expected, atol=1e-6, rtol=1e-5)


def test_registers_and_class_token_start_different() -> None:
    encoder = build("vit-tiny", depth=1)
    tokens = torch.cat([encoder.class_token[0], encoder.register_tokens[0]])
    assert torch.pdist(tokens).min() > 0.1  # independent normals of std 0.02 in 192 dimensions lie 0.39 apart


@pytest.mark.parametrize("shape", [(16, 16, 16), (24, 40, 9), (10, 30, 20)])
def test_any_shape_gives_a_token_for_each_cell(shape: tuple[int, int, int]) -> None:
    encoder = build("vit-tiny", depth=1, patch=(8, 10, 4)).eval()
    features = encoder(torch.rand(2, 3, *shape), spacing_mm=torch.ones(2, 3))
    expected = tuple(math.ceil(n / p) for n, p in zip(shape, (8, 10, 4), strict=True))
    assert features.grid == expected
    assert features.tokens.shape == (2, math.prod(expected), 192)
    assert features.scan.shape == (2, encoder.scan_width)


def test_tokens_run_with_the_third_axis_fastest() -> None:
    encoder = build("vit-tiny", depth=1, patch=(4, 4, 4), positions="none").eval()
    with torch.no_grad():
        encoder.blocks[0].attention.out.weight.zero_()  # no mixing: a token then sees its own patch only
        empty = torch.zeros(1, 3, 8, 12, 16)
        one = empty.clone()
        one[0, :, 4:8, 8:12, 4:8] = 1  # cell (1, 2, 1) of a (2, 3, 4) grid
        changed = (encoder(one).tokens != encoder(empty).tokens).any(dim=2)[0]
    assert changed.nonzero().flatten().tolist() == [(1 * 3 + 2) * 4 + 1]


@pytest.mark.parametrize(("pooling", "width"), [("class", 192), ("mean", 192), ("class+mean", 384)])
def test_pooling_is_what_the_settings_say(pooling: str, width: int) -> None:
    encoder = build("vit-tiny", depth=1, pooling=pooling).eval()
    x = torch.rand(2, 3, 32, 32, 32)
    features = encoder(x)
    tokens, _ = encoder.sequence(x)
    parts = {"class": tokens[:, 0], "mean": features.tokens.mean(1)}
    assert encoder.scan_width == width
    torch.testing.assert_close(features.scan, torch.cat([parts[part] for part in pooling.split("+")], dim=1))


def test_a_batch_equals_each_scan_alone() -> None:
    encoder = build("vit-tiny", depth=2).eval()
    x = torch.rand(3, 3, 32, 48, 32)
    with torch.no_grad():
        together, alone = encoder(x), [encoder(x[n : n + 1]) for n in range(3)]
    # other batch sizes take other matrix kernels; normalised tokens are of size 1
    torch.testing.assert_close(together.tokens, torch.cat([f.tokens for f in alone]), atol=1e-5, rtol=0)
