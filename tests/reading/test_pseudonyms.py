"""Pseudonyms. Oracle: Python's keyed BLAKE2b (RFC 7693), and what a stranger without the key could try."""

from __future__ import annotations

import hashlib
import stat

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headct.failure import Failure
from headct.reading.pseudonyms import KEY_BYTES, Pseudonyms, user_key

KEY = bytes(range(KEY_BYTES))
identifiers = st.text(min_size=1)


@given(one=identifiers, other=identifiers)
def test_equal_identifiers_have_equal_pseudonyms_and_others_do_not(one, other):
    pseudonyms = Pseudonyms(KEY)
    a, b = pseudonyms.of("patient", one), pseudonyms.of("patient", other)
    assert (a == b) == (one == other)
    assert len(a) == 16
    assert set(a) <= set("0123456789abcdef")


def test_the_hash_is_keyed_blake2b_with_the_kind_as_its_person():
    expected = hashlib.blake2b(b"4711", key=KEY, person=b"patient", digest_size=8).hexdigest()
    assert Pseudonyms(KEY).of("patient", "4711") == expected


def test_kinds_keys_and_long_keys_are_kept_apart():
    kinds = {Pseudonyms(KEY).of(kind, "1") for kind in ("patient", "study", "series", "scan")}
    keys = {Pseudonyms(key).of("patient", "1") for key in (KEY, KEY[::-1], KEY * 3, KEY * 3 + b"x")}
    assert len(kinds | keys) == 7  # one is in both


def test_nothing_stays_nothing():
    assert Pseudonyms(KEY).of("patient", "") == ""


def test_without_a_key_identifiers_are_kept_and_a_scan_is_still_hashed():
    assert Pseudonyms(None).of("study", "1.2.3") == "1.2.3"
    assert len(Pseudonyms(None).of("scan", "many UIDs")) == 16


def test_the_key_does_not_show_in_its_repr():
    assert KEY.hex() not in repr(Pseudonyms(KEY))
    assert repr(KEY) not in repr(Pseudonyms(KEY))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Where the key of a user lies who has none yet."""
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / name)
    return tmp_path / "headct" / "pseudonym-key"


def test_the_key_of_a_user_is_made_once_and_readable_by_them_alone(own):
    key = user_key()
    assert len(key) == KEY_BYTES
    assert user_key() == user_key(own) == key
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    assert [file.name for file in own.parent.iterdir()] == ["pseudonym-key"]
    own.unlink()
    assert user_key() != key


def test_a_key_that_is_named_is_made_once_too(tmp_path):
    key = user_key(tmp_path / "project" / "key")
    assert len(key) == KEY_BYTES
    assert user_key(tmp_path / "project" / "key") == key


@pytest.mark.parametrize("content", [b"", b"not hexadecimal", b"abcd", b"\xff\xfe" * 40])
def test_a_file_that_is_no_key_is_never_overwritten(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(Failure, match="key for pseudonyms"):
        user_key(path)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_made_is_a_failure(own):
    own.parent.write_text("x")
    with pytest.raises(Failure, match=r"cannot be used\n.*(exists|directory)"):
        user_key()
