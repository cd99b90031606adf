"""The 3D vision transformer.

Oracles: the published FM-HCT network (fixtures `vit_tiny.npz`, `vit_base.npz`: weights by closed formula, outputs of
the published code; the manifest's tolerances, 2e-5 and 5e-5, are ten times the gap between float32 and float64), a
strided convolution for the patch embedding, loops for attention, positions and pooling, complex numbers for rotation,
the network with tokens physically removed for the dropping of air, and invariants.
"""

from __future__ import annotations

import cmath
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders.published import cases, fill, signed, vit, volume
from numpy.testing import assert_allclose
from torch import nn

from headct.encoders import ViT3D, ViTSettings, build
from headct.encoders.positions import cells, centred_mm, resize, sincos, sincos_at, turned, turns, wave_rates
from headct.encoders.vit import Attention, Block, DropPath, PatchEmbedding, cut
from headct.failure import Misuse


@pytest.fixture(scope="module")
def fixtures(shared: Path) -> Path:
    return shared / "fixtures" / "fm-hct"


@pytest.mark.parametrize(
    "case",
    ["a_sincos_nobias", "b_sincos_bias", "c_sincos_bias_reg4", "d_learnable", "e_none", "f_1chan", "k_img48_patch12"],
)
def test_tokens_equal_the_published_network(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "vit_tiny.npz")[case], np.load(fixtures / "vit_tiny.npz")
    check_tokens(vit(about["params"]), about["input"], stored[f"{case}/hidden0"], stored[f"{case}/out"])


def test_tokens_equal_the_published_network_with_root_mean_square_norms(fixtures: Path) -> None:
    about, stored = cases(fixtures, "vit_tiny.npz")["i_rmsnorm"], np.load(fixtures / "vit_tiny.npz")
    encoder = vit(about["params"], norm="rms", norm_eps=1e-6)
    check_tokens(encoder, about["input"], stored["i_rmsnorm/hidden0"], stored["i_rmsnorm/out"])


def check_tokens(encoder: ViT3D, about: dict[str, Any], hidden: np.ndarray, out: np.ndarray) -> None:
    first_block: list[torch.Tensor] = []
    encoder.blocks[0].register_forward_hook(lambda module, inputs, output: first_block.append(output))
    with torch.no_grad():
        tokens, _ = encoder.sequence(volume(about["name"], about["shape"]))
    assert_allclose(first_block[0].numpy(), hidden, atol=2e-5)
    assert_allclose(tokens.numpy(), out, atol=2e-5)


@pytest.mark.parametrize(
    ("case", "name", "activation"),
    [
        ("g_classification_tanh", "classification_head.0", nn.Tanh()),
        ("h_classification_linear", "classification_head", nn.Identity()),
    ],
)
def test_a_linear_map_of_the_class_token_equals_the_published_classifier(
    fixtures: Path, case: str, name: str, activation: nn.Module
) -> None:
    about, stored = cases(fixtures, "vit_tiny.npz")[case], np.load(fixtures / "vit_tiny.npz")
    classifier = nn.Linear(about["params"]["hidden_size"], about["params"]["num_classes"])
    fill(classifier, {"weight": f"{name}.weight", "bias": f"{name}.bias"})
    with torch.no_grad():
        scan = vit(about["params"])(volume(about["input"]["name"], about["input"]["shape"])).scan
        assert_allclose(activation(classifier(scan)).numpy(), stored[f"{case}/out"], atol=2e-5)


@pytest.mark.parametrize("case", ["l_interp_up", "m_interp_down", "m2_interp_48"])
def test_tokens_equal_at_another_size_than_the_table_was_made_for(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "vit_tiny.npz")[case], np.load(fixtures / "vit_tiny.npz")
    encoder = vit(about["params"])
    with torch.no_grad():
        tokens, grid = encoder.sequence(volume(about["input"]["name"], about["input"]["shape"]))
    table = resize(encoder.positions.table, encoder.settings.grid, grid)
    assert_allclose(table.numpy(), stored[f"{case}/pos"], atol=2e-5)
    assert_allclose(tokens.numpy(), stored[f"{case}/out"], atol=2e-5)


