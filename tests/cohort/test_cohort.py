"""A finished cohort gives what was written into it, lazily, and says clearly what is wrong with it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from headct.cohort import Cohort, publish
from headct.cohort.publish import Content
from headct.cohort.shards import pack, shard_bytes
from headct.cohort.tables import FILES, REJECTIONS, SCANS, parquet_bytes
from headct.failure import Failure, Misuse
from headct.preparing.recipe import recipes

IDS = ("3fa0b1c2d3e4f506", "77aa00112233cc44")
AFFINE = np.array([[2.0, 0, 0, -95], [0, 2, 0, -111], [0, 0, 2, -100], [0, 0, 0, 1]])


def arrays() -> list[np.ndarray]:
    generator = np.random.default_rng(3)
    return [generator.integers(-1000, 1500, (6, 7, 5)).astype(np.int16) for _ in IDS]


def row(scan_id: str, index: int, crc32: int) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(SCANS.names)
    return values | {
        "scan_id": scan_id,
        "patient_id": "p",
        "study_id": "s",
        "flags": ["tilt", "uneven"] if index == 0 else [],
        "preferred": index == 0,
        "shard": "000000.b2nd",
        "index": index,
        "crc32": crc32,
        "affine": AFFINE.ravel().tolist(),
    }


def content(crcs: list[int]) -> Content:
    reason = {"code": "no-head", "sentence": "no skull", "remedy": "none", "files": ["in/c"]}
    return Content(
        scans=tuple(row(scan_id, i, crc) for i, (scan_id, crc) in enumerate(zip(IDS, crcs, strict=True))),
        rejections=(reason,),
        files=(
            {"path": "in/a", "bytes": 10, "outcome": IDS[0]},
            {"path": "in/b", "bytes": 20, "outcome": IDS[1]},
            {"path": "in/c", "bytes": 30, "outcome": "no-head"},
        ),
        seen=tuple({"path": f"in/{n}", "root": "in", "stamp": "0", "series": ""} for n in "abc"),
        shards=1,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    packed = [pack(array) for array in arrays()]
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "000000.b2nd").write_bytes(shard_bytes(packed, 2))
    recipe = recipes["head"]
    about = {"recipe": {"id": recipe.id, "name": "head", "content": json.loads(recipe.to_json())}}
    publish.write(tmp_path, content([one.crc32 for one in packed]), about)
    return tmp_path


def test_it_gives_what_was_written(folder: Path) -> None:
    cohort = Cohort(folder)
    assert len(cohort) == 2
    assert list(cohort) == list(IDS)
    assert IDS[1] in cohort
    assert cohort.recipe == recipes["head"]
    assert list(cohort.scans.columns) == SCANS.names
    assert list(cohort.scans["flags"][0]) == ["tilt", "uneven"]
    assert list(cohort.rejections.iloc[0]["files"]) == ["in/c"]
    assert list(cohort.files["outcome"]) == [*IDS, "no-head"]
    for scan_id, array in zip(IDS, arrays(), strict=True):
        np.testing.assert_array_equal(cohort.array(scan_id), array)
        np.testing.assert_array_equal(cohort.affine(scan_id), AFFINE)


def test_pickling_carries_the_path_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    cohort = Cohort(folder.name)
    cohort.array(IDS[0])
    assert len(cohort.scans) == 2
    parcel = pickle.dumps(cohort)
    assert len(parcel) < 400
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(pickle.loads(parcel).array(IDS[1]), arrays()[1])


def test_an_unknown_scan_suggests_the_nearest(folder: Path) -> None:
    with pytest.raises(Misuse, match="did you mean 3fa0b1c2d3e4f506") as misuse:
        Cohort(folder).array("3fa0b1c2d3e4f50")
    assert "no scan '3fa0b1c2d3e4f50'" in str(misuse.value)
    with pytest.raises(Misuse, match="in the column scan_id"):
        Cohort(folder).affine("?")


def test_what_is_no_cohort_is_called_so(tmp_path: Path, folder: Path) -> None:
    for name in ("volumes", "scans.parquet"):
        with pytest.raises(Misuse, match="is not a cohort"):
            Cohort(folder / name)
    (folder / "cohort.json").unlink()
    with pytest.raises(Failure, match="not finished"):
        Cohort(folder)


def test_a_home_that_the_shell_left_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert Cohort(f"~/{folder.name}").path == folder


def test_a_newer_format_asks_for_an_upgrade(folder: Path) -> None:
    about = json.loads((folder / "cohort.json").read_text())
    (folder / "cohort.json").write_text(json.dumps(about | {"format_version": 99}))
    with pytest.raises(Failure, match="version 99") as failure:
        Cohort(folder)
    assert "pip install" in failure.value.do


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": "headct-cohort"}', ""])
def test_a_damaged_description_is_refused(folder: Path, damage: str) -> None:
    (folder / "cohort.json").write_text(damage)
    with pytest.raises(Failure, match=r"cohort.json is damaged"):
        Cohort(folder)


def test_a_cohort_that_grew_since_it_was_opened_says_so(folder: Path) -> None:
    cohort = Cohort(folder)
    about = json.loads((folder / "cohort.json").read_text())
    (folder / "cohort.json").write_text(json.dumps(about | {"shards": 2}))
    with pytest.raises(Failure, match="was added to since it was opened"):
        cohort.scans  # noqa: B018


@pytest.mark.parametrize("name", ["scans", "rejections", "files"])
def test_a_damaged_or_missing_table_is_refused(folder: Path, name: str) -> None:
    path = folder / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(Failure, match="is damaged"):
        getattr(Cohort(folder), name)
    path.unlink()
    with pytest.raises(Failure, match="is missing"):
        getattr(Cohort(folder), name)


def test_a_damaged_voxel_is_refused(folder: Path) -> None:
    path = folder / "volumes" / "000000.b2nd"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    cohort, refused = Cohort(folder), 0
    for scan_id, array in zip(IDS, arrays(), strict=True):
        try:
            np.testing.assert_array_equal(cohort.array(scan_id), array)
        except Failure:
            refused += 1
    assert refused == 1


def test_an_empty_table_has_its_types() -> None:
    import pyarrow as pa

    for schema in (SCANS, REJECTIONS, FILES):
        assert pq.read_schema(pa.BufferReader(parquet_bytes([], schema))).equals(schema)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda c: {"files": c.files[:2]}, "a rejection names a file that was not found"),
        (lambda c: {"files": (*c.files, c.files[0])}, "two files share a path"),
        (lambda c: {"files": ({**c.files[0], "outcome": "?"}, *c.files[1:])}, "1 read + 1 rejected, but 3 found"),
        (lambda c: {"files": ({**c.files[0], "outcome": "no-head"}, *c.files[1:])}, "a scan without a file"),
        (lambda c: {"rejections": ()}, "a file without its reason"),
        (lambda c: {"scans": (*c.scans, c.scans[0])}, "two scans share an id"),
    ],
)
def test_a_cohort_whose_counts_do_not_add_up_is_not_written(folder: Path, spoil: Any, why: str) -> None:
    from dataclasses import fields

    whole = content([0, 0])
    parts = {f.name: getattr(whole, f.name) for f in fields(Content) if f.init}
    before = (folder / "cohort.json").read_bytes()
    with pytest.raises(AssertionError, match=why.replace("?", r"\?").replace("+", r"\+")):
        publish.write(folder, Content(**parts | spoil(whole)), {})
    assert (folder / "cohort.json").read_bytes() == before
