"""What several test files share: where real scans and published numbers lie, when they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real scans and published numbers; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs real scans and published numbers, which lie outside the repository")
    return SHARED
