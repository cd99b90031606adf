"""How ingest gains from a second worker, and what a worker needs of memory.

    python benchmarks/ingest.py [--series 200] [--workers 1 2] [--large]

Makes virtual patients as DICOM (every transfer syntax and habit of the demo, in turn), ingests them with each number
of workers, in turn and from the page cache, and checks that the bytes are equal. Needs idle cores: name numbers more
than once (`--workers 1 2 1 2`) to see what else the machine does. `--large` also ingests one series of
512 x 512 x 400 and prints the largest resident memory of the worker that read it.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from headct.cohort.ingest import ingest
from headct.virtual.demonstration import write_demonstration
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=200, help="virtual patients, one head series each")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare_workers(folder, arguments.series, arguments.workers)
        if arguments.large:
            measure_memory(folder)


def compare_workers(folder: Path, series: int, workers: list[int]) -> None:
    """Seconds, rates and ratios; the cohorts must be equal."""
    source, key = folder / "archive", folder / "key"
    key.write_text("ab" * 32)
    print(f"writing {series} virtual patients", file=sys.stderr)
    write_demonstration(source, patients=series)
    size_mb = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 1e6
    print(f"{series} patients, {size_mb:.0f} MB of DICOM, {os.cpu_count()} cores")
    print(f"{'workers':>7} {'seconds':>8} {'scans':>6} {'scans/s':>8} {'ratio':>6} {'cohort MB':>10}")
    first_s: float | None = None
    for run, number in enumerate(workers):
        out = folder / f"cohort-{run}"
        summary = ingest([source], out, workers=number, key=key)
        first_s = first_s or summary.seconds
        print(
            f"{number:7} {summary.seconds:8.1f} {summary.scans:6} {summary.scans_per_s:8.2f} "
            f"{first_s / summary.seconds:5.2f}x {summary.cohort_bytes / 1e6:10.1f}",
            flush=True,
        )
        assert same(folder / "cohort-0", out), "the number of workers changed the bytes"
    shutil.rmtree(source)


def same(one: Path, other: Path) -> bool:
    """True where two folders hold the same bytes."""
    names = [[str(p.relative_to(f)) for p in sorted(f.rglob("*")) if p.is_file()] for f in (one, other)]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, names[0], shallow=False)[1:] == ([], [])


def measure_memory(folder: Path) -> None:
    """Largest resident memory of this process and of its worker during one large series, as DICOM and as recipes go."""
    source = folder / "large"
    print("writing a series of 512 x 512 x 400", file=sys.stderr)
    scan = Phantom(1).scan(slices=400, rows=512, cols=512, pixel_mm=0.45, gap_mm=0.5, noise_hu=6.0)
    write_dicom(scan, source)
    del scan
    print(f"\n{'512 x 512 x 400':20} {'seconds':>8} {'worker MB':>10} {'writer MB':>10}")
    for recipe in ("head", "head-axial", "head-fine", "fm-hct", "ct-fm-pretrain"):
        with Watch() as watch:
            summary = ingest([source], folder / f"large-{recipe}", recipe, workers=1, key=folder / "key")
        print(f"{recipe:20} {summary.seconds:8.1f} {watch.worker_mb:10.0f} {watch.own_mb:10.0f}", flush=True)
        assert summary.scans == 1, summary.rejected


class Watch:
    """Looks at the resident memory of this process and of the largest of its children, many times a second."""

    def __enter__(self) -> Watch:
        self.worker_mb = self.own_mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
            pids = [pid for path in children for pid in path.read_text().split()]
            self.worker_mb = max([self.worker_mb, *(_resident_mb(pid) for pid in pids)])
            self.own_mb = max(self.own_mb, _resident_mb("self"))


def _resident_mb(pid: str) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it has just ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
