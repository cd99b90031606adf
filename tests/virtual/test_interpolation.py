"""Interpolation against closed forms, compiled against not, and what is painted against what would be."""

from __future__ import annotations

import pickle
import platform
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headct.virtual import interpolation, patient
from headct.virtual.interpolation import Grid
from headct.virtual.patient import Patient
from headct.virtual.places import _OneThreadOfNumPy, by_axis, length, some, spread, turned, where
from headct.virtual.simulated import Simulation

FIRST, LAST = (-3.0, 10.0, -7.0), (3.0, 16.0, 5.0)
SHAPE = (7, 5, 4)  # z, y, x
TALL, LONG = (254573043123289, 95340805421956), 156701163697388
"""Seeds of heads that are tall and wide, and of one that reaches beyond the grid of its maps."""


def points(count: int, *, beyond: float = 0.0) -> torch.Tensor:
    """Points (n, 3) within the grid, or up to so many mm beyond."""
    rng = np.random.default_rng(count)
    return torch.from_numpy(rng.uniform(np.array(FIRST) - beyond, np.array(LAST) + beyond, (count, 3))).float()


def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpolation, "compiled_loop", lambda: None)


def exactly_on_x86(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Elsewhere PyTorch may round otherwise."""
    if platform.machine() in ("x86_64", "AMD64"):
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(
            found.float(), expected.float(), rtol=1e-5, atol=1e-3 if found.is_floating_point() else 1
        )


@pytest.fixture(params=["compiled", "PyTorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of sampling."""
    if request.param == "PyTorch":
        uncompiled(monkeypatch)
    elif interpolation.compiled_loop() is None:
        pytest.skip("needs numba")


@pytest.mark.usefixtures("way")
def test_what_is_linear_along_each_axis_is_met_exactly() -> None:
    z, y, x = np.meshgrid(*(np.linspace(a, b, n) for a, b, n in zip(FIRST[::-1], LAST[::-1], SHAPE, strict=True)),
                          indexing="ij")  # fmt: skip
    values = np.stack([2 * x - y + 3 * z, x * y * z, np.ones_like(x)], axis=-1).astype(np.float32)
    at = points(300)
    x, y, z = at.numpy().astype(float).T
    for layout in (at, by_axis(at)):
        found = Grid(values, FIRST, LAST).sample(layout).numpy()
        np.testing.assert_allclose(found, [2 * x - y + 3 * z, x * y * z, np.ones_like(x)], rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_beyond_the_grid_its_edge_goes_on() -> None:
    values = np.random.default_rng(0).normal(size=(*SHAPE, 2)).astype(np.float32)
    grid, at = Grid(values, FIRST, LAST), points(300, beyond=20.0)
    nearest = torch.clamp(at, torch.tensor(FIRST), torch.tensor(LAST))
    torch.testing.assert_close(grid.sample(at), grid.sample(nearest))
    corners = torch.tensor([[-99.0, -99.0, -99.0], [99.0, 99.0, 99.0]])
    torch.testing.assert_close(grid.sample(corners).T, torch.from_numpy(values[[0, -1], [0, -1], [0, -1]]))


@pytest.mark.usefixtures("way")
def test_codes_are_the_values_that_they_stand_for() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    steps, lows = (0.5, 2.0, 1 / 255), (-8.0, 0.0, 0.25)
    plain = codes.astype(np.float32) * np.float32(steps) + np.float32(lows)
    at = points(300)
    found = Grid(codes, FIRST, LAST, steps=steps, lows=lows).sample(at)
    assert torch.equal(found, Grid(plain, FIRST, LAST).sample(at))


@pytest.mark.parametrize("channels", [1, 2, 16, 17])
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_compiled_or_not_the_bytes_are_the_same(channels: int, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    if interpolation.compiled_loop() is None:
        pytest.skip("needs numba")
    rng = np.random.default_rng(channels)
    values = rng.uniform(0, 255, (*SHAPE, channels)).astype(kind)
    grid = Grid(values, FIRST, LAST, steps=rng.uniform(0.1, 3, channels), lows=rng.normal(size=channels))
    places = [points(count, beyond=3.0) for count in (0, 1, 127, 128, 1000)]
    places.append(torch.tensor([[np.nan, 12.0, 0.0], [0.0, np.inf, np.nan], [1e30, -1e30, 0.0]]))
    compiled = [grid.sample(at) for at in places]
    uncompiled(monkeypatch)
    for at, found in zip(places, compiled, strict=True):
        exactly_on_x86(found, grid.sample(at))


def test_a_patient_is_the_same_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    if interpolation.compiled_loop() is None:
        pytest.skip("needs numba")
    simulation = Simulation(seed=6, spacing_mm=6.0, prevalence={"iph": 1.0, "sdh": 1.0, "fracture": 1.0})
    compiled = next(simulation.scans(0)).scan.hu
    uncompiled(monkeypatch)
    exactly_on_x86(torch.from_numpy(next(simulation.scans(0)).scan.hu), torch.from_numpy(compiled))


@pytest.mark.parametrize("trouble", [RuntimeError("no locator available"), EOFError(), OSError("disk full")])
def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(
    trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    numba = pytest.importorskip("numba")
    asked: list[bool] = []

    def njit(kinds: list[str], *, cache: bool = False, **_how: Any) -> Callable[..., Any]:
        asked.append(cache)
        if cache:
            raise trouble
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    with pytest.warns(RuntimeWarning, match=f"cache fails .*{type(trouble).__name__}.*set NUMBA_CACHE_DIR"):
        assert interpolation.compiled_loop.__wrapped__() is interpolation._trilinear
    assert asked == [True, False]


def test_a_numba_that_does_not_load_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.4 or less')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    with pytest.warns(RuntimeWarning, match="take longer, as numba cannot be used: Numba needs NumPy"):
        assert interpolation.compiled_loop.__wrapped__() is None


@pytest.mark.parametrize("seed", [*TALL, LONG, 5, 6, 7])
def test_nothing_of_a_head_lies_beyond_its_outline(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The points that are left out are air, whatever is asked; ears and swollen scalps are finer than the outline."""
    one = Patient.draw(seed, prevalence={"bruise": 1.0, "fracture": 1.0})
    axes = [torch.arange(low, high, 3.0) for low, high in ((-150.0, 151.0), (-150.0, 151.0), (-120.0, 151.0))]
    everywhere = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    monkeypatch.setattr(patient, "OUTLINE_MM", 1e9)
    whole = one.paint(everywhere, 1.0).hu
    monkeypatch.undo()
    cut = one.paint(everywhere, 1.0)
    torch.testing.assert_close(cut.hu, whole, rtol=0, atol=1e-3)  # air that is laid over air is rounded
    assert len(cut.near) < 1.5 * int((whole > -999).sum())
    rim = (everywhere.abs() > torch.tensor([120.0, 147.0, 120.0])).any(dim=1) & (everywhere[:, 2] > -118)
    assert whole[rim].max() < -999  # the maps go on beyond their grid, so that a head that does is closed


def test_places_are_what_they_stand_for() -> None:
    at = points(50)
    pieces = by_axis(at)
    assert torch.equal(pieces, at)
    assert pieces.T.is_contiguous()
    matrix = torch.linalg.qr(torch.arange(9.0).reshape(3, 3) ** 2 + torch.eye(3))[0]
    torch.testing.assert_close(turned(pieces, matrix), at @ matrix)
    torch.testing.assert_close(length(pieces), torch.linalg.vector_norm(at, dim=1))
    chosen = where(at[:, 0] > 0)
    assert torch.equal(chosen, torch.nonzero(at[:, 0] > 0).squeeze(1))
    assert torch.equal(some(at, chosen), at[chosen])
    assert torch.equal(some(at[:, 1], chosen), at[chosen, 1])
    back = spread(some(at[:, 1], chosen), chosen, len(at), 7.0)
    assert torch.equal(back, torch.where(at[:, 0] > 0, at[:, 1], torch.tensor(7.0)))


def test_patients_are_made_by_one_thread_which_ends_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    paint = Patient.paint

    def watched(*args: Any, **more: Any) -> Any:
        threads.append(torch.get_num_threads())
        return paint(*args, **more)

    monkeypatch.setattr(Patient, "paint", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert next(Simulation(seed=6, spacing_mm=9.0).scans(0)).scan.hu.any()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


PRODUCTS = """
from threadpoolctl import threadpool_info, threadpool_limits
from headct.virtual.places import one_thread

def threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

with threadpool_limits(2, user_api="blas"):
    with one_thread():
        print(threads())
    print(threads())
"""


def test_matrix_products_have_one_thread_within_and_as_many_as_before_after() -> None:
    """In a process of its own: here other tests may have loaded libraries of their own by now."""
    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["{1}", "{2}"]


def test_whoever_is_last_out_leaves_numpy_as_the_first_one_found_it() -> None:
    """Of threads that make patients at once; OpenBLAS has one number for all of them."""
    told: list[str] = []

    class Libraries:
        def limit(self, **asked: Any) -> Libraries:
            told.append(f"limited {asked}")
            return self

        def restore_original_limits(self) -> None:
            told.append("restored")

    products = _OneThreadOfNumPy()
    vars(products)["_libraries"] = Libraries()
    first, second = ExitStack(), ExitStack()
    for stack in (first, second):
        stack.enter_context(products)
    first.close()
    assert told == ["limited {'limits': 1, 'user_api': 'blas'}"]
    second.close()
    assert told[1:] == ["restored"]


def test_a_grid_is_pickled_without_what_it_has_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=(*SHAPE, 3)).astype(np.float32)
    grid, at = Grid(values, FIRST, LAST), points(50)
    small, found = len(pickle.dumps(grid)), grid.sample(at)
    uncompiled(monkeypatch)
    torch.testing.assert_close(grid.sample(at), found)
    assert len(pickle.dumps(grid)) == small
    torch.testing.assert_close(pickle.loads(pickle.dumps(grid)).sample(at), found)
