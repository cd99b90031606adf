"""Cohorts of scans that are made: in order, whole after an interruption, and never over something else."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headct import Cohort
from headct.cohort.executors import Crew, processes
from headct.cohort.made import Made, make_cohort
from headct.cohort.shards import pack
from headct.cohort.work import Accepted, Outcome, scan_row
from headct.failure import Failure, Misuse
from headct.preparing import Prepared, recipes
from headct.reading.criteria import Criteria
from headct.scan import Header, Rejection, Scan

RECIPE = recipes["head"]
ABOUT = {
    "recipe": {"id": RECIPE.id, "name": RECIPE.name, "content": {}},
    "criteria": Criteria().to_dict(),
    "pseudonyms": "none",
    "hashed_paths": "none",
}


def one(number: int) -> Made:
    """A scan of its number, or a rejection for every third."""
    name = f"item-{number}"
    if number % 3 == 2:
        return Made(Outcome(rejections=(Rejection.because("no-head", "nothing was drawn", (name,)),)))
    hu = np.full((2, 3, 4), number, dtype=np.int16)
    header = Header(scan_id=f"{number:016x}", patient_id=name, study_id=name, series_id=name)
    steps = {"row_step_mm": np.array([0.0, 1, 0]), "col_step_mm": np.array([1.0, 0, 0])}
    scan = Scan(hu=hu, origins_mm=np.array([[0.0, 0, 0], [0, 0, 1]]), thickness_mm=1.0, header=header, **steps)
    packed = pack(hu)
    row = scan_row(scan, Prepared(hu, np.eye(4), RECIPE, 1.0, ()), "here") | {"crc32": packed.crc32}
    accepted = Accepted(
        row=row, files=(name,), shape=packed.shape, dtype=packed.dtype, compressed_bytes=len(packed.chunk)
    )
    return Made(Outcome((accepted,), (), (packed,)), ({"number": number},))


def make(
    out: Path, items: int = 7, work: Callable[[int], Made] = one, finish: Callable[[Any], None] | None = None
) -> list[int]:
    with ThreadPoolExecutor(2) as threads:
        crew = Crew(threads, lambda: 2)
        records: list[Mapping[str, int]] = []
        make_cohort(out, items, work, ABOUT, crew=crew, progress=lambda *_: None, finish=finish or records.extend)
    return [record["number"] for record in records]


def test_everything_made_is_a_scan_or_a_rejection_in_order(tmp_path: Path) -> None:
    assert make(tmp_path / "c") == [0, 1, 3, 4, 6]
    cohort = Cohort(tmp_path / "c")
    assert list(cohort.scans.patient_id) == [f"item-{number}" for number in (0, 1, 3, 4, 6)]
    assert [list(files) for files in cohort.rejections.files] == [["item-2"], ["item-5"]]
    for scan_id, number in zip(cohort.scans.scan_id, (0, 1, 3, 4, 6), strict=True):
        assert (cohort.array(scan_id) == number).all()


def test_an_interrupted_job_does_not_begin_again(tmp_path: Path) -> None:
    made: list[int] = []

    def fails_once(number: int) -> Made:
        if number == 4 and not made.count(-1):
            made.append(-1)
            raise KeyboardInterrupt
        made.append(number)
        return one(number)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "c", work=fails_once)
    before = [number for number in made if number >= 0]
    assert make(tmp_path / "c", work=fails_once) == [0, 1, 3, 4, 6]
    assert 4 not in before
    assert made.count(0) == 1
    make(tmp_path / "whole")
    for path in (tmp_path / "whole").rglob("*.b2nd"):
        assert path.read_bytes() == (tmp_path / "c" / path.relative_to(tmp_path / "whole")).read_bytes()


@pytest.mark.parametrize("moment", ["finish", "publish", "clean"])
def test_an_end_that_is_cut_short_is_made_up_for(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before what belongs beside the tables, before the tables, or before the journal is gone."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    places = {"publish": "headct.cohort.publish.write", "clean": "headct.cohort.made.shutil.rmtree"}
    with monkeypatch.context() as patch:
        if moment in places:
            patch.setattr(places[moment], killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / "c", finish=killed if moment == "finish" else None)
    if moment == "clean":  # it is whole, and only what it was made with is left beside it
        assert not (tmp_path / "c" / ".making" / "unfinished").exists()
    else:
        with pytest.raises(Failure, match="not finished"):
            Cohort(tmp_path / "c")
        assert make(tmp_path / "c") == [0, 1, 3, 4, 6]
        assert not (tmp_path / "c" / ".making").exists()
    assert Cohort(tmp_path / "c").scans["patient_id"].nunique() == 5
    make(tmp_path / "whole")
    for path in (one for one in (tmp_path / "whole").rglob("*") if one.is_file()):
        assert path.read_bytes() == (tmp_path / "c" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_an_unfinished_ingest_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "c" / ".ingest" / "unfinished").mkdir(parents=True)
    with pytest.raises(Misuse, match="other things"):
        make(tmp_path / "c")


def test_other_terms_and_other_things_are_refused(tmp_path: Path) -> None:
    def fails(number: int) -> Made:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        make(tmp_path / "c", work=fails)
    with pytest.raises(Misuse, match="items"):
        make(tmp_path / "c", items=8)
    make(tmp_path / "d")
    with pytest.raises(Misuse, match="already"):
        make(tmp_path / "d")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "mine.txt").write_text("mine")
    with pytest.raises(Misuse, match="other things"):
        make(tmp_path / "e")


def _die(number: int) -> int:
    import os

    os._exit(3)


def test_a_worker_that_is_killed_is_named_with_a_remedy() -> None:
    with pytest.raises(Failure, match="worker was killed"), processes(1) as crew:
        list(crew.results(_die, [(0, 0)]))


def test_a_script_that_asks_for_workers_as_it_is_imported_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from headct.virtual.job import Job, run\n"
        "from headct.virtual.simulated import Simulation\n"
        "job = Job(simulation=Simulation(), patients=1, recipe='head-coarse')\n"
        f"run(job, Path({str(tmp_path / 'out')!r}), workers=1, progress=lambda *_: None)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.stderr.count("no worker could be begun") == 2, done.stderr  # by the worker, and by who asked for it
    assert "another process" not in done.stderr


def _sleep(number: int) -> int:
    time.sleep(600)
    return number


def test_nothing_under_way_goes_on_after_an_error() -> None:
    """A later call might be at the same files."""

    def stopped() -> None:
        with processes(2) as crew:
            futures = [crew.executor.submit(_sleep, number) for number in range(2)]
            while not any(future.running() for future in futures):
                time.sleep(0.01)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    for worker in multiprocessing.active_children():
        worker.join(timeout=120)
        assert not worker.is_alive()


def _interrupt_itself(number: int) -> int:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGINT)
    return number


def test_workers_leave_control_c_to_the_job() -> None:
    with processes(2) as crew:
        assert sorted(crew.results(_interrupt_itself, enumerate(range(4)))) == [(n, n) for n in range(4)]
