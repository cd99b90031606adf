"""What a head is before any disease, over many: size by sex, calcification by age, grey from white, the sella.

Sources of the ranges: intracranial volume of adults about 1,500 ± 125 ml (men) and 1,330 ± 115 ml (women); calcified on
CT: pineal gland in 60-80 %, choroid plexus in 50-75 % above 40 years, more with age (71 % and 66 % of 1,569 adults,
PMID 17594669).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from headct.virtual.anatomy import Anatomy
from headct.virtual.bending import COARSE, undiseased
from headct.virtual.patient import Patient
from headct.virtual.template import template
from headct.virtual.tissue import SELLA_MM

MANY = 400


def share(name: str, age: float) -> float:
    """How many of many heads of an age have it calcified."""
    return float(np.mean([getattr(Anatomy.draw(seed, age=age), f"{name}_hu") > 0 for seed in range(MANY)]))


def cavity_ml(anatomy: Anatomy) -> float:
    """Of the coarse grid's points within the skull, above the spine."""
    coarse = undiseased(anatomy, template())
    within = (coarse.cavity_mm < 0) & (coarse.template_mm[:, 2] > -66)
    return int(within.sum()) * COARSE.step_mm**3 / 1000


@pytest.mark.parametrize(("sex", "mean", "sd"), [("M", 1500, 125), ("F", 1330, 115)])
def test_cavities_are_as_large_and_as_varied_as_those_of_adults(sex: str, mean: float, sd: float) -> None:
    volumes = [cavity_ml(Anatomy.draw(seed, sex=sex)) for seed in range(150)]
    assert np.mean(volumes) == pytest.approx(mean, abs=40)
    assert np.std(volumes) == pytest.approx(sd, abs=30)
    assert min(volumes) > 900
    assert max(volumes) < 2000


def test_a_given_sex_changes_the_size_alone() -> None:
    man, woman = (Anatomy.draw(5, sex=sex) for sex in "MF")
    assert man.mean_scale < woman.mean_scale  # fewer template millimetres to one of a larger head
    alike = replace(woman, sex="M", scale=man.scale, skull_mm=man.skull_mm)
    assert alike == man


@pytest.mark.parametrize(
    ("name", "age", "low", "high"),
    [
        ("pineal", 20, 0.45, 0.65), ("pineal", 45, 0.6, 0.8), ("pineal", 80, 0.7, 0.88),
        ("plexus", 20, 0.28, 0.48), ("plexus", 45, 0.48, 0.66), ("plexus", 80, 0.68, 0.84),
    ],
)  # fmt: skip
def test_calcification_comes_with_age(name: str, age: float, low: float, high: float) -> None:
    assert low < share(name, age) < high


def test_grey_is_brighter_than_white_by_what_is_published() -> None:
    gaps = [(one := Anatomy.draw(seed)).grey_hu - one.white_hu for seed in range(MANY)]
    assert np.mean(gaps) == pytest.approx(9.7, abs=0.5)  # 5 to 8 HU are left after partial volume
    assert min(gaps) > 5
    assert max(gaps) < 14.5


def test_the_sella_holds_a_gland_between_bone() -> None:
    """From front to back in the midline: tuberculum or sphenoid, gland, dorsum."""
    for seed in range(5):
        patient = Patient(seed, Anatomy.draw(seed))
        along = torch.arange(-16.0, 16.0, 0.5)
        template_mm = torch.tensor(SELLA_MM) + along[:, None] * torch.tensor((0.0, 1.0, 0.0))
        at, missed_mm = patient.bend.head_of(template_mm.numpy(), brain=False)
        hu = patient.paint(torch.from_numpy(at).float(), 0.5).hu
        middle = hu[along.abs() < 3]
        assert missed_mm.max() < 0.1
        assert middle.min() > 30
        assert middle.max() < 65
        assert hu[(along < -5) & (along > -13)].max() > 500
        assert hu[(along > 5) & (along < 16)].max() > 500
