"""Errors in mm of heads whose correspondence is exact: the encoder finds all, baselines what they can, misses stay."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from tasks.correspondence.heads import ball, head_of

from headct.failure import Misuse
from headct.tasks.correspondence import Head, evaluate, read_landmarks
from headct.tasks.correspondence.baselines import box_affine, moments_affine, same_offset

NAMES = [f"place-{number}" for number in range(24)]
OFFSETS_MM = np.random.default_rng(5).uniform(-40, 40, (24, 3))
SHIFTS_MM = np.array([[0.0, 0, 0], [12, -8, 4], [-9, 5, 14], [3, 16, -6]])
SCALES = [1.0, 1.1, 0.9, 1.0]


@pytest.fixture(scope="module")
def heads() -> list[Head]:
    return [
        head_of(f"scan-{n}", f"p{n}", shift, scale)
        for n, (shift, scale) in enumerate(zip(SHIFTS_MM, SCALES, strict=True))
    ]


@pytest.fixture(scope="module")
def landmarks() -> dict[str, dict[str, np.ndarray]]:
    return {
        f"scan-{n}": dict(zip(NAMES, OFFSETS_MM * SCALES[n] + SHIFTS_MM[n], strict=True)) for n in range(len(SCALES))
    }


def test_where_features_go_with_the_place_the_encoder_finds_it(heads, landmarks) -> None:
    outcome = evaluate(heads, landmarks, queries=3)
    metrics = outcome.metrics(draws=200)
    assert len(outcome.errors) == 3 * 3 * 24 * 4
    assert metrics["encoder"]["within_10_mm"]["value"] == 1
    assert metrics["encoder"]["within_10_mm"]["low"] < 0.95  # four patients do not make it sure
    assert metrics["encoder"]["median_mm"]["value"] < 3
    assert metrics["encoder"]["median_mm"]["low"] <= metrics["encoder"]["median_mm"]["value"]
    assert metrics["affine-box"]["median_mm"]["value"] < 5  # heads differ by a scale, which a box sees to a voxel
    assert metrics["affine-moments"]["median_mm"]["value"] < 2
    assert metrics["centre"]["median_mm"]["value"] > metrics["affine-box"]["median_mm"]["value"]
    assert metrics["centre"]["within_difference"]["value"] >= 0
    assert metrics["encoder"]["mutual"]["value"] == 1


def test_misses_are_counted(heads, landmarks) -> None:
    """Landmarks that the query lacks, or has outside of its map, are misses of every method and stay in medians."""
    broken = {name: dict(places) for name, places in landmarks.items()}
    for places in broken.values():
        places[NAMES[0]] = np.array([900.0, 0, 0])
    outcome = evaluate(heads, broken, queries=2)
    far = outcome.errors[outcome.errors["landmark"] == NAMES[0]]
    assert len(far) == 2 * 3 * 4
    assert np.isinf(far["error_mm"]).all()
    shares = outcome.metrics(draws=50)
    assert shares["encoder"]["within_10_mm"]["n"] == 2 * 3 * 24
    assert shares["encoder"]["within_10_mm"]["value"] == pytest.approx(23 / 24)
    del broken["scan-1"][NAMES[3]]
    again = evaluate(heads, broken, queries=4)
    assert again.without_truth == 3
    asked = again.errors[(again.errors["query"] == "scan-1") & (again.errors["landmark"] == NAMES[3])]
    assert np.isinf(asked["error_mm"]).all()


def test_where_nothing_can_be_asked_for_all_are_misses(heads, landmarks) -> None:
    """As where landmarks were written in other axes."""
    outside = {name: {place: mm + 900 for place, mm in places.items()} for name, places in landmarks.items()}
    outcome = evaluate(heads, outside, queries=1)
    assert len(outcome.errors) == 3 * 24 * 4
    assert np.isinf(outcome.errors["error_mm"]).all()


def test_shuffled_features_find_nothing(heads, landmarks) -> None:
    """The evaluation can fail: chance is far below."""
    rng = np.random.default_rng(0)
    noise = [
        Head(
            one.ids, one.array, one.affine, True,
            type(one.map)(rng.normal(size=one.map.features.shape).astype(np.float32), one.map.affine, one.map.wanted),
        )
        for one in heads
    ]  # fmt: skip
    metrics = evaluate(noise, landmarks, queries=2).metrics(draws=50)
    assert metrics["encoder"]["within_10_mm"]["value"] < 0.1
    assert metrics["encoder"]["mutual"]["value"] < 0.3


def test_the_median_is_numpys_and_its_draws_are_of_patients(heads, landmarks) -> None:
    outcome = evaluate(heads, landmarks, queries=4)
    ours = outcome.errors[outcome.errors["method"] == "centre"]["error_mm"]
    leaf = outcome.metrics(draws=300)["centre"]["median_mm"]
    assert leaf["value"] == np.median(ours)
    doubled = pd.concat([outcome.errors, outcome.errors], ignore_index=True)
    twice = type(outcome)(doubled, 0, outcome.resolution_mm).metrics(draws=300)["centre"]["median_mm"]
    assert_allclose([twice["low"], twice["high"]], [leaf["low"], leaf["high"]], rtol=0.05)  # listed twice, no surer


def test_affine_baselines_undo_an_affine_change() -> None:
    """Closed form: the ellipsoids are images of each other under a scale and a shift along each axis."""
    middle_mm, radii_mm = np.array([5.0, -20, 12]), np.array([64.0, 84, 72])
    scale = np.array([1.2, 0.9, 1.1])
    first = head_of("a", "a", np.zeros(3))
    hu, affine = ball(np.zeros(3), radii_mm)
    other, other_affine = ball(middle_mm, radii_mm * scale)
    query, target = Head(first.ids, hu, affine, True, first.map), Head(first.ids, other, other_affine, True, first.map)
    points_mm = np.random.default_rng(2).uniform(-40, 40, (10, 3))
    expected_mm = points_mm * scale + middle_mm
    assert_allclose(moments_affine(query, target)(points_mm), expected_mm, atol=1.5)
    assert_allclose(box_affine(query, target)(points_mm), expected_mm, atol=3)  # a voxel has 4 mm
    assert_allclose(same_offset(query, target)(points_mm), points_mm + middle_mm, atol=3)


def test_what_cannot_be_evaluated_is_named(heads, landmarks, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="1 patient;"):
        evaluate(heads[:1], landmarks)
    few = {name: dict(list(places.items())[:5]) for name, places in landmarks.items()}
    with pytest.raises(Misuse, match="5 landmarks are too few"):
        evaluate(heads, few)
    no_hu = [Head(one.ids, one.array, one.affine, False, one.map) for one in heads]
    with pytest.raises(Misuse, match="not in HU"):
        evaluate(no_hu, landmarks)
    cohort = SimpleNamespace(scans=pd.DataFrame({"scan_id": ["s1"], "series_id": ["1.2"]}), path="night")
    table = tmp_path / "landmarks.csv"
    with pytest.raises(Misuse, match="there is no"):
        read_landmarks(table, cohort)
    for text, says in (
        ("scan_id,name\ns1,x\n", "has no column landmark, x_mm"),
        ("landmark,x_mm,y_mm,z_mm\nx,1,2,3\n", "no column scan_id or series_id"),
        ("series_id,landmark,x_mm,y_mm,z_mm\n1.2,x,1,2,nan\n", "not at three finite numbers"),
        ("series_id,landmark,x_mm,y_mm,z_mm\n9.9,x,1,2,3\n", "no landmark"),
    ):
        table.write_text(text)
        with pytest.raises(Misuse, match=says):
            read_landmarks(table, cohort)
    table.write_text("series_id,landmark,x_mm,y_mm,z_mm\n1.2,x,1,2,3\n9.9,x,1,2,3\n")
    assert read_landmarks(table, cohort)["s1"]["x"].tolist() == [1, 2, 3]


def test_a_registration_is_judged_by_the_rows_and_draws_of_the_others(
    heads: list[Head], landmarks: dict[str, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/search.py`: what cannot be asked for is a miss of it too, and it has an interval."""
    spec = importlib.util.spec_from_file_location("search", Path(__file__).parents[3] / "benchmarks" / "search.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)

    def exact(query: Head, target: Head, points_mm: np.ndarray) -> np.ndarray:
        here, there = (int(head.scan_id.partition("-")[2]) for head in (query, target))
        return (points_mm - SHIFTS_MM[here]) / SCALES[here] * SCALES[there] + SHIFTS_MM[there]

    monkeypatch.setattr(benchmark, "registered", exact)
    broken = {name: dict(places) for name, places in landmarks.items()}
    for places in broken.values():
        places[NAMES[0]] = np.array([900.0, 0, 0])
    outcome = benchmark.by_registration(heads, broken, evaluate(heads, broken, queries=2))
    rows = outcome.errors[outcome.errors["method"] == benchmark.REGISTERED]
    ours = outcome.errors[outcome.errors["method"] == "encoder"]
    assert len(rows) == len(ours) == 2 * 3 * 24
    assert np.isinf(rows.loc[rows["landmark"] == NAMES[0], "error_mm"]).all()
    assert_allclose(rows.loc[rows["landmark"] != NAMES[0], "error_mm"], 0, atol=1e-9)
    leaf = outcome.metrics(draws=100)[benchmark.REGISTERED]["within_10_mm"]
    assert leaf["value"] == pytest.approx(23 / 24)
    assert leaf["low"] < 23 / 24 < leaf["high"]
