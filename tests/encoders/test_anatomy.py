"""Encoders that say what lies where, and the small convolutional one.

Oracles: the slow loops that the docstrings say the numbers equal, in float64 (another order of sums: 1e-5 of float32
networks), and blocks that are averaged by hand.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from headct import checkpoints, encoders
from headct.encoders.anatomy import (
    CHANGES,
    LEAST_CELLS,
    POOLINGS,
    TISSUES,
    TOP_CELLS,
    Maps,
    anatomy_vector,
    over_cells,
    shuffled,
    tissue_maxima,
)
from headct.encoders.features import Features, Lattice
from headct.failure import Misuse
from headct.preparing import recipes

SMALL = {"inner_settings": {"widths": [2, 4, 6], "blocks": [1, 1, 1]}}
WINDOWS = {"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800)}


def some_maps(scans: int = 2, grid: tuple[int, int, int] = (2, 3, 2)) -> Maps:
    generator = torch.Generator().manual_seed(0)

    def values(channels: int) -> torch.Tensor:
        return torch.randn(scans, channels, *grid, generator=generator)

    return Maps(values(len(TISSUES)), values(3), 3 * values(len(CHANGES)))


def test_shuffle_is_the_loop() -> None:
    (nx, ny, nz), (fx, fy, fz), outputs = (2, 3, 2), (2, 1, 3), 2
    values = torch.arange(2 * nx * ny * nz * outputs * fx * fy * fz).reshape(2, nx * ny * nz, -1)
    maps = shuffled(values, (nx, ny, nz), (fx, fy, fz))
    assert maps.shape == (2, outputs, nx * fx, ny * fy, nz * fz)
    for i, j, k, u, v, w, o in np.ndindex(nx, ny, nz, fx, fy, fz, outputs):
        expected = values[:, (i * ny + j) * nz + k, ((o * fx + u) * fy + v) * fz + w]
        assert torch.equal(maps[:, o, i * fx + u, j * fy + v, k * fz + w], expected)


def test_anatomy_vector_is_the_loop() -> None:
    maps = some_maps()
    found = anatomy_vector(maps).numpy()
    for b in range(2):
        tissues, places, changes = (
            one[b].flatten(1).double().numpy() for one in (maps.tissues, maps.places, maps.changes)
        )
        cells = tissues.shape[1]
        t = [
            [math.exp(tissues[n, m]) / sum(math.exp(one) for one in tissues[:, m]) for m in range(cells)]
            for n in range(len(TISSUES))
        ]
        c = [[1 / (1 + math.exp(-logit)) for logit in row] for row in changes]
        expected = [
            math.log(sum(c[k][m] * t[n][m] for m in range(cells)) + LEAST_CELLS)
            for k in range(len(CHANGES))
            for n in range(len(TISSUES))
        ]
        for k in range(len(CHANGES)):
            for axis in range(3):
                at = [abs(places[0, m]) if axis == 0 else places[axis, m] for m in range(cells)]
                expected.append(sum(c[k][m] * at[m] for m in range(cells)) / (sum(c[k]) + LEAST_CELLS))
        for k in range(len(CHANGES)):
            highest = sorted(changes[k], reverse=True)
            expected += [float(np.mean(highest[:count])) for count in TOP_CELLS]
        expected += [math.log(sum(row) + LEAST_CELLS) for row in t]
        assert_allclose(found[b], expected, rtol=1e-5, atol=1e-6)


def test_tissue_maxima_is_the_loop() -> None:
    maps, finer = some_maps(grid=(4, 2, 2)), (2, 1, 2)
    grid = (2, 2, 1)
    tokens = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    found = tissue_maxima(Features(tokens[:, 0], tokens, grid), maps.tissues, finer).reshape(2, len(TISSUES), 3)
    share = maps.tissues.softmax(dim=1)
    for b, tissue, feature in np.ndindex(2, len(TISSUES), 3):
        values = []
        for i, j, k in np.ndindex(grid):
            block = share[b, tissue, 2 * i : 2 * i + 2, j, 2 * k : 2 * k + 2]
            values.append(tokens[b, (i * 2 + j) * 1 + k, feature] + math.log(block.mean() + LEAST_CELLS))
        assert found[b, tissue, feature].item() == pytest.approx(max(values).item(), abs=1e-5)


def test_means_over_cells_are_those_of_blocks() -> None:
    values = torch.randn(1, 2, 5, 4, 4, generator=torch.Generator().manual_seed(2))
    found = over_cells(values, Lattice(first=(0.5, 0.5, 1.5), step=(2.0, 2.0, 4.0)), (3, 2, 1))
    assert_allclose(found[0, 1, 1, 1, 0], values[0, 1, 2:4, 2:4].mean(), rtol=1e-6)
    assert_allclose(found[0, 1, 2, 0, 0], values[0, 1, 4, :2].sum() / 16, rtol=1e-5)  # zeros lie beyond the end
    before = over_cells(values, Lattice(first=(-0.5, 0.5, 1.5), step=(2.0, 2.0, 4.0)), (2, 2, 1))
    assert_allclose(before[0, 0, 0, 0, 0], values[0, 0, 0, :2].sum() / 16, rtol=1e-5)
    assert_allclose(before[0, 0, 1, 0, 0], values[0, 0, 1:3, :2].mean(), rtol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_decides_the_scan_vector_alone(pooling: str) -> None:
    torch.manual_seed(0)
    encoder = encoders.build("anatomy-conv", pooling=pooling, **SMALL).eval()
    x = torch.rand(2, 3, *encoder.example_shape)
    with torch.no_grad():
        features, inner = encoder(x), encoder.inner(x)
        _, maps = encoder.look(x)
    assert features.scan.shape == (2, encoder.scan_width)
    assert torch.equal(features.tokens, inner.tokens)
    assert features.grid == inner.grid
    wanted = {
        "inner": [inner.scan],
        "anatomy": [anatomy_vector(maps)],
        "tissues": [tissue_maxima(inner, maps.tissues, (2, 2, 2))],
    }
    parts = [vector for part in pooling.split("+") for vector in wanted[part]]
    assert torch.equal(features.scan, torch.cat(parts, dim=1))


def test_changes_start_unlikely_and_cells_share_out_the_tokens() -> None:
    encoder = encoders.build("anatomy-conv", **SMALL).eval()
    x = torch.rand(1, 3, *encoder.example_shape)
    with torch.no_grad():
        features, maps = encoder.look(x)
    assert maps.changes.mean().item() == pytest.approx(-4, abs=1)
    assert maps.tissues.mean().item() == pytest.approx(0, abs=1)
    shape = encoder.example_shape
    cells, tokens = encoder.cells(shape), encoder.lattice(shape)
    assert maps.places.shape[2:] == tuple(2 * n for n in features.grid)
    for axis in range(3):
        assert cells.step[axis] == tokens.step[axis] / 2
        assert cells.first[axis] + cells.step[axis] / 2 == tokens.first[axis]  # two cells around the first token


def test_an_encoder_of_vit_tokens_has_the_same_maps() -> None:
    inner = {"width": 12, "depth": 1, "heads": 2, "mlp_width": 16, "patch": [4, 4, 4], "grid": [2, 3, 2]}
    encoder = encoders.build("anatomy-vit", inner_settings=inner, channels=1)
    features, maps = encoder.look(torch.rand(1, 1, 8, 12, 8))
    assert maps.tissues.shape == (1, len(TISSUES), 4, 6, 4)
    assert features.scan.shape == (1, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "anatomy-vit"}, "anatomy-vit cannot be the inner encoder"),
        ({"inner": "conv-tinny"}, "did you mean conv-tiny"),
        ({"pooling": "max"}, "pooling must be one of inner, anatomy, tissues"),
        ({"finer": (2, 2)}, "finer must be three positive whole numbers"),
        ({"inner_settings": {"channels": 1}}, "inner_settings must not set channels"),
        ({"inner_settings": {"widths": (4,)}}, "widths and blocks must be positive whole numbers"),
    ],
)
def test_what_does_not_fit_is_said(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        encoders.build("anatomy-conv", **settings)


def test_checkpoint_gives_the_same_vectors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = encoders.build("anatomy-conv", pooling="anatomy", **SMALL)
    encoder(torch.rand(4, 3, *encoder.example_shape))  # statistics of BatchNorm
    encoder.eval()
    checkpoints.save(tmp_path / "model", encoder, checkpoints.Card(recipe=recipes["head"], windows=WINDOWS))
    loaded = checkpoints.load(tmp_path / "model").encoder
    x = torch.rand(2, 3, 24, 24, 16)
    with torch.no_grad():
        assert torch.equal(loaded(x).scan, encoder(x).scan)
    assert loaded.settings == encoder.settings


def test_a_convolution_of_a_finer_whole_head_equals_one_of_its_mean() -> None:
    torch.manual_seed(0)
    encoder = encoders.build("conv-tiny", channels=1, widths=(2, 3), blocks=(1, 1), whole=(8, 12, 8)).eval()
    fine = torch.rand(1, 1, 16, 24, 16)
    with torch.no_grad():
        one, other = encoder(fine), encoder(torch.nn.functional.avg_pool3d(fine, 2))
    assert torch.equal(one.tokens, other.tokens)
    assert encoder.lattice((16, 24, 16)).step == tuple(2 * step for step in encoder.lattice((8, 12, 8)).step)


def test_tokens_of_the_convolution_lie_where_the_lattice_says() -> None:
    torch.manual_seed(0)
    encoder = encoders.build("conv-tiny", channels=1, widths=(2, 3), blocks=(1, 1)).eval()
    x = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    features = encoder(x)
    nx, ny, nz = features.grid
    features.tokens[0, (1 * ny + 1) * nz + 2, :2].sum().backward()  # the first level, which sees 3 x 3 x 3 places twice
    seen = (x.grad[0, 0] != 0).nonzero().float()
    lattice = encoder.lattice((16, 16, 16))
    centre = [first + step * place for first, step, place in zip(lattice.first, lattice.step, (1, 1, 2), strict=True)]
    middle = (seen.amin(0) + seen.amax(0)) / 2
    assert_allclose(middle[2], centre[2], atol=2.0)  # cut off at the borders along the others
    assert (nx, ny, nz) == (8, 8, 8)
