"""How fast virtual patients are made, and with how much memory: arrays, cohorts at 2 mm and 1 mm, studies as DICOM.

    python benchmarks/simulate.py [PATIENTS]

Workers are begun and have made some patients before the clock starts, as in the middle of a long job; the tables at its
end are not part of it. One worker and two are asked in turn. What neighbours on the machine take is in the figures.
Memory is that of a process that makes some patients itself, as a worker does.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from headct.cohort import executors
from headct.virtual.endless import arrays
from headct.virtual.job import Job, _begin, _files, _prepared
from headct.virtual.simulated import Simulation

Maker = Callable[[Job, Path, int], object]


def _array(job: Job, _folder: Path, index: int) -> None:
    """As `Endless` has it made, but without labels."""
    next(arrays(job.simulation, job.recipe, start=index))


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


def main(patients: int) -> None:
    """Print the table."""
    print(f"{'what':36} {'1 worker':>10} {'2 workers':>10} {'ratio':>7}")
    for name, (make, site, how) in CASES.items():
        count = patients if name.startswith("2 mm") else max(4, patients // 4)
        one, two = (rate(make, site, how, count, workers) for workers in (1, 2))
        print(f"{name:36} {one:8.2f}/s {two:8.2f}/s {two / one:7.2f}", flush=True)
    for case in HEAVY:
        done = subprocess.run([sys.executable, "-c", MEMORY, *case], check=True, capture_output=True, text=True)
        print(f"most memory of a worker, {', '.join(case[:3])}: {int(done.stdout)} MB", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