def test_only_the_table_differs_from_the_published_network_on_a_grid_that_is_not_a_cube(fixtures: Path) -> None:
    about, stored = cases(fixtures, "vit_tiny.npz")["n_noncubic"], np.load(fixtures / "vit_tiny.npz")
    encoder = vit(about["params"])
    assert not np.allclose(encoder.positions.table.numpy(), stored["n_noncubic/pos"])
    encoder.positions.table.copy_(torch.from_numpy(stored["n_noncubic/pos"]))
    with torch.no_grad():
        tokens, _ = encoder.sequence(volume(about["input"]["name"], about["input"]["shape"]))
    assert_allclose(tokens.numpy(), stored["n_noncubic/out"], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["base_nobias", "base_bias_reg4"])
def test_base_size_equals_the_published_network(fixtures: Path, case: str) -> None:
    about, stored = cases(fixtures, "vit_base.npz")[case], np.load(fixtures / "vit_base.npz")
    encoder = vit(about["params"])
    registers = encoder.settings.registers
    with torch.no_grad():
        x = volume("input", about["input"]["shape"])
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
    assert_allclose(sincos((2, 4, 1), 48).numpy(), stored["sincos_4x2x1_d48"], atol=1e-6)  # its axes are swapped
    rows = [0, 1, 8, 64, 73, 511]
    assert_allclose(sincos((8, 8, 8), 768)[0, rows].numpy(), stored["sincos_8x8x8_d768"], atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 2)])
