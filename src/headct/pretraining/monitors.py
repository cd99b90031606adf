"""Watches a run: may stop it and say why, never changes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headct.failure import Failure


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run counts as collapsed: a value beyond its limit for `patience` steps in a row, once warm."""

    patience: int = 30
    entropy_above: float = 0.9995  # of targets, as a share of ln K: they are uniform
    used_below: float = 0.02  # of the mean target, as a share of ln K: one prototype for all
    spread_below: float = 0.005  # of scan vectors: the same for all


@dataclass
class Monitors:
    """Counts for how many steps in a row each sign of a collapse was seen, from step `warm` on."""

    warm: int
    limits: Limits = field(default_factory=Limits)
    seen: dict[str, int] = field(default_factory=dict)

    def see(self, step: int, values: Mapping[str, float], scan_ids: Sequence[str]) -> str:
        """Why the run should stop, or an empty string. Raises Failure where a number is not finite."""
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise Failure(
                f"{broken[0]} was not a finite number at step {step}, on scans {', '.join(scan_ids)}",
                why="the run diverged, or a scan holds values that no head has; the last saved state is untouched",
                do="start again with half the learning rate, or in float32; look at these scans if it stays",
            )
        signs = {
            "targets are uniform, so they teach nothing": values.get("entropy", 0) > self.limits.entropy_above,
            "every scan gets the same prototype": values.get("used", 1) < self.limits.used_below,
            "every scan gets the same vector": values.get("spread", 1) < self.limits.spread_below,
        }
        for sign, present in signs.items():
            self.seen[sign] = self.seen.get(sign, 0) + 1 if present and step >= self.warm else 0
            if self.seen[sign] >= self.limits.patience:
                return f"collapsed: {sign} for {self.limits.patience} steps, at step {step}"
        return ""
