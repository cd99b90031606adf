"""What a checkpoint says about itself: for the program as values, for a reader as a model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headct.encoders import Encoder, Window
from headct.failure import Misuse
from headct.preparing import Recipe

NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where an encoder comes from and what it must be given."""

    recipe: Recipe  # how its scans were prepared
    windows: Mapping[str, Window]  # level and width in HU, a channel each; empty where the recipe has scaled them
    objective: Mapping[str, Any] = field(default_factory=dict)  # how it was trained; empty: random weights
    data: Sequence[Mapping[str, Any]] = ()  # on what
    licence: str = NOT_STATED  # of the weights

    def to_config(self) -> dict[str, Any]:
        """Plain values for JSON; `from_config` reads them again."""
        return {
            "recipe": {"id": self.recipe.id, **json.loads(self.recipe.to_json())},
            "windows": {name: list(window) for name, window in self.windows.items()},
            "objective": dict(self.objective),
            "data": [dict(entry) for entry in self.data],
            "licence": self.licence,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Card:
        """The card in a checkpoint's config. Raises KeyError, TypeError or ValueError where the config is not one."""
        content = dict(config["recipe"])
        recorded = content.pop("id")
        recipe = Recipe.from_json(json.dumps(content))
        if recipe.id != recorded:
            raise ValueError(f"the recipe was changed: its id is {recipe.id}, recorded is {recorded}")
        return cls(
            recipe=recipe,
            windows={name: (level, width) for name, (level, width) in config["windows"].items()},
            objective=config["objective"],
            data=config["data"],
            licence=config["licence"],
        )


def check_fits(card: Card, encoder: Encoder) -> None:
    """Raise Misuse where the card does not give the encoder the channels it takes, or a window cannot be applied."""
    channels = len(card.windows) or card.recipe.channels or 1
    if encoder.channels != channels:
        raise Misuse(
            f"the encoder takes {encoder.channels} channels, its card gives it {channels}",
            do="state the windows it was trained with",
        )
    for name, (level, width) in card.windows.items():
        if not (math.isfinite(level) and 0 < width < math.inf):
            raise Misuse(f"the window {name} is {level:g}/{width:g}", do="state level and width in HU")


LICENCES_OF_THE_HUB = {
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"),
    *("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cc-by-nd-4.0", "gpl-3.0", "unlicense"),
}
"""Those that its front matter may name; any other is called `other` there and named beside it."""


def write_up(card: Card, encoder: Encoder, version: str) -> str:
    """The model card in Markdown, with the front matter that the Hugging Face Hub reads."""
    return "\n".join(
        [
            *_front_matter(card),
            *_heading(card, encoder),
            *_use(card),
            *_training(card),
            *_limits(card),
            f"Licence of the weights: {card.licence}. Written by headct {version}.",
            "",
        ]
    )


def _front_matter(card: Card) -> list[str]:
    """YAML, whose strings may be written as JSON's."""
    tags = ["head-ct", "computed-tomography", "medical-imaging", "feature-extraction", card.recipe.name]
    facts: dict[str, Any] = {"library_name": "headct", "tags": tags if card.objective else [*tags, "random-weights"]}
    if card.licence.lower() in LICENCES_OF_THE_HUB:
        facts["license"] = card.licence.lower()
    elif card.licence != NOT_STATED:
        facts |= {"license": "other", "license_name": card.licence}
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in facts.items()), "---", ""]


def _heading(card: Card, encoder: Encoder) -> list[str]:
    weights = sum(weight.numel() for weight in encoder.parameters())
    lines = [
        f"# {encoder.architecture} for head CT",
        "",
        f"An encoder of {weights / 1e6:.1f} million weights: a scan becomes a vector of {encoder.scan_width} numbers, "
        "and each of its places a vector too.",
        "",
    ]
    if card.objective:
        return lines
    return [
        *lines,
        "**Its weights are random.** It has learned nothing; use it to start a training, or to compare.",
        "",
    ]


def _use(card: Card) -> list[str]:
    windows = ", ".join(f"{name} {level:g}/{width:g}" for name, (level, width) in card.windows.items())
    return [
        "## Use",
        "",
        "```python",
        "import headct",
        "",
        'found = headct.embed(["scans/"], "path/of/this/folder")  # on the Hub: "hub:owner/name@revision"',
        "```",
        "",
        f"Scans are prepared by the recipe `{card.recipe.name}` ({card.recipe.id})"
        + (f" and windowed (level/width in HU): {windows}." if windows else ", which also scales them.")
        + " Every load compares keys, shapes, the SHA-256 of the weights and the features of a small input with what "
        "was recorded, and refuses what differs.",
        "",
    ]


def _training(card: Card) -> list[str]:
    objective = {key: value for key, value in card.objective.items() if value not in ("", None)}
    name = objective.pop("name", "not recorded" if card.objective else "none")
    plain = [f"{key} {_plain(value)}" for key, value in objective.items() if not isinstance(value, Mapping)]
    groups = [f"- {key} {_plain(value)}" for key, value in objective.items() if isinstance(value, Mapping)]
    data = [f"- {', '.join(f'{key} {_plain(value)}' for key, value in entry.items())}" for entry in card.data]
    nothing = "- not recorded" if card.objective else "- none: the weights are random"
    how = [f"Objective: {', '.join([str(name), *plain])}.", "", *([*groups, ""] if groups else [])]
    return ["## Training", "", *how, "Data:", "", *(data or [nothing]), ""]


def _limits(card: Card) -> list[str]:
    seen = (
        "Nothing is known about scans unlike those it was trained on: other scanners, children, contrast, surgery."
        if card.objective
        else "Nothing about these vectors was learned from scans."
    )
    if card.data and all(one.get("virtual") for one in card.data):
        seen = "All of these patients are virtual: what it gives on real ones is not known."
    return [
        "## Intended use and limits",
        "",
        "Meant for research: the vectors are input of models that are validated for their own task, population and "
        f"scanners. {seen} Differences between scanners, protocols and groups of patients may be in the vectors, and "
        "whoever has them may learn about the patient, such as age or sex: handle them like the scans.",
        "",
        "Research software, not a medical device: not for decisions about a patient.",
        "",
    ]


def _plain(value: Any) -> str:
    """In words, a group of settings in brackets."""
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key} {_plain(one)}' for key, one in value.items() if one not in ('', None))})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return (" to " if len(value) == 2 else " × ").join(map(_plain, value))
    return str(value)
