"""What is asked for: scans in files, scans of the index, or vectors, each with what its picture needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headct.checkpoints import PretrainedEncoder
from headct.cohort import Cohort, identities
from headct.cohort.identities import ids_of
from headct.embedding.inputs import Reading, chosen_by
from headct.embedding.machine import Machine
from headct.embedding.vectors import look
from headct.failure import Failure, Misuse
from headct.reporting.retrieval import Seen
from headct.tasks.retrieval.gallery import made_by, of_table
from headct.tasks.retrieval.index import Found, Index
from headct.tasks.retrieval.ranking import stored_form

SAME, SAME_BF16 = 1e-4, 2e-3
"""Two vectors are most likely of one scan where they lie within this share of their length, in their stored form.

It is what is left of the encoder's precision; in single precision less than what lies between heads that it draws all
alike.
"""
FACTS = ("manufacturer", "model", "kernel", "thickness_mm", "tilt_deg", "age", "sex", "site")
"""Columns that a page tells of each scan, as far as the index has them."""


@dataclass(frozen=True)
class Query:
    """One query: its vector (F,), whose scan it is ("" for nobody's), and its picture where it has one."""

    name: str
    vector: np.ndarray
    patient_id: str = ""
    seen: Seen | None = None
    virtual: bool = False  # whether it is of the index's own, virtual patients
    pseudonyms: str = ""  # how its ids came about, as `Gallery.pseudonyms`


def of_files(
    inputs: Sequence[Path], index: Index, encoder: PretrainedEncoder, reading: Reading, machine: Machine
) -> tuple[list[Query], dict[str, int]]:
    """A query for each scan in files or cohorts, and how many files were rejected by code.

    Raises Misuse where the encoder is not that of the index.
    """
    expect_model(index, encoder)
    queries: list[Query] = []
    rejected: Counter[str] = Counter()
    pseudonyms = made_by(chosen_by(list(inputs), reading)["ids"])
    for batch in look(encoder, list(inputs), reading, machine, batch_size=1, workers=1):
        for (_, ready), vector in zip(batch.ready, batch.vectors, strict=True):
            scan_id, patient_id = ready.ids["scan_id"], ready.ids["patient_id"]
            facts = {name: ready.traits[name] for name in FACTS if name in ready.traits}
            seen = _seen(scan_id, patient_id, ready.array, ready.spacing_mm, facts)
            queries.append(Query(scan_id, vector, patient_id, seen, pseudonyms=pseudonyms))
        rejected.update(one.rejection.code for _, one in batch.refused)
    return queries, dict(rejected)


def expect_model(index: Index, encoder: PretrainedEncoder) -> None:
    """Raises Misuse, naming both, where vectors of the encoder and of the index are not to be compared."""
    model = index.about["model"]
    if model["recipe"] != encoder.recipe.id:
        raise Misuse(
            f"the index uses recipe {model['recipe']}, the model uses {encoder.recipe.name} ({encoder.recipe.id})",
            why="features of differently prepared scans cannot be compared",
            do="name the model of the index, or build the index again with this one",
        )
    if model["decisive_sha256"] != encoder.decisive_sha256:
        raise Misuse(
            f"the index was made by {model['architecture']} {model['sha256'][:8]}, "
            f"the model is {encoder.architecture} {encoder.sha256[:8]}",
            why="vectors of two encoders cannot be compared",
            do="name the model of the index, or build the index again with this one",
        )


def of_index(scan_ids: Sequence[str], index: Index, cohort: Cohort | None) -> list[Query]:
    """Queries by scans that the index holds. Raises Misuse for an unknown id."""
    queries = []
    for scan_id in scan_ids:
        row = index.row(scan_id)
        seen = seen_in_cohort(index, row, cohort)
        own = np.asarray(index.vectors[row])
        queries.append(Query(scan_id, own, index.scans["patient_id"][row], seen, index.about["virtual"]))
    return queries


def of_vectors(path: Path, index: Index) -> list[Query]:
    """Queries by vectors: a table of `headct embed`, or a .npy file (F,) or (q, F) of nobody's.

    Raises Misuse where the file is neither, or was made by another model than the index.
    """
    if path.suffix.lower() != ".npy":
        table = of_table(path)
        for key in ("recipe", "decisive_sha256"):
            if table.model[key] != index.about["model"][key]:
                raise Misuse(
                    f"the vectors in {path.name} and the index differ in {key}: "
                    f"{table.model[key][:12]} and {index.about['model'][key][:12]}",
                    why="vectors of two encoders or recipes cannot be compared",
                    do="embed the scans with the model of the index",
                )
        ids, patients = table.scans["scan_id"], table.scans["patient_id"]
        return [Query(*given, pseudonyms=table.pseudonyms) for given in zip(ids, table.vectors, patients, strict=True)]
    try:
        vectors = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise Misuse(f"there is no file {path}", do="check the path") from None
    except (OSError, ValueError) as error:
        raise Misuse(f"{path} is no array of numpy", why=str(error), do="write it with numpy.save") from error
    if vectors.ndim not in (1, 2) or vectors.dtype.kind not in "fiu":
        raise Misuse(
            f"{path} holds {vectors.dtype} of shape {vectors.shape}",
            do=f"give one vector ({index.about['width']},) or several (q, {index.about['width']})",
        )
    rows = np.atleast_2d(vectors).astype(np.float32)
    return [Query(f"{path.name}, row {number}", vector) for number, vector in enumerate(rows, start=1)]


def seen_in_cohort(index: Index, row: int, cohort: Cohort | None, similarity: float | None = None) -> Seen:
    """A scan of the index as a page shows it; without its cohort there is no picture."""
    known = index.scans.iloc[row]
    scan_id, patient_id = str(known["scan_id"]), str(known["patient_id"])
    facts = {name: known[name] for name in FACTS if name in index.scans}
    if cohort is None or scan_id not in cohort:
        return Seen(scan_id=scan_id, patient_id=patient_id, facts=facts, similarity=similarity)
    spacing_mm = np.linalg.norm(cohort.affine(scan_id)[:3, :3], axis=0)
    return _seen(scan_id, patient_id, cohort.array(scan_id), spacing_mm, facts, similarity)


def _seen(
    scan_id: str,
    patient_id: str,
    array: np.ndarray,
    spacing_mm: np.ndarray,
    facts: Mapping[str, object],
    similarity: float | None = None,
) -> Seen:
    """With a picture where the array is one of HU, as our own recipes give it; a published one has windows inside."""
    x, y, z = (float(mm) for mm in spacing_mm)
    is_hu = array.ndim == 3 and array.dtype == np.int16
    return Seen(
        scan_id=scan_id,
        patient_id=patient_id,
        array=array if is_hu else None,
        spacing_mm=(x, y, z),
        facts=facts,
        similarity=similarity,
    )


def cohort_of(index: Index, given: Path | None) -> Cohort | None:
    """The cohort that the index was made of: where `given` says, else where it lay; None where it is not there.

    Raises Misuse where the one that is given has another recipe.
    """
    if given is None:
        try:
            return Cohort(index.about["cohort"]) if index.about["cohort"] else None
        except Failure:
            return None
    cohort = Cohort(given)
    if cohort.recipe.id != index.about["model"]["recipe"]:
        raise Misuse(
            f"cohort {cohort.path.name} uses recipe {cohort.recipe.name} ({cohort.recipe.id}), "
            f"the index uses {index.about['model']['recipe']}",
            do="name the cohort that the index was made of",
        )
    return cohort


def caution(queries: Sequence[Query], index: Index) -> str:
    """A sentence where a patient of both cannot be known by the id, since other keys made it; else nothing.

    Where either does not say how its ids came about, nothing is said, nor of virtual patients, who are nobody's.
    """
    there = [] if index.about["virtual"] else index.pseudonyms.split(", ")
    for here in dict.fromkeys(one.pseudonyms for one in queries):
        if identities.strangers(here.split(", "), there):
            return (
                f"the query and the index {index.path.name} call patients by {ids_of(here.split(', '))} and by "
                f"{ids_of(there)}: scans of the query's own patient, and the query itself, are not known "
                "as such and may be found; name the key of the index (--key FILE), or keep ids (--keep-ids), as its "
                "cohort was ingested"
            )
    return ""


def double(query: Query, found: Found, index: Index) -> str:
    """The id of the nearest scan where it is most likely the query's own under another name; else nothing."""
    nearest = int(found.rows[0])
    here = stored_form(query.vector[None], index.metric)[0].astype(np.float64)
    apart = here - index.vectors[nearest]
    scan_id = str(index.scans["scan_id"][nearest])
    share = SAME if index.about["model"].get("precision") == "fp32" else SAME_BF16
    same = bool(np.linalg.norm(apart) <= share * np.linalg.norm(here))
    return scan_id if same and scan_id != query.name else ""
