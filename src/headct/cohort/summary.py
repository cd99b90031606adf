"""What an ingest has done, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of the whole cohort, and of what this call did to it."""

    scans: int
    preferred: int
    rejections: int
    files_found: int
    files_read: int
    files_rejected: int
    rejected: Mapping[str, int] = field(default_factory=dict)  # code: rows in the table of rejections
    rejected_files: Mapping[str, int] = field(default_factory=dict)  # code: files
    added_scans: int
    replaced_scans: int
    added_files: int
    changed: tuple[str, ...] = ()  # files of scans that differ from what was read; the cohort keeps what it read
    other_site: int  # scans of these inputs that came in before, with another site than this call names
    gone: int  # files that were read before and are not in these inputs
    seconds: float
    scans_per_s: float
    cohort_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
