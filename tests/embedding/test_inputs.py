"""One scan from whatever holds it, and why not where there is none, or several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detection import made

from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.embedding.inputs import TRAITS, Reading, Ready, one_scan, stream
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.reading import Criteria
from headct.scan import Header, Scan
from headct.virtual.phantom import Phantom
from headct.writing import write_dicom

READING = Reading(recipe=recipes["head"], criteria=Criteria())


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return made.make(tmp_path_factory.mktemp("cohorts") / "night", 3)


def test_a_scan_of_a_cohort_is_found_by_its_id(cohort: Cohort) -> None:
    scan_id = list(cohort)[1]
    found = one_scan(scan_id, READING, cohort)
    assert found.ids["scan_id"] == scan_id
    assert found.ids["patient_id"] == cohort.scans["patient_id"].iloc[1]
    np.testing.assert_array_equal(found.array, cohort.array(scan_id))
    np.testing.assert_array_equal(found.affine, cohort.affine(scan_id))


def test_a_cohort_of_one_scan_is_that_scan(tmp_path: Path) -> None:
    alone = made.make(tmp_path / "alone", 1)
    assert one_scan(alone.path, READING).ids["scan_id"] == next(iter(alone))


def test_what_is_not_one_scan_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"there is no file or folder typo, and no scan of that id in .*night"):
        one_scan("typo", READING, cohort)
    with pytest.raises(Misuse, match=r"there is no file or folder typo$|file or folder typo\n"):
        one_scan("typo", READING)
    with pytest.raises(Misuse, match="is a cohort of several scans") as several:
        one_scan(cohort.path, READING, cohort)
    assert f"such as {next(iter(cohort))}, with --in {cohort.path}" in several.value.do
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match=r"no scan in .*empty can be used"):
        one_scan(tmp_path / "empty", READING)
    other = made.make(tmp_path / "other", 2, recipe=recipes["head-fine"])
    with pytest.raises(Misuse, match="the model uses head"):
        one_scan(next(iter(other)), READING, other)


def test_of_several_scans_it_says_what_to_name(tmp_path: Path) -> None:
    """And that works: the folder or file of one, or, where they lie in one folder, the ids that a cohort has."""
    for number, place in enumerate(("apart/first", "apart/second")):
        write_dicom(small_head(number), tmp_path / place)
    with pytest.raises(Misuse, match="apart holds 2 scans") as said:
        one_scan(tmp_path / "apart", READING)
    first, second = said.value.do.removeprefix("name one of them: ").split(", ")
    assert (Path(first), Path(second)) == (tmp_path / "apart" / "first", tmp_path / "apart" / "second")
    (tmp_path / "mixed").mkdir()
    for file in (tmp_path / "apart").rglob("*.dcm"):
        file.rename(tmp_path / "mixed" / f"{file.parent.name}-{file.name}")
    with pytest.raises(Misuse, match="mixed holds 2 scans") as said:
        one_scan(tmp_path / "mixed", READING)
    assert f"headct ingest {tmp_path / 'mixed'} --recipe head --out COHORT" in said.value.do
    ids = said.value.do.rpartition(": ")[2].split(", ")
    ingest([tmp_path / "mixed"], tmp_path / "cohort", workers=1)
    assert sorted(ids) == sorted(Cohort(tmp_path / "cohort"))


def test_a_scan_that_is_no_cohorts_tells_of_itself_what_a_cohorts_table_tells(cohort: Cohort) -> None:
    header = Header(scan_id="s", manufacturer="ACME", model="One", kernel="Hr40", contrast=False, age=71.0, sex="F")
    (_, items) = next(stream(replace(small_head(0), header=header), READING, workers=1))
    assert items is not None
    (ready,) = items
    assert isinstance(ready, Ready)
    assert set(ready.traits) == set(TRAITS)
    assert set(TRAITS) <= set(cohort.scans)
    told = {name: ready.traits[name] for name in ("manufacturer", "model", "kernel", "contrast", "age", "sex")}
    assert told == {name: getattr(header, name) for name in told}
    assert ready.traits["tilt_deg"] == pytest.approx(0, abs=1e-6)


def small_head(number: int) -> Scan:
    return Phantom(seed=number).scan(slices=30, rows=64, cols=64, pixel_mm=3.6, noise_hu=4)
