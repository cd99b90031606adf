"""How many looks at variants of a scan an explanation takes, and how many are done: what its progress is told in.

A map by occlusion takes hundreds of looks and one by rollout a single one, so that maps would be no measure of time.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]
LOOKS_OF_A_GRADIENT = 3
"""A pass back through a network costs about two forward."""


class Looks:
    """Counts looks against a plan; called with how many have just been done."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.done, self.planned = progress, 0, 0

    def plan(self, number: int) -> None:
        """So many more will come, or fewer, where something that was planned cannot be done."""
        self.planned += number

    def __call__(self, number: int = 1) -> None:
        self.done += number
        self._progress(min(self.done, self.planned), self.planned)

    def end(self) -> None:
        """All is done, whatever was planned."""
        self._progress(self.planned, self.planned)
