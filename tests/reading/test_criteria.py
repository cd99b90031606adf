"""Selection. Every rule is tried on headers that meet it and on headers that miss it by one thing."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading.headers import instance, stack

from headct.failure import Misuse
from headct.reading.criteria import CRITERIA, Criteria, is_sharp, judge, judge_scan, named, preference, preferred
from headct.reading.files import Source
from headct.reading.instances import GridFile
from headct.reading.series import Volume, assemble
from headct.scan import Header, Scan

LAX = Criteria(contrast="any", min_slices=1)


def volume(slices: int = 30, step_mm: float = 5.0, **changes) -> Volume:
    ((one,), rejections) = assemble(stack(slices, step_mm, **changes))
    assert rejections == []
    return one


def code(one: Volume, criteria: Criteria) -> str:
    rejection = judge(one, criteria)
    if rejection is None:
        return ""
    assert rejection.files == one.files
    assert rejection.sentence
    return rejection.code


def test_an_ordinary_head_meets_the_default_criteria():
    assert code(volume(), Criteria()) == ""


@pytest.mark.parametrize(
    ("given_", "refused_by"),
    [(True, {"none"}), (False, {"only"}), (None, {"only"})],
)
def test_contrast(given_, refused_by):
    for contrast in ("none", "any", "only"):
        expected = "contrast" if contrast in refused_by else ""
        assert code(volume(contrast=given_), Criteria(contrast=contrast)) == expected


def test_contrast_in_one_slice_counts():
    images = stack(10)
    images[4] = replace(images[4], contrast=True)
    assert code(assemble(images)[0][0], Criteria()) == "contrast"


@pytest.mark.parametrize(
    ("criteria", "fits", "misses", "reason"),
    [
        ({"min_slices": 5}, {"slices": 5}, {"slices": 4}, "too-few-slices"),
        ({"max_slices": 5}, {"slices": 5}, {"slices": 6}, "too-many-slices"),
        ({"thickness_mm": (1.0, 5.0)}, {"thickness_mm": 5.0}, {"thickness_mm": 5.5}, "thickness"),
        ({"thickness_mm": (1.0, 5.0)}, {"thickness_mm": 1.0}, {"thickness_mm": 0.6}, "thickness"),
        ({"thickness_mm": (1.0, 5.0)}, {"thickness_mm": 1.0}, {}, "thickness"),
        ({"kvp": (100, 120)}, {"kvp": 120.0}, {"kvp": 140.0}, "kvp"),
        ({"kvp": (100, 120)}, {"kvp": 120.0}, {}, "kvp"),
        ({"kernels": ("hr4*", "J37s")}, {"kernel": "Hr40s/3"}, {"kernel": "Hr60s"}, "kernel"),
        ({"kernels": ("hr4*",)}, {"kernel": "Hr40s"}, {}, "kernel"),
        (
            {"descriptions": ("*head*",)},
            {"study_description": "CT HEAD W/O"},
            {"study_description": "CHEST"},
            "description",
        ),
        ({"descriptions": ("*head*",)}, {"series_description": "Head 5.0"}, {}, "description"),
    ],
)
def test_each_rule(criteria, fits, misses, reason):
    criteria = replace(LAX, **criteria)
    assert code(volume(**fits), criteria) == ""
    assert code(volume(**misses), criteria) == reason


def test_what_the_first_slice_does_not_state_the_others_do():
    stated = {"kernel": "H30s", "kvp": 120.0, "thickness_mm": 5.0}
    images = [instance(0.0), *stack(29, first_mm=5.0, **stated)]
    asked = replace(LAX, kernels=("H30*",), kvp=(120,), thickness_mm=(4.0, 6.0))
    assert code(assemble(images)[0][0], asked) == ""


def test_a_description_is_not_repeated_in_the_rejection():
    rejection = judge(volume(study_description="JANE DOE"), replace(LAX, descriptions=("*head*",)))
    assert "DOE" not in rejection.sentence


def test_repeated_positions_can_be_refused():
    doubled = assemble([*stack(10), instance(15.0, name="again.dcm")])[0][0]
    assert code(doubled, LAX) == ""
    assert code(doubled, replace(LAX, repeated_positions=False)) == "same-position"


def test_ct_fm_takes_what_its_authors_took():
    criteria = CRITERIA["ct-fm"]
    assert code(volume(51, 2.5, thickness_mm=2.5, contrast=True, kernel="B70f"), criteria) == ""
    assert code(volume(50, 2.5, thickness_mm=2.5), criteria) == "too-few-slices"
    assert code(volume(51, 0.6, thickness_mm=0.6), criteria) == "thickness"
    assert not criteria.check_head


def test_fm_hct_takes_what_its_table_lists():
    fits = {"kernel": "Hr40s/3", "kvp": 120.0, "study_description": "CT HEAD/BRAIN WITHOUT IV CONTRAST"}
    criteria = CRITERIA["fm-hct"]
    assert code(volume(**fits), criteria) == ""
    for misses, reason in (
        ({"kernel": "Hr60s"}, "kernel"),
        ({"kvp": 140.0}, "kvp"),
        ({"study_description": "SINUS"}, "description"),
    ):
        assert code(volume(**{**fits, **misses}), criteria) == reason


def scan(slices: int = 30, thickness_mm: float = 5.0) -> Scan:
    origins_mm = np.outer(np.arange(slices), [0.0, 0, thickness_mm])
    hu = np.zeros((slices, 4, 4), np.int16)
    return Scan(hu, origins_mm, np.array([0.0, -1, 0]), np.array([-1.0, 0, 0]), thickness_mm, Header())


def test_a_grid_file_is_judged_when_it_has_been_read():
    grid = Volume(grid=GridFile(Source("/a", None, "a.nii", 1), "nifti", "00"))
    assert judge(grid, CRITERIA["ct-fm"]) is None
    assert judge_scan(scan(51), CRITERIA["ct-fm"], ("a.nii",)) is None
    assert judge_scan(scan(50), CRITERIA["ct-fm"], ("a.nii",)).code == "too-few-slices"
    assert judge_scan(scan(51, 6.0), CRITERIA["ct-fm"], ("a.nii",)).code == "thickness"
    assert judge_scan(scan(), CRITERIA["fm-hct"], ("a.nii",)).code == "kvp"


# TOML


@pytest.mark.parametrize("name", CRITERIA)
def test_named_criteria_survive_toml(name):
    assert Criteria.from_toml(CRITERIA[name].to_toml()) == named(name) == CRITERIA[name]


pattern = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=20)


@given(
    kernels=st.lists(pattern, max_size=3),
    thickness=st.none() | st.tuples(st.floats(0, 5), st.floats(5, 10)),
    kvp=st.lists(st.floats(70, 150), max_size=3),
    coverage=st.none() | st.floats(0, 1),
    check_head=st.booleans(),
)
def test_criteria_survive_toml(kernels, thickness, kvp, coverage, check_head):
    criteria = Criteria(
        kernels=tuple(kernels), thickness_mm=thickness, kvp=tuple(kvp), min_coverage=coverage, check_head=check_head
    )
    assert Criteria.from_toml(criteria.to_toml()) == criteria


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path):
    (tmp_path / "c.toml").write_text('check_head = false\nthickness_mm = [1, 5]\nkernels = ["H3*"]\n')
    assert named(str(tmp_path / "c.toml")) == Criteria(check_head=False, thickness_mm=(1, 5), kernels=("H3*",))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("min_slice = 3", "did you mean min_slices"),
        ("kernel = ['a']", "did you mean kernels"),
        ("zzz = 1", "fields are check_head"),
        ("min_slices = true", "whole number"),
        ("min_slices = 0", "at least 1"),
        ("max_slices = 2", "below min_slices"),
        ("min_coverage = 1.5", "0..1"),
        ("thickness_mm = [5, 1]", "least, most"),
        ("thickness_mm = [1]", "least, most"),
        ("thickness_mm = 5", "list of numbers"),
        ("kernels = 'H30'", "list of texts"),
        ("contrast = 'maybe'", "one of none, any, only"),
        ("prefer = 'best'", "one of thin, thick"),
        ("check_head = 'no'", "true or false"),
        ("= 3", "not TOML"),
    ],
)
def test_mistakes_are_named(text, says):
    with pytest.raises(Misuse) as misuse:
        Criteria.from_toml(text)
    assert says in str(misuse.value)


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "c.toml").write_bytes('descriptions = ["*schädel*"]'.encode("latin-1"))
    with pytest.raises(Misuse, match="save it as UTF-8"):
        named(str(tmp_path / "c.toml"))


def test_unknown_criteria_are_named():
    with pytest.raises(Misuse, match="no criteria 'fmhct'"):
        named("fmhct")


def test_every_field_has_a_kind_in_toml():
    for field in fields(Criteria):
        with pytest.raises(Misuse):
            Criteria.from_toml(f"{field.name} = {{}}")


# One series of a study


def row(scan_id: str = "a", **changes) -> dict:
    plain = {
        "scan_id": scan_id,
        "study_id": "s",
        "kernel": "H31s",
        "contrast": None,
        "coverage": 1.0,
        "thickness_mm": 5.0,
        "gap_median_mm": 5.0,
    }
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"kernel": "H60s", "thickness_mm": 1.0}),
        ({}, {"kernel": "BONEPLUS"}),
        ({"thickness_mm": 1.0}, {"thickness_mm": 5.0}),
        ({"thickness_mm": 5.0}, {"thickness_mm": 0.6}),
        ({"thickness_mm": 5.0}, {"thickness_mm": 10.0}),
        ({"thickness_mm": 0.0, "gap_median_mm": 2.0}, {"thickness_mm": 3.0}),
        ({}, {"contrast": True, "thickness_mm": 1.0}),
        ({}, {"coverage": 0.5, "thickness_mm": 1.0}),
        ({"coverage": 0.98, "thickness_mm": 1.0}, {"coverage": 1.0}),
        ({"coverage": None}, {"coverage": 0.5}),
    ],
)
def test_the_better_series_of_a_study_is_preferred(better, worse):
    rows = [row("b", **better), row("a", **worse)]
    assert preferred(rows) == preferred(rows[::-1]) == {"b"}


def test_thick_slices_are_preferred_if_asked_and_ties_are_settled_by_id():
    rows = [row("a", thickness_mm=1.0), row("b", thickness_mm=5.0), row("c", thickness_mm=8.0)]
    assert preferred(rows) == {"a"}
    assert preferred(rows, prefer="thick") == {"b"}
    assert preferred([row("b"), row("a")]) == {"a"}
    assert preferred([row("b"), row("a", study_id="t")]) == {"a", "b"}
    assert preference(row("a")) < preference(row("b"))


@pytest.mark.parametrize(
    "kernel", ["H31s", "Hr40f/3", "J37s", "UB", "UA", "STANDARD", "STD+", "SOFT", "FC21", "FC64", "", "11"]
)
def test_brain_kernels_are_not_sharp(kernel):
    assert not is_sharp(kernel)


@pytest.mark.parametrize(
    "kernel", ["H60s", "Hr64f/3", "J70h", "BONE", "BONEPLUS", "BONE+", "EDGE", "YA", "D", "FC30", "FC81", "LUNG"]
)
def test_bone_and_lung_kernels_are_sharp(kernel):
    assert is_sharp(kernel)
