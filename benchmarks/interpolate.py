"""What sampling grids costs virtual patients: PyTorch's way, SciPy's, and the compiled one, in turn in one run.

    python benchmarks/interpolate.py [SCANS]

Points lie in rows, as a scanner's do; grids are as large as the ones that patients are painted from. Then whole
scans of 2 mm are painted with and without the compiled loop, in turn: the bytes are compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from headct.preparing.recipe import named
from headct.virtual import interpolation
from headct.virtual.interpolation import Grid
from headct.virtual.simulated import Simulation
from headct.virtual.template import BOXES, CHANNELS

ROUNDS = 7
UNCOMPILED = patch.object(interpolation, "compiled_loop", lambda: None)
COARSE, TILE = (34, 37, 31, 14), (49, 49, 49, 1)


def seconds(call: Callable[[], object]) -> float:
    """Of one core."""
    started = time.process_time()
    call()
    return time.process_time() - started


def least(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each way, in turn, the least of some rounds."""
    rounds = [{name: seconds(way) for name, way in ways.items()} for _ in range(ROUNDS)]
    return {name: min(one[name] for one in rounds) for name in ways}


def without(call: Callable[[], object]) -> object:
    with UNCOMPILED:
        return call()


def by_scipy(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """A channel after the other, places (3, n) in voxels."""
    return np.stack([map_coordinates(channel, place, order=1, mode="nearest") for channel in np.moveaxis(values, 3, 0)])


def show_grids() -> None:
    """Nanoseconds a point, all channels."""
    boxes = {name: (*box.shape, sum(coding.box == name for coding in CHANNELS.values())) for name, box in BOXES.items()}
    grids = {f"template, {name}": (shape, np.uint8) for name, shape in boxes.items()}
    grids |= {"maps of a patient": (COARSE, np.float32), "noise": (TILE, np.float32)}
    print(f"{'ns a point':20} {'channels':>8} {'SciPy':>8} {'PyTorch':>8} {'numba':>8} {'ratio':>7}")
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-0.8, 0.8, n) for n in (60, 100, 30)), indexing="ij")
    points = torch.from_numpy(np.stack([axis.ravel() for axis in axes], axis=1).astype(np.float32))
    for name, (shape, kind) in grids.items():
        values = rng.integers(0, 256, shape).astype(kind)
        grid = Grid(values, (-1, -1, -1), (1, 1, 1))
        place = ((points.numpy()[:, ::-1] + 1) / 2 * (np.array(shape[:3]) - 1)).T
        took = least(
            {
                "SciPy": lambda values=values, place=place: by_scipy(values.astype(np.float32), place),
                "PyTorch": lambda grid=grid: without(lambda: grid.sample(points)),
                "numba": lambda grid=grid: grid.sample(points),
            }
        )
        ns = {way: 1e9 * one / len(points) for way, one in took.items()}
        ratio = took["numba"] / took["PyTorch"]
        print(f"{name:20} {shape[3]:8} " + " ".join(f"{one:8.0f}" for one in ns.values()) + f" {ratio:7.2f}")


def show_scans(scans: int) -> None:
    """Seconds of a core for one scan of 2 mm, painting and imaging."""
    simulation = Simulation(seed=11).prepared_by(named("head"))
    took: dict[str, list[float]] = {"PyTorch": [], "numba": []}
    next(simulation.scans(0)).scan  # noqa: B018  what is worked out once for all
    for index in range(1, scans + 1):
        made: dict[str, np.ndarray] = {}

        def scan(way: str, index: int = index, made: dict[str, np.ndarray] = made) -> None:
            made[way] = next(simulation.scans(index)).scan.hu

        took["PyTorch"].append(seconds(lambda: without(lambda: scan("PyTorch"))))
        took["numba"].append(seconds(lambda: scan("numba")))
        assert np.array_equal(made["PyTorch"], made["numba"]), f"patient {index} differs"
    mean = {way: float(np.mean(all_of)) for way, all_of in took.items()}
    print(f"a scan of 2 mm, mean of {scans}: " + ", ".join(f"{way} {one:.2f} s" for way, one in mean.items()))
    print(f"ratio {mean['numba'] / mean['PyTorch']:.2f}, the same bytes")


if __name__ == "__main__":
    if interpolation.compiled_loop() is None:
        sys.exit("this compares with numba: pip install numba")
    torch.set_num_threads(1)
    show_grids()
    show_scans(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
