"""Trained at one site, tested at another: the matrix that says how far a detector travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headct.evaluation.comparison import Difference, corrected, delong
from headct.evaluation.intervals import Area
from headct.evaluation.subgroups import unpaired
from headct.failure import Misuse


@dataclass(frozen=True)
class Cell:
    """A detector trained at one site, tested at one; `drop` is this area less that of the same detector at home.

    `drop` is None at home. `gain` is this area less that of the detector that the test site trained itself, read from
    the same scans: what a few labels of one's own are worth. In a matrix the drops of all its cells are corrected by
    Holm together, and so are its gains.
    """

    trained: str
    tested: str
    area: Area
    drop: Difference | None
    gain: Difference | None


@dataclass(frozen=True)
class TransferMatrix:
    """All cells of one finding, rows by training site, columns by test site; a pair that was not run has no cell."""

    finding: str
    trained: Sequence[str]
    tested: Sequence[str]
    cells: Mapping[tuple[str, str], Cell]

    @classmethod
    def of(cls, finding: str, areas: Mapping[tuple[str, str], Area]) -> TransferMatrix:
        """From areas by (training site, test site). All areas of a test site are of its same patients, in one order."""
        if not areas:
            raise Misuse(f"no site was tested for {finding}")
        trained = list(dict.fromkeys(train for train, _ in areas))
        tested = list(dict.fromkeys(test for _, test in areas))
        cells = {(train, test): _cell(train, test, areas) for train, test in areas}
        return cls(finding, trained, tested, _corrected(cells))

    def tree(self) -> Mapping[str, Any]:
        """`{trained: {tested: {"auroc": leaf, "drop": leaf, "gain": leaf}}}`."""
        rows: dict[str, dict[str, Any]] = {}
        for (train, test), cell in self.cells.items():
            leaves: dict[str, Any] = {"auroc": cell.area.estimate().leaf()}
            if cell.drop is not None:
                leaves["drop"] = cell.drop.leaf()
            if cell.gain is not None:
                leaves["gain"] = cell.gain.leaf()
            rows.setdefault(train, {})[test] = leaves
        return rows


def _cell(train: str, test: str, areas: Mapping[tuple[str, str], Area]) -> Cell:
    here, home, own = areas[train, test], areas.get((train, train)), areas.get((test, test))
    away = train != test
    drop = unpaired(here, home, shared=False) if away and home is not None else None
    gain = _paired(here, own) if away and own is not None else None
    return Cell(train, test, here, drop, gain)


def _corrected(cells: Mapping[tuple[str, str], Cell]) -> dict[tuple[str, str], Cell]:
    numbered = {str(number): cell for number, cell in enumerate(cells.values())}
    drops = corrected({number: cell.drop for number, cell in numbered.items() if cell.drop is not None})
    gains = corrected({number: cell.gain for number, cell in numbered.items() if cell.gain is not None})
    fair = (replace(cell, drop=drops.get(number), gain=gains.get(number)) for number, cell in numbered.items())
    return dict(zip(cells, fair, strict=True))


def _paired(first: Area, second: Area) -> Difference | None:
    """DeLong's test where both were read from the same scans; None where they were not."""
    same = (first.n, first.positives, len(first.influence)) == (second.n, second.positives, len(second.influence))
    return delong(first, second) if same else None
