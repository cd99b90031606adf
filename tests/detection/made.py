"""Cohorts of blocks that stand for heads, with findings that are painted in: quick to make, and with a known truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from headct.cohort import Cohort
from headct.cohort.executors import Crew
from headct.cohort.identities import fingerprint
from headct.cohort.made import Made, make_cohort
from headct.cohort.shards import pack
from headct.cohort.work import Accepted, Outcome, scan_row
from headct.preparing import Prepared, recipes
from headct.preparing.recipe import Recipe
from headct.reading.criteria import Criteria
from headct.reading.pseudonyms import Pseudonyms
from headct.scan import Header, Scan

FINDINGS = ("ich", "sdh")
SHAPE = (48, 56, 48)
SPACING_MM = np.array([4.0, 4.0, 4.0])


def labels_of(number: int) -> dict[str, int]:
    """Both, one, the other or none, in turn."""
    return {"ich": number % 2, "sdh": (number // 2) % 2}


def array_of(number: int, seed: int, labels: dict[str, int]) -> np.ndarray:
    """Noise, and a bright or a dark block for each finding."""
    rng = np.random.default_rng((seed, number))
    hu = rng.normal(30, 6, SHAPE)
    if labels["ich"]:
        hu[8:28, 8:28, 8:28] += 25
    if labels["sdh"]:
        hu[30:44, 30:50, 20:44] -= 25
    return hu.astype(np.int16)


def make(
    out: Path,
    patients: int,
    *,
    seed: int = 0,
    scans_each: int = 1,
    recipe: Recipe | None = None,
    thickness_mm: float = 5.0,
    manufacturer: str = "ACME",
    flags: Sequence[str] = (),
    noise_hu: float = 0.0,
    key: bytes | None = None,
    virtual: bool = False,
) -> Cohort:
    """A cohort of patients `p000`, `p001`, ... of studies `st000`, series `se000-0` and scans of 16 digits.

    With a `key` these identifiers become pseudonyms, all but those of the scans. A `virtual` one says of itself that
    its patients do not exist.
    """
    pseudonyms = Pseudonyms(key)
    recipe = recipe or recipes["head"]

    def one(number: int) -> Made:
        patient, again = divmod(number, scans_each)
        hu = array_of(number, seed, labels_of(patient))
        if noise_hu:
            hu = (hu + np.random.default_rng(number).normal(0, noise_hu, hu.shape)).astype(np.int16)
        header = Header(
            scan_id=f"{seed:08x}{number:08x}",
            patient_id=pseudonyms.of("patient", f"p{patient:03d}"),
            study_id=pseudonyms.of("study", f"st{patient:03d}"),
            series_id=pseudonyms.of("series", f"se{patient:03d}-{again}"),
            manufacturer=manufacturer,
            flags=tuple(flags),
        )
        scan = Scan(
            hu=np.zeros((2, 2, 2), np.int16),
            origins_mm=np.array([[0.0, 0, 0], [0, 0, thickness_mm]]),
            row_step_mm=np.array([0.0, 1, 0]),
            col_step_mm=np.array([1.0, 0, 0]),
            thickness_mm=thickness_mm,
            header=header,
        )
        packed = pack(hu)
        prepared = Prepared(hu, np.diag([*SPACING_MM, 1.0]), recipe, 1.0, tuple(flags))
        row = scan_row(scan, prepared, "site-a") | {"crc32": packed.crc32}
        accepted = Accepted(
            row=row,
            files=(f"data/p{patient:03d}/scan-{again}.nii.gz",),
            shape=packed.shape,
            dtype=packed.dtype,
            compressed_bytes=len(packed.chunk),
        )
        return Made(Outcome((accepted,), (), (packed,)), ({},))

    about = {
        "recipe": {"id": recipe.id, "name": recipe.name, "content": json.loads(recipe.to_json())},
        "criteria": Criteria().to_dict(),
        "pseudonyms": "none" if key is None else fingerprint(key),
        "hashed_paths": "none",
        **({"simulated": {}} if virtual else {}),
    }
    with ThreadPoolExecutor(1) as threads:
        crew = Crew(threads, lambda: 1)
        make_cohort(
            out, patients * scans_each, one, about, crew=crew, progress=lambda *_: None, finish=lambda records: None
        )
    return Cohort(out)


def truth(cohort: Cohort) -> pd.DataFrame:
    """scan_id, patient_id and the findings of a cohort that `make` has made."""
    scans = cohort.scans[["scan_id", "patient_id"]].reset_index(drop=True)
    found = pd.DataFrame([labels_of(int(patient[1:])) for patient in scans["patient_id"]])
    return pd.concat([scans, found], axis=1)
