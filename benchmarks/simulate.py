"""How fast virtual patients are made, and with how much memory: arrays at 2 mm and 1 mm, studies as DICOM.

    python benchmarks/simulate.py [PATIENTS]

Every line is one call of `headct simulate`, its workers' start-up included and then taken off by a second call with
twice as many patients. Memory is that of a process that makes some of them itself, as a worker does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "2 mm, site-a": ("--recipe", "head"),
    "2 mm, site-c (thin slices)": ("--recipe", "head", "--site", "site-c"),
    "2 mm, site-a, class maps": ("--recipe", "head", "--masks"),
    "1 mm, site-a": ("--recipe", "head-fine"),
    "DICOM as it is sent, site-b": ("--format", "dicom", "--site", "site-b"),
}

MEMORY = """
import resource, sys, tempfile
from pathlib import Path
from headct.virtual.job import Job, _begin, _files, _prepared
from headct.virtual.simulated import Simulation
_begin()
site, recipe, form, patients = sys.argv[1:]
job = Job(simulation=Simulation(seed=1, site=site), patients=int(patients), recipe=recipe, format=form)
with tempfile.TemporaryDirectory() as folder:
    for index in range(job.patients):
        (_prepared if form == "cohort" else _files)(job, Path(folder), index)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
HEAVY = (("site-a", "head", "cohort", "4"), ("site-a", "head-fine", "cohort", "2"), ("site-c", "head", "dicom", "1"))
"""Site, recipe, format and patients of what memory is asked of."""


def seconds(options: tuple[str, ...], patients: int, workers: int) -> float:
    """Of one call."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        line = ["simulate", "--patients", str(patients), "--seed", "1", "--workers", str(workers), "--quiet"]
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "headct", *line, *options, "--out", out], check=True)
        return time.perf_counter() - started


def rate(options: tuple[str, ...], patients: int, workers: int) -> float:
    """Scans per second, without the start."""
    return patients / (seconds(options, 2 * patients, workers) - seconds(options, patients, workers))


def main(patients: int) -> None:
    """Print the table."""
    print(f"{'what':32} {'1 worker':>10} {'2 workers':>10} {'ratio':>7}")
    for name, options in CASES.items():
        count = patients if name.startswith("2 mm") else max(4, patients // 4)
        one, two = rate(options, count, 1), rate(options, count, 2)
        print(f"{name:32} {one:8.2f}/s {two:8.2f}/s {two / one:7.2f}", flush=True)
    for case in HEAVY:
        done = subprocess.run([sys.executable, "-c", MEMORY, *case], check=True, capture_output=True, text=True)
        print(f"most memory of a worker, {', '.join(case[:3])}: {int(done.stdout)} MB", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
