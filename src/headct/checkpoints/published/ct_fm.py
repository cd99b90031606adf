"""CT-FM's files (arXiv 2501.09001) to our `SegResEncoder`.

a Hub folder    config.json and model.safetensors; the encoder's names, or encoder.* beside up_layers.*
pre-training    state_dict: model.backbone.* beside model.projection_head.*, with _orig_mod. where it was compiled
a loose file    either of the first two tables
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headct import encoders
from headct.checkpoints.published.tensors import Stripped, Weights, content, full_precision, part, strip
from headct.checkpoints.strict import CheckpointFailure, differences, some
from headct.encoders import Encoder

PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.")
UNUSED = ("up_layers.", "projection_head.", "prediction_head.")
CONFIG, MODEL = "config.json", "model.safetensors"
FIELDS = {"spatial_dims", "in_channels", "init_filters", "blocks_down", "out_channels", "dsdepth"}
"""What a configuration in the Hub's layout may say."""


def is_folder(path: Path) -> bool:
    """Whether a folder is in the Hub's layout: its configuration is CT-FM's."""
    try:
        return "blocks_down" in _config(path)
    except CheckpointFailure:
        return False


def is_ours(weights: Mapping[str, Any]) -> bool:
    """Whether these names, stripped, are those of a CT-FM encoder."""
    return any(re.search(r"(^|\.)conv_init\.weight$", name) for name in weights)


def read_folder(path: Path) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder of a folder in the Hub's layout."""
    if not (path / CONFIG).is_file():
        raise CheckpointFailure(
            f"{path} lacks {CONFIG}",
            why="without it the architecture is not known",
            do="copy the folder again as a whole",
        )
    config = _config(path)
    if strange := sorted(set(config) - FIELDS):
        raise CheckpointFailure(
            f"{path / CONFIG} says what is not known: {', '.join(strange)}", do="it is not a configuration of CT-FM"
        )
    encoder, notes = read(part(content(path / MODEL), "", path / MODEL), path)
    _agree(config, encoder, path)
    return encoder, notes


def of_container(container: Any, path: Path) -> Weights:
    """The weights of a container of the pre-training, or a bare table."""
    return part(container, "state_dict" if "state_dict" in container else "", path)


def read(weights: Weights, path: Path) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder of a table of weights, in evaluation mode, and sentences about what was done."""
    found = _encoder_of(weights)
    notes = [*found.stripped.note]
    if found.unused:
        notes.append(f"not needed by the encoder, and left out: {', '.join(found.unused)}")
    table, cast = full_precision(found.stripped.weights)
    try:
        init_filters, channels = table["conv_init.weight"].shape[:2]
        levels = 1 + max(int(name.split(".")[1]) for name in table if name.startswith("layers."))
        blocks = [_blocks(table, level) for level in range(levels)]
        encoder = encoders.build("segresenc", channels=channels, init_filters=init_filters, blocks_down=tuple(blocks))
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointFailure(
            f"{path} is not a CT-FM encoder", why=f"{error} is missing or has no such shape", do="name another file"
        ) from error
    renamed = {f"network.{name}": one for name, one in table.items()}
    if wrong := differences(encoder, renamed):
        raise CheckpointFailure(
            f"the weights in {path} are not those of a CT-FM encoder",
            why=some([fault.removeprefix("network.") for fault in wrong]),
            do="copy the file again from where it came, or name one of the published layouts",
        )
    encoder.load_state_dict(renamed)
    return encoder.eval(), (*notes, *cast)


class _Found:
    """The encoder's part of a table, and the names of the other parts."""

    def __init__(self, stripped: Stripped, unused: tuple[str, ...]) -> None:
        self.stripped, self.unused = stripped, unused


def _encoder_of(weights: Weights) -> _Found:
    """Prefixes come off what all names share; then the parts beside the encoder are put aside; then off the rest."""
    outer = strip(weights, PREFIXES)
    kept = {name: one for name, one in outer.weights.items() if not name.startswith(UNUSED)}
    unused = sorted({name.partition(".")[0] for name in outer.weights.keys() - kept.keys()})
    inner = strip(kept, PREFIXES) if kept else Stripped(kept, ())
    return _Found(Stripped(inner.weights, outer.prefixes + inner.prefixes), tuple(unused))


def _blocks(table: Weights, level: int) -> int:
    """Residual blocks of a level, at least the one without which its weights are missing."""
    numbers = [int(found[1]) for name in table if (found := re.match(rf"layers\.{level}\.blocks\.(\d+)\.", name))]
    return 1 + max(numbers, default=0)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointFailure(f"{path / CONFIG} cannot be read", why=str(error), do="copy it again") from error
    return config if isinstance(config, dict) else {}


def _agree(config: Mapping[str, Any], encoder: Encoder, path: Path) -> None:
    """The configuration must say what the weights show."""
    settings = encoder.settings
    shown = {
        "spatial_dims": 3,
        "in_channels": settings.channels,
        "init_filters": settings.init_filters,
        "blocks_down": list(settings.blocks_down),
    }
    wrong = [
        f"{name} is {list(config[name]) if name == 'blocks_down' else config[name]}, the weights have {value}"
        for name, value in shown.items()
        if name in config and (list(config[name]) if name == "blocks_down" else config[name]) != value
    ]
    if wrong:
        raise CheckpointFailure(
            f"{path / CONFIG} contradicts {MODEL}", why="; ".join(wrong), do="copy the folder again as a whole"
        )
