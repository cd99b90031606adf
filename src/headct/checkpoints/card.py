"""What a checkpoint says about itself: for the program as values, for a reader as a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headct.encoders import Encoder, Window
from headct.preparing import Recipe


@dataclass(frozen=True, kw_only=True)
class Card:
    """Where an encoder comes from and what it must be given."""

    recipe: Recipe  # how its scans were prepared
    windows: Mapping[str, Window]  # level and width in HU, a channel each; empty where the recipe has scaled them
    objective: Mapping[str, Any] = field(default_factory=dict)  # how it was trained; empty: random weights
    data: Sequence[Mapping[str, Any]] = ()  # on what
    licence: str = "not stated"  # of the weights

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


def write_up(card: Card, encoder: Encoder, version: str) -> str:
    """The model card in Markdown."""
    weights = sum(weight.numel() for weight in encoder.parameters())
    windows = ", ".join(f"{name} {level:g}/{width:g}" for name, (level, width) in card.windows.items())
    trained = ", ".join(f"{key} {_plain(value)}" for key, value in card.objective.items() if value not in ("", None))
    data = [f"- {', '.join(f'{key} {_plain(value)}' for key, value in entry.items())}" for entry in card.data] or [
        "- none: the weights are random"
    ]
    return "\n".join(
        [
            f"# {encoder.architecture} for head CT",
            "",
            f"An encoder of {weights / 1e6:.1f} million weights: a scan becomes a vector of {encoder.scan_width} "
            "numbers, and each of its places a vector too.",
            "",
            "## Use",
            "",
            "```python",
            "import headct",
            "",
            'found = headct.embed(["scans/"], "path/of/this/folder")',
            "```",
            "",
            f"Scans are prepared by the recipe `{card.recipe.name}` ({card.recipe.id})"
            + (f" and windowed (level/width in HU): {windows}." if windows else ", which also scales them."),
            "",
            "## Training",
            "",
            f"Objective: {trained or 'none'}.",
            "",
            "Data:",
            "",
            *data,
            "",
            "## Intended use and limits",
            "",
            "Research software, not a medical device. The vectors are meant as input of models that are validated for "
            "their own task, population and scanners. Nothing is known about scans unlike those it was trained on: "
            "other scanners, children, contrast, after surgery.",
            "",
            f"Licence of the weights: {card.licence}. Written by headct {version}.",
            "",
        ]
    )


def _plain(value: Any) -> str:
    return " to ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)
