"""Whether a patient of two cohorts bears one name: by what records say of keys, whichever way round."""

from __future__ import annotations

import pytest

from headct.cohort.identities import fingerprint, hold_pseudonyms, strangers

KEY, OTHER = b"k" * 32, b"o" * 32
OURS, THEIRS = fingerprint(KEY), fingerprint(OTHER)


@pytest.mark.parametrize(
    ("some", "others", "key", "expected"),
    [
        (["none"], ["none"], None, False),
        ([OURS], [OURS], None, False),
        ([OURS], [THEIRS], None, True),
        ([OURS, THEIRS], [OURS], None, True),
        (["none"], [OURS], None, True),
        (["none"], [OURS], KEY, False),
        (["none", OURS], ["none"], KEY, False),
        (["none"], [OURS], OTHER, True),
        ([OURS], [THEIRS], KEY, True),
        ([OURS], [OURS], OTHER, False),
        ([""], [OURS], None, False),
        ([], ["none"], None, False),
    ],
)
def test_strangers(some: list[str], others: list[str], key: bytes | None, expected: bool) -> None:
    assert strangers(some, others, key) is expected
    assert strangers(others, some, key) is expected


@pytest.mark.parametrize(
    ("made_by", "expected"), [([], False), (["none", ""], False), ([OURS], True), (["none", OURS], True)]
)
def test_whether_ids_are_pseudonyms(made_by: list[str], expected: bool) -> None:
    assert hold_pseudonyms(made_by) is expected


def test_a_fingerprint_does_not_give_the_key_away() -> None:
    assert KEY.hex()[:8] not in OURS
    assert OURS != THEIRS
