"""What is "auto": worked out from facts alone, said with its reason, stored, and the same when the run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pretraining.test_loop import SMALL, cohort

from headct.failure import Misuse
from headct.pretraining import PretrainSettings, pretrain, read_settings
from headct.pretraining.auto import Facts, everything, resolved, value_of, with_value
from headct.pretraining.settings import objective_settings

FEW = Facts(scans=40, weights=5_000_000, on_gpu=False, processes=1)
MANY = Facts(scans=361_663, weights=86_000_000, on_gpu=True, processes=8)
OPEN = PretrainSettings(steps=100_000, auto=everything(PretrainSettings(steps=1)))


@pytest.mark.parametrize("facts", [FEW, MANY])
def test_everything_that_is_auto_gets_a_value_and_a_reason(facts: Facts) -> None:
    settings, choices = resolved(OPEN, facts)
    assert settings.auto == ()
    assert [choice.name for choice in choices] == list(OPEN.auto)
    assert all(choice.reason and value_of(settings, choice.name) == choice.value for choice in choices)


def test_values_grow_with_the_cohort_and_fall_with_the_model() -> None:
    few, many = (resolved(replace(OPEN, steps=n), facts)[0] for n, facts in ((1000, FEW), (100_000, MANY)))
    assert (few.batch, many.batch) == (8, 512)
    assert (few.epochs, many.epochs) == (200, 10)
    assert (few.objectives["dino"].prototypes, many.objectives["dino"].prototypes) == (64, 65536)
    assert few.lr == many.lr == 5e-4  # a small model and a small batch, a large one and a large one
    assert few.objectives["dino"].teacher_momentum[0] < many.objectives["dino"].teacher_momentum[0] < 1


@pytest.mark.parametrize("name", ["mae", "jepa", "hybrid", "simclr", "rescan", "twin"])
def test_crops_are_coarser_on_a_processor(name: str) -> None:
    told = PretrainSettings(steps=100, objectives={name: objective_settings(name)}, batch=8)
    here, there = (resolved(replace(told, auto=everything(told)), facts)[0].objectives[name] for facts in (FEW, MANY))
    field = "crop" if name in ("rescan", "twin") else "crops"
    assert np.prod(getattr(here, field).shape) < np.prod(getattr(there, field).shape)
    assert getattr(here, field).edge_mm == getattr(there, field).edge_mm


def test_a_teacher_of_small_batches_is_sharp() -> None:
    few, many = (resolved(OPEN, facts)[0] for facts in (FEW, MANY))
    assert few.objectives["dino"].teacher_temperature == (0.02, 0.02)
    assert many.batch >= 256
    assert many.objectives["dino"].teacher_temperature == (0.04, 0.07)


def test_prototypes_among_which_views_are_shared_out_evenly_are_as_many_as_there_are_views() -> None:
    told = PretrainSettings(steps=100, objectives={"dinov2": objective_settings("dinov2")}, batch=64)
    settings, _ = resolved(replace(told, auto=("objectives.dinov2.prototypes",)), MANY)
    assert settings.objectives["dinov2"].prototypes == 128


@pytest.mark.parametrize(("scans", "processes"), [(1000, 3), (1000, 6), (16, 8)])
def test_a_batch_can_be_shared_out(scans: int, processes: int) -> None:
    facts = Facts(scans=scans, weights=1, on_gpu=True, processes=processes)
    batch = resolved(OPEN, facts)[0].batch
    assert batch % processes == 0
    assert batch >= 2 * processes


def test_what_follows_from_the_length_waits_for_it() -> None:
    early, chosen = resolved(OPEN, FEW, length_known=False)
    assert early.auto == ("objectives.dino.teacher_momentum",)
    assert "objectives.dino.teacher_momentum" not in [choice.name for choice in chosen]
    assert resolved(replace(early, steps=200), FEW)[0].objectives["dino"].teacher_momentum == (0.98, 1.0)
    assert resolved(replace(early, steps=20_000), FEW)[0].objectives["dino"].teacher_momentum == (0.9968, 1.0)


def test_values_stand_under_dotted_names() -> None:
    changed = with_value(OPEN, "objectives.dino.prototypes", 7)
    assert value_of(changed, "objectives.dino.prototypes") == 7
    assert value_of(OPEN, "objectives.dino.prototypes") != 7
    assert replace(changed, objectives=OPEN.objectives) == OPEN


def test_what_has_no_rule_is_refused() -> None:
    with pytest.raises(Misuse, match="seed cannot be auto"):
        resolved(replace(OPEN, auto=("seed",)), FEW)


def test_a_run_says_stores_and_keeps_what_was_chosen(tmp_path: Path) -> None:
    said: list[str] = []
    settings = replace(SMALL, steps=2, auto=("batch", "lr"))
    run = pretrain([cohort()], tmp_path / "run", settings, progress=said.append)
    assert said[0].startswith("batch = 2: a quarter of 5 scans")
    assert said[1].startswith("lr = 0.0005: ")
    stored = read_settings(tmp_path / "run" / "settings.toml")
    assert (stored.batch, stored.lr, stored.auto) == (2, 5e-4, ())
    assert pretrain([cohort()], tmp_path / "run", settings).settings == run.settings
