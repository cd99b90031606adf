"""Small inputs of real files: virtual patients as DICOM with the clutter of an archive, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from headct.virtual import demonstration

PIXEL_MM = 2.4
"""Twice that of the demonstration: a quarter of its voxels, and a recipe of 2 mm has use for no more."""


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients; one has a contrast series, a localizer and a truncated copy beside the head. Not to be changed."""
    folder = tmp_path_factory.mktemp("demo") / "archive"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demonstration, "PIXEL_MM", PIXEL_MM)
        demonstration.write_demonstration(folder, patients=4)
    return folder


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a secret for pseudonyms."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("ab" * 32)
    return path