def test_resized_tables_equal_the_published_ones(fixtures: Path, before: int, after: int) -> None:
    stored = np.load(fixtures / "vit_tiny.npz")[f"ckpt_resize_{before**3}_to_{after**3}"]
    table = 0.1 * signed("ckpt_pos", [1, before**3, 48])
    assert_allclose(resize(table, (before, before, before), (after, after, after)).numpy(), stored, atol=1e-6)


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
        patches, grid = cut(x, (4, 2, 3))
        assert grid == (2, 3, 3)
        # float32 sums of 24 products: 1e-6 is ten roundings
        torch.testing.assert_close(embedding(patches), convolution(x).flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_the_input_is_standardised_first() -> None:
    plain, standard = PatchEmbedding(1, (2, 2, 2), 3), PatchEmbedding(1, (2, 2, 2), 3, mean=0.3, std=0.5)
    standard.load_state_dict(plain.state_dict())
    patches = torch.rand(1, 8, 8)
    torch.testing.assert_close(standard(patches), plain((patches - 0.3) / 0.5))


def test_a_volume_that_patches_do_not_divide_is_padded_with_air() -> None:
    x = torch.rand(1, 1, 7, 4, 5)
    padded = torch.zeros(1, 1, 8, 4, 8)
    padded[:, :, :7, :, :5] = x
    patches, grid = cut(x, (4, 4, 4))
    assert grid == (2, 1, 2)
    assert torch.equal(patches, cut(padded, (4, 4, 4))[0])


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


def small(**settings: Any) -> ViT3D:
    """A network of two blocks whose tokens have 24 features, and patches 8 x 8 x 4 voxels."""
    defaults = {"width": 24, "depth": 2, "heads": 2, "mlp_width": 48, "patch": (8, 8, 4), "grid": (2, 2, 2)}
    torch.manual_seed(0)
    return ViT3D(ViTSettings(**(defaults | settings))).eval()


def test_a_plain_network_has_the_parameters_that_checkpoints_hold() -> None:
    block = ["attention_norm", "attention.qkv", "attention.out", "mlp_norm", "mlp.0", "mlp.2"]
    layers = ["embedding.linear", *[f"blocks.{n}.{layer}" for n in range(2) for layer in block], "norm"]
    expected = {"class_token", "register_tokens"}
    expected |= {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(small().state_dict()) == expected


def test_cells_run_with_the_third_axis_fastest() -> None:
    expected = [[i, j, k] for i in range(2) for j in range(3) for k in range(4)]
    assert cells((2, 3, 4)).tolist() == expected


def test_positions_of_places_are_those_of_the_table() -> None:
    table = sincos((3, 4, 5), 48)[0]
    # float32 sines of angles up to 4
    torch.testing.assert_close(sincos_at(cells((3, 4, 5))[[7, 2]], 48), table[[7, 2]], atol=1e-6, rtol=0)


def test_token_centres_are_the_means_of_their_voxels_in_mm() -> None:
    encoder, shape = small(), (16, 24, 12)
    spacing_mm = torch.tensor([[1.0, 0.5, 5.0], [2.0, 1.0, 1.0]])
    centres = centred_mm(encoder.lattice(shape), shape, (2, 3, 3), spacing_mm)
    for scan, spacing in enumerate(spacing_mm.tolist()):
        for token, cell in enumerate(cells((2, 3, 3)).int().tolist()):
            for axis, patch in enumerate((8, 8, 4)):
                voxels = range(cell[axis] * patch, (cell[axis] + 1) * patch)
                from_centre = [(voxel - (shape[axis] - 1) / 2) * spacing[axis] for voxel in voxels]
                assert centres[scan, token, axis].item() == pytest.approx(sum(from_centre) / patch)


def test_waves_span_the_lengths_they_are_given_at_equal_ratios() -> None:
    lengths_mm = 2 * math.pi / wave_rates(5, (8.0, 512.0), torch.device("cpu"))
    torch.testing.assert_close(lengths_mm[[0, -1]], torch.tensor([8.0, 512.0]))
    torch.testing.assert_close(lengths_mm[1:] / lengths_mm[:-1], torch.full((4,), 64 ** (1 / 4)))


def test_turning_is_multiplication_by_complex_numbers() -> None:
    features, place_mm = torch.randn(1, 1, 3, 14), torch.tensor([10.0, -20.0, 35.0])  # 7 pairs: 2 an axis, 1 at rest
    by = turns(place_mm[None, None].expand(1, 2, 3), 14, (32.0, 512.0), unplaced=1)
    after = turned(features, by)
    assert torch.equal(after[:, :, 0], features[:, :, 0])  # a class token is not turned
    angles = [2 * math.pi * mm / length for mm in place_mm.tolist() for length in (32.0, 512.0)] + [0.0]
    for m, angle in enumerate(angles):
        a, b = features[0, 0, 1, [m, m + 7]].tolist()
        expected = complex(a, b) * cmath.exp(1j * angle)
        # float32, angles of up to 7
        assert after[0, 0, 1, [m, m + 7]].tolist() == pytest.approx([expected.real, expected.imag], abs=1e-5)


def test_attention_between_patches_depends_on_their_distance_alone() -> None:
    attention, tokens = Attention(24, 2, qkv_bias=True), torch.randn(1, 6, 24)
    places_mm = 100 * torch.rand(1, 6, 3)
    moved_mm = places_mm + torch.tensor([32.0, -64.0, 20.0])
    here, there = (turns(places, 12, (32.0, 512.0), unplaced=0) for places in (places_mm, moved_mm))
    # float32, angles of up to 30
    torch.testing.assert_close(attention(tokens, here), attention(tokens, there), atol=1e-5, rtol=0)
    farther = turns(2 * places_mm, 12, (32.0, 512.0), unplaced=0)
    assert (attention(tokens, here) - attention(tokens, farther)).abs().max() > 1e-3


def test_a_crop_by_whole_patches_keeps_how_its_patches_attend_to_each_other() -> None:
    encoder, spacing_mm = small(positions="rotary-mm"), torch.tensor([[1.0, 1.0, 5.0]])
    whole, crop = (24, 16, 16), (16, 16, 8)  # without the first plane of patches in x, and the last two in z
    products = []
    inside = (cells((3, 2, 4))[:, 0] >= 1) & (cells((3, 2, 4))[:, 2] < 2)
    q, k = torch.randn(2, 1, 2, 24, 12)
    for shape, grid, there in ((whole, (3, 2, 4), torch.ones(24, dtype=torch.bool)), (crop, (2, 2, 2), inside)):
        by = turns(centred_mm(encoder.lattice(shape), shape, grid, spacing_mm), 12, (32.0, 512.0), unplaced=0)
        products.append(turned(q[:, :, there], by) @ turned(k[:, :, there], by).transpose(2, 3))
    # float32 sums of 12 products of size 1
    torch.testing.assert_close(products[0][:, :, inside][..., inside], products[1], atol=1e-4, rtol=0)


def test_one_network_takes_thin_and_thick_slices_in_one_batch() -> None:
    encoder = small(positions="rotary-mm")
    x, spacing_mm = torch.rand(2, 3, 16, 16, 8), torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.5, 5.0]])
    with torch.no_grad():
        together = encoder(x, spacing_mm)
        alone = [encoder(x[n : n + 1], spacing_mm[n : n + 1]) for n in range(2)]
        swapped = encoder(x, spacing_mm.flip(0))
    torch.testing.assert_close(together.tokens, torch.cat([f.tokens for f in alone]), atol=1e-5, rtol=0)
    assert (together.tokens - swapped.tokens).abs().amax(dim=(1, 2)).min() > 1e-3


