"""Recipes as values: what makes two of them the same, and what a wrong one is told."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from headct.failure import Misuse
from headct.preparing import Recipe, recipes
from headct.preparing.recipe import (
    CenterCrop,
    Crop,
    Frame,
    Orient,
    Pad,
    Resample,
    Resize,
    Windows,
    named,
)

# What arrays, cohorts and checkpoints in the world carry: a change here makes them strangers to each other.
IDS = {
    "head": "a1b2b3de058d",
    "head-axial": "6307db8e1274",
    "head-fine": "c5a32645fe07",
    "head-coarse": "82a911bd4021",
    "fm-hct": "edf5b60aa3da",
    "fm-hct-notebook": "de2e8f38b14a",
    "ct-fm-pretrain": "577bcfd44d0d",
    "ct-fm-hub": "1b75c4d4bcb6",
    "ct-fm-head": "4330dc962c8d",
}
SHAPES = {
    "head": (96, 112, 96),
    "head-axial": (192, 224, 48),
    "head-fine": (192, 224, 192),
    "head-coarse": (48, 56, 48),
    "fm-hct": (3, 96, 96, 96),
    "fm-hct-notebook": (3, 96, 96, 96),
    "ct-fm-pretrain": None,
    "ct-fm-hub": None,
    "ct-fm-head": (1, 4 * 48, 128, 128),
}


def test_ids_do_not_change():
    assert {name: recipe.id for name, recipe in recipes.items()} == IDS


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_of_each_recipe(name):
    assert recipes[name].shape == SHAPES[name]


def test_ours_share_one_box_and_one_dtype():
    ours = [recipe for recipe in recipes.values() if recipe.step(Frame)]
    boxes = {tuple(n * mm for n, mm in zip(recipe.shape, recipe.spacing_mm, strict=True)) for recipe in ours}
    assert boxes == {(192.0, 224.0, 192.0)}
    assert {(r.dtype, r.axes, r.channels, r.as_read) for r in ours} == {("int16", "RAS", None, False)}


def test_published_ones_take_values_as_read_and_say_their_axes():
    published = {name: recipe for name, recipe in recipes.items() if not recipe.step(Frame)}
    assert all(recipe.as_read for recipe in published.values())
    assert {name: recipe.axes for name, recipe in published.items()} == {
        "fm-hct": "RAS",
        "fm-hct-notebook": "RAS",
        "ct-fm-pretrain": "SPL",
        "ct-fm-hub": "SPL",
        "ct-fm-head": "SPL",
    }
    assert [recipe.spacing_mm for recipe in published.values()] == [None, None, (3, 1, 1), None, (5, 2, 2)]


@pytest.mark.parametrize("recipe", recipes.values(), ids=recipes)
def test_json_and_back(recipe):
    again = Recipe.from_json(recipe.to_json())
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again.id == recipe.id


def test_the_id_is_of_the_content_alone():
    head = recipes["head"]
    frame = head.step(Frame)
    assert replace(head, name="other").id == head.id
    assert head.with_steps(replace(frame, spacing_mm=(2, 2, 2))).id == head.id  # 2 and 2.0 are equal
    others = {
        head.with_steps(replace(frame, spacing_mm=(2.0, 2.0, 2.5))).id,
        head.with_steps(replace(frame, edition=2)).id,
        replace(head, as_read=True).id,
    }
    assert len(others | {head.id}) == 4


def test_recipes_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        recipes["head"].name = "tail"
    with pytest.raises(TypeError):
        recipes["head"] = recipes["head-fine"]


def test_sizes_are_exchanged_by_kind_of_step():
    small = recipes["fm-hct"].with_steps(Resize((40, 48, 24)), Windows(((40, 300),)))
    assert small.shape == (1, 40, 48, 24)
    assert [type(step) for step in small.steps] == [type(step) for step in recipes["fm-hct"].steps]
    with pytest.raises(ValueError, match="recipe fm-hct has no step pad"):
        recipes["fm-hct"].with_steps(Pad((1, 1, 1), 0.0))


def test_an_unknown_name_suggests_the_nearest():
    assert named("head") is recipes["head"]
    assert named(recipes["head"]) is recipes["head"]
    with pytest.raises(Misuse, match="did you mean ct-fm-head"):
        named("ctfm-head")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Orient("RAR"), "one each of R/L, A/P and S/I; got 'RAR'"),
        (lambda: Resample((1.0, 1.0, 1.0), "quintic"), "spline must be linear or cubic, got 'quintic'"),
        (lambda: Windows(((40, 80),), "depth"), "stacked_along must be channel or first-axis"),
        (lambda: recipe(Crop(0.0)), "a recipe is one Frame, or an Orient"),
        (lambda: recipe(Orient("RAS"), Crop(0.0), Crop(0.0)), "each at most once"),
        (lambda: recipe(Orient("RAS"), Crop(0.0), dtype="int16"), "dtype must be float32 or float16"),
    ],
)
def test_a_recipe_that_cannot_work_is_never_made(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def recipe(*steps, dtype="float32"):
    return Recipe(name="any", steps=steps, dtype=dtype, as_read=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content.pop("dtype"), "a recipe has the fields as_read, dtype, name, steps"),
        (lambda content: content.update(extra=1), "a recipe has the fields"),
        (lambda content: content["steps"][1].update(spacing=1), "step resample has the fields"),
        (lambda content: content["steps"][1].update(step="shrink"), "a step must be one of frame, orient"),
        (lambda content: content["steps"].append("crop"), "a step must be one of"),
    ],
)
def test_text_that_is_no_recipe(change, complaint):
    content = json.loads(recipes["fm-hct"].to_json())
    change(content)
    with pytest.raises(ValueError, match=complaint):
        Recipe.from_json(json.dumps(content))


def test_a_crop_after_the_last_sized_step_leaves_the_shape_open():
    assert recipe(Orient("RAS"), CenterCrop((8, 8, 8)), Crop(0.0)).shape is None
