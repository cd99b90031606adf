"""Trained at one site, tested at another: the matrix that says how far a detector travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headct.evaluation.comparison import Difference, corrected, delong
from headct.evaluation.intervals import Area, Estimate, macro_area
from headct.evaluation.repeated import difference_over_draws
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

    def of_detector(self, trained: str) -> TransferMatrix:
        """The row of one detector alone."""
        return replace(self, cells={pair: cell for pair, cell in self.cells.items() if pair[0] == trained})

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


@dataclass(frozen=True)
class MeanTransfer:
    """The mean over findings of areas by (training site, test site), and of gains, which Holm corrects together.

    Over the `findings` that could be tested in every cell, so that all means are over the same.
    """

    findings: tuple[str, ...]
    areas: Mapping[tuple[str, str], Estimate]
    gains: Mapping[tuple[str, str], Difference]

    @classmethod
    def of(cls, matrices: Sequence[TransferMatrix]) -> MeanTransfer | None:
        """None where no finding could be tested in every cell."""
        pairs = list(dict.fromkeys(pair for matrix in matrices for pair in matrix.cells))
        whole = [matrix for matrix in matrices if len(matrix.cells) == len(pairs)]
        if not whole:
            return None
        areas = {pair: {matrix.finding: matrix.cells[pair].area for matrix in whole} for pair in pairs}
        gains = {
            (train, test): difference_over_draws([areas[train, test]], [areas[test, test]])
            for train, test in pairs
            if (test, test) in areas and all(matrix.cells[train, test].gain is not None for matrix in whole)
        }
        return cls(
            tuple(matrix.finding for matrix in whole),
            {pair: macro_area(of_findings) for pair, of_findings in areas.items()},
            corrected(gains),
        )

    def tree(self) -> Mapping[str, Any]:
        """`{"findings": [...], "cells": {trained: {tested: {"auroc": leaf, "gain": leaf}}}}`."""
        rows: dict[str, dict[str, Any]] = {}
        for (train, test), area in self.areas.items():
            leaves: dict[str, Any] = {"auroc": area.leaf()}
            if (train, test) in self.gains:
                leaves["gain"] = self.gains[train, test].leaf()
            rows.setdefault(train, {})[test] = leaves
        return {"findings": list(self.findings), "cells": rows}


def _cell(train: str, test: str, areas: Mapping[tuple[str, str], Area]) -> Cell:
    here, home, own = areas[train, test], areas.get((train, train)), areas.get((test, test))
    away = train != test
    drop = unpaired(here, home, shared=False) if away and home is not None else None
    gain = _paired(here, own) if away and own is not None else None
    return Cell(train, test, here, drop, gain)


def _corrected(cells: Mapping[tuple[str, str], Cell]) -> dict[tuple[str, str], Cell]:
    drops = corrected({pair: cell.drop for pair, cell in cells.items() if cell.drop is not None})
    gains = corrected({pair: cell.gain for pair, cell in cells.items() if cell.gain is not None})
    return {pair: replace(cell, drop=drops.get(pair), gain=gains.get(pair)) for pair, cell in cells.items()}


def _paired(first: Area, second: Area) -> Difference | None:
    """DeLong's test where both were read from the same scans; None where they were not."""
    same = (first.n, first.positives, len(first.influence)) == (second.n, second.positives, len(second.influence))
    return delong(first, second) if same else None
