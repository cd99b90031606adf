"""How fast a head becomes an array, and how much memory that takes.

    python benchmarks/prepare.py [--rounds 5]

The heads are drawn: 512 x 512 x 40 slices of 5 mm and 512 x 512 x 200 of 0.8 mm, int16, with noise. «Published» are the
MONAI transforms that FM-HCT's own code runs. One thread for all; of ours the best of several rounds, of the published
way one, which takes 5 to 30 seconds. Each ratio is of times measured in this run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import zoom

from headct.preparing import Prepared, prepare, recipes
from headct.preparing.recipe import Resize, Windows
from headct.scan import Scan
from headct.virtual.phantom import Phantom

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PIXELS, PIXEL_MM = 512, 0.45


@dataclass(frozen=True)
class Series:
    """A drawn series."""

    slices: int
    gap_mm: float

    @property
    def name(self) -> str:
        return f"{PIXELS} x {PIXELS} x {self.slices}, {self.gap_mm} mm"

    def scan(self) -> Scan:
        """Drawn on a grid four times as coarse in the plane and at most 60 slices, then enlarged; with noise."""
        drawn = min(self.slices, 60)
        coarse = Phantom(0).scan(
            slices=drawn,
            rows=PIXELS // 4,
            cols=PIXELS // 4,
            pixel_mm=4 * PIXEL_MM,
            gap_mm=self.slices * self.gap_mm / drawn,
        )
        hu = zoom(coarse.hu.astype(np.float32), (self.slices / drawn, 4, 4), order=1)
        hu += np.random.default_rng(0).normal(0, 8, hu.shape)
        corner = coarse.origins_mm[0] + np.array([1.5, 1.5, 0]) * PIXEL_MM
        return Scan(
            hu=np.rint(hu).clip(-1024, 3071).astype(np.int16),
            origins_mm=corner + np.arange(self.slices)[:, None] * np.array([0, 0, self.gap_mm]),
            row_step_mm=coarse.row_step_mm / 4,
            col_step_mm=coarse.col_step_mm / 4,
            thickness_mm=self.gap_mm,
        )


THICK, THIN, LONG = Series(40, 5.0), Series(200, 0.8), Series(400, 0.4)


def main() -> None:
    """Print one table after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=recipes, help="print the peak memory in MB of one recipe, and stop")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})
    if arguments.peak:
        print_peak(arguments.peak)
        return
    time_preparing(arguments.rounds)
    weigh_preparing()


def time_preparing(rounds: int) -> None:
    """From a scan in memory to an array, beside the published way to the array of `fm-hct`."""
    print(f"{'scan in memory -> array':28} {'recipe':16} {'s':>7} {'published':>10} {'ratio':>7}  difference")
    for series in (THICK, THIN):
        scan = series.scan()
        theirs, published_s = timed(published_steps(scan), 1)
        for name in recipes:
            ours, seconds = timed(lambda scan=scan, name=name: prepare(scan, name), rounds)
            assert isinstance(ours, Prepared), ours
            same = f"{np.abs(ours.array.astype(np.float32) - theirs).max():.4f}" if name == "fm-hct" else "-"
            print(
                f"{series.name:28} {name:16} {seconds:7.3f} {published_s:10.2f} {published_s / seconds:6.1f}x  {same}"
            )


def timed(run: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """The result and the best time."""
    best_s = float("inf")
    for _ in range(rounds):
        started_s = time.perf_counter()
        result = run()
        best_s = min(best_s, time.perf_counter() - started_s)
    return result, best_s


def published_steps(scan: Scan) -> Callable[[], np.ndarray]:
    """FM-HCT's transforms from a volume (I, J, K) with its affine, as its loader has them, to float16."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own making
        from monai.data import MetaTensor
        from monai.transforms import CropForeground, Orientation, ScaleIntensityRange, Spacing
        from monai.transforms import Resize as ResizeTo

    torch.set_num_threads(1)
    steps = (
        Orientation(axcodes="RAS", labels=None),
        Spacing((1.0, 1.0, 1.0), mode=3, padding_mode="nearest"),
        CropForeground(select_fn=lambda image: image > 0),
    )
    windows, size = recipes["fm-hct"].step(Windows), recipes["fm-hct"].step(Resize)
    assert windows is not None
    assert size is not None
    scales = [ScaleIntensityRange(c - w // 2, c + w // 2, 0.0, 1.0, clip=True) for c, w in windows.windows]
    resize = ResizeTo(size.shape, mode="area")
    affine = scan.affine()[:, [2, 1, 0, 3]]

    def run() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = MetaTensor(torch.from_numpy(scan.hu.T.astype(np.float32))[None], affine=torch.from_numpy(affine))
            for step in steps:
                image = step(image)
            return resize(torch.cat([scale(image) for scale in scales])).numpy().astype(np.float16)

    return run


def weigh_preparing() -> None:
    """Peak memory of a process that holds a long series and prepares it, libraries and drawing included (Linux)."""
    print(f"\n{'peak memory of the process':28} {'recipe':16} {'MB':>7}")
    for name in recipes:
        command = [sys.executable, __file__, "--peak", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{LONG.name:28} {name:16} {done.stdout.strip():>7}")


def print_peak(name: str) -> None:
    """For `weigh_preparing`, in a process for each recipe. Noise in air, because drawing a head takes memory."""
    hu = np.full((LONG.slices, PIXELS, PIXELS), -1000, dtype=np.int16)
    hu[5:-5, 20:-20, 30:-30] = np.random.default_rng(0).integers(-20, 80, (LONG.slices - 10, 472, 452), dtype=np.int16)
    scan = Scan(
        hu=hu,
        origins_mm=np.arange(LONG.slices)[:, None] * np.array([0, 0, LONG.gap_mm]),
        row_step_mm=np.array([0, -PIXEL_MM, 0]),
        col_step_mm=np.array([-PIXEL_MM, 0, 0]),
        thickness_mm=LONG.gap_mm,
    )
    prepared = prepare(scan, name, check_head=False)
    assert isinstance(prepared, Prepared), prepared
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024)


if __name__ == "__main__":
    main()
