"""One door for all published files and folders: what is it, and who reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headct.checkpoints.card import Card
from headct.checkpoints.published import ct_fm, fm_hct
from headct.checkpoints.published.tensors import content
from headct.checkpoints.strict import CheckpointFailure
from headct.encoders import Encoder
from headct.failure import Misuse
from headct.preparing import recipes

HUB_CARD = (
    "the recipe is that of CT-FM's pre-training; its cards on the Hub leave out the resampling, and weights that were "
    "trained further, such as the whole-body ones, saw another grid"
)


@dataclass(frozen=True)
class Published:
    """An encoder with published weights, in evaluation mode. `notes` say all that was done to read them."""

    encoder: Encoder
    card: Card
    notes: tuple[str, ...]


def recognise(path: Path) -> bool:
    """Whether this is a file, or a folder in the Hub's layout, rather than a checkpoint of ours."""
    return path.is_file() or (path.is_dir() and ct_fm.is_folder(path))


def read(path: Path, *, weights: str = "teacher", heads: int | None = None) -> Published:
    """The encoder in a published file or folder; every one of its weights is found there, or it is refused.

    Of a pre-training file of FM-HCT the teacher is taken, unless `weights` is student. `heads` is the number of
    attention heads of an FM-HCT encoder of another size than the published ones. Raises CheckpointFailure, with the
    names of what does not fit, and Misuse where something has to be said that no file says.
    """
    path = Path(path)
    if weights not in ("teacher", "student"):
        raise Misuse(f"weights must be teacher or student, got {weights!r}")
    if path.is_dir():
        return _ct_fm(path, heads, HUB_CARD)
    container = content(path)
    if not isinstance(container, Mapping):
        raise CheckpointFailure(
            f"{path} holds no weights", why=f"it is a {type(container).__name__}", do="name another"
        )
    if ct_fm.is_ours(inner := _names(container)):
        return _ct_fm(path, heads)
    if any(str(name).endswith("patch_embedding.patch_embeddings.weight") for name in inner):
        found, chosen = fm_hct.choose(container, weights, path)
        encoder, notes = fm_hct.read(found, path, heads=heads)
        return Published(encoder, _fm_hct_card(encoder, path), (*chosen, *notes))
    if any(re.fullmatch(r"(_orig_mod\.)?linear\.weight", str(name)) for name in inner):
        raise Misuse(f"{path} is a classifier, not an encoder", do="read it by checkpoints.published.read_head")
    raise CheckpointFailure(
        f"{path} is of no known layout",
        why=f"its names begin so: {', '.join(map(str, list(inner)[:3]))}" if inner else "it holds no named weights",
        do="see `headct models`",
    )


def _names(container: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = container.get("state_dict", container)
    return inner if isinstance(inner, Mapping) else {}


def _ct_fm(path: Path, heads: int | None, *more: str) -> Published:
    if heads is not None:
        raise Misuse(f"{path} is a CT-FM encoder, which has no attention heads", do="leave out heads")
    encoder, notes = ct_fm.read(path)
    return Published(encoder, _ct_fm_card(), (*notes, *more))


def _ct_fm_card() -> Card:
    return Card(
        recipe=recipes["ct-fm-pretrain"],
        windows={},
        objective={"name": "contrast within a scan", "reference": "arXiv 2501.09001"},
        data=[{"series": "148,000 public CT, of all body parts and almost none of the head"}],
    )


def _fm_hct_card(encoder: Encoder, path: Path) -> Card:
    recipe = recipes["fm-hct"]
    if encoder.channels != recipe.channels:
        raise CheckpointFailure(
            f"{path} takes {encoder.channels} channels",
            why=f"the recipe {recipe.name} gives {recipe.channels}, and no other of FM-HCT's is known here",
            do="name a file with three channels",
        )
    return Card(
        recipe=recipe,
        windows={},
        objective={"name": "self-distillation or masked autoencoding", "reference": "arXiv 2502.02779"},
        data=[{"scans": "361,663 head CT of NYU Langone"}],
    )
