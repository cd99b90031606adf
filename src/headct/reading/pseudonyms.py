"""Identifiers that say nothing about the patient and are the same in every cohort of one user."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import platformdirs

from headct.failure import Failure

Kind = Literal["patient", "study", "series", "scan"]

KEY_BYTES = 32


@dataclass(frozen=True)
class Pseudonyms:
    """Turns identifiers into 16 hexadecimal digits by a keyed hash (BLAKE2b, RFC 7693); None keeps them.

    Kinds are kept apart: a Patient ID that happens to equal a Study Instance UID gets another pseudonym. Without the
    key nobody can try out a hospital's patient numbers one by one. A `scan` has no identifier in the file, so it is
    hashed in any case, without a key where identifiers are kept.
    """

    key: bytes | None = field(repr=False)

    @property
    def keep(self) -> bool:
        """True where identifiers stay as they are."""
        return self.key is None

    def of(self, kind: Kind, identifier: str) -> str:
        """The pseudonym of an identifier of this kind; nothing stays nothing."""
        if not identifier or (self.key is None and kind != "scan"):
            return identifier
        key = b"" if self.key is None else self.key
        if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
            key = hashlib.blake2b(key).digest()
        text = identifier.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(text, key=key, person=kind.encode(), digest_size=8).hexdigest()


def user_key(path: Path | None = None) -> bytes:
    """The key in the file `path`, else that of this user, `pseudonym-key` in their configuration folder.

    Either is made at the first call: 32 random bytes, written in hexadecimal, readable by its user alone; two
    processes that make it at once agree. Raises Failure where the file holds something else or cannot be made.
    """
    path = path or platformdirs.user_config_path("headct") / "pseudonym-key"
    try:
        if not path.exists():
            _make_key(path)
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        what = f"the key for pseudonyms, {path}, cannot be used"
        why = getattr(error, "strerror", None) or type(error).__name__
        raise Failure(what, why, "name another file: --key FILE") from error
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES:
        raise Failure(
            f"the key for pseudonyms, {path}, is not {2 * KEY_BYTES} hexadecimal digits",
            "pseudonyms made with another key would not match earlier cohorts",
            "restore the file from a backup, or remove it to start with a new key",
        )
    return key


def _make_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # whole or not at all, and never over a key that another process just made
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(draft, path)
            return
    finally:
        draft.unlink(missing_ok=True)
