"""What may be found: vectors of scans and what is known of each, from a cohort or from a table of `headct embed`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort
from headct.cohort.identities import pseudonyms_of
from headct.detection.method import Progress, quiet
from headct.detection.scans import scans_of
from headct.embedding.embeddings import model_of
from headct.embedding.machine import Machine
from headct.embedding.vectors import about
from headct.failure import Failure, Misuse
from headct.tasks.retrieval.filters import COLUMNS

IDS = ("scan_id", "patient_id", "study_id", "series_id")
SHOWN = 5


@dataclass(frozen=True)
class Gallery:
    """Vectors (n, F) float32, and a row for each scan: `IDS`, and `COLUMNS` where a cohort says them.

    `patient_id` is never empty: a scan of an unknown patient is one of its own. `model` is what made the vectors.
    `pseudonyms` are fingerprints of the keys that made the ids, with commas between; `none` for original ids, "" where
    it is unknown, or patients are virtual. Raises Misuse where there are none, where a scan comes twice, or where a
    vector is not finite.
    """

    vectors: np.ndarray
    scans: pd.DataFrame
    model: Mapping[str, str]
    pseudonyms: str = ""

    def __post_init__(self) -> None:
        if not len(self.vectors):
            raise Misuse("there are no vectors to search", do="give a cohort with scans, or a table with rows")
        expect_finite(self.vectors, self.scans["scan_id"].tolist())
        twice = self.scans["scan_id"][self.scans["scan_id"].duplicated()]
        if len(twice):
            raise Misuse(
                f"scan {twice.iloc[0]} has more than one vector", do="keep one row for each scan, and build again"
            )

    def __len__(self) -> int:
        return len(self.vectors)


def expect_finite(vectors: np.ndarray, names: list[str]) -> None:
    """Raises Misuse, naming the scans, where a vector holds something that is no number."""
    wrong = [name for name, fine in zip(names, np.isfinite(vectors).all(axis=1), strict=True) if not fine]
    if wrong:
        more = f" and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
        raise Misuse(
            f"{len(wrong):,} of {len(vectors):,} vectors are not finite: {', '.join(wrong[:SHOWN])}{more}",
            why="a vector with NaN or infinity is similar to nothing",
            do="embed these scans again in fp32, or leave their rows out",
        )


def of_cohort(
    cohort: Cohort,
    encoder: PretrainedEncoder,
    machine: Machine,
    cache: Path,
    *,
    batch_size: int = 8,
    workers: int = 1,
    progress: Progress = quiet,
) -> Gallery:
    """The scans of a cohort; vectors that the folder `cache` holds from before are taken from there.

    Raises Misuse where the cohort has another recipe than the encoder, or no scans.
    """
    cohort.expect(encoder.recipe)
    expect_scans(cohort)
    scans = scans_of(
        [cohort], list(cohort), encoder, machine, cache, batch_size=batch_size, workers=workers, progress=progress
    )
    return Gallery(scans.held_vectors, _known(cohort.scans), about(encoder, machine), pseudonyms_of(cohort))


def expect_scans(cohort: Cohort) -> None:
    """Raises Misuse where a cohort is empty."""
    if not len(cohort):
        raise Misuse(
            f"the cohort {cohort.path} has no scans",
            do="see its rejections.parquet for the reasons, or name another cohort",
        )


def of_table(path: Path, cohort: Cohort | None = None) -> Gallery:
    """The vectors in a table of `headct embed`; what else is known of their scans is in `cohort`, if given.

    Raises Misuse where the file is no such table, where the cohort was prepared by another recipe than the vectors'
    model, or lacks their scans.
    """
    model = model_of(path)
    try:
        table = pq.ParquetFile(path).read(columns=["vector", *IDS], use_threads=False)
    except FileNotFoundError:
        raise Misuse(f"there is no table of vectors {path}", do="check the path") from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Failure(f"{path} is damaged, or no table of vectors", why=str(error).partition("\n")[0]) from error
    if model is None or table.schema.get_field_index("vector") < 0:
        raise Misuse(f"{path} is no table of vectors of headct", do="write one with headct embed")
    scans = pd.DataFrame({name: table[name].to_pylist() for name in IDS}).astype(str)
    if cohort is not None:
        if cohort.recipe.id != model["recipe"]:
            raise Misuse(
                f"cohort {cohort.path.name} uses recipe {cohort.recipe.name} ({cohort.recipe.id}), "
                f"the vectors in {path.name} were made by recipe {model['recipe']}",
                why="features of differently prepared scans cannot be compared",
                do="name the cohort that was embedded",
            )
        missing = [scan_id for scan_id in scans["scan_id"] if scan_id not in cohort]
        if missing:
            raise Misuse(
                f"{len(missing):,} of {len(scans):,} scans of {path.name} are not in the cohort {cohort.path}, "
                f"such as {missing[0]}",
                do="name the cohort that was embedded",
            )
        scans = cohort.scans.set_index("scan_id", drop=False).loc[scans["scan_id"]].reset_index(drop=True)
    pseudonyms = made_by(model.get("ids", "")) if cohort is None else pseudonyms_of(cohort)
    return Gallery(_vectors(table["vector"], path), _known(scans), model, pseudonyms)


def made_by(ids: str) -> str:
    """How ids came about, as `Gallery.pseudonyms`, from what a table of vectors says of its own."""
    return ", ".join("none" if one == "kept" else one for one in ids.split(", "))


def _vectors(column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """Rows (n, F). Raises Failure where they differ in length."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    lengths = set(column.combine_chunks().value_lengths().to_pylist())
    if len(lengths) > 1:
        raise Failure(f"the vectors in {path} differ in length: {sorted(lengths)}", do="embed the scans again")
    return np.asarray(flat, dtype=np.float32).reshape(len(column), max(lengths, default=0))


def _known(scans: pd.DataFrame) -> pd.DataFrame:
    """`IDS` as text and `COLUMNS` as far as they are there; a scan of an unknown patient is one of its own."""
    known = scans[[*IDS, *(name for name in COLUMNS if name in scans)]].reset_index(drop=True)
    ids = known[list(IDS)].fillna("").astype(str)
    patients = ids["patient_id"].where(ids["patient_id"] != "", ids["study_id"])
    ids["patient_id"] = patients.where(patients != "", ids["scan_id"])
    return known.assign(**{name: ids[name] for name in IDS})
