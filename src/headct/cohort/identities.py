"""By what names cohorts call their patients, and whether a patient of two of them can be known as one.

A record says so by the fingerprint of the key that made its pseudonyms, `none` for original ids, or nothing where
patients are virtual and nobody's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from headct.cohort.cohort import Cohort


def fingerprint(key: bytes) -> str:
    """Names a key without giving it away."""
    return "key " + hashlib.blake2b(b"headct", key=key[:64], digest_size=4).hexdigest()


def is_virtual(cohort: Cohort) -> bool:
    """Whether its patients do not exist."""
    return "simulated" in cohort.about


def pseudonyms_of(cohort: Cohort) -> str:
    """Fingerprint of the key that made a cohort's ids, `none` for original ones; "" for virtual patients, nobody's."""
    return "" if is_virtual(cohort) else str(cohort.about.get("pseudonyms", "none"))


def hold_pseudonyms(made_by: Iterable[str]) -> bool:
    """Whether ids that came about so are pseudonyms, some of them at least."""
    return bool(set(made_by) - {"none", ""})


def ids_of(made_by: Iterable[str]) -> str:
    """In words how ids came about: `none` for original ones, or the fingerprints of keys."""
    return " and ".join("ids" if one == "none" else f"pseudonyms of {one}" for one in made_by)


def strangers(some: Iterable[str], others: Iterable[str], key: bytes | None = None) -> bool:
    """Whether a patient of both may bear two names, so that the two are not known to be one.

    Both as records say how ids came about; where either says nothing there is nobody to mistake. `key` turns original
    ids into the pseudonyms that it made.
    """
    here, there = (set(made_by) - {""} for made_by in (some, others))
    made_by = here | there
    same = len(made_by) == 1 or (key is not None and made_by <= {"none", fingerprint(key)})
    return bool(here and there) and not same
