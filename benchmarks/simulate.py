"""How fast virtual patients are made, and with how much memory: arrays, cohorts at 2 mm and 1 mm, studies as DICOM.

    python benchmarks/simulate.py [PATIENTS] [--workers 1 2] [--device cuda]

Workers are begun and have made some patients before the clock starts, as in the middle of a long job; the tables at its
end are not part of it. One worker and two are asked in turn, or as many as are named. What neighbours on the machine
take is in the figures. Memory is that of a process that makes some patients itself, as a worker does. With a device
that is not the CPU, only arrays are asked for, painted there and on the CPU, and by how much they differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from headct.cohort import executors
from headct.failure import Misuse
from headct.virtual.endless import arrays
from headct.virtual.job import Job, _begin, _files, _prepared
from headct.virtual.simulated import Simulation

Maker = Callable[[Job, Path, int], object]


def _array(job: Job, _folder: Path, index: int, *, device: str = "cpu") -> np.ndarray:
    """As `Endless` has it made, but without labels."""
    return next(arrays(job.simulation, job.recipe, start=index, device=device))[0]


CASES: dict[str, tuple[Maker, str, dict[str, Any]]] = {
    "2 mm, site-a, arrays without labels": (_array, "site-a", {"recipe": "head"}),
    "2 mm, site-a": (_prepared, "site-a", {"recipe": "head"}),
    "2 mm, site-c (thin slices)": (_prepared, "site-c", {"recipe": "head"}),
    "2 mm, site-a, class maps": (_prepared, "site-a", {"recipe": "head", "masks": True}),
    "1 mm, site-a": (_prepared, "site-a", {"recipe": "head-fine"}),
    "DICOM as it is sent, site-b": (_files, "site-b", {"format": "dicom"}),
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


def rate(make: Maker, site: str, how: dict[str, Any], patients: int, workers: int) -> float:
    """Patients per second, after each worker has made two."""
    job = Job(simulation=Simulation(seed=1, site=site), patients=patients, **how)
    with tempfile.TemporaryDirectory() as folder, executors.processes(workers, _begin) as crew:
        made = partial(make, job, Path(folder))
        for _made in crew.results(made, [(index, index) for index in range(2 * workers)]):
            pass
        started = time.perf_counter()
        for _made in crew.results(made, [(index, index) for index in range(100, 100 + patients)]):
            pass
        return patients / (time.perf_counter() - started)


def show(cases: Mapping[str, tuple[Maker, str, dict[str, Any]]], patients: int, workers: Sequence[int]) -> None:
    """Print a table of rates: one column for each number of workers."""
    print(f"{'what':36} " + " ".join(f"{f'{n} workers' if n > 1 else '1 worker':>10}" for n in workers))
    for name, (make, site, how) in cases.items():
        count = patients if name.startswith("2 mm") else max(4, patients // 4)
        rates = [rate(make, site, how, count, n) for n in workers]
        print(f"{name:36} " + " ".join(f"{each:8.2f}/s" for each in rates), flush=True)


def show_device(device: str, patients: int, workers: Sequence[int]) -> None:
    """Arrays painted on a device beside those of the CPU: how many, and how far apart."""
    where = ("cpu", device)
    cases = {
        f"2 mm, site-a, arrays, on {on}": (partial(_array, device=on), "site-a", {"recipe": "head"}) for on in where
    }
    show(cases, patients, workers)
    job = Job(simulation=Simulation(seed=1), patients=8, recipe="head")
    apart = [
        _array(job, Path(), index, device=device).astype(int) - _array(job, Path(), index)
        for index in range(job.patients)
    ]
    shares = [float(np.mean([np.abs(each) > hu for each in apart])) for hu in (0, 1)]
    print(f"voxels of {job.patients} arrays that differ: {shares[0]:.2g}, by more than 1 HU {shares[1]:.2g}")


def positive(text: str) -> int:
    """At least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def main() -> None:
    """Print the tables."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("patients", nargs="?", type=positive, default=24)
    asked.add_argument("--workers", nargs="+", type=positive, default=[1, 2])
    asked.add_argument("--device", default="cpu")
    options = asked.parse_args()
    if options.device != "cpu":
        try:
            next(arrays(Simulation(), "head-coarse", device=options.device))
        except Misuse as error:
            asked.error(str(error))
        show_device(options.device, options.patients, options.workers)
        return
    show(CASES, options.patients, options.workers)
    for case in HEAVY:
        done = subprocess.run([sys.executable, "-c", MEMORY, *case], check=True, capture_output=True, text=True)
        print(f"most memory of a worker, {', '.join(case[:3])}: {int(done.stdout)} MB", flush=True)


if __name__ == "__main__":
    main()
