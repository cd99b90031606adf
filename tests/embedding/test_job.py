"""Embedding as a job: the same as in memory, and the same again after a kill at any moment.

Oracle: `embed`, which holds all in memory.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pretraining.memory_cohort import MemoryCohort, heads

from headct.checkpoints import PretrainedEncoder
from headct.embedding import embed, job
from headct.embedding.inputs import Reading
from headct.embedding.job import embed_into
from headct.embedding.machine import choose
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.reading import Criteria
from headct.scan import Scan


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
    reading = Reading(recipe=model.recipe, criteria=options.pop("criteria", Criteria()), keep_ids=True)
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
    with pytest.raises(Misuse, match="embeds otherwise \\(criteria, precision\\)"):
        run(model, cohort, tmp_path / "out.parquet", precision="bf16", criteria=Criteria(check_head=False))


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
    with pytest.raises(Misuse, match="is there already"):
        found.write(tmp_path / "out.parquet")
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
