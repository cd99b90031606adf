"""What is "auto": worked out once from the scans, the model and the machine, and said with its reason.

The rules are for self-distillation and its kin; each is a function of a few facts, and none looks at a label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headct.failure import Misuse
from headct.pretraining.objectives import ObjectiveSettings
from headct.pretraining.settings import PretrainSettings, objective_settings, read_settings
from headct.pretraining.views import Crops


@dataclass(frozen=True)
class Facts:
    """What the rules know."""

    scans: int
    weights: int  # of the encoder
    on_gpu: bool
    processes: int


@dataclass(frozen=True)
class Choice:
    """A value that was chosen."""

    name: str
    value: Any
    reason: str


Rule = Callable[[PretrainSettings, Facts], tuple[Any, str]]

LARGE_BATCH = 256
"""Scans a step from which published temperatures of a teacher hold."""
WHOLE_HEAD, PART = (64, 80, 64), (32, 32, 32)
"""Voxels of crops on a CPU."""


def _batch(settings: PretrainSettings, facts: Facts) -> tuple[int, str]:
    most = 64 if facts.on_gpu else max(2, 8 // facts.processes)
    each = max(2, min(most, _power_of_two(facts.scans / 4 / facts.processes)))
    reason = f"a quarter of {facts.scans} scans, at most {most} on {'a GPU' if facts.on_gpu else 'a CPU'}"
    return each * facts.processes, reason if facts.processes == 1 else f"{each} a process: {reason}"


def _epochs(settings: PretrainSettings, facts: Facts) -> tuple[float, str]:
    epochs = min(200.0, max(10.0, 1_000_000 / facts.scans))
    return epochs, f"as many passes over {facts.scans} scans as see a million, but 10 to 200"


def _lr(settings: PretrainSettings, facts: Facts) -> tuple[float, str]:
    base = 1e-3 if facts.weights < 10e6 else 5e-4 if facts.weights < 100e6 else 2.5e-4
    lr = float(f"{base * min(1.0, max(0.5, math.sqrt(settings.batch / 64))):.2g}")
    return lr, f"{base:g} for {facts.weights / 1e6:.1f} M weights, by the root of batch / 64, at least half"


def _prototypes(settings: PretrainSettings, facts: Facts) -> tuple[int, str]:
    count = min(65536, max(64, _power_of_two(facts.scans / 2)))
    return count, f"half of {facts.scans} scans, but 64 to 65,536: with more, most would never be used"


def _balanced_prototypes(settings: PretrainSettings, facts: Facts) -> tuple[int, str]:
    views = settings.batch * value_of(settings, "objectives.dinov2.global_crops.views")
    return max(16, _power_of_two(views)), f"{views} global views a step, among which prototypes are shared out evenly"


def _teacher_momentum(settings: PretrainSettings, facts: Facts) -> tuple[tuple[float, float], str]:
    assert settings.steps is not None, "worked out when the length is known"
    start = round(1 - min(0.02, max(0.001, 64 / settings.steps)), 4)
    return (start, 1.0), f"a teacher that averages over about {1 / (1 - start):.0f} steps at first"


def _teacher_temperature(settings: PretrainSettings, facts: Facts) -> tuple[tuple[float, float], str]:
    if settings.batch < LARGE_BATCH:
        return (0.02, 0.02), f"sharp targets, for centring makes those of fewer than {LARGE_BATCH} scans uniform"
    return (0.04, 0.07), f"as published (arXiv 2304.07193), for {LARGE_BATCH} scans a step or more"


def _coarser(name: str, shape: tuple[int, int, int]) -> Rule:
    """The crops under this dotted name, of another shape on a CPU."""

    def rule(settings: PretrainSettings, facts: Facts) -> tuple[Crops, str]:
        crops: Crops = value_of(settings, name)
        return (crops, "as by default") if facts.on_gpu else (replace(crops, shape=shape), "coarser on a CPU")

    return rule


def _global_crops(settings: PretrainSettings, facts: Facts) -> tuple[Crops, str]:
    shape = (80, 96, 80) if facts.on_gpu else WHOLE_HEAD
    return Crops(views=2, shape=shape, edge_mm=(158.0, 170.0), overhang=0.03), "whole heads, coarser on a CPU"


def _local_crops(settings: PretrainSettings, facts: Facts) -> tuple[Crops, str]:
    shape, views = ((48, 48, 48), 4) if facts.on_gpu else (PART, 2)
    return Crops(views=views, shape=shape, edge_mm=(80.0, 100.0), overhang=0.0), "parts of heads, fewer on a CPU"


RULES: Mapping[str, Rule] = MappingProxyType({"batch": _batch, "epochs": _epochs, "lr": _lr})
"""In the order in which they are worked out: later ones look at the earlier."""

OBJECTIVE_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "prototypes": _prototypes,
        "dinov2.prototypes": _balanced_prototypes,
        "teacher_momentum": _teacher_momentum,
        "teacher_temperature": _teacher_temperature,
        "global_crops": _global_crops,
        "local_crops": _local_crops,
        "simclr.crops": _coarser("objectives.simclr.crops", PART),
        **{f"{name}.crops": _coarser(f"objectives.{name}.crops", WHOLE_HEAD) for name in ("mae", "jepa", "hybrid")},
        **{f"{name}.crop": _coarser(f"objectives.{name}.crop", WHOLE_HEAD) for name in ("rescan", "twin")},
    }
)
"""For `objectives.NAME.…`, where the objective has such a setting; those of one objective alone go before."""


FROM_LENGTH = ("teacher_momentum",)


def everything(settings: PretrainSettings) -> tuple[str, ...]:
    """The names of all that can be "auto" with these objectives."""
    of_objectives = [
        f"objectives.{name}.{entry.name}"
        for name, one in settings.objectives.items()
        for entry in fields(one)
        if {entry.name, f"{name}.{entry.name}"} & OBJECTIVE_RULES.keys()
    ]
    return (*RULES, *of_objectives)


def left_open(settings: PretrainSettings, given: Collection[str]) -> PretrainSettings:
    """The settings with everything "auto" that can be and was not given; a length in steps or time is one."""
    lengths = {"steps", "epochs", "budget_s"}
    closed = {*given, *(lengths if lengths & set(given) else ())}
    return replace(settings, auto=tuple(name for name in everything(settings) if name not in closed))


def resolved(
    settings: PretrainSettings, facts: Facts, *, length_known: bool = True
) -> tuple[PretrainSettings, list[Choice]]:
    """The settings with every "auto" replaced, and what was chosen. Raises Misuse for what has no rule.

    What follows from the number of steps stays open where the length is not known.
    """
    known = everything(settings)
    for name in settings.auto:
        if name not in known:
            raise Misuse(f"{name} cannot be auto", do=f"give a value; auto can be {', '.join(known)}")
    choices = []
    left_open = [name for name in settings.auto if not length_known and name.split(".")[-1] in FROM_LENGTH]
    for name in sorted(set(settings.auto) - set(left_open), key=known.index):
        rule = RULES.get(name) or _rule_of_objective(*name.split(".")[1:])
        value, reason = rule(settings, facts)
        settings = with_value(settings, name, value)
        choices.append(Choice(name, value, reason))
    return replace(settings, auto=tuple(left_open)), choices


def _rule_of_objective(objective: str, name: str) -> Rule:
    return OBJECTIVE_RULES.get(f"{objective}.{name}") or OBJECTIVE_RULES[name]


def with_value(settings: Any, name: str, value: Any) -> Any:
    """The settings with the value under a dotted name."""
    first, _, rest = name.partition(".")
    if is_dataclass(settings):
        inner = with_value(getattr(settings, first), rest, value) if rest else value
        return replace(settings, **{first: inner})  # type: ignore[type-var]
    return {**settings, first: with_value(settings[first], rest, value) if rest else value}


def value_of(settings: Any, name: str) -> Any:
    """The value under a dotted name."""
    first, _, rest = name.partition(".")
    inner = getattr(settings, first) if is_dataclass(settings) else settings[first]
    return value_of(inner, rest) if rest else inner


def _power_of_two(value: float) -> int:
    """The largest one that is not above the value."""
    return int(2 ** math.floor(math.log2(max(1.0, value))))


def settings_for(config: Path | None, *, objective: str | None = None, **given: Any) -> PretrainSettings:
    """Settings from an optional TOML file and from what is given besides, which goes before; None is not given.

    Objectives that are named keep what the file says of them. Without a file, everything that is not given is "auto".
    """
    given = {name: value for name, value in given.items() if value is not None}
    named = {} if objective is None else {name: objective_settings(name) for name in objective.split("+")}
    if config is not None:
        settings = read_settings(config, **given)
        return _only(settings, named) if named else settings
    if named:
        given["objectives"] = named
    return left_open(PretrainSettings(**given, auto=("epochs",)), given)


def _only(settings: PretrainSettings, named: Mapping[str, ObjectiveSettings]) -> PretrainSettings:
    """The settings with these objectives alone, as they are there, or as given."""
    kept = tuple(
        name
        for name in settings.auto
        if not name.startswith("objectives.") or name.split(".")[1] in settings.objectives.keys() & named.keys()
    )
    objectives = {name: settings.objectives.get(name, default) for name, default in named.items()}
    return replace(settings, objectives=objectives, auto=kept)
