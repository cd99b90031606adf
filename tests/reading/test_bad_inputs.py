"""Every kind of input, good or bad, comes out as its table says, and no file is lost on the way.

The oracle for what is accepted is the digital phantom itself: sampled where the scan says its voxels are, it must give
the scan's values. The oracle for what is rejected is the table in `inputs`, written down before the reader was run.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from inputs import KINDS
from inputs.outcomes import Outcome, differences, outcome_of

from headct.scan import FLAGS, REASONS

LARGE = re.compile(r"\d{1,3}(,\d{3})+")
DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory):
    """The outcome of a kind by its name; each input is built and read once."""
    place = tmp_path_factory.mktemp("inputs")

    @cache
    def outcome(name: str) -> Outcome:
        return outcome_of(KINDS[name], place / name)

    return outcome


@pytest.mark.parametrize("name", KINDS)
def test_an_input_comes_out_as_expected(name: str, outcomes) -> None:
    kind = KINDS[name]
    if kind.lacking:
        pytest.skip(f"{name}: {kind.lacking}")
    outcome = outcomes(name)
    assert outcome.rejected == kind.expected.rejected
    assert len(outcome.scans) == kind.expected.scans
    assert outcome.flags == kind.expected.flags
    assert {fault.code for fault in outcome.turned_away} == {kind.expected.prepared} - {""}
    assert_all_files_are_accounted_for(outcome)
    if kind.expected.known:
        assert [differences(scan) for scan in outcome.scans] == [""] * len(outcome.scans)


def assert_all_files_are_accounted_for(outcome: Outcome) -> None:
    """No file is lost, none counted twice: files read and files rejected are the files found."""
    rejected = [file for rejection in outcome.rejections for file in rejection.files]
    assert len(rejected) == len(set(rejected))
    assert set(rejected) <= set(outcome.files)
    read = len(outcome.files) - len(rejected)
    one_slice_a_file = sum(len(scan.hu) for scan in outcome.scans)
    one_volume_a_file, header_and_data = len(outcome.scans), 2 * len(outcome.scans)
    assert read in (one_slice_a_file, one_volume_a_file, header_and_data)


def test_the_table_is_wide_enough() -> None:
    assert len(KINDS) >= 60
    tried = {code for kind in KINDS.values() for code in kind.expected.rejected}
    tried |= {kind.expected.prepared for kind in KINDS.values()} - {""}
    by_criteria_only = {"too-many-slices", "thickness", "kvp", "kernel", "description", "recipe-unfit"}
    by_dying_workers = {"time-limit", "memory-limit", "crashed"}
    by_what_a_cohort_holds = {"split-series"}
    assert set(REASONS) - tried <= by_criteria_only | by_dying_workers | by_what_a_cohort_holds
    flagged = {flag for kind in KINDS.values() for flag in kind.expected.flags}
    assert set(FLAGS) - flagged == set()


def page_writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bad_inputs", DOCS / "scripts" / "bad_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_happens(outcomes) -> None:
    """docs/reference/bad-inputs.md is up to date; `python docs/scripts/bad_inputs.py` writes it.

    Large numbers are not compared: they are sizes of compressed files, which differ between versions of zlib.
    """
    always = {name: outcomes(name) for name, kind in KINDS.items() if kind.lacking is None}
    written = (DOCS / "reference" / "bad-inputs.md").read_text(encoding="utf-8")
    assert LARGE.sub("…", written) == LARGE.sub("…", page_writer().page(always))
