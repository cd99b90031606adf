"""What a reader of the two types meets first: a short text for each, and what every field is."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest

from headct.embedding import Embeddings
from headct.preparing import Prepared, recipes
from headct.scan import REASONS, Header, Rejection, Scan


def scan() -> Scan:
    return Scan(
        hu=np.zeros((3, 64, 32), np.int16),
        origins_mm=np.array([[0, 0, 0], [0, 0, 5], [0, 0, 10]]),
        row_step_mm=np.array([0, -0.5, 0]),
        col_step_mm=np.array([0.5, 0, 0]),
        thickness_mm=5.0,
        header=Header(scan_id="5b2a", flags=("tilt", "uneven")),
    )


def test_values_with_large_arrays_are_written_short() -> None:
    size = "3 slices of 64 × 32, 5 mm thick, pixel 0.5 mm"
    assert repr(scan()) == f"Scan(5b2a: {size}, flags tilt uneven)"
    recipe = recipes["head"]
    prepared = Prepared(np.zeros((96, 112, 96), np.int16), np.eye(4), recipe, None, ())
    assert repr(prepared) == f"Prepared(int16 96 × 112 × 96, recipe head ({recipe.id}))"
    embeddings = Embeddings(
        table=pd.DataFrame(),
        vectors=np.zeros((7, 192), np.float32),
        tokens=np.zeros((7, 4, 8), np.float32),
        rejections=pd.DataFrame({"code": ["no-head"]}),
        grid=(2, 2, 1),
        token_affines=None,
        model={"architecture": "vit-tiny", "sha256": "0123456789abcdef"},
    )
    assert repr(embeddings) == "Embeddings((7, 192), tokens (7, 4, 8), 1 rejected, by vit-tiny 01234567)"


@pytest.mark.parametrize("kind", [Scan, Header, Rejection])
def test_every_field_is_documented(kind: type) -> None:
    listed = re.findall(r"^ {8}(\w+): \S", (kind.__doc__ or "").partition("Attributes:\n")[2], re.MULTILINE)
    assert listed == [field.name for field in fields(kind)]


def test_no_remedy_asks_for_what_no_command_offers() -> None:
    """Limits on size, time and memory are fixed."""
    assert [code for code, reason in REASONS.items() if "limit" in reason.remedy] == []
