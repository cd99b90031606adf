"""The tables and `cohort.json` of a cohort, from what it held before and what an ingest adds to it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headct.cohort.journal import write_atomically
from headct.cohort.tables import FILES, REJECTIONS, SCANS, SEEN, Row, digest, parquet_bytes, read_table
from headct.failure import Failure, Misuse
from headct.reading.criteria import Criteria, preferred
from headct.scan import REASONS

FORMAT = "headct-cohort"
FORMAT_VERSION = 1
COHORT_JSON = "cohort.json"
MAKING = ".making"
"""Folder within what `headct.cohort.made` makes that holds its journal; gone when it is whole."""
SCHEMAS = {"scans": SCANS, "rejections": REJECTIONS, "files": FILES}
SEEN_FILE = ".ingest/seen.parquet"
SOFTWARE = ("headct", "numpy", "scipy", "blosc2", "pyarrow", "pydicom")


@dataclass(frozen=True)
class Content:
    """All rows of a cohort, and of the hidden table by which a later ingest knows what it has seen."""

    scans: tuple[Row, ...] = ()
    rejections: tuple[Row, ...] = ()
    files: tuple[Row, ...] = ()
    seen: tuple[Row, ...] = ()
    shards: int = 0
    outcome_of: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcome_of", {row["path"]: row["outcome"] for row in self.files})

    def without(self, paths: Iterable[str]) -> Content:
        """What is left when these files are read again: no scan and no rejection of theirs."""
        paths = set(paths)
        stale = {self.outcome_of[path] for path in paths if path in self.outcome_of} - set(REASONS)
        rejections = [{**row, "files": [name for name in row["files"] if name not in paths]} for row in self.rejections]
        return Content(
            scans=tuple(row for row in self.scans if row["scan_id"] not in stale),
            rejections=tuple(row for row in rejections if row["files"]),
            files=tuple(row for row in self.files if row["path"] not in paths),
            seen=tuple(row for row in self.seen if row["path"] not in paths),
            shards=self.shards,
        )

    def with_preferred(self, criteria: Criteria) -> Content:
        """The same rows with the one scan to take of each study marked."""
        chosen = preferred(self.scans, criteria.prefer)
        return replace(self, scans=tuple({**row, "preferred": row["scan_id"] in chosen} for row in self.scans))

    def check(self) -> None:
        """Files read and files rejected are the files found, each once, and nothing is named that is not there."""
        scan_ids = {row["scan_id"] for row in self.scans}
        outcomes = Counter(row["outcome"] for row in self.files)
        read, rejected = sum(outcomes[i] for i in scan_ids), sum(outcomes[code] for code in REASONS)
        assert len(scan_ids) == len(self.scans), "two scans share an id"
        assert len(self.outcome_of) == len(self.files), "two files share a path"
        assert read + rejected == len(self.files), f"{read} read + {rejected} rejected, but {len(self.files)} found"
        assert all(outcomes[i] for i in scan_ids), "a scan without a file"
        assert all(row["files"] for row in self.rejections), "a rejection without a file"
        named = {name for row in self.rejections for name in row["files"]}
        assert named <= self.outcome_of.keys(), "a rejection names a file that was not found"
        assert all(row["path"] in named for row in self.files if row["outcome"] in REASONS), "a file without its reason"


def write(out: Path, content: Content, about: Mapping[str, Any]) -> None:
    """Replace the tables of the cohort, `cohort.json` last: it holds their digests.

    `about` is what `cohort.json` says beside counts, digests and versions.
    """
    content.check()
    tables = {}
    for name, schema in SCHEMAS.items():
        data = parquet_bytes(getattr(content, name), schema)
        write_atomically(out / f"{name}.parquet", data)
        tables[name] = {"rows": len(getattr(content, name)), "sha256": digest(data)}
    write_atomically(out / SEEN_FILE, parquet_bytes(content.seen, SEEN))
    document = {
        **about,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "counts": counts(content),
        "shards": content.shards,
        "tables": tables,
        "software": {name: version(name) for name in SOFTWARE},
    }
    write_atomically(out / COHORT_JSON, (json.dumps(document, indent=2, sort_keys=True) + "\n").encode())


def counts(content: Content) -> dict[str, int]:
    """Of `cohort.json` and of the summary."""
    rejected = sum(row["outcome"] in REASONS for row in content.files)
    return {
        "files": len(content.files),
        "files_read": len(content.files) - rejected,
        "files_rejected": rejected,
        "scans": len(content.scans),
        "preferred": sum(row["preferred"] for row in content.scans),
        "studies": len({row["study_id"] for row in content.scans}),
        "patients": len({row["patient_id"] for row in content.scans}),
        "rejections": len(content.rejections),
    }


def read_about(out: Path) -> dict[str, Any]:
    """`cohort.json`.

    Raises Misuse where nothing is there or it is no cohort, Failure where it is not finished, damaged, or newer than
    this program.
    """
    try:
        about = json.loads((out / COHORT_JSON).read_bytes())
        known = about["format"] == FORMAT
        newer = about["format_version"] > FORMAT_VERSION
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.lexists(out):
            raise Misuse(f"there is no folder {out}", do="check the path") from None
        if (out / MAKING).is_dir():
            do = "call the line that began it again, such as `headct simulate`"
            raise Failure(f"the cohort {out} is not finished", do=do) from None
        if (out / ".ingest").is_dir():
            raise Failure(f"the cohort {out} is not finished", do="call the same `headct ingest` line again") from None
        raise Misuse(
            f"{out} is not a cohort", why=f"it holds no {COHORT_JSON}", do="make one with `headct ingest`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"{out / COHORT_JSON} is damaged", do="copy it again from where it came, or ingest again"
        ) from error
    if not known:
        raise Misuse(f"{out} is not a cohort", why=f"its {COHORT_JSON} was written by another program")
    if newer:
        why = f"its format is version {about['format_version']}, this program knows up to {FORMAT_VERSION}"
        raise Failure(f"the cohort {out} is too new", why=why, do="upgrade with `pip install --upgrade headct`")
    return about


def read(out: Path, about: Mapping[str, Any]) -> Content:
    """Everything that a finished cohort holds but its voxels."""
    if not (out / SEEN_FILE).is_file():
        why = f"it has lost {SEEN_FILE}, by which files are known again"
        raise Failure(f"nothing can be added to the cohort {out}", why=why, do="ingest into a new folder")
    rows = {n: _rows(read_table(out / f"{n}.parquet", about["tables"][n]["sha256"])) for n in SCHEMAS}
    return Content(**rows, seen=_rows(read_table(out / SEEN_FILE)), shards=about["shards"])


def _rows(table: Any) -> tuple[Row, ...]:
    return tuple(table.to_pylist())
