"""The encoder over slices. Oracles: loops for the attention over the stack, invariants, and a moved blob."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headct.encoders import SliceEncoder, build
from headct.encoders.slices import StackAttention
from headct.failure import Misuse


def small(**settings: Any) -> SliceEncoder:
    """A network whose cells have 8 x 8 voxels and whose every weight is random."""
    torch.manual_seed(0)
    defaults = {"widths": (8, 16), "blocks": (1, 1), "heads": 2}
    encoder = build("slices-tiny", **(defaults | settings)).eval()
    torch.nn.init.normal_(encoder.stem.convolution.weight, std=0.2)
    return encoder


def test_attention_over_slices_is_the_loop_over_heads() -> None:
    attention, slices, places = StackAttention(6, heads=2), torch.randn(1, 5, 6), torch.randn(1, 5, 6)
    with torch.no_grad():
        expected = []
        for head in range(2):
            scores = []
            for z in range(5):
                seen = slices[0, z] + places[0, z]
                gated = torch.tanh(attention.content(seen)) * torch.sigmoid(attention.gate(seen))
                scores.append(attention.score.weight[head] @ gated + attention.score.bias[head])
            weights = torch.softmax(torch.stack(scores), dim=0)
            expected.append(sum(weights[z] * slices[0, z, 3 * head : 3 * head + 3] for z in range(5)))
        torch.testing.assert_close(attention(slices, places)[0], torch.cat(expected))


def test_a_slice_is_the_mean_and_the_maximum_of_its_cells() -> None:
    encoder = small()
    with torch.no_grad():
        features = encoder(torch.rand(1, 3, 16, 24, 3))
        slices = []
        for z in range(3):
            cells = torch.stack([features.tokens[0, cell * 3 + z] for cell in range(6)])
            slices.append(encoder.summary(torch.cat([cells.mean(dim=0), cells.max(dim=0).values])))
        expected = encoder.norm(encoder.stack(torch.stack(slices)[None]))
    torch.testing.assert_close(features.scan, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(8, 8, 1), (20, 9, 5), (16, 24, 3)])
def test_any_shape_gives_a_token_for_each_cell_of_each_slice(shape: tuple[int, int, int]) -> None:
    features = small()(torch.rand(2, 3, *shape))
    nx, ny, nz = features.grid
    assert (nx, ny, nz) == (-(-shape[0] // 8), -(-shape[1] // 8), shape[2])
    assert features.tokens.shape == (2, nx * ny * nz, 16)
    assert features.scan.shape == (2, 16)


def test_a_plane_that_cells_do_not_divide_is_padded_with_air() -> None:
    x = torch.rand(1, 3, 13, 16, 4)
    padded = torch.zeros(1, 3, 16, 16, 4)
    padded[:, :, :13] = x
    encoder = small()
    assert torch.equal(encoder(x).tokens, encoder(padded).tokens)


@pytest.mark.parametrize("name", ["slices-tiny", "slices-small"])
@pytest.mark.parametrize("cell", [(0, 0, 0), (2, 1, 3), (1, 3, 5)])
def test_the_token_that_a_bright_blob_changes_most_is_the_nearest(name: str, cell: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    encoder = build(name).eval()
    empty = torch.full((1, 3, 48, 64, 6), 0.3)
    lattice = encoder.lattice((48, 64, 6))
    centre = [first + step * n for first, step, n in zip(lattice.first, lattice.step, cell, strict=True)]
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in (48, 64, 6)), indexing="ij")
    distance = sum((axis - at) ** 2 for axis, at in zip(axes, centre, strict=True))
    with torch.no_grad():
        before, after = encoder(empty), encoder(empty + 0.7 * torch.exp(-distance / 8))
    nx, ny, nz = after.grid
    most = (after.tokens - before.tokens).norm(dim=2).argmax().item()
    assert (nx, ny, nz) == (3, 4, 6)
    assert most == (cell[0] * ny + cell[1]) * nz + cell[2]


def test_a_cell_does_not_depend_on_what_lies_far_away() -> None:
    encoder, x = small(), torch.rand(1, 3, 72, 8, 2)
    other = x.clone()
    other[:, :, :8] = 0
    with torch.no_grad():
        gap = (encoder(other).tokens - encoder(x).tokens).reshape(9, 2, 16).abs().amax(dim=(1, 2))
    # each stage reaches two of its places to either side: 2 * 4 + 2 * 8 voxels are three cells
    assert (gap > 0).tolist() == [True] * 4 + [False] * 5


def test_the_lattice_is_the_middle_of_what_a_cell_covers() -> None:
    lattice = small().lattice((16, 24, 3))
    assert lattice.first == (sum(range(8)) / 8, sum(range(8)) / 8, 0)
    assert lattice.step == (8, 8, 1)


def test_a_new_network_looks_at_single_slices_and_a_trained_one_at_their_neighbours() -> None:
    x = torch.rand(1, 3, 16, 16, 5)
    other = x.clone()
    other[..., 2] = torch.rand(1, 3, 16, 16)
    reached = {"new": [2], "trained": [1, 2, 3]}
    for kind, encoder in (("new", build("slices-tiny").eval()), ("trained", small())):
        with torch.no_grad():
            gap = (encoder(other).tokens - encoder(x).tokens).abs().amax(dim=2)
        changed = gap.reshape(-1, 5).amax(dim=0) > 1e-5
        assert changed.nonzero().flatten().tolist() == reached[kind]


def test_slices_without_neighbours_and_heights_are_a_bag() -> None:
    encoder, x, order = small(neighbours=0), torch.rand(2, 3, 16, 16, 6), torch.randperm(6)
    with torch.no_grad():
        sorted_, shuffled = encoder(x), encoder(x[..., order])
    torch.testing.assert_close(shuffled.scan, sorted_.scan, atol=1e-5, rtol=0)
    cells = [features.tokens.reshape(2, 4, 6, 16) for features in (sorted_, shuffled)]
    torch.testing.assert_close(cells[1], cells[0][:, :, order], atol=1e-5, rtol=0)


def test_a_batch_equals_each_scan_alone_even_in_training() -> None:
    encoder, x = small(positions="mm").train(), torch.rand(3, 3, 16, 16, 6)
    spacing_mm = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.5, 5.0], [0.5, 0.5, 2.5]])
    together = encoder(x, spacing_mm)
    alone = [encoder(x[n : n + 1], spacing_mm[n : n + 1]) for n in range(3)]
    # normalised features are of size 1; other batch sizes take other kernels
    torch.testing.assert_close(together.scan, torch.cat([f.scan for f in alone]), atol=1e-5, rtol=0)
    torch.testing.assert_close(together.tokens, torch.cat([f.tokens for f in alone]), atol=1e-5, rtol=0)


def test_heights_in_mm_guide_the_attention_and_leave_the_tokens_alone() -> None:
    encoder, x = small(positions="mm"), torch.rand(1, 3, 16, 16, 6)
    with torch.no_grad():
        thin, thick = (encoder(x, torch.tensor([[1.0, 1.0, gap_mm]])) for gap_mm in (1.0, 5.0))
        in_plane = encoder(x, torch.tensor([[0.4, 0.4, 1.0]]))
    assert torch.equal(thin.tokens, thick.tokens)
    assert (thin.scan - thick.scan).abs().max() > 1e-4
    assert torch.equal(thin.scan, in_plane.scan)
    with pytest.raises(Misuse, match="needs the spacing of its input"):
        encoder(x)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (8, 0)}, r"widths must be numbers of at least 1, got \(8, 0\)"),
        ({"blocks": (1,)}, "blocks must be a number of at least 1 for each of"),
        ({"heads": 3}, "the last width must be a multiple of heads, got 16 and 3"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"neighbours": -1}, "neighbours must not be negative"),
        ({"input_std": 0.0}, "input_std must be above zero"),
        ({"positions": "cm"}, "positions must be one of none, mm, got 'cm'"),
        ({"wavelengths_mm": (512.0, 8.0)}, "wavelengths_mm must be two positive lengths, the shorter first"),
    ],
)
def test_a_wrong_number_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        small(**settings)


def test_settings_survive_json() -> None:
    assert small(widths=[8, 16], blocks=[1, 1], wavelengths_mm=[8.0, 512.0]).settings == small().settings
