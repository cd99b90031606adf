"""Embedding as a job: the same as in memory, and the same again after a kill at any moment.

Oracle: `embed`, which holds all in memory.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pretraining.memory_cohort import MemoryCohort, heads

from headct.checkpoints import PretrainedEncoder
from headct.cohort.identities import fingerprint
from headct.cohort.ingest import ingest
from headct.cohort.journal import Journal, only_writer
from headct.embedding import embed, job
from headct.embedding.embeddings import model_of
from headct.embedding.inputs import Reading
from headct.embedding.job import embed_into
from headct.embedding.machine import choose
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.reading import Criteria
from headct.reading import read as read_scans
from headct.scan import Scan
from headct.writing import write_nifti


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class Dying(MemoryCohort):
    """A cohort that ends the job at one of its scans, as long as it has lives."""

    dies_at: str = ""

    def array(self, scan_id: str) -> np.ndarray:
        if scan_id == self.dies_at:
            raise Killed
        return super().array(scan_id)


def run(model: PretrainedEncoder, inputs: Any, out: Path, **options: Any) -> job.Summary:
    key = options.pop("key", None)
    criteria = options.pop("criteria", Criteria())
    reading = Reading(recipe=model.recipe, criteria=criteria, key=key, keep_ids=key is None)
    machine = choose(options.pop("precision", "fp32"), "cpu")
    return embed_into(out, inputs, model, reading, machine, **{"batch_size": 2, **options})


def read(path: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(path)
    return dict(zip(table["scan_id"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32), strict=True))


@pytest.fixture
def every_batch_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "PART_INPUTS", 2)


def test_tables_and_tokens_are_those_of_embed(
    model: PretrainedEncoder, scans: list[Scan], tmp_path: Path, every_batch_a_part: None
) -> None:
    water = replace(scans[0], hu=np.zeros_like(scans[0].hu))
    inputs = [scans[0], water, *scans[1:], MemoryCohort(heads(3, (96, 112, 96)))]
    expected = embed(inputs, model, batch_size=2, tokens=True)
    summary = run(model, inputs, tmp_path / "a.parquet", tokens=tmp_path / "tokens")
    assert (summary.scans, summary.kept, summary.rejected) == (5, 0, {"no-head": 1})
    expected.write(tmp_path / "b.parquet")
    expected.write_tokens(tmp_path / "expected")
    for name in ("a.parquet", "a.rejections.parquet"):
        assert pq.read_table(tmp_path / name).equals(pq.read_table(tmp_path / name.replace("a.", "b.")))
    mapped = np.load(tmp_path / "tokens" / "tokens.npy", mmap_mode="r")
    assert np.array_equal(mapped, np.load(tmp_path / "expected" / "tokens.npy"))
    places = [pq.read_table(tmp_path / folder / "tokens.parquet") for folder in ("tokens", "expected")]
    assert places[0].equals(places[1])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("scan", range(0, 9, 2))
def test_a_job_goes_on_where_it_was_killed(
    model: PretrainedEncoder, tmp_path: Path, every_batch_a_part: None, scan: int
) -> None:
    cohort = Dying(heads(9))
    whole = run(model, cohort, tmp_path / "whole.parquet", tokens=tmp_path / "whole")
    cohort.dies_at = f"scan-{scan}"
    with pytest.raises(Killed):
        run(model, cohort, tmp_path / "cut.parquet", tokens=tmp_path / "cut")
    assert not (tmp_path / "cut.parquet").exists()
    cohort.dies_at = ""
    before = [f"scan-{n}" for n in range(scan // 2 * 2 - 2)]  # those of batches before the one that waited
    for name in before:
        cohort._arrays[name] = np.zeros((1, 1, 1), np.int16)  # would fail if it were looked at again
    assert run(model, cohort, tmp_path / "cut.parquet", tokens=tmp_path / "cut") == whole
    one, other = read(tmp_path / "whole.parquet"), read(tmp_path / "cut.parquet")
    assert list(one) == list(other)
    np.testing.assert_allclose(np.stack(list(other.values())), np.stack(list(one.values())), atol=1e-5)
    tokens = [np.load(tmp_path / name / "tokens.npy") for name in ("whole", "cut")]
    np.testing.assert_allclose(tokens[1], tokens[0], atol=1e-5)


@pytest.mark.slow
def test_kill_minus_nine(checkpoint: Path, files: Path, tmp_path: Path) -> None:
    line = [
        str(Path(sys.executable).with_name("headct")),
        "embed",
        str(files),
        "--model",
        str(checkpoint),
        "--keep-ids",
    ]
    line += ["--batch", "1", "--precision", "fp32", "--out"]
    subprocess.run([*line, str(tmp_path / "whole.parquet")], check=True)
    for wait_s in (2.0, 3.0, 4.0):
        process = subprocess.Popen([*line, str(tmp_path / "cut.parquet")])
        time.sleep(wait_s)
        process.kill()
        process.wait()
    subprocess.run([*line, str(tmp_path / "cut.parquet")], check=True)
    assert pq.read_table(tmp_path / "cut.parquet").equals(pq.read_table(tmp_path / "whole.parquet"))


def test_another_line_does_not_finish_an_unfinished_job(model: PretrainedEncoder, tmp_path: Path) -> None:
    cohort = Dying(heads(3))
    cohort.dies_at = "scan-2"
    with pytest.raises(Killed):
        run(model, cohort, tmp_path / "out.parquet")
    with pytest.raises(Misuse, match="begun otherwise \\(precision\\)"):
        run(model, cohort, tmp_path / "out.parquet", precision="bf16", criteria=Criteria(check_head=False))


def cut(model: PretrainedEncoder, inputs: Any, out: Path, at: int, **options: Any) -> None:
    """A job that was killed after so many inputs; the batch in which it was is lost."""

    def die(done: int, total: int | None) -> None:
        if done >= at:
            raise Killed

    with pytest.raises(Killed):
        run(model, inputs, out, progress=die, **options)


def test_other_inputs_or_another_key_do_not_finish_an_unfinished_job(
    model: PretrainedEncoder, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    out = tmp_path / "out.parquet"
    cut(model, [files], out, at=1, key=b"1" * 32)
    for inputs, key, other in (
        (["patient-0"], b"1" * 32, "inputs"),
        ([files, "patient-0"], b"1" * 32, "inputs"),
        ([files], b"2" * 32, "ids"),
        ([files], None, "ids"),
    ):
        with pytest.raises(Misuse, match=f"begun otherwise \\({other}\\)"):
            run(model, inputs, out, key=key)
    with pytest.raises(Misuse, match="begun otherwise \\(criteria\\)"):
        run(model, [files], out, key=b"1" * 32, criteria=Criteria(check_head=False))
    assert run(model, [Path()], out, key=b"1" * 32).scans == 2  # the same folder, named in another way


def test_what_changed_since_the_kill_is_not_mixed_in(
    model: PretrainedEncoder, tmp_path: Path, every_batch_a_part: None
) -> None:
    """Oracle: a job that began after the change."""
    cohort = MemoryCohort(heads(8))
    cut(model, cohort, tmp_path / "cut.parquet", at=6, tokens=tmp_path / "cut")
    arrays = cohort._arrays
    new = {"new": arrays.pop("scan-1"), "scan-7": arrays.pop("scan-7")}
    cohort._arrays = {**new, "scan-3": arrays.pop("scan-3"), **arrays}
    summary = run(model, cohort, tmp_path / "cut.parquet", tokens=tmp_path / "cut")
    assert summary == run(model, cohort, tmp_path / "whole.parquet", tokens=tmp_path / "whole")
    one, other = read(tmp_path / "whole.parquet"), read(tmp_path / "cut.parquet")
    assert list(other) == list(one) == list(cohort._arrays)
    np.testing.assert_allclose(np.stack(list(other.values())), np.stack(list(one.values())), atol=1e-5)
    tokens = [np.load(tmp_path / name / "tokens.npy") for name in ("whole", "cut")]
    np.testing.assert_allclose(tokens[1], tokens[0], atol=1e-5)
    places = [pq.read_table(tmp_path / name / "tokens.parquet") for name in ("whole", "cut")]
    assert places[0].equals(places[1])
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["tokens.json", "tokens.npy", "tokens.parquet"]


def test_files_that_look_alike_are_told_apart(
    model: PretrainedEncoder, scans: list[Scan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one name and one size; after the kill one is done, and the other changes without changing its size."""
    monkeypatch.setattr(job, "PART_INPUTS", 1)
    places = [tmp_path / name / "ct.nii" for name in ("a", "b", "c")]
    for place, scan in zip(places, [*scans, scans[0]], strict=True):
        hu = scan.hu + np.int16(place.parent.name == "c")
        place.parent.mkdir()
        write_nifti(replace(scan, hu=hu), place)
        (place.parent / "letter.txt").write_text("dear colleague")
    inputs = [path for place in places[:2] for path in (place, place.with_name("letter.txt"))]
    whole = run(model, inputs, tmp_path / "whole.parquet", batch_size=1)
    assert (whole.scans, whole.rejected) == (2, {"unknown-format": 2})
    cut(model, inputs, tmp_path / "out.parquet", at=3, batch_size=1)
    shutil.copyfile(places[2], places[0])
    assert run(model, inputs, tmp_path / "out.parquet", batch_size=1) == whole
    one, other = read(tmp_path / "whole.parquet"), read(tmp_path / "out.parquet")
    assert [name in one for name in other] == [False, True]
    assert pq.read_table(tmp_path / "out.rejections.parquet").num_rows == 2


