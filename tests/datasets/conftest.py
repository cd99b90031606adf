"""Each small set prepared once, for all tests that look at what came out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from inputs import downloads

from headct.cohort import Cohort
from headct.datasets import Report, named, prepare

TREES: dict[str, Callable[[Path], Path]] = {
    "cq500": downloads.cq500,
    "rsna-2019": downloads.rsna,
    "ct-ich": downloads.ct_ich,
    "bhsd": downloads.bhsd,
    "instance-2022": downloads.instance,
    "sinoct": downloads.sinoct,
}


class Prepared(NamedTuple):
    """A small set: where its download is, what came out, and the report."""

    data: Path
    out: Path
    report: Report

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.out / f"{name}.csv", dtype={"name": str, "subject": str, "unit": str})

    @property
    def cohort(self) -> Cohort:
        return Cohort(self.out / "cohort")

    def remarks(self, kind: str) -> dict[str, str]:
        """Reasons by subject."""
        rows = self.table("remarks").pipe(lambda all_rows: all_rows[all_rows["kind"] == kind])
        return dict(zip(rows["subject"], rows["reason"], strict=True))

    def found(self, what: str) -> int:
        (row,) = [row for row in self.report.counts if row["what"] == what]
        return row["found"]


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text("cd" * 32)
    return path


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Callable[[str], Prepared]:
    """`prepared("cq500")`: made at the first call. Not to be changed."""
    done: dict[str, Prepared] = {}

    def of(name: str) -> Prepared:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            data = TREES[name](folder / "download")
            done[name] = Prepared(data, folder / "out", prepare(named(name), data, folder / "out", workers=1, key=key))
        return done[name]

    return of
