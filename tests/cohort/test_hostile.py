"""A file that kills its worker costs itself, with a reason, and nothing else.

The deaths are real (`cohort.misdeeds`): a null pointer followed, a sleep beyond the limit, memory until there is none.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cohort import misdeeds
from cohort.folders import assert_adds_up, files_below, outcomes

from headct.cohort import Cohort, work
from headct.cohort.ingest import ingest
from headct.cohort.work import Limits
from headct.reading import guard

CODES = {"crash": "crashed", "hang": "time-limit", "hunger": "memory-limit"}


@pytest.fixture(autouse=True)
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "headers_in_cell", misdeeds.headers)
    monkeypatch.setattr(work, "series_in_cell", misdeeds.series)


@pytest.fixture
def source(demo: Path, tmp_path: Path) -> Path:
    for name in ("patient-02", "patient-03"):
        shutil.copytree(demo / name, tmp_path / "in" / name)
    return tmp_path / "in"


def ingested(source: Path, key: Path, *, workers: int = 1, limit_s: float = 60.0) -> Cohort:
    limits = Limits(files_s=limit_s, series_s=limit_s, slice_s=0.0)
    ingest([source], source.parent / "cohort", workers=workers, key=key, limits=limits)
    cohort = Cohort(source.parent / "cohort")
    assert_adds_up(cohort, files_below(source))
    return cohort


@pytest.mark.parametrize("when", ["header", "pixels"])
@pytest.mark.parametrize("deed", ["crash", "hunger"])
def test_one_file_kills(source: Path, key: Path, when: str, deed: str) -> None:
    bad = sorted((source / "patient-03" / "head").iterdir())[5]
    misdeeds.plant(bad, when, deed)
    cohort = ingested(source, key, workers=2)
    by_path = outcomes(cohort)
    assert {path: code for path, code in by_path.items() if code not in cohort} == {
        f"in/patient-03/head/{bad.name}": CODES[deed]
    }
    assert len(cohort) == 2
    flags = cohort.scans.set_index("scan_id")["flags"]
    flagged = ["file-dropped" in flags[scan_id] for scan_id in cohort]
    assert flagged == [False, when == "pixels"]  # a file without a header is in no series that could miss it


@pytest.mark.slow
def test_one_file_hangs(source: Path, key: Path) -> None:
    bad = sorted((source / "patient-02" / "head").iterdir())[3]
    misdeeds.plant(bad, "header", "hang")
    cohort = ingested(source, key, limit_s=8.0)
    assert outcomes(cohort)[f"in/patient-02/head/{bad.name}"] == "time-limit"
    assert len(cohort) == 2


@pytest.mark.slow
def test_several_files_of_a_series_kill(source: Path, key: Path) -> None:
    head = sorted((source / "patient-02" / "head").iterdir())
    for bad in (head[2], head[11], head[-1]):
        misdeeds.plant(bad, "pixels", "crash")
    cohort = ingested(source, key)
    crashed = [path for path, code in outcomes(cohort).items() if code == "crashed"]
    assert crashed == [f"in/patient-02/head/{bad.name}" for bad in (head[2], head[11], head[-1])]
    assert len(cohort) == 2


@pytest.mark.slow
def test_a_series_of_nothing_but_killers_is_given_up(source: Path, key: Path) -> None:
    for bad in (source / "patient-02" / "head").iterdir():
        misdeeds.plant(bad, "pixels", "crash")
    cohort = ingested(source, key)
    assert len(cohort) == 1
    assert {o for p, o in outcomes(cohort).items() if "patient-02" in p} == {"crashed"}


@pytest.mark.slow
def test_deaths_do_not_depend_on_the_number_of_workers(source: Path, key: Path, tmp_path: Path) -> None:
    from cohort.folders import assert_same

    head = sorted((source / "patient-03" / "head").iterdir())
    misdeeds.plant(head[4], "header", "crash")
    misdeeds.plant(head[9], "pixels", "hunger")
    for workers in (1, 3):
        ingest([source], tmp_path / f"cohort-{workers}", workers=workers, key=key)
    assert_same(tmp_path / "cohort-1", tmp_path / "cohort-3")
