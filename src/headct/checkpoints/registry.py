"""The models that can be named, and what is known about each: one plain table, read without a network.

A fact that is not known is None, never a guess. Weights that are published are named with where they are; the others
are ours and random until they are trained.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from headct import encoders
from headct.checkpoints import layout
from headct.checkpoints.folder import find
from headct.checkpoints.strict import CheckpointFailure, sha256_of
from headct.failure import Misuse

UNTRAINED = "nothing: random until trained"
NOT_RECORDED = "not recorded"
HUB = "hub:"
WITH_US = "in the package"
SHIPPED = Path(__file__).with_name("shipped")
"""Checkpoint folders that come with the package, called like their models."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known about one name."""

    name: str
    architecture: str
    recipe: str | None = None  # a name of headct.recipes; None: whichever it is trained with
    licence: str | None = None  # of the weights
    size_bytes: int | None = None  # of the weights file
    sha256: str | None = None  # of the weights file
    trained_on: str = UNTRAINED
    where: str | None = None  # hub:owner/name, `WITH_US`, or the page where to ask; None: there are no weights
    gated: bool = False
    reference: str | None = None  # the paper

    @property
    def comes_with_us(self) -> bool:
        """Whether the package itself holds the weights."""
        return self.where == WITH_US

    @property
    def downloads(self) -> bool:
        """Whether naming it fetches weights."""
        return self.where is not None and self.where.startswith(HUB)

    @property
    def folder_name(self) -> str:
        """What a copy of its repository is called, unless someone renames it."""
        return self.where.rpartition("/")[2] if self.where and self.downloads else self.name


CT_FM = Entry(
    name="ct-fm",
    architecture="segresenc",
    recipe="ct-fm-pretrain",
    trained_on="148,000 public CT series without labels, of all body parts and almost none of the head",
    where="hub:project-lighter/ct_fm_feature_extractor",
    reference="arXiv 2501.09001",
)

PUBLISHED = (
    CT_FM,
    replace(
        CT_FM,
        name="ct-fm-segresnet",
        trained_on=f"{CT_FM.trained_on}; its decoder on nothing",
        where="hub:project-lighter/ct_fm_segresnet",
    ),
    replace(
        CT_FM,
        name="ct-fm-whole-body",
        size_bytes=348_968_896,
        trained_on="what ct-fm was, then TotalSegmentator's 117 structures with labels",
        where="hub:project-lighter/whole_body_segmentation",
    ),
    Entry(
        name="fm-hct",
        architecture="vit-base",
        recipe="fm-hct",
        trained_on="361,663 head CT scans of NYU Langone without labels",
        where="https://github.com/NYUMedML/headCT_foundation",
        gated=True,
        reference="arXiv 2502.02779",
    ),
)

OURS = (
    Entry(
        name="virtual-coarse",
        architecture="anatomy-conv",
        recipe="head-coarse",
        licence="Apache-2.0",
        size_bytes=4_041_840,
        sha256="f0fdbc83b98318044f3690bed433cbbc90ef9eed2c81c240ccdb393b5112b6be",
        trained_on="600 virtual patients without labels, with the truth of their tissues and of places of a template",
        where=WITH_US,
    ),
)

MODELS: Mapping[str, Entry] = MappingProxyType(
    {
        **{entry.name: entry for entry in OURS},
        **{name: Entry(name=name, architecture=name) for name in encoders.ARCHITECTURES},
        **{entry.name: entry for entry in PUBLISHED},
    }
)


def listed() -> list[dict[str, Any]]:
    """A row of facts per name, for programs: those that are not known are None."""
    return [asdict(entry) for entry in MODELS.values()]