def test_half_precision_keeps_the_angles() -> None:
    encoder = small(positions="rotary-mm")
    x, spacing_mm = torch.rand(1, 3, 16, 16, 64), torch.tensor([[1.0, 1.0, 5.0]])
    with torch.no_grad():
        exact = encoder(x, spacing_mm).tokens
        rough = encoder.to(torch.bfloat16)(x.bfloat16(), spacing_mm).tokens.float()
    # bfloat16 steps are 2^-8 of the value; angles rounded so would be off by half a turn
    assert torch.cosine_similarity(exact.flatten(), rough.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary-mm", "none"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_products_in_half_precision_leave_sums_and_results_in_float32(positions: str, norm: str) -> None:
    """What the blocks add to, the tokens with their positions, is never rounded to bfloat16 under autocast."""
    encoder, added_to = small(positions=positions, norm=norm), []
    for block in encoder.blocks:
        block.register_forward_pre_hook(lambda _, inputs: added_to.append(inputs[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = encoder(torch.rand(1, 3, 16, 16, 8), torch.ones(1, 3))
    assert {*added_to, features.scan.dtype, features.tokens.dtype} == {torch.float32}


@pytest.mark.parametrize(
    ("spacing_mm", "message"),
    [(None, "needs the spacing of its input"), (torch.ones(3), r"spacing_mm must be \(2, 3\), got \(3,\)")],
)
def test_positions_in_mm_need_the_spacing(spacing_mm: torch.Tensor | None, message: str) -> None:
    with pytest.raises(Misuse, match=message):
        small(positions="rotary-mm")(torch.rand(2, 3, 16, 16, 8), spacing_mm)


def with_air(grid: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Two scans with different amounts of air, and which patches of 8 x 8 x 4 voxels are not air, (B, N)."""
    x = torch.zeros(2, 3, 8 * grid[0], 8 * grid[1], 4 * grid[2])
    x[0, :, 4:12, :10, 3:9] = torch.rand(3, 8, 10, 6)
    x[1, 1, 10:, 8:, :4] = 0.5  # one channel is enough
    seen = x.reshape(2, 3, grid[0], 8, grid[1], 8, grid[2], 4).abs().sum(dim=(1, 3, 5, 7)).flatten(1) > 0
    return x, seen


@pytest.mark.parametrize("pooling", ["class", "class+mean"])
@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary-mm"])
def test_dropped_air_is_as_if_it_had_been_taken_out(positions: str, pooling: str) -> None:
    x, seen = with_air((3, 2, 4))
    assert 0 < seen[1].sum() < seen[0].sum() < 24
    spacing_mm = torch.tensor([[1.0, 1.0, 2.0], [0.5, 0.5, 5.0]])
    dropping, plain = (small(positions=positions, pooling=pooling, drop_air=drop) for drop in (True, False))
    with torch.no_grad():
        features = dropping(x, spacing_mm)
        for n in range(2):
            keep = seen[n].nonzero().T  # (1, K)
            tokens, _ = plain.sequence(x[n : n + 1], spacing_mm[n : n + 1], keep=keep)
            parts = {"class": tokens[0, 0], "mean": tokens[0, 5:].mean(0)}
            scan = torch.cat([parts[part] for part in pooling.split("+")])
            torch.testing.assert_close(features.tokens[n, seen[n]], tokens[0, 5:], atol=1e-5, rtol=0)
            torch.testing.assert_close(features.scan[n], scan, atol=1e-5, rtol=0)
            assert torch.all(features.tokens[n, ~seen[n]] == 0)


@pytest.mark.parametrize("drop_air", [False, True])
@pytest.mark.parametrize("pooling", ["class", "mean", "class+mean"])
def test_a_sequence_pools_to_the_scan_vector(pooling: str, drop_air: bool) -> None:
    encoder = small(pooling=pooling, drop_air=drop_air)
    x, _ = with_air((3, 2, 4))
    with torch.no_grad():
        tokens, _ = encoder.sequence(x)
        torch.testing.assert_close(encoder.pooled(tokens), encoder(x).scan)
        torch.testing.assert_close(encoder.without_registers(tokens)[:, 1:], encoder(x).tokens)
    assert torch.equal(encoder.without_registers(tokens)[:, 0], tokens[:, 0])


def test_more_air_around_a_head_changes_nothing() -> None:
    encoder = small(positions="rotary-mm", drop_air=True, pooling="class+mean")
    head, spacing_mm = torch.rand(1, 3, 16, 16, 8), torch.ones(1, 3)
    wide = nn.functional.pad(head, (4, 4, 8, 8, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(encoder(wide, spacing_mm).scan, encoder(head, spacing_mm).scan, atol=1e-5, rtol=0)


def test_a_scan_of_air_alone_has_features_and_gradients() -> None:
    encoder = small(drop_air=True, pooling="class+mean")
    features = encoder(torch.zeros(1, 3, 16, 16, 8))
    features.scan.sum().backward()
    assert torch.all(features.scan[:, 24:] == 0)
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_layer_scale_multiplies_each_branch() -> None:
    scaled = Block(24, 2, 48, layer_scale=0.5)
    plain = Block(24, 2, 48)
    weights = {name: tensor for name, tensor in scaled.state_dict().items() if not name.endswith("gain")}
    plain.load_state_dict(weights)
    with torch.no_grad():
        for layer in (plain.attention.out, plain.mlp[2]):
            layer.weight.mul_(0.5)
            layer.bias.mul_(0.5)
        tokens = torch.randn(2, 5, 24)
        torch.testing.assert_close(scaled(tokens), plain(tokens))
    assert small(layer_scale=1e-5).blocks[1].mlp_scale.gain[0].item() == pytest.approx(1e-5)


def test_stochastic_depth_drops_whole_scans_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    branch = torch.ones(4000, 2, 3)
    after = drop(branch)
    assert after.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(after, after[:, :1, :1].expand(-1, 2, 3))
    assert after.mean().item() == pytest.approx(1, abs=0.04)  # four standard errors
    assert torch.equal(drop.eval()(branch), branch)


def test_stochastic_depth_rises_from_the_first_block_and_stops_in_evaluation() -> None:
    encoder = small(depth=5, drop_path=0.4)
    assert [block.drop_path.share for block in encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    x = torch.rand(2, 3, 16, 16, 8)
    assert torch.equal(encoder(x).scan, encoder(x).scan)
    encoder.train()
    assert not torch.equal(encoder(x).scan, encoder(x).scan)


def test_kept_patches_come_in_the_order_asked_for() -> None:
    encoder, x = small(depth=1), torch.rand(2, 3, 16, 16, 8)
    keep = torch.tensor([[5, 0, 3], [1, 7, 2]])
    with torch.no_grad():
        tokens, grid = encoder.sequence(x, keep=keep)
        again, _ = encoder.sequence(x, keep=keep.flip(1))
        everything, _ = encoder.sequence(x, keep=torch.arange(8).expand(2, -1))
    assert grid == (2, 2, 2)
    torch.testing.assert_close(tokens[:, 5:], again[:, 5:].flip(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(everything, encoder.sequence(x)[0])


def test_permuting_a_batch_permutes_what_comes_out() -> None:
    encoder = small(positions="rotary-mm", drop_air=True, pooling="mean")
    x, _ = with_air((3, 2, 4))
    spacing_mm = torch.tensor([[1.0, 1.0, 2.0], [0.5, 0.5, 5.0]])
    with torch.no_grad():
        there, back = encoder(x, spacing_mm), encoder(x.flip(0), spacing_mm.flip(0))
    torch.testing.assert_close(there.scan, back.scan.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(there.tokens, back.tokens.flip(0), atol=1e-5, rtol=0)