def test_a_scan_that_several_inputs_hold_has_one_row(
    model: PretrainedEncoder, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same path, a copy of it, the folder around it, and a cohort of all; killed and called again as well."""
    monkeypatch.setattr(job, "PART_INPUTS", 1)
    shutil.copytree(files / "patient-0", tmp_path / "copy")
    ingest([files], tmp_path / "cohort", keep_ids=True, workers=1)
    inputs = [files / "patient-0", files / "patient-0", tmp_path / "copy", files, tmp_path / "cohort"]
    cut(model, inputs, tmp_path / "out.parquet", at=3, batch_size=1)
    summary = run(model, inputs, tmp_path / "out.parquet", batch_size=1)
    assert (summary.scans, summary.repeated, summary.rejected) == (2, 5, {"unknown-format": 1})
    found = embed(inputs, model, keep_ids=True)
    assert found.repeated == 5
    assert "5 repeated left out" in repr(found)
    assert found.table["input"].tolist() == [0, 3]
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["scan_id"].to_pylist() == found.table["scan_id"].tolist()
    assert table["files"].to_pylist() == found.table["files"].tolist()


def test_overlapping_cohorts_are_kept_too(model: PretrainedEncoder, tmp_path: Path) -> None:
    out, arrays = tmp_path / "out.parquet", heads(3)
    inputs = [MemoryCohort(arrays[:2], name="first"), MemoryCohort(arrays, name="second")]
    for kept in (0, 3):
        summary = run(model, inputs, out, tokens=None)
        assert (summary.scans, summary.kept, summary.repeated) == (3, kept, 2)
    assert len(embed(inputs, model, tokens=True).tokens) == 3


def test_rows_say_where_they_are_from(model: PretrainedEncoder, files: Path, scans: list[Scan], tmp_path: Path) -> None:
    run(model, [files, MemoryCohort(heads(1)), scans[0]], tmp_path / "out.parquet")
    of_files, _, of_cohort, in_memory = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(of_files) == ["scan_id", "vector", "patient_id", "study_id", "series_id", "files"]
    (expected, *_) = (item for item in read_scans(files, keep_ids=True) if isinstance(item, Scan))
    for name in ("scan_id", "patient_id", "study_id", "series_id"):
        assert of_files[name] == getattr(expected.header, name)
    names = sorted(path.name for path in (files / "patient-0").iterdir())
    assert of_files["files"] == [f"input/patient-0/{name}" for name in names]
    assert (of_cohort["patient_id"], of_cohort["files"]) == ("patient of scan-0", [])
    assert in_memory["files"] == []


def test_a_cohort_keeps_the_criteria_and_ids_it_was_ingested_with(
    model: PretrainedEncoder, files: Path, tmp_path: Path
) -> None:
    out, about = tmp_path / "out.parquet", {}
    ingest([files], tmp_path / "cohort", criteria=Criteria(min_slices=7), keep_ids=True, workers=1)
    for criteria, key, kept in ((Criteria(), b"1" * 32, 0), (Criteria(check_head=False), None, 2)):
        assert run(model, tmp_path / "cohort", out, criteria=criteria, key=key).kept == kept
        about = model_of(out) or {}
        assert json.loads(about["criteria"])["min_slices"] == 7
        assert about["ids"] == "kept"
    run(model, [tmp_path / "cohort", files], out, key=b"1" * 32)
    about = model_of(out) or {}
    assert [one["min_slices"] for one in json.loads(about["criteria"])] == [7, 3]
    assert re.fullmatch(r"kept, key [0-9a-f]{8}", about["ids"])


def test_a_key_has_one_name_in_cohorts_and_vectors(model: PretrainedEncoder, files: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("ab" * 32)
    ingest([files], tmp_path / "cohort", key=tmp_path / "key", workers=1)
    ids = []
    for inputs in (files, tmp_path / "cohort"):
        run(model, inputs, tmp_path / "out.parquet", key=bytes.fromhex("ab" * 32))
        ids.append((model_of(tmp_path / "out.parquet") or {})["ids"])
    assert ids[0] == ids[1]


def test_of_the_ids_of_virtual_patients_nothing_is_said(model: PretrainedEncoder, files: Path, tmp_path: Path) -> None:
    ingest([files], tmp_path / "cohort", keep_ids=True, workers=1)
    about = tmp_path / "cohort" / "cohort.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "simulated": {}}))
    for inputs, ids in ((tmp_path / "cohort", ""), ([tmp_path / "cohort", files], fingerprint(b"1" * 32))):
        run(model, inputs, tmp_path / "out.parquet", key=b"1" * 32)
        assert (model_of(tmp_path / "out.parquet") or {})["ids"] == ids


def test_rejections_of_reading_are_passed_on(model: PretrainedEncoder, files: Path, tmp_path: Path) -> None:
    items = list(read_scans(files, keep_ids=True))
    found = embed(items, model)
    assert (len(found), found.rejections["code"].tolist()) == (2, ["unknown-format"])
    assert run(model, items, tmp_path / "out.parquet").rejected == {"unknown-format": 1}


@pytest.mark.parametrize("inputs", [[3], None, [None], np.zeros((2, 2))])
def test_what_is_no_input_is_said(model: PretrainedEncoder, inputs: Any, tmp_path: Path) -> None:
    for call in (lambda: embed(inputs, model), lambda: run(model, inputs, tmp_path / "out.parquet")):
        with pytest.raises(Misuse, match="cannot be embedded\n  do:  give paths, scans, cohorts"):
            call()


def test_a_home_that_the_shell_left_is_found(
    model: PretrainedEncoder, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files, tmp_path / "scans")
    found = embed("~/scans", model, tokens=True, keep_ids=True)
    assert len(found) == 2
    found.write("~/q.parquet")
    found.write_tokens("~/tokens")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.parquet", "q.rejections.parquet", "scans", "tokens"]


def test_tokens_do_not_lie_among_other_things(model: PretrainedEncoder, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear colleague")
    found = embed(MemoryCohort(heads(1)), model, tokens=True)
    for write in (
        lambda: found.write_tokens(tmp_path / "mine"),
        lambda: run(model, MemoryCohort(heads(1)), tmp_path / "out.parquet", tokens=tmp_path / "mine"),
    ):
        with pytest.raises(Misuse, match=r"holds other things, such as letter\.txt"):
            write()
    with pytest.raises(Misuse, match="need a folder of their own"):
        run(model, MemoryCohort(heads(1)), tmp_path / "new" / "out.parquet", tokens=tmp_path / "new")
    with pytest.raises(Misuse, match="no tokens to write"):
        embed(MemoryCohort(heads(1)), model).write_tokens(tmp_path / "tokens")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


def test_a_second_job_is_told_which_file_is_taken(
    model: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with only_writer(Path(".v.parquet.embedding")), pytest.raises(Failure, match=r"is writing to v\.parquet"):
        run(model, MemoryCohort(heads(1)), Path("v.parquet"))


def test_tokens_that_are_gone_are_not_made_up(
    model: PretrainedEncoder, tmp_path: Path, every_batch_a_part: None
) -> None:
    """Elsewhere, removed, cut short, those of another job, or no tokens at all."""
    out, tokens, cohort = tmp_path / "out.parquet", tmp_path / "tokens", MemoryCohort(heads(7))
    cut(model, cohort, out, at=6, tokens=tokens)
    with pytest.raises(Misuse, match="begun otherwise \\(tokens\\)"):
        run(model, cohort, out, tokens=tmp_path / "elsewhere")
    file = tokens / "tokens.npy"
    whole = file.read_bytes()
    run(model, MemoryCohort(heads(7, seed=1)), tmp_path / "other.parquet", tokens=tmp_path / "other")
    for content in (None, whole[: len(whole) // 2], (tmp_path / "other" / "tokens.npy").read_bytes(), b"notes"):
        shutil.rmtree(tokens, ignore_errors=True)
        if content is not None:
            tokens.mkdir()
            file.write_bytes(content)
        with pytest.raises(Failure, match="does not hold the tokens"):
            run(model, cohort, out, tokens=tokens)
    file.write_bytes(whole)
    assert run(model, cohort, out, tokens=tokens).scans == 7
    np.testing.assert_allclose(np.load(file), embed(cohort, model, tokens=True).tokens, atol=1e-5)


def test_an_unfinished_job_does_not_own_tokens_elsewhere(model: PretrainedEncoder, tmp_path: Path) -> None:
    cohort = MemoryCohort(heads(3))
    cut(model, cohort, tmp_path / "out.parquet", at=2)
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine" / "tokens.npy", np.arange(3))
    with pytest.raises(Misuse, match=r"is there already, and no tokens\.json beside it"):
        job.check(tmp_path / "out.parquet", cohort, tmp_path / "mine")


def test_parts_after_a_damaged_one_do_not_come_back(
    model: PretrainedEncoder, tmp_path: Path, every_batch_a_part: None
) -> None:
    """Killed again after it was done anew, when what followed it once is still there."""
    out, cohort = tmp_path / "out.parquet", Dying(heads(9))
    whole = run(model, cohort, tmp_path / "whole.parquet", tokens=tmp_path / "whole")
    for damage in ("cut short", "lost"):
        cohort.dies_at = "scan-8"
        with pytest.raises(Killed):
            run(model, cohort, out, tokens=tmp_path / "cut")
        journal = Journal(tmp_path / ".out.parquet.embedding" / "journal")
        assert [journal.has("part", number) for number in range(4)] == [True, True, True, False]
        if damage == "lost":
            journal.drop("part", 1)
        else:
            journal._path("part", 1).write_bytes(b"damaged")
        cohort.dies_at = "scan-6"
        with pytest.raises(Killed):
            run(model, cohort, out, tokens=tmp_path / "cut")
        cohort.dies_at = ""
        assert run(model, cohort, out, tokens=tmp_path / "cut") == whole
        assert list(read(out)) == list(cohort._arrays)
        tokens = [np.load(tmp_path / name / "tokens.npy") for name in ("whole", "cut")]
        np.testing.assert_allclose(tokens[1], tokens[0], atol=1e-5)


def test_what_is_left_is_removed_while_nobody_else_may_write(
    model: PretrainedEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, remove = tmp_path / ".out.parquet.embedding", shutil.rmtree
    held: list[bool] = []

    def watched(folder: Path, **options: Any) -> None:
        if folder == home:
            with pytest.raises(Failure, match="another process"), only_writer(home):
                pass
            held.append(True)
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", watched)
    run(model, MemoryCohort(heads(1)), tmp_path / "out.parquet")
    assert held == [True]
    assert not home.exists()


def test_another_pooling_neither_keeps_vectors_nor_finishes_a_job(model: PretrainedEncoder, tmp_path: Path) -> None:
    """The same weights with other windows stand for it."""
    turned = dict(reversed(model.card.windows.items()))
    other = PretrainedEncoder(model.encoder, replace(model.card, windows=turned), model.sha256)
    run(model, MemoryCohort(heads(2)), tmp_path / "out.parquet")
    assert run(other, MemoryCohort(heads(2)), tmp_path / "out.parquet").kept == 0
    cut(model, MemoryCohort(heads(3)), tmp_path / "cut.parquet", at=2)
    with pytest.raises(Misuse, match="begun otherwise \\(decisive_sha256\\)"):
        run(other, MemoryCohort(heads(3)), tmp_path / "cut.parquet")


class Checked(MemoryCohort):
    """A cohort with a checksum of each array, as one on disk has."""

    @property
    def scans(self) -> pd.DataFrame:  # type: ignore[override]
        return super().scans.assign(crc32=[int(array.sum()) for array in self._arrays.values()])


def test_a_cohort_that_was_made_anew_is_embedded_anew(model: PretrainedEncoder, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    run(model, Checked(heads(3)), out)
    again = Checked(heads(3))
    again._arrays["scan-1"] = heads(1, seed=1)[0]
    assert run(model, again, out).kept == 2
    np.testing.assert_allclose(np.stack(list(read(out).values())), embed(again, model).vectors, atol=1e-5)


def test_rows_come_in_the_order_of_the_input_however_they_came_about(model: PretrainedEncoder, tmp_path: Path) -> None:
    """Two cohorts of which the first grows."""
    out, first, second = tmp_path / "out.parquet", heads(5), MemoryCohort(heads(2, seed=1), name="second")
    second._arrays = {f"other-{name}": array for name, array in second._arrays.items()}
    run(model, [MemoryCohort(first[:3], name="first"), second], out)
    summary = run(model, inputs := [MemoryCohort(first, name="first"), second], out)
    assert (summary.scans, summary.kept) == (7, 5)
    table = pq.read_table(out)
    expected = embed(inputs, model)
    assert table["scan_id"].to_pylist() == expected.table["scan_id"].tolist()
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected.vectors, atol=1e-5)
    assert run(model, second, out).scans == 2


def test_files_are_looked_at_each_time(model: PretrainedEncoder, files: Path, tmp_path: Path) -> None:
    for _ in range(2):
        summary = run(model, files, tmp_path / "out.parquet")
        assert (summary.scans, summary.kept, summary.rejected) == (2, 0, {"unknown-format": 1})


def test_a_cohort_that_grew_is_embedded_only_where_it_grew(model: PretrainedEncoder, tmp_path: Path) -> None:
    out, cohort = tmp_path / "night.parquet", MemoryCohort(heads(5))
    run(model, MemoryCohort(heads(3)), out)
    first = read(out)
    cohort._arrays["scan-0"] = np.zeros((1, 1, 1), np.int16)  # would fail if it were looked at again
    summary = run(model, cohort, out)
    assert (summary.scans, summary.kept) == (5, 3)
    assert list(read(out)) == [f"scan-{n}" for n in range(5)]
    assert all(np.array_equal(read(out)[name], vector) for name, vector in first.items())
    del cohort._arrays["scan-1"]
    assert run(model, cohort, out).scans == 4
    assert "scan-1" not in read(out)


def test_vectors_of_other_terms_are_not_kept(model: PretrainedEncoder, tmp_path: Path) -> None:
    run(model, MemoryCohort(heads(2)), tmp_path / "out.parquet", precision="bf16")
    assert run(model, MemoryCohort(heads(2)), tmp_path / "out.parquet").kept == 0


@pytest.mark.parametrize("name", ["out.parquet", "out.rejections.parquet", "tokens/tokens.npy"])
def test_what_headct_did_not_write_is_not_replaced(model: PretrainedEncoder, tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    if mine.suffix == ".npy":
        np.save(mine, np.arange(3))
    else:
        pq.write_table(pa.table({"scan_id": ["a"]}), mine)
    before = mine.read_bytes()
    with pytest.raises(Misuse, match=f"{name} is there already"):
        run(model, MemoryCohort(heads(1)), tmp_path / "out.parquet", tokens=tmp_path / "tokens")
    assert mine.read_bytes() == before
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_vectors_in_memory_are_as_careful(model: PretrainedEncoder, scans: list[Scan], tmp_path: Path) -> None:
    (tmp_path / "out.parquet").write_text("notes")
    found = embed(scans[0], model)
    with pytest.raises(Misuse, match="is there already, and is damaged, or not a table at all"):
        found.write(tmp_path / "out.parquet")
    pq.write_table(pa.table({"scan_id": ["a"]}), tmp_path / "scans.parquet")
    with pytest.raises(Misuse, match="is there already, and is not a table of vectors"):
        found.write(tmp_path / "scans.parquet")
    with pytest.raises(Misuse, match="Parquet"):
        found.write(tmp_path / "out.csv")


def test_tokens_of_ours_are_replaced(model: PretrainedEncoder, tmp_path: Path) -> None:
    for number in (2, 1):
        run(model, MemoryCohort(heads(number)), tmp_path / "out.parquet", tokens=tmp_path / "tokens")
    assert len(np.load(tmp_path / "tokens" / "tokens.npy")) == 1


def test_nothing_leaves_empty_tables(model: PretrainedEncoder, tmp_path: Path) -> None:
    summary = run(model, [], tmp_path / "out.parquet", tokens=tmp_path / "tokens")
    assert summary == job.Summary(0, 0, model.scan_width, {})
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert np.load(tmp_path / "tokens" / "tokens.npy").shape == (0, 0, 0)


def test_a_place_that_cannot_be_written_is_named(model: PretrainedEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="file"):
        run(model, MemoryCohort(heads(1)), tmp_path / "file" / "out.parquet")


def test_tokens_know_where_they_lie(model: PretrainedEncoder, scans: list[Scan]) -> None:
    """Oracle: the array's own affine at the middle of a patch."""
    from headct.preparing import Prepared, prepare

    prepared = prepare(scans[0], recipes["head"])
    assert isinstance(prepared, Prepared)
    found = embed(scans[0], model, tokens=True)
    assert found.token_affines is not None
    assert found.grid == (8, 8, 8)
    patch = np.array(model.settings.patch)
    for place in ([0, 0, 0], [7, 7, 7], [2, 5, 1]):
        middle = np.mean([patch * place, patch * (np.array(place) + 1) - 1], axis=0)
        np.testing.assert_allclose(found.token_affines[0] @ [*place, 1], prepared.affine @ [*middle, 1])
