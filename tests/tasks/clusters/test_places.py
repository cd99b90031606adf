"""Places of heads: those in air are left out, positions are millimetres from the middle, and lines find them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.cohort import Cohort
from headct.cohort.labels import read_labels
from headct.embedding import embed
from headct.embedding.machine import choose
from headct.failure import Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.reporting.clusters import Cloud, scatter
from headct.tasks.clusters import MapSettings, Places, map_features, places_of
from headct.tasks.clusters.places import whereabouts
from headct.writing import write_nifti

NOTHING = np.full(600, "", dtype=object)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8), "grid": (6, 7, 6)}
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    save(folder, encoders.build("vit-tiny", **shape), Card(recipe=recipes["head"], windows=WINDOWS))
    return load(folder)


def test_vectors_and_places_are_those_of_an_embedding(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    cohort = made.make(tmp_path / "cohort", 2)
    ids = list(cohort)
    found = places_of([(cohort, one) for one in ids], encoder, choose("fp32", "cpu"), each=10_000)
    whole = embed(cohort, encoder, tokens=True, device="cpu")
    assert whole.tokens is not None
    assert whole.token_affines is not None
    np.testing.assert_allclose(found.vectors, whole.tokens.reshape(-1, whole.tokens.shape[-1]), atol=1e-5)
    grid = np.stack(np.meshgrid(*map(np.arange, whole.grid), indexing="ij"), axis=-1).reshape(-1, 3)
    middle = cohort.affine(ids[0])[:3] @ np.append((np.array(cohort.array(ids[0]).shape) - 1) / 2, 1)
    expected = grid @ whole.token_affines[0][:3, :3].T + whole.token_affines[0][:3, 3] - middle
    np.testing.assert_allclose(found.positions_mm[found.scans == 0], expected, atol=1e-6)
    assert found.air_left_out


def test_air_is_left_out(encoder: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = made.make(tmp_path / "cohort", 1)
    scan_id = next(iter(cohort))
    array = cohort.array(scan_id)
    array[:24] = -1000  # the left half, in RAS
    monkeypatch.setattr(cohort, "array", lambda _: array)
    found = places_of([(cohort, scan_id)], encoder, choose("fp32", "cpu"), each=10_000)
    assert (found.positions_mm[:, 0] > 0).all()
    assert len(found) == 3 * 7 * 6
    array[:] = -1000
    with pytest.raises(Misuse, match="no place of these scans lies in a head"):
        places_of([(cohort, scan_id)], encoder, choose("fp32", "cpu"))


def test_a_line_finds_what_is_linear_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    positions = rng.uniform(-60, 60, (600, 3))
    who = np.repeat(np.arange(20), 30).astype(str)
    knowing = np.hstack([positions @ rng.normal(size=(3, 8)), rng.normal(size=(600, 4))])
    found = whereabouts(Places(knowing, positions, np.zeros(600), True, NOTHING), who)
    assert found.error_mm.value < 2
    expected = np.linalg.norm(positions - positions.mean(axis=0), axis=1).mean()
    assert found.middle_mm.value == pytest.approx(expected, rel=0.02)
    blind = whereabouts(Places(rng.normal(size=(600, 8)), positions, np.zeros(600), True, NOTHING), who)
    assert blind.error_mm.value == pytest.approx(blind.middle_mm.value, rel=0.05)
    with pytest.raises(Misuse, match="too few patients to learn where places are: 4"):
        whereabouts(Places(knowing[:120], positions[:120], np.zeros(120), True, NOTHING[:120]), who[:120])


def test_two_scanners_and_a_finding_that_are_painted_in(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    """The second site's scans are noisier; both that and the painted block are there to be read."""
    cohorts = [
        made.make(tmp_path / "a", 24, seed=1),
        made.make(tmp_path / "b", 24, seed=2, manufacturer="BETA", noise_hu=25.0),
    ]
    table = tmp_path / "labels.csv"
    made.truth(cohorts[0]).drop(columns="patient_id").to_csv(table, index=False)
    labels = read_labels(table, cohorts)
    mapped = map_features(
        cohorts, encoder, choose("fp32", "cpu"), tmp_path / "cache", MapSettings(place_scans=6), labels=labels
    )
    told = {row["what"]: row for row in mapped.rows()}
    assert told["manufacturer"]["AUROC"] > 0.9
    assert told["ich"]["scans"] == 24
    assert "site" in mapped.left_out
    assert mapped.places is not None
    assert len(mapped.place_scans) == 6
    html = mapped.page().html()
    assert "The manufacturer can be read from the features with an AUROC of" in html
    assert "The map of places" in html
    assert html == mapped.page().html()


