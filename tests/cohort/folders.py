"""Looking at a cohort from outside."""

from __future__ import annotations

from pathlib import Path

from headct.cohort import Cohort
from headct.scan import REASONS


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same(one: Path, other: Path) -> None:
    """Equal byte for byte, with a message that names the file."""
    a, b = contents(one), contents(other)
    assert sorted(a) == sorted(b)
    assert [name for name in a if a[name] != b[name]] == []


def outcomes(cohort: Cohort) -> dict[str, str]:
    """Outcome by path."""
    return dict(zip(cohort.files["path"], cohort.files["outcome"], strict=True))


def files_below(folder: Path) -> set[str]:
    """Names of all plain files as tables write them."""
    return {str(path.relative_to(folder.parent)) for path in folder.rglob("*") if path.is_file()}


def assert_adds_up(cohort: Cohort, found: set[str]) -> None:
    """Each file found has one outcome: a scan of the table, or a code with a row that names the file."""
    by_path = outcomes(cohort)
    assert set(by_path) == found
    assert len(by_path) == len(cohort.files)
    scan_ids = set(cohort.scans["scan_id"])
    assert set(by_path.values()) <= scan_ids | set(REASONS)
    assert scan_ids <= set(by_path.values())
    named: dict[str, set[str]] = {}
    for code, files in zip(cohort.rejections["code"], cohort.rejections["files"], strict=True):
        for name in files:
            named.setdefault(name, set()).add(code)
    for path, outcome in by_path.items():
        assert outcome in scan_ids or outcome in named[path], path
