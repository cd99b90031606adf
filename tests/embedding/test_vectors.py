"""Embedding: order, independence of batches and workers, and what cannot be embedded.

Oracle of files: the same scans taken through a cohort on disk. Float32 kernels for other batch sizes add in another
order; vectors are normalised features of size 1, so they agree to 1e-5.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose
from pretraining.memory_cohort import MemoryCohort, heads

from headct import encoders
from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.embedding import embed
from headct.embedding.machine import choose
from headct.embedding.vectors import IDLE, about
from headct.failure import Misuse
from headct.preparing import recipes
from headct.reading import Criteria
from headct.scan import Scan


def test_vectors_are_those_of_the_encoder_in_the_order_of_the_cohort(model: PretrainedEncoder) -> None:
    arrays = heads(5)
    found = embed(MemoryCohort(arrays), model, tokens=True)
    with torch.no_grad():
        features = model.see(torch.from_numpy(np.stack(arrays)))
    assert found.table["scan_id"].tolist() == [f"scan-{n}" for n in range(5)]
    assert found.table["patient_id"].tolist() == [f"patient of scan-{n}" for n in range(5)]
    assert found.vectors.dtype == np.float32
    assert found.tokens is not None
    assert found.grid == features.grid
    assert_allclose(found.vectors, features.scan.numpy(), atol=1e-5)
    assert_allclose(found.tokens, features.tokens.numpy(), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (64, 3)])
def test_batches_and_workers_do_not_matter(model: PretrainedEncoder, batch_size: int, workers: int) -> None:
    cohort = MemoryCohort(heads(7))
    found = embed(cohort, model, batch_size=batch_size, workers=workers)
    reference = embed(cohort, model, batch_size=7)
    assert found.table["scan_id"].tolist() == reference.table["scan_id"].tolist()
    assert_allclose(found.vectors, reference.vectors, atol=1e-5)


def test_the_same_call_gives_the_same_bits(model: PretrainedEncoder) -> None:
    cohort = MemoryCohort(heads(3))
    model.train()  # as a caller may have left it
    assert np.array_equal(embed(cohort, model).vectors, embed(cohort, model).vectors)
    assert not model.training


def test_files_scans_and_cohorts_give_the_same_vectors(checkpoint: Path, files: Path, tmp_path: Path) -> None:
    ingest([files], tmp_path / "cohort", keep_ids=True, workers=1)
    from_files = embed(files, checkpoint, keep_ids=True)
    from_folder = embed(tmp_path / "cohort", str(checkpoint))
    from_cohort = embed(Cohort(tmp_path / "cohort"), checkpoint)
    assert len(from_cohort) == 2
    for other in (from_folder, from_cohort):
        by_id = pd.DataFrame(other.vectors, index=other.table["scan_id"]).loc[from_files.table["scan_id"]]
        assert_allclose(by_id.to_numpy(), from_files.vectors, atol=1e-5)
    assert from_files.rejections["code"].tolist() == ["unknown-format"]
    assert from_files.rejections["files"].tolist() == [["input/letter.txt"]]


def test_a_scan_without_a_head_is_rejected_with_its_id(model: PretrainedEncoder, scans: list[Scan]) -> None:
    water = replace(scans[0], hu=np.zeros_like(scans[0].hu), header=replace(scans[0].header, scan_id="water"))
    found = embed([scans[0], water, scans[1]], model, batch_size=2)
    assert found.table["scan_id"].tolist() == ["scan-1", "scan-3"]
    assert found.rejections[["scan_id", "code"]].to_numpy().tolist() == [["water", "no-head"]]
    assert len(embed(water, model, criteria=Criteria(check_head=False))) == 1


def test_nothing_gives_empty_tables_of_the_right_width(model: PretrainedEncoder) -> None:
    found = embed([], model, tokens=True)
    assert found.vectors.shape == (0, model.scan_width)
    assert list(found.table.columns)[:1] == ["scan_id"]
    assert len(found.rejections) == 0


def test_another_recipe_is_an_error_that_names_both(model: PretrainedEncoder) -> None:
    with pytest.raises(Misuse) as caught:
        embed(MemoryCohort(heads(2), recipe=recipes["head-fine"], name="fine"), model)
    assert recipes["head"].id in caught.value.what
    assert recipes["head-fine"].id in caught.value.what
    assert "cohort fine" in caught.value.what


def test_arrays_of_another_shape_are_embedded_apart(model: PretrainedEncoder) -> None:
    mixed = MemoryCohort([*heads(2), *heads(2, shape=(36, 28, 24))])
    assert len(embed(mixed, model, batch_size=3)) == 4
    with pytest.raises(Misuse, match="scan scan-2 has a token grid of"):
        embed(mixed, model, batch_size=3, tokens=True)


def test_written_tables_hold_what_was_found(model: PretrainedEncoder, tmp_path: Path, scans: list[Scan]) -> None:
    water = replace(scans[0], hu=np.zeros_like(scans[0].hu))
    found = embed([*scans, water], model, tokens=True)
    found.write(tmp_path / "deep" / "night.parquet")
    found.write_tokens(tmp_path / "tokens")
    table = pq.read_table(tmp_path / "deep" / "night.parquet")
    assert table.column_names[:2] == ["scan_id", "vector"]
    assert table.schema.field("vector").type.value_type == pa.float32()
    assert np.array_equal(np.stack(table["vector"].to_pandas()), found.vectors)
    assert table["scan_id"].to_pylist() == found.table["scan_id"].tolist()
    assert model.sha256.encode() in table.schema.metadata[b"headct"]
    rejections = pd.read_parquet(tmp_path / "deep" / "night.rejections.parquet")
    assert rejections["code"].tolist() == ["no-head"]
    assert rejections["remedy"].str.len().min() > 0
    assert np.array_equal(np.load(tmp_path / "tokens" / "tokens.npy", mmap_mode="r"), found.tokens)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["night.parquet", "night.rejections.parquet"]


def test_empty_tables_keep_their_types(model: PretrainedEncoder, tmp_path: Path) -> None:
    embed([], model).write(tmp_path / "none.parquet")
    assert pq.read_schema(tmp_path / "none.parquet").field("vector").type.value_type == pa.float32()
    assert pq.read_table(tmp_path / "none.rejections.parquet").num_rows == 0


def test_progress_counts_scans_and_rejections(model: PretrainedEncoder) -> None:
    seen: list[int] = []
    embed(MemoryCohort(heads(5)), model, batch_size=2, progress=lambda done, total: seen.append(done))
    assert seen == [2, 4, 5]


def test_long_runs_of_rejections_are_told_as_they_come(model: PretrainedEncoder, tmp_path: Path) -> None:
    for number in range(2 * IDLE + 1):
        (tmp_path / f"{number}.txt").write_text("dear colleague")
    seen: list[int] = []
    found = embed(tmp_path, model, progress=lambda done, total: seen.append(done))
    assert seen == [IDLE, 2 * IDLE, 2 * IDLE + 1]
    assert len(found.rejections) == 2 * IDLE + 1


def test_rejections_do_not_shrink_batches_before_there_are_many(model: PretrainedEncoder, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("dear colleague")
    seen: list[int] = []
    first, second = MemoryCohort(heads(2)), MemoryCohort(heads(2))
    embed([first, tmp_path, second], model, batch_size=4, progress=lambda done, total: seen.append(done))
    assert seen == [7]


def test_another_pooling_or_another_order_of_windows_is_another_model(model: PretrainedEncoder) -> None:
    """The weights are the same, so their hash alone would not tell."""
    windows = dict(reversed(model.card.windows.items()))
    turned = PretrainedEncoder(model.encoder, replace(model.card, windows=windows), model.sha256)
    pooled = encoders.build(model.architecture, **{**asdict(model.settings), "pooling": "mean"})
    pooled.load_state_dict(model.encoder.state_dict())
    other = PretrainedEncoder(pooled, model.card, model.sha256)
    machine = choose("fp32", "cpu")
    assert len({about(one, machine)["decisive_sha256"] for one in (model, turned, other)}) == 3
    assert about(model, machine) == about(PretrainedEncoder(model.encoder, model.card, model.sha256), machine)


def test_numbers_below_one_are_refused(model: PretrainedEncoder) -> None:
    with pytest.raises(Misuse, match="at least 1"):
        embed([], model, batch_size=0)
