"""Small inputs of real files: virtual patients as DICOM with the clutter of an archive, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from headct.virtual.demonstration import write_demonstration


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients; one has a contrast series, a localizer and a truncated copy beside the head. Not to be changed."""
    folder = tmp_path_factory.mktemp("demo") / "archive"
    write_demonstration(folder, patients=4)
    return folder


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a secret for pseudonyms."""
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("ab" * 32)
    return path
