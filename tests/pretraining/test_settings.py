"""Settings: written as TOML, read again to the same value, and a wrong key is named."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from headct.failure import Misuse
from headct.pretraining import PretrainSettings, limits, settings_for, to_pairs, to_toml
from headct.pretraining.objectives.dino import DinoSettings
from headct.pretraining.objectives.mae import MaeSettings
from headct.pretraining.settings import from_toml
from headct.pretraining.views import Crops, ViewSettings

CHANGED = PretrainSettings(
    steps=12,
    encoder="vit-small",
    encoder_settings={"patch": [8, 8, 8], "pooling": "mean", "qkv_bias": False},
    windows={"brain": (40.0, 80.0)},
    objectives={
        "dino": DinoSettings(
            prototypes=64,
            teacher_temperature=(0.02, 0.07),
            local_crops=Crops(views=0, shape=(8, 8, 8), edge_mm=(10.0, 20.0), overhang=0.2),
        )
    },
    views=ViewSettings(mirror=0.5),
    shares={"night": 2.0},
    licence='with "quotes" and \\ a backslash',
)


@pytest.mark.parametrize("settings", [PretrainSettings(budget_s=60.0), CHANGED])
def test_toml_gives_the_same_settings_again(settings: PretrainSettings) -> None:
    text = to_toml(settings)
    assert from_toml(text) == settings
    assert to_toml(from_toml(text)) == text
    assert list(tomllib.loads(text)["objectives"]) == ["dino"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3", "unknown key 'step'\n  do:  did you mean steps"),
        ("steps = 3\n[objectives.dino]\nprototype = 5", "'prototype'\n  do:  did you mean prototypes"),
        ("steps = 3\n[objectives.dinosaur]", "no objective is called 'dinosaur'"),
        ("steps = 'many'", "steps must be a whole number, got 'many'\n  do:  write a value of that kind"),
        (
            "steps = 3\n"
            "objectives.dino.global_crops = {views = 1, shape = [8, 8, 8], edge_mm = [9.0, 9.0], overhang = 0.0}\n"
            "objectives.dino.local_crops = {views = 0, shape = [8, 8, 8], edge_mm = [9.0, 9.0], overhang = 0.0}",
            "dino compares views",
        ),
        ("steps = 3\nclip = true", "clip must be a number, got True"),
        ("steps = 3\ndecay = [0.1]", "decay must be"),
        ("steps = 3\n[objectives.dino.global_crops]\nviews = 2", "lacks the key 'shape'"),
        ("steps = 3\nwindows = {brain = 40}", "windows.brain must be"),
        ("steps = ", "is not TOML"),
        ("batch = 2", "needs a length"),
        (
            "steps = 3\nobjectives = 'dino'",
            "must be a table, got 'dino'\n  do:  write a table for each, [objectives.dino]",
        ),
        ("steps = 3\nobjectives = ['mae']", "do:  write a table for each, [objectives.mae]"),
        ("steps = 3\nobjectives = [[]]", "objectives must be a table"),
        ("steps = 3\nbatch = 0", "batch must be above zero"),
        ("steps = 3\nprecision = 'float16'", "precision must be one of fp32, bf16"),
        ("steps = 3\nwindows = {}", "at least one window"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(Misuse) as caught:
        from_toml(text)
    assert message in str(caught.value)


def test_what_is_given_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(to_toml(CHANGED))
    settings = settings_for(tmp_path / "s.toml", encoder="vit-tiny", budget_s=5.0, seed=None)
    assert settings.encoder == "vit-tiny"
    assert (settings.steps, settings.budget_s) == (None, 5.0)
    assert settings.objectives == CHANGED.objectives
    named = settings_for(tmp_path / "s.toml", objective="dino+mae").objectives
    assert named == {"dino": CHANGED.objectives["dino"], "mae": MaeSettings()}  # the file says nothing of mae
    with pytest.raises(Misuse, match=r"no\.toml cannot be read"):
        settings_for(tmp_path / "no.toml")


def test_names_that_toml_would_read_otherwise_are_quoted() -> None:
    settings = PretrainSettings(
        steps=3, shares={"cq500.v1": 1.0, "my cohort": 2.0, 'say "ä"': 0.5}, windows={"brain.soft tissue": (40.0, 80.0)}
    )
    assert from_toml(to_toml(settings)) == settings


@pytest.mark.parametrize(
    "wrong", [{"clip": 0.0}, {"clip": -1.0}, {"warmup": 3.0}, {"lr_end": -1e-3}, {"decay": (-0.1, 0.4)}, {"seed": -1}]
)
def test_a_number_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Misuse, match=next(iter(wrong))):
        PretrainSettings(steps=3, **wrong)


def test_precisions_have_the_names_they_have_elsewhere() -> None:
    for name, short in (("fp32", "fp32"), ("float32", "fp32"), ("bf16", "bf16"), ("bfloat16", "bf16")):
        settings = from_toml(f"steps = 3\nprecision = '{name}'")
        assert settings == PretrainSettings(steps=3, precision=short)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60s", (60, None)),
        ("1.5m", (90, None)),
        ("8 H", (28800, None)),
        ("12GB", (None, 12)),
        ("512MB", (None, 0.512)),
        (None, (None, None)),
    ],
)
def test_limits_have_units(text: str | None, expected: tuple[float | None, float | None]) -> None:
    assert limits(text) == expected


@pytest.mark.parametrize("text", ["60", "12 TB", "s", "-5s"])
def test_a_limit_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(Misuse, match="is neither a time nor a memory"):
        limits(text)


def test_a_page_lists_settings_by_dotted_names() -> None:
    listed = to_pairs(CHANGED)
    assert listed["objectives.dino.prototypes"] == "64"
    assert listed["windows.brain"] == "[40.0, 80.0]"
    assert "epochs" not in listed


def test_auto_is_taken_out_and_named() -> None:
    text = "steps = 3\nlr = 'auto'\ndevice = 'auto'\n[objectives.dino]\nprototypes = 'auto'\nhidden = 64"
    settings = from_toml(text)
    assert settings.auto == ("lr", "objectives.dino.prototypes")
    assert settings.device == "auto"
    assert settings.objectives == {"dino": DinoSettings(hidden=64)}
    assert from_toml(to_toml(settings)) == settings
    assert from_toml("epochs = 'auto'").auto == ("epochs",)
    given = from_toml(text, lr=0.5, objectives={"dino": DinoSettings(prototypes=9)})  # goes before the file
    assert given.auto == ()
    assert given.lr == 0.5


def test_without_a_file_all_that_is_not_given_is_auto() -> None:
    settings = settings_for(None, objective="dino+mae", batch=4, budget_s=60.0)
    assert list(settings.objectives) == ["dino", "mae"]
    assert {"batch", "epochs", "steps"}.isdisjoint(settings.auto)
    assert {"lr", "objectives.dino.prototypes"} <= set(settings.auto)
    assert "epochs" in settings_for(None, objective="dino").auto
