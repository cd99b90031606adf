"""A run on disk: what it was told, where it stands, what it has seen. A process may be killed at any moment.

run/
  settings.toml   the resolved settings; `--config` repeats them
  states/         the last states: everything that the step after step N depends on, in a file named N.pt
  history.jsonl   a line per step; when the run ends also history.csv and report.html
  tensorboard/    the same numbers, where the package is installed
  broken.npz      where a number was not finite: the step, and the scans it was given
  checkpoint/     written when the run ends
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import torch
from torch import Tensor

from headct import checkpoints, encoders
from headct.failure import Failure, Misuse
from headct.pretraining.auto import value_of, with_value
from headct.pretraining.objectives import Objective
from headct.pretraining.scans import Scans
from headct.pretraining.settings import PretrainSettings, from_toml, read_settings, to_toml

if TYPE_CHECKING:
    import pandas as pd

State = Mapping[str, Any]

HOW = ("memory_gb", "accumulate", "recompute", "compile", "shard", "track", "workers", "device")
"""Of the settings, what says how a step is worked out: a run may go on with others, for it may do so elsewhere."""

OF_A_FULL_DISK = ("write", "unexpected pos")
"""In the words of torch's zip writer, which reports a full disk as a RuntimeError."""
PARTIAL = ".partial"
"""How a file ends that is being written: a kill may leave it behind, and it counts as not there."""


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "settings.toml"
        self.states = path / "states"
        self.history_file = path / "history.jsonl"
        self.checkpoint = path / "checkpoint"
        self._history: TextIO | None = None

    def begun_with(self, settings: PretrainSettings) -> PretrainSettings | None:
        """The resolved settings where this run was begun before, else None.

        Raises Misuse where it was begun with other settings, or the folder holds something else.
        """
        if not self.settings_file.exists():
            if self.path.exists() and any(file.suffix != PARTIAL for file in self.path.iterdir()):
                raise Misuse(f"{self.path} is not empty and not a run", do="name another folder")
            return None
        before = read_settings(self.settings_file)
        if settings.continue_from is not None:  # what it takes over from that model, nobody gave
            settings = replace(
                settings,
                encoder=before.encoder,
                encoder_settings=before.encoder_settings,
                windows=before.windows,
                origin_uses_findings=before.origin_uses_findings,
            )
        if list(settings.objectives) == list(before.objectives):
            for name in settings.auto:
                settings = with_value(settings, name, value_of(before, name))
        now = replace(
            settings,
            auto=(),
            steps=before.steps if settings.steps is None else settings.steps,
            **{name: getattr(before, name) for name in HOW},
        )
        old, new = to_toml(before).splitlines(), to_toml(from_toml(to_toml(now))).splitlines()  # 4 and 4.0 are one
        if old != new:
            was = "; ".join([line for line in old if line not in new][:3])
            asked = "; ".join([line for line in new if line not in old][:3])
            raise Misuse(
                f"{self.path} was begun with other settings (then {was or 'not set'}, now {asked or 'not set'})",
                why="a run that goes on under other settings is neither of the two",
                do="give the settings it was begun with, or name another folder, with --continue-from for its weights",
            )
        return before

    def begin(self, settings: PretrainSettings) -> None:
        """Write the resolved settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.settings_file, to_toml(settings).encode())

    def save_state(self, step: int, state: State, keep: int, say: Callable[[str], None]) -> None:
        """Save the state before `step` beside the last ones, `keep` in all; a reader finds it whole or not at all.

        A full disk costs no state that is there: it is said, and the run goes on.
        """
        partial = self.states / f"{step:09d}{PARTIAL}"
        try:
            self.states.mkdir(exist_ok=True)
            with partial.open("wb") as file:
                torch.save({"step": step, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, partial.with_suffix(".pt"))
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in OF_A_FULL_DISK):
                raise
            say(f"the state of step {step} could not be saved ({error}); the one before it stays, make room")
            return
        finally:
            partial.unlink(missing_ok=True)
        for old in self._saved()[keep:]:
            old.unlink()

    @property
    def has_state(self) -> bool:
        """Whether there is something to go on from."""
        return bool(self._saved())

    def _saved(self) -> list[Path]:
        """The newest first."""
        return sorted(self.states.glob("*.pt"), reverse=True)

    def load_state(self, say: Callable[[str], None]) -> State | None:
        """The newest saved state that can be read, or None where nothing was saved yet.

        Only tensors and plain values are ever read. Raises Failure where none of several can be read.
        """
        for path in self._saved():
            try:
                return _read_state(path)
            except _Damaged as damage:
                say(f"{path} cannot be read ({damage}); going back to the state before it")
        if self._saved():
            raise Failure(
                f"no saved state in {self.states} can be read",
                why="they are not what was saved there",
                do="remove the run folder and start again; the disk may be at fault",
            )
        return None

    def state_of(self, step: int) -> State:
        """The saved state before `step`. Raises Failure where it cannot be read."""
        path = self.states / f"{step:09d}.pt"
        try:
            return _read_state(path)
        except (_Damaged, OSError) as error:
            do = "put the run where all machines see it, and call the same line again"
            raise Failure(f"{path} cannot be read by every process", why=str(error), do=do) from error

    def keep_history_before(self, step: int) -> None:
        """Drop the lines of steps that will be taken again, and what a kill has cut short."""
        for partial in self.states.glob(f"*{PARTIAL}"):
            partial.unlink()
        if self.history_file.exists():
            kept = [row for row in _rows(self.history_file) if row["step"] < step]
            _replace(self.history_file, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def keep_broken(self, step: int, scan_ids: Sequence[str], hu: np.ndarray) -> None:
        """Keep the scans (B, X, Y, Z) at which a run diverged, to look at; what was drawn for them follows."""
        np.savez_compressed(self.path / "broken.npz", step=step, scan_ids=list(scan_ids), hu=hu)

    def add_to_history(self, row: Mapping[str, Any], say: Callable[[str], None]) -> None:
        """Write down one step. On a full disk it stays unwritten, whole, and the run goes on."""
        size = None
        try:
            if self._history is None:
                self._history = self.history_file.open("a", encoding="utf-8")
            size = self.history_file.stat().st_size
            self._history.write(json.dumps(row) + "\n")
            self._history.flush()
        except OSError as error:
            say(f"the numbers of step {row['step']} could not be written down ({error})")
            self.close_history()
            if size is not None and self.history_file.is_file():
                os.truncate(self.history_file, size)  # half a line would spoil the next one

    def close_history(self) -> None:
        """Nothing is written after it."""
        history, self._history = self._history, None
        if history is not None:
            with contextlib.suppress(OSError):  # of a full disk, which was said
                history.close()

    def write_history(self, history: pd.DataFrame) -> None:
        """The same numbers as CSV."""
        _replace(self.path / "history.csv", history.to_csv(index=False).encode())

    def history(self) -> pd.DataFrame:
        """A row per step."""
        import pandas as pd

        return pd.DataFrame(_rows(self.history_file) if self.history_file.exists() else [])


class _Damaged(Exception):
    """A file that is not what was saved."""


def _read_state(path: Path) -> State:
    """Only tensors and plain values are ever read. Raises OSError where the file is out of reach."""
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # a damaged file fails in many ways inside torch; all of them mean this one thing, and some advise what is not
        # safe
        raise _Damaged(type(error).__name__) from error
    return state


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(path.suffix + PARTIAL)
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_checkpoint(
    run: RunFolder,
    objective: Objective,
    weights: Mapping[str, Tensor],
    settings: PretrainSettings,
    scans: Scans,
    stopped: str,
) -> None:
    """The encoder of a run that has ended with these weights, and how it came about."""
    encoder = objective.encoder
    whole = encoders.build(encoder.architecture, **asdict(encoder.settings))
    whole.load_state_dict(weights)
    objectives = {name: asdict(one) for name, one in settings.objectives.items()}
    card = checkpoints.Card(
        recipe=scans.recipe,
        windows=dict(settings.windows),
        objective={
            "name": "+".join(objectives),
            **objectives,
            "steps": settings.steps,
            "batch": settings.batch,
            "lr": settings.lr,
            "precision": settings.precision,
            "seed": settings.seed,
            "continued_from": settings.continue_from or "",
            "stopped": stopped,
            "uses_findings": objective.uses_findings or settings.origin_uses_findings,
        },
        data=scans.provenance,
        licence=settings.licence,
    )
    checkpoints.save(run.checkpoint, whole.cpu().eval(), card, replace_existing=True)
