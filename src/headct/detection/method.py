"""What every way to learn findings from labels takes and gives: the seam of probes, networks and the ladder.

A `Method` is a frozen dataclass of settings with a `fit`; what it gives is `Fitted`: it scores scans, and is stored as
plain settings and tensors. Neither knows of files, calibration or operating points: these are the detector's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from torch import Tensor

from headct.checkpoints import PretrainedEncoder
from headct.embedding.machine import Machine
from headct.failure import Misuse

Progress = Callable[[int, int | None], None]
"""Called with how many steps are done and, once known, how many there are."""


_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left"}


def quiet(done: int, total: int | None) -> None:
    """A `Progress` that tells nobody."""


def mirrored(findings: Sequence[str]) -> tuple[int, ...]:
    """(f,) for each finding, the one that it becomes when left and right change places.

    Those that have `left` or `right` as a word of their name have the other for a partner, or -1 where there is none;
    any other is its own.
    """
    swapped = (re.sub(_SIDE, lambda found: _OTHER_SIDE[found[0].lower()], name.lower()) for name in findings)
    columns = {name.lower(): column for column, name in enumerate(findings)}
    return tuple(columns.get(name, -1) for name in swapped)


class Scans(Protocol):
    """n scans by their rows 0..n-1, as the frozen encoder sees them and as it is given them.

    Vectors are at hand; arrays may be read from disk at each call, so a method asks for a batch at a time.
    """

    def __len__(self) -> int: ...

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Vectors (B, F) float32 of the frozen encoder."""
        ...

    def arrays(self, rows: np.ndarray) -> np.ndarray:
        """Prepared arrays (B, ...) as `PretrainedEncoder.see` takes them. Raises Misuse where their shapes differ."""
        ...

    def spacing_mm(self, rows: np.ndarray) -> np.ndarray:
        """Voxel sizes (B, 3) float32 of these arrays."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be learned from which scans: n scans, f findings.

    A method learns from the rows `train` alone, and may look at the rows `validation` to stop or to choose; no patient
    is in both. Every draw comes from generators that are made from `seed`: the same task gives the same `Fitted`.
    """

    encoder: PretrainedEncoder  # not to be changed: a method that trains it copies it
    scans: Scans  # n
    findings: tuple[str, ...]  # f names
    labels: np.ndarray  # (n, f) float: 1, 0, or NaN where nothing is known
    patients: np.ndarray  # (n,) text
    train: np.ndarray  # rows
    validation: np.ndarray  # rows
    seed: int
    machine: Machine  # where networks run, and in which precision

    @property
    def mirrored(self) -> tuple[int, ...]:
        """(f,) by column, the one whose label a left-right mirrored scan has there; -1 where that is unknown."""
        return mirrored(self.findings)

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that have a label of at least one finding."""
        return rows[np.isfinite(self.labels[rows]).any(axis=1)]


class Fitted(Protocol):
    """What was learned: logits of scans. `findings` are its columns, in order.

    `facts` are plain values about the fit (what was chosen, steps, seconds), for the report and the model card.
    """

    method: ClassVar[str]
    """The name under which `headct.detection.methods.METHODS` finds it again."""

    @property
    def findings(self) -> tuple[str, ...]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def scores(self, scans: Scans, rows: np.ndarray) -> np.ndarray:
        """Logits (len(rows), f) float64; each scan's depend on nothing but the scan (evaluation mode)."""
        ...

    def settings(self) -> dict[str, Any]:
        """Plain values for JSON that `restore` needs beside the tensors."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All that was learned, contiguous, on the CPU; of an encoder that was trained, all of its weights."""
        ...

    @classmethod
    def restore(
        cls,
        encoder: PretrainedEncoder,
        findings: tuple[str, ...],
        settings: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Any],
        machine: Machine,
    ) -> Self:
        """The same again from `settings()` and `tensors()`; `encoder` is the frozen one that the task had.

        Strict: raises KeyError, TypeError, ValueError or RuntimeError where names, shapes or kinds are not as written.
        """
        ...


class Method(Protocol):
    """Settings of one way to learn."""

    def fit(self, task: Task, progress: Progress = quiet) -> Fitted:
        """Learn from the training rows. Raises Misuse where the labels cannot teach it."""
        ...


def expect_both(labels: np.ndarray, findings: Sequence[str]) -> None:
    """Raises Misuse where a finding (n, f) is not both there and not there among the training scans."""
    for column, finding in enumerate(findings):
        positive, negative = (int((labels[:, column] == value).sum()) for value in (1, 0))
        if not positive or not negative:
            raise Misuse(
                f"{finding} cannot be learned: of the training scans {positive} have it and {negative} do not",
                why="both are needed to tell them apart",
                do="label more scans, or leave this finding out (--findings)",
            )
