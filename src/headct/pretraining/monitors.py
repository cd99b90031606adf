"""Watches a run: may stop it and say why, never changes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from headct.failure import Failure


@dataclass(frozen=True)
class Sign:
    """A number that tells a collapse, once it lies beyond its limit."""

    name: str  # as the objective watches it
    meaning: str
    below: float = -math.inf
    above: float = math.inf

    def shows(self, value: float) -> bool:
        """Whether it is there."""
        return not self.below <= value <= self.above


SIGNS = (
    Sign("entropy", "targets are uniform, so they teach nothing", above=0.9995),  # of a target, as a share of ln K
    Sign("used", "every scan gets the same prototype", below=0.02),  # entropy of the mean target, as a share of ln K
    Sign("spread", "every scan gets the same vector", below=0.005),  # of unit vectors; 1 is isotropic
    Sign("rank", "targets differ along one line only", below=1.05),  # effective dimensions
    Sign("dimensions", "vectors of scans differ along one line only", below=1.02),  # effective, of unit vectors
    Sign("changed", "no change can be put into the scans, for no skull encloses the crops", below=1e-9),
    Sign("target_spread", "targets are the same everywhere, so they teach nothing", below=0.005),
)


@dataclass
class Monitors:
    """Counts for how many steps in a row each sign of a collapse was seen, from step `warm` on."""

    warm: int
    patience: int = 30
    signs: Sequence[Sign] = SIGNS
    seen: dict[str, int] = field(default_factory=dict)

    def see(self, step: int, values: Mapping[str, float], scan_ids: Callable[[], Sequence[str]]) -> str:
        """Why the run should stop, or an empty string. Raises Failure where a number is not finite.

        Of several objectives each has its own values, under `NAME/…`.
        """
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise Failure(
                f"{broken[0]} was not a finite number at step {step}, on scans {', '.join(scan_ids())}",
                why="the run diverged, or a scan holds values that no head has; the last saved state is untouched",
                do="start again with half the learning rate, or in float32; look at these scans if it stays",
            )
        for name, value in values.items():
            for sign in self.signs:
                if name.split("/")[-1] != sign.name:
                    continue
                self.seen[name] = self.seen.get(name, 0) + 1 if step >= self.warm and sign.shows(value) else 0
                if self.seen[name] >= self.patience:
                    of = f" ({name.split('/')[0]})" if "/" in name else ""
                    return f"collapsed{of}: {sign.meaning} for {self.patience} steps, at step {step}"
        return ""
