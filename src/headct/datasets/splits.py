"""Which part of a set a patient belongs to: the same for everyone, without a list that must be passed around.

A patient's name is hashed to a number in 0..1, and the number decides. So a patient never straddles two parts, a half
download splits like a whole one, and nobody's choice of a seed comes in. Parts are not stratified: their prevalence is
what it comes to, and is in the report.
"""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

Part = Literal["train", "val", "test"]

PARTS: tuple[Part, ...] = get_args(Part)

RULE = "headct-split-1"
"""Names this rule. Another rule would get another name: what was published under this one must never move."""

TRAIN, VAL = 0.7, 0.1
"""Shares of the patients; the rest is test."""


def part(key: str, patient: str) -> Part:
    """The part of a patient, named as the set names them; `key` keeps sets with equal names apart."""
    digest = hashlib.sha256(f"{RULE}\n{key}\n{patient}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < TRAIN else "val" if share < TRAIN + VAL else "test"
