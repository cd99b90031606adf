"""One scan from whatever holds it, and why not where there is none, or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detection import made

from headct.cohort import Cohort
from headct.embedding.inputs import Reading, one_scan
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.reading import Criteria

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
    with pytest.raises(Misuse, match=r"there is no typo, and no scan of that id in .*night"):
        one_scan("typo", READING, cohort)
    with pytest.raises(Misuse, match=r"there is no typo$|there is no typo\n"):
        one_scan("typo", READING)
    with pytest.raises(Misuse, match="is a cohort of several scans"):
        one_scan(cohort.path, READING, cohort)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match=r"no scan in .*empty can be used"):
        one_scan(tmp_path / "empty", READING)
    other = made.make(tmp_path / "other", 2, recipe=recipes["head-fine"])
    with pytest.raises(Misuse, match="the model uses head"):
        one_scan(next(iter(other)), READING, other)