def test_classes_have_shapes_and_counts_beside_colours() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["GE"] * 30 + ["Philips"] * 15 + [""] * 5)
    drawn = str(scatter(rng.normal(size=(50, 2)), ("one", "two"), Cloud(name="manufacturer", classes=words)))
    assert "GE (30)" in drawn
    assert "Philips (15)" in drawn
    assert "unknown (5)" in drawn
    assert drawn.count("<path") == 6  # a path and a key each
    assert "NaN" not in drawn
    many = np.array([f"scanner {number % 9}" for number in range(2000)])
    crowded = str(scatter(rng.normal(size=(2000, 2)), ("one", "two"), Cloud(name="model", classes=many)))
    assert "4 others" in crowded
    assert "1,500 are drawn" in crowded
    with pytest.raises(ValueError, match="2 classes do not fit points"):
        scatter(np.zeros((3, 2)), ("a", "b"), Cloud(name="x", classes=np.array(["a", "b"])))


def test_places_are_coloured_by_what_fills_most_of_their_cell(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    """Cells have eight voxels: brain has five of the third, ventricles first three and then five of the last."""
    cohort = made.make(tmp_path / "cohort", 2)
    first, second = cohort
    numbers = np.zeros(made.SHAPE, np.uint8)
    numbers[19:] = 1  # five eighths of the third cell
    numbers[45:] = 3  # three eighths of the last one
    write_nifti(numbers, cohort.path / "masks" / f"{first}.nii.gz", cohort.affine(first))
    (cohort.path / "masks" / "classes.csv").write_text("value,name\n1,brain\n3,ventricles\n")

    def anatomy() -> np.ndarray:
        both = [(Cohort(cohort.path), one) for one in (first, second)]
        return places_of(both, encoder, choose("fp32", "cpu"), each=10_000).anatomy

    assert set(anatomy()) == {""}  # these patients are not virtual, and what lies in the folder may be anyone's
    about = json.loads((cohort.path / "cohort.json").read_text())
    (cohort.path / "cohort.json").write_text(json.dumps(about | {"simulated": {}}))
    named = anatomy()
    assert set(named[252:]) == {""}
    across = named[:252].reshape(6, 7, 6)
    assert [set(np.unique(plane.astype(str))) for plane in across] == [{"other"}, {"other"}, *[{"brain"}] * 4]
    numbers[43:] = 3
    write_nifti(numbers, cohort.path / "masks" / f"{first}.nii.gz", cohort.affine(first))
    assert set(anatomy()[:252].reshape(6, 7, 6)[5].ravel()) == {"ventricles"}


def test_places_are_coloured_by_what_is_known_of_their_scans(encoder: PretrainedEncoder, tmp_path: Path) -> None:
    cohorts = [
        made.make(tmp_path / maker, 12, seed=seed, manufacturer=maker)
        for seed, maker in enumerate(("ACME", "Umbrella"))
    ]
    made.truth(cohorts[0]).to_csv(tmp_path / "labels.csv", index=False)
    labels = read_labels(tmp_path / "labels.csv", cohorts)
    settings = MapSettings(place_scans=24, places_each=4)
    mapped = map_features(cohorts, encoder, choose("fp32", "cpu"), tmp_path / "cache", settings, labels=labels)
    html = mapped.page().html()
    places = html[html.index("The map of places") :]
    for name in ("Manufacturer", "Intracranial hemorrhage", "Low to high"):
        assert name in places
    assert "Anatomy" not in places
    assert ">Site<" not in places  # all are of one