def readable() -> list[dict[str, str]]:
    """The same for people."""
    return [
        {
            "name": entry.name,
            "architecture": entry.architecture,
            "recipe": entry.recipe or "",
            "licence": _fact(entry, entry.licence),
            "size": _fact(entry, entry.size_bytes and f"{entry.size_bytes / 1e6:.0f} MB"),
            "sha256": _fact(entry, entry.sha256 and entry.sha256[:12]),
            "trained on": entry.trained_on,
            "weights": f"on request: {entry.where}" if entry.gated else entry.where or "",
        }
        for entry in MODELS.values()
    ]


def about(model: str) -> dict[str, Any]:
    """What is known about a name of the list or a checkpoint folder, offline. Raises Misuse where it is neither."""
    if model in MODELS:
        entry = MODELS[model]
        if entry.where is not None:
            return asdict(entry)
        known = {key: value for key, value in asdict(entry).items() if value is not None}
        return {**known, **_built(entry.architecture)}
    if model.startswith(HUB):
        raise Misuse(
            f"{model} is not on this machine",
            why="what is shown here is known without a network",
            do="load it first, and show the folder that its `source` names",
        )
    path = Path(os.path.expanduser(model))
    if not layout.present(path).exists():
        raise unknown(model)
    folder = find(path)
    return {"name": model, "where": str(folder), **layout.read_config(folder)}


def flat(about: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as lines: settings.width, recipe.name."""
    lines: dict[str, str] = {}
    for key, value in about.items():
        if isinstance(value, Mapping):
            lines |= flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = NOT_RECORDED if value is None else str(value)
    return lines


def unknown(model: str) -> Misuse:
    """The error for what is neither a name nor there."""
    if model in MODELS:
        return Misuse(
            f"there is no folder or file {model}", do=f"give the text {model!r}, not a Path, for the model of that name"
        )
    if os.sep in model:
        return Misuse(f"no model {model!r}", why="there is no such file or folder", do="check the path")
    near = get_close_matches(model, MODELS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(MODELS)}, or name its path"
    return Misuse(f"no model {model!r}", why="it is no registered name, and there is no such file or folder", do=hint)


def of_repository(repository: str) -> Entry | None:
    """The entry whose weights are in this repository of the Hub."""
    return next((entry for entry in PUBLISHED if entry.where == f"{HUB}{repository}"), None)


def of_copy(path: Path) -> Entry | None:
    """The entry whose weights a folder or file claims to hold: it is called like the model or its repository."""
    name = path.stem if path.is_file() else path.name
    return next((entry for entry in PUBLISHED if name in (entry.name, entry.folder_name)), None)


def check(entry: Entry, weights: Path) -> None:
    """Compare a weights file with the SHA-256 that is recorded, if one is, before anything reads the file.

    However it came here. Raises CheckpointFailure where it is another file.
    """
    if entry.sha256 is None:
        return
    sha256 = sha256_of(weights)
    if sha256 != entry.sha256:
        raise CheckpointFailure(
            f"{weights} is not the file that is registered as {entry.name}",
            why=f"its SHA-256 is {sha256[:12]}..., recorded is {entry.sha256[:12]}...",
            do="fetch or copy it again; if you mean another file, give its folder another name",
        )


def _fact(entry: Entry, value: str | int | None) -> str:
    return str(value) if value else NOT_RECORDED if entry.where else ""


def _built(architecture: str) -> dict[str, Any]:
    """Size and settings of an architecture of ours, counted without taking the memory of its weights."""
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in encoders.build(architecture).parameters())
    return {"parameters": parameters, "settings": asdict(encoders.ARCHITECTURES[architecture].settings)}


def read_sealed(folder: str | os.PathLike[str], kind: layout.Sealed) -> tuple[Path, dict[str, Any], str]:
    """Where what was made from a model lies, its configuration, and that one's SHA-256.

    Raises Misuse where there is none of this kind, and says so where a model is named instead; CheckpointFailure where
    it is damaged, of another version or was changed.
    """
    place = layout.present(Path(os.path.expanduser(folder)))
    if str(folder) in MODELS and not place.exists():
        raise kind.of_model(str(folder))
    return place, *kind.read_config(place)
