"""Indices on disk: what they find, whom they pass over, and what is said where something is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from detection import made

from headct.embedding import neighbours
from headct.embedding.embeddings import Embeddings
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.tasks.retrieval import Condition, Gallery, Index, approximate, build, index, of_table
from headct.tasks.retrieval.approximate import is_installed
from headct.tasks.retrieval.asking import Query, caution, double

MODEL = {
    "architecture": "vit-tiny",
    "sha256": "ab" * 32,
    "decisive_sha256": "cd" * 32,
    "recipe": recipes["head"].id,
    "device": "cpu",
    "precision": "fp32",
}


def gallery(patients: int = 60, scans_each: int = 2, width: int = 12, seed: int = 0) -> Gallery:
    """Scans of a patient are nearly the same."""
    rng = np.random.default_rng(seed)
    number = patients * scans_each
    vectors = np.repeat(rng.normal(size=(patients, width)), scans_each, axis=0) + 0.01 * rng.normal(
        size=(number, width)
    )
    scans = pd.DataFrame(
        {
            "scan_id": [f"s{row:05d}" for row in range(number)],
            "patient_id": [f"p{row // scans_each:05d}" for row in range(number)],
            "study_id": "",
            "series_id": "",
            "sex": np.where(np.arange(number) % 3 == 0, "F", "M"),
            "thickness_mm": np.linspace(1, 5, number),
        }
    )
    return Gallery(vectors.astype(np.float32), scans, MODEL)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_own_patient_is_passed_over_unless_asked_for(metric: str, tmp_path: Path) -> None:
    given = gallery()
    made_index = build(tmp_path / "index", given, metric=metric, search="exact")
    ids, patients = given.scans["scan_id"].tolist(), given.scans["patient_id"].tolist()
    found = made_index.search(given.vectors, 5, scan_ids=ids, patients=patients)
    for row, one in enumerate(found):
        assert len(one.rows) == 5
        assert one.barred == 1
        assert one.exact
        assert row not in one.rows
        assert patients[row] not in given.scans["patient_id"][one.rows].tolist()
        assert (np.diff(one.similarities) <= 0).all()
    twins = made_index.search(given.vectors, 1, scan_ids=ids)
    assert [one.rows[0] for one in twins] == [row ^ 1 for row in range(len(given))]


def test_as_the_neighbours_of_a_report(tmp_path: Path) -> None:
    given = gallery(scans_each=1)
    found = build(tmp_path / "i", given).search(given.vectors, 4, scan_ids=given.scans["scan_id"].tolist())
    rows, cosines = neighbours(given.vectors, 4)
    np.testing.assert_array_equal(np.stack([one.rows for one in found]), rows)
    np.testing.assert_allclose(np.stack([one.similarities for one in found]), cosines, atol=1e-6)


def test_conditions_choose_before_anything_is_ranked(tmp_path: Path) -> None:
    given = gallery()
    made_index = build(tmp_path / "index", given)
    conditions = [Condition.of("sex=F"), Condition.of("thickness_mm>4")]
    (found,) = made_index.search(given.vectors[:1], 8, patients=["p00000"], conditions=conditions)
    assert len(found.rows) == 8
    chosen = given.scans.iloc[found.rows]
    assert (chosen["sex"] == "F").all()
    assert (chosen["thickness_mm"] > 4).all()
    fits = np.flatnonzero((given.scans["sex"] == "F") & (given.scans["thickness_mm"] > 4))
    unit = given.vectors / np.linalg.norm(given.vectors, axis=1, keepdims=True)
    assert found.rows.tolist() == fits[np.argsort(-(unit[fits] @ unit[0]))][:8].tolist()
    with pytest.raises(Misuse, match="no scan meets 'thickness_mm>9'"):
        made_index.search(given.vectors[:1], 3, conditions=[Condition.of("thickness_mm>9")])


def test_it_is_read_again_and_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "index"
    build(out, gallery(), model_name="run", cohort=tmp_path / "cohort")
    build(out, gallery(patients=7))
    again = Index(out)
    assert len(again) == 14
    assert again.bytes == sum(path.stat().st_size for path in out.iterdir() if path.name != "index.json")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to-a-friend.txt").write_text("dear friend")
    with pytest.raises(Misuse, match="is there already, and is no index"):
        build(tmp_path / "letters", gallery())
    with pytest.raises(Misuse, match="is no index"):
        Index(tmp_path / "letters")


@pytest.mark.skipif(not is_installed(), reason="needs faiss-cpu")
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_approximate_one_states_what_it_misses(metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    vectors = (centres[rng.integers(0, 40, 5000)] + 0.3 * rng.normal(size=(5000, 16))).astype(np.float32)
    scans = gallery(patients=2500).scans
    made_index = build(tmp_path / "index", Gallery(vectors, scans, MODEL), metric=metric, search="approximate")
    how = Index(tmp_path / "index").about["search"]
    assert how["kind"] == "approximate"
    assert how["recall_at_10"] >= 0.97
    assert how["probes"] < how["lists"]
    fresh = (centres[rng.integers(0, 40, 200)] + 0.3 * rng.normal(size=(200, 16))).astype(np.float32)
    quick, exact = made_index.search(fresh, 10), made_index.search(fresh, 10, exact=True)
    assert {one.exact for one in quick} == {False}
    assert {one.exact for one in exact} == {True}
    shared = [len(set(a.rows) & set(b.rows)) / 10 for a, b in zip(quick, exact, strict=True)]
    assert np.mean(shared) == pytest.approx(how["recall_at_10"], abs=0.02)
    same = [a for a, b in zip(quick, exact, strict=True) if a.rows.tolist() == b.rows.tolist()]
    assert len(same) > 100
    own = made_index.search(
        vectors[:50], 3, scan_ids=scans["scan_id"].tolist()[:50], patients=scans["patient_id"].tolist()[:50]
    )
    assert all(row // 2 not in one.rows // 2 for row, one in enumerate(own))
    filtered = made_index.search(fresh[:2], 3, conditions=[Condition.of("sex=F")])
    assert all(one.exact for one in filtered)
    (tmp_path / "index" / "approximate.faiss").write_bytes(b"no index")
    with pytest.raises(Failure, match=r"approximate\.faiss is missing or damaged"):
        Index(tmp_path / "index").search(fresh, 3)


def test_without_faiss_an_exact_one_is_made_and_an_approximate_one_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    monkeypatch.setattr(index, "WORTH_IT", 10)
    assert build(tmp_path / "index", gallery()).about["search"]["kind"] == "exact"
    with pytest.raises(Misuse, match="needs the package faiss-cpu") as caught:
        build(tmp_path / "other", gallery(), search="approximate")
    assert "pip install faiss-cpu" in caught.value.do


@pytest.mark.skipif(not is_installed(), reason="needs faiss-cpu")
def test_too_few_for_an_approximate_one(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="120 vectors are too few"):
        build(tmp_path / "index", gallery(), search="approximate")


def test_what_cannot_be_in_an_index() -> None:
    given = gallery(patients=3)
    with pytest.raises(Misuse, match="no vectors to search"):
        Gallery(given.vectors[:0], given.scans[:0], MODEL)
    holed = given.vectors.copy()
    holed[[1, 4], 3] = np.nan, np.inf
    with pytest.raises(Misuse, match="2 of 6 vectors are not finite: s00001, s00004"):
        Gallery(holed, given.scans, MODEL)
    with pytest.raises(Misuse, match="scan s00000 has more than one vector"):
        Gallery(given.vectors, given.scans.assign(scan_id="s00000"), MODEL)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    given = gallery(patients=1)
    one = build(tmp_path / "index", given)
    with pytest.raises(Misuse, match="nothing is left to find but the query itself"):
        one.search(given.vectors[:1], 3, scan_ids=["s00000"], patients=["p00000"])
    assert len(one.search(given.vectors[:1], 3)[0].rows) == 2
    with pytest.raises(Misuse, match="has vectors of 12 numbers, the query has 5"):
        one.search(np.ones((1, 5), np.float32), 3)
    with pytest.raises(Misuse, match="1 of 1 vectors are not finite: query 1"):
        one.search(np.full((1, 12), np.nan, np.float32), 3)
    with pytest.raises(Misuse, match="no scan 'nobody'"):
        one.row("nobody")


def test_damage_is_named(tmp_path: Path) -> None:
    out = tmp_path / "index"
    given = gallery()
    build(out, given)
    np.save(out / "vectors.npy", np.zeros((3, 12), np.float32))
    with pytest.raises(Failure, match=r"vectors\.npy is missing or damaged"):
        Index(out).search(given.vectors[:1], 3)
    (out / "scans.parquet").write_bytes(b"")
    with pytest.raises(Failure, match=r"scans\.parquet is missing or damaged"):
        _ = Index(out).scans
    about = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(Failure, match="format 99"):
        Index(out)
    (out / "index.json").write_text("{")
    with pytest.raises(Failure, match=r"index\.json is damaged"):
        Index(out)


def written(path: Path, scan_ids: list[str], model: dict[str, str]) -> Path:
    """A table as `headct embed` writes it."""
    table = pd.DataFrame({"scan_id": scan_ids, "patient_id": "", "study_id": "", "series_id": ""})
    table = table.assign(files=[[] for _ in scan_ids], input=0)
    vectors = np.random.default_rng(0).normal(size=(len(scan_ids), 8)).astype(np.float32)
    none = pd.DataFrame(columns=["scan_id", "code", "sentence", "remedy", "files", "input"])
    Embeddings(table, vectors, None, none, None, None, model).write(path)
    return path


def test_from_a_table_of_vectors(tmp_path: Path) -> None:
    cohort = made.make(tmp_path / "cohort", 4)
    ids = cohort.scans["scan_id"].tolist()[::-1]
    place = written(tmp_path / "v.parquet", ids, MODEL)
    alone, known = of_table(place), of_table(place, cohort)
    assert alone.scans["patient_id"].tolist() == ids  # of nobody known: each of its own
    assert "manufacturer" not in alone.scans
    assert known.scans["scan_id"].tolist() == ids
    assert known.scans["patient_id"].tolist() == ["p003", "p002", "p001", "p000"]
    assert set(known.scans["manufacturer"]) == {"ACME"}
    np.testing.assert_array_equal(known.vectors, alone.vectors)
    with pytest.raises(Misuse, match=r"uses recipe head .*, the vectors in w\.parquet were made by recipe 0123"):
        of_table(written(tmp_path / "w.parquet", ids, MODEL | {"recipe": "0123"}), cohort)
    with pytest.raises(Misuse, match=r"1 of 2 scans of x\.parquet are not in the cohort"):
        of_table(written(tmp_path / "x.parquet", [ids[0], "other"], MODEL), cohort)
    with pytest.raises(Misuse, match="there is no table of vectors"):
        of_table(tmp_path / "none.parquet")
    with pytest.raises(Misuse, match="no vectors to search"):
        of_table(written(tmp_path / "y.parquet", [], MODEL))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "z.parquet")
    with pytest.raises(Misuse, match=re.escape("z.parquet is no table of vectors")):
        of_table(tmp_path / "z.parquet")
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(Failure, match="is damaged, or no table of vectors"):
        of_table(tmp_path / "t.parquet")


def test_the_query_under_another_id_and_heads_that_are_only_alike(tmp_path: Path) -> None:
    """Of an encoder that draws all heads alike no scan is taken for the query; of a Euclidean index no multiple is."""
    given = gallery(scans_each=1, width=64)
    rng = np.random.default_rng(1)
    alike = (rng.normal(size=64) + 1e-3 * rng.normal(size=given.vectors.shape)).astype(np.float32)

    def twin(vectors: np.ndarray, asked: np.ndarray, metric: str) -> str:
        made_index = build(tmp_path / "index", Gallery(vectors, given.scans, MODEL), metric=metric)
        query = Query("new", asked)
        (found,) = made_index.search(asked[None], 3)
        return double(query, found, made_index)

    other = (alike[:1].mean(axis=0) + 1e-3 * rng.normal(size=64)).astype(np.float32)
    assert twin(alike, other, "cosine") == ""
    again = (given.vectors[4] * (1 + 1e-6 * rng.normal(size=64))).astype(np.float32)  # the same, but for rounding
    assert twin(given.vectors, again, "cosine") == twin(given.vectors, again, "euclidean") == "s00004"
    assert twin(given.vectors, 3 * again, "cosine") == "s00004"  # a length is nothing to a cosine
    assert twin(given.vectors, 1.01 * again, "euclidean") == ""


def test_a_query_whose_ids_were_made_otherwise_is_said(tmp_path: Path) -> None:
    given = gallery()

    def said(here: str, there: str, *, virtual: bool = False) -> str:
        made_index = build(tmp_path / "index", Gallery(given.vectors, given.scans, MODEL, there), virtual=virtual)
        assert made_index.pseudonyms == there
        return caution([Query("new", given.vectors[0], "p", pseudonyms=here)], made_index)

    assert said("none", "none") == said("ab12", "ab12") == ""
    told = said("none", "ab12")
    assert "the query and the index index call patients by ids and by pseudonyms of ab12" in told
    assert "may be found" in told
    assert "pseudonyms of ab12 and pseudonyms of cd34" in said("ab12", "ab12, cd34")
    assert said("", "ab12") == said("ab12", "") == ""  # unknown
    assert said("ab12", "none", virtual=True) == ""
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    del about["pseudonyms"]  # as one of before was written
    (tmp_path / "index" / "index.json").write_text(json.dumps(about | {"virtual": False}))
    assert caution([Query("new", given.vectors[0], "p", pseudonyms="ab12")], Index(tmp_path / "index")) == ""
