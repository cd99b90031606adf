"""The flow of scans: how many remained after each step, and where the others went. Counts that add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from headct.reporting.words import count


@dataclass(frozen=True)
class Loss:
    """How many a step lost for one reason; `anchor` is where the page lists them, if it does."""

    reason: str
    count: int
    anchor: str = ""


@dataclass(frozen=True)
class Stage:
    """A step of the flow: how many reached it, what they are (`readable`), what was lost since the step before."""

    name: str
    count: int
    losses: tuple[Loss, ...] = ()


def flow(stages: Sequence[Stage], noun: str) -> Markup:
    """The stages from top to bottom, each loss beside the arrow that it leaves; a list that can be read aloud.

    `noun` is what is counted, in the singular. Raises ValueError where a stage is not the one before less its losses.
    """
    for before, after in pairwise(stages):
        lost = sum(loss.count for loss in after.losses)
        if before.count - lost != after.count:
            raise ValueError(f"{before.count} {before.name} less {lost} are not {after.count} {after.name}")
    items = Markup("").join(
        Markup("<li>{}{}</li>").format(_lost(stage, noun) if index else Markup(""), _box(stage))
        for index, stage in enumerate(stages)
    )
    return Markup('<ol class="flow">{}</ol>').format(items)


def _box(stage: Stage) -> Markup:
    return Markup('<div class="stage"><b>{}</b> {}</div>').format(f"{stage.count:,}", stage.name)


def _lost(stage: Stage, noun: str) -> Markup:
    total = sum(loss.count for loss in stage.losses)
    if total == 0:
        return Markup('<div class="lost"><div><p class="none">none left out</p></div></div>')
    reasons = Markup("").join(
        Markup("<li>{} {}</li>").format(f"{loss.count:,}", _linked(loss))
        for loss in sorted(stage.losses, key=lambda loss: (-loss.count, loss.reason))
        if loss.count
    )
    return Markup('<div class="lost"><div><p>{} left out</p><ul>{}</ul></div></div>').format(
        count(total, noun), reasons
    )


def _linked(loss: Loss) -> Markup:
    if not loss.anchor:
        return Markup("{}").format(loss.reason)
    return Markup('<a href="#{}">{}</a>').format(loss.anchor, loss.reason)
