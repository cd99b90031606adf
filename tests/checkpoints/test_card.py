"""Model cards: what a reader must know, in a form that the Hub's own parser takes."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from headct import encoders
from headct.checkpoints.card import Card, write_up
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS

TRAINED = {"name": "dino", "teacher_temperature": [0.04, 0.07], "steps": 3}


def written(**facts: Any) -> ModelCard:
    card = Card(recipe=recipes["head"], **{"windows": WINDOWS, "objective": TRAINED, **facts})
    encoder = encoders.build("vit-tiny", depth=1, patch=(8, 8, 8), grid=(2, 2, 2))
    return ModelCard(write_up(card, encoder, "1.2.3"))


def test_the_hub_reads_library_and_tags() -> None:
    facts = written().data
    assert facts.library_name == "headct"
    assert {"head-ct", "feature-extraction", "head"} <= set(facts.tags)
    assert "random-weights" not in facts.tags


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ('Ask us: "research" only #1', {"license": "other", "license_name": 'Ask us: "research" only #1'}),
        ("not stated", {}),
    ],
)
def test_the_hub_reads_the_licence(licence: str, expected: dict[str, str]) -> None:
    card = written(licence=licence)
    assert {key: value for key, value in card.data.to_dict().items() if key.startswith("license")} == expected
    assert f"Licence of the weights: {licence}." in card.text


def test_a_reader_learns_where_it_comes_from_and_what_it_must_be_given() -> None:
    text = written(data=[{"cohort": "night", "scans": 12}]).text
    for fact in (
        "# vit-tiny for head CT",
        f"recipe `head` ({recipes['head'].id})",
        "brain 40/80",
        "Objective: dino, teacher_temperature 0.04 to 0.07, steps 3.",
        "- cohort night, scans 12",
        "not a medical device",
        "Written by headct 1.2.3",
    ):
        assert fact in text
    assert "random" not in text


def test_settings_of_an_objective_stand_in_a_line_of_their_own_and_virtual_patients_are_called_so() -> None:
    settings = {"crops": {"views": 2, "shape": [32, 40, 32], "edge_mm": [158.0, 170.0]}, "batch_norm": True}
    objective = {"name": "dino", "dino": settings, "steps": 3, "continued_from": ""}
    text = written(objective=objective, data=[{"cohort": "night", "virtual": True}]).text
    assert "Objective: dino, steps 3." in text
    assert "- dino (crops (views 2, shape 32 × 40 × 32, edge_mm 158.0 to 170.0), batch_norm yes)" in text
    assert "All of these patients are virtual" in text
    real = written(data=[{"cohort": "night", "virtual": True}, {"cohort": "day", "virtual": False}]).text
    assert "All of these patients are virtual" not in real


def test_random_weights_are_called_random_everywhere() -> None:
    card = written(objective={})
    assert "random-weights" in card.data.tags
    for fact in ("**Its weights are random.**", "Objective: none.", "- none: the weights are random"):
        assert fact in card.text
    assert "trained on" not in card.text


def test_a_trained_encoder_without_recorded_data_is_not_called_random() -> None:
    text = written().text
    assert "- not recorded" in text
    assert "random" not in text


def test_a_recipe_that_scales_needs_no_windows() -> None:
    assert "which also scales them" in written(windows={}).text


@pytest.mark.parametrize("recipe", ["head", "fm-hct", "ct-fm-pretrain"])
def test_a_card_comes_back_from_its_values(recipe: str) -> None:
    data = [{"cohort": "night", "scans": 12}]
    card = Card(recipe=recipes[recipe], windows={"brain": (40.0, 80.0)}, objective=TRAINED, data=data, licence="MIT")
    assert Card.from_config(card.to_config()) == card
