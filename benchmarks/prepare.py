"""How fast files become an array, and how much memory that takes.

    python benchmarks/prepare.py [--rounds 5]

The heads are drawn: 512 x 512 x 40 slices of 5 mm and 512 x 512 x 200 of 0.8 mm, int16, with noise, as .nii.gz and as
uncompressed DICOM, read from the page cache. «Published» are the MONAI transforms that FM-HCT's own code runs. One
thread for all; of ours the best of several rounds, of the published way one, which takes 5 to 30 seconds. Each ratio is
of times measured in this run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
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
from headct.reading import read
from headct.scan import Scan
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom, write_nifti

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
    """From files to an array, beside the published way to the array of `fm-hct`; ours also from a scan in memory."""
    columns = f"{'recipe':16} {'s':>7} {'in memory':>10} {'published':>10} {'ratio':>7}  difference"
    print(f"{'files -> array':28} {'format':7} {columns}")
    for series in (THICK, THIN):
        for name, write in FORMATS.items():
            with tempfile.TemporaryDirectory() as folder:
                scan = series.scan()
                path = write(scan, Path(folder))
                theirs, published_s = timed(published_steps(path), 1)
                for recipe in recipes:
                    ours, seconds = timed(lambda path=path, recipe=recipe: from_files(path, recipe), rounds)
                    _, memory_s = timed(lambda scan=scan, recipe=recipe: prepare(scan, recipe), rounds)
                    same = f"{np.abs(ours.astype(np.float32) - theirs).max():.4f}" if recipe == "fm-hct" else "-"
                    print(
                        f"{series.name:28} {name:7} {recipe:16} {seconds:7.3f} {memory_s:10.3f} {published_s:10.2f} "
                        f"{published_s / seconds:6.1f}x  {same}",
                        flush=True,
                    )


def nifti(scan: Scan, folder: Path) -> Path:
    return write_nifti(scan, folder / "scan.nii.gz")


def dicom(scan: Scan, folder: Path) -> Path:
    write_dicom(scan, folder / "series")
    return folder / "series"


FORMATS: dict[str, Callable[[Scan, Path], Path]] = {".nii.gz": nifti, "DICOM": dicom}


def from_files(path: Path, recipe: str) -> np.ndarray:
    """As in a worker of `headct ingest`: read in this process, then prepared."""
    (scan,) = read([path], isolated=False)
    assert isinstance(scan, Scan), scan
    prepared = prepare(scan, recipe)
    assert isinstance(prepared, Prepared), prepared
    return prepared.array


def timed(run: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """The result and the best time."""
    best_s = float("inf")
    for _ in range(rounds):
        started_s = time.perf_counter()
        result = run()
        best_s = min(best_s, time.perf_counter() - started_s)
    return result, best_s


def published_steps(path: Path) -> Callable[[], np.ndarray]:
    """FM-HCT's transforms from a NIfTI file, or a DICOM series through MONAI's own reader, to float16."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own making
        from monai.transforms import (
            Compose,
            ConcatItemsd,
            CopyItemsd,
            CropForegroundd,
            LoadImaged,
            Orientationd,
            ScaleIntensityRanged,
            Spacingd,
        )
        from monai.transforms import Resized as ResizedTo

    torch.set_num_threads(1)
    windows, size = recipes["fm-hct"].step(Windows), recipes["fm-hct"].step(Resize)
    assert windows is not None
    assert size is not None
    names = [f"window {index}" for index in range(len(windows.windows))]
    reader = "PydicomReader" if path.is_dir() else "NibabelReader"
    steps = Compose(
        [
            LoadImaged("image", reader=reader, image_only=True, ensure_channel_first=True),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", (1.0, 1.0, 1.0), mode=3, padding_mode="nearest"),
            CropForegroundd("image", source_key="image", select_fn=lambda image: image > 0),
            CopyItemsd("image", times=len(names), names=names),
            *(
                ScaleIntensityRanged(name, level - width // 2, level + width // 2, 0.0, 1.0, clip=True)
                for name, (level, width) in zip(names, windows.windows, strict=True)
            ),
            ConcatItemsd(names, "image"),
            ResizedTo("image", size.shape, mode="area"),
        ]
    )

    def run() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return steps({"image": str(path)})["image"].numpy().astype(np.float16)

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
