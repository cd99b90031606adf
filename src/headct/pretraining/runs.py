"""A run on disk: what it was told, where it stands, what it has seen. A process may be killed at any moment.

run/
  settings.toml   the resolved settings; `--config` repeats them
  state.pt        everything that step N + 1 depends on; replaced as a whole
  history.jsonl   a line per step
  checkpoint/     written when the run ends
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headct.failure import Failure, Misuse
from headct.pretraining.settings import PretrainSettings, read_settings, to_toml

if TYPE_CHECKING:
    import pandas as pd

State = Mapping[str, Any]


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "settings.toml"
        self.state_file = path / "state.pt"
        self.history_file = path / "history.jsonl"
        self.checkpoint = path / "checkpoint"

    def begun_with(self, settings: PretrainSettings) -> PretrainSettings | None:
        """The resolved settings where this run was begun before, else None.

        Raises Misuse where it was begun with other settings, or the folder holds something else.
        """
        if not self.settings_file.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise Misuse(f"{self.path} is not empty and not a run", do="name another folder")
            return None
        before = read_settings(self.settings_file)
        now = replace(
            settings,
            steps=before.steps if settings.steps is None else settings.steps,
            device=before.device if settings.device == "auto" else settings.device,
        )
        if to_toml(before) != to_toml(now):
            old, new = to_toml(before).splitlines(), to_toml(now).splitlines()
            was = "; ".join([line for line in old if line not in new][:3])
            asked = "; ".join([line for line in new if line not in old][:3])
            raise Misuse(
                f"{self.path} was begun with other settings (then {was or 'not set'}, now {asked or 'not set'})",
                why="a run that goes on under other settings is neither of the two",
                do="give the settings it was begun with, or name another folder",
            )
        return before

    def begin(self, settings: PretrainSettings) -> None:
        """Write the resolved settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        _replace(self.settings_file, to_toml(settings).encode())

    def save_state(self, state: State) -> None:
        """Replace the saved state as a whole: a reader finds the old one or the new one, never a part."""
        partial = self.state_file.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.state_file)
        finally:
            partial.unlink(missing_ok=True)

    def load_state(self) -> State | None:
        """The saved state, or None where nothing was saved yet. Only tensors and plain values are ever read."""
        if not self.state_file.exists():
            return None
        try:
            state: State = torch.load(self.state_file, map_location="cpu", weights_only=True)
        except Exception as error:
            # a damaged file fails in many ways inside torch; all of them mean this one thing, and some advise what is
            # not safe
            raise Failure(
                f"{self.state_file} cannot be read",
                why="it is not the state that was saved there",
                do="remove the run folder and start again; the disk may be at fault",
            ) from error
        return state

    def keep_history_before(self, step: int) -> None:
        """Drop the lines of steps that will be taken again, and a line cut short by a kill."""
        if self.history_file.exists():
            kept = [row for row in _rows(self.history_file) if row["step"] < step]
            _replace(self.history_file, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def history(self) -> pd.DataFrame:
        """A row per step."""
        import pandas as pd

        return pd.DataFrame(_rows(self.history_file) if self.history_file.exists() else [])


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
