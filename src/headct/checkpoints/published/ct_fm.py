"""CT-FM's files (arXiv 2501.09001) to our `SegResEncoder`, or to the segmentation network around it.

a Hub folder    config.json and model.safetensors; the encoder's names, or encoder.* beside up_layers.*
pre-training    state_dict: model.backbone.* beside model.projection_head.*, with _orig_mod. where it was compiled
a loose file    either of the first two tables
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headct import encoders
from headct.checkpoints.layout import CONFIG, MODEL  # which the Hub calls so, too
from headct.checkpoints.published.tensors import Stripped, Weights, content, part, strip
from headct.checkpoints.strict import CheckpointFailure, counted, differences, full_precision, some
from headct.encoders import Encoder, SegResSettings, segmentation_network
from headct.failure import Misuse

PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.")
DECODER, UNUSED = "up_layers.", ("projection_head.", "prediction_head.")
HEAD = re.compile(r"up_layers\.\d+\.head\.")
FIELDS = {"spatial_dims", "in_channels", "init_filters", "blocks_down", "out_channels", "dsdepth"}
"""What a configuration in the Hub's layout may say."""


@dataclass(frozen=True)
class Segmentation:
    """CT-FM's segmentation network, MONAI's SegResNetDS, in evaluation mode. `notes` say all that was done."""

    network: nn.Module
    settings: SegResSettings
    untrained: tuple[str, ...]  # names of the weights that no file gave; they are random
    notes: tuple[str, ...]


def is_folder(path: Path) -> bool:
    """Whether a folder is in the Hub's layout: its configuration is CT-FM's."""
    try:
        return "blocks_down" in _config(path)
    except CheckpointFailure:
        return False


def is_ours(weights: Mapping[str, Any]) -> bool:
    """Whether these names, stripped, are those of a CT-FM encoder."""
    return any(re.search(r"(^|\.)conv_init\.weight$", str(name)) for name in weights)


def read(path: Path) -> tuple[Encoder, tuple[str, ...]]:
    """The encoder of a file or folder, in evaluation mode, and sentences about what was done."""
    found = _find(path)
    encoder = encoders.build("segresenc", **asdict(_checked(found, path)))
    encoder.load_state_dict({f"network.{name}": one for name, one in found.encoder.items()})
    unused = sorted({*found.unused, *(name.partition(".")[0] for name in found.decoder)})
    left_out = (f"not needed by the encoder, and left out: {', '.join(unused)}",) if unused else ()
    return encoder.eval(), (*found.notes, *left_out, *_said(encoder.settings))


def read_segmentation(path: Path, *, outputs: int | None = None, depths: int | None = None) -> Segmentation:
    """CT-FM's segmentation network with the weights of a file or folder, which may be those of its encoder alone.

    `outputs` counts classes with the background and `depths` the levels that have an output; both are the file's
    unless given. The encoder and a decoder must be there to the last key; outputs for other classes, further ones, and
    a decoder that the file lacks are random, and `untrained` names them. Raises CheckpointFailure where a key is
    missing or left over, and Misuse where `outputs` must be said.
    """
    path = Path(path)
    found = _find(path)
    settings = _checked(found, path)
    given_outputs, given_depths = _outputs(found.decoder)
    if outputs is None and not found.decoder:
        raise Misuse(f"{path} has no outputs", why="it holds an encoder alone", do="say how many: outputs=...")
    if found.decoder:
        with torch.device("meta"):
            whole = segmentation_network(settings, outputs=given_outputs, depths=given_depths).state_dict()
        if wrong := differences({name: one for name, one in whole.items() if name.startswith(DECODER)}, found.decoder):
            raise _misfit(path, wrong)
    network = segmentation_network(settings, outputs=outputs or given_outputs, depths=depths or given_depths).eval()
    expected = network.state_dict()
    weights = {f"encoder.{name}": one for name, one in found.encoder.items()} | found.decoder
    fitting = {name: one for name, one in weights.items() if name in expected and one.shape == expected[name].shape}
    network.load_state_dict(expected | fitting)
    untrained = tuple(sorted(expected.keys() - fitting.keys()))
    notes = (*found.notes, *_said(settings), *_news(untrained, [*found.unused, *(weights.keys() - fitting.keys())]))
    return Segmentation(network, settings, untrained, notes)


@dataclass(frozen=True)
class _Found:
    """A file's weights, in float32, by what they belong to."""

    encoder: Weights  # without a prefix
    decoder: Weights  # up_layers.*
    unused: tuple[str, ...]  # first parts of the other names
    config: Mapping[str, Any]
    notes: tuple[str, ...]


def _find(path: Path) -> _Found:
    """The weights of a file, or of a folder in the Hub's layout. Prefixes come off what all names share; then the
    parts beside the encoder are put aside; then prefixes come off the rest.
    """
    config = _checked_config(path) if path.is_dir() else {}
    weights, cast = full_precision(_weights(path))
    outer = strip(weights, PREFIXES)
    kept = {name: one for name, one in outer.weights.items() if not name.startswith((DECODER, *UNUSED))}
    decoder = {name: one for name, one in outer.weights.items() if name.startswith(DECODER)}
    unused = {name.partition(".")[0] for name in outer.weights.keys() - kept.keys() - decoder.keys()}
    inner = strip(kept, PREFIXES)
    stripped = Stripped(inner.weights, outer.prefixes + inner.prefixes)
    return _Found(stripped.weights, decoder, tuple(unused), config, (*stripped.note, *cast))


def _weights(path: Path) -> Weights:
    """Of a folder, of a container of the pre-training, or a bare table."""
    file = path / MODEL if path.is_dir() else path
    container = content(file)
    return part(container, "state_dict" if isinstance(container, Mapping) and "state_dict" in container else "", file)


def _checked(found: _Found, path: Path) -> SegResSettings:
    """The settings that the shapes tell, once every weight of the encoder is the expected one."""
    table = found.encoder
    try:
        init_filters, channels = table["conv_init.weight"].shape[:2]
        levels = counted(table, "layers.")
        blocks = tuple(counted(table, f"layers.{level}.blocks.") for level in range(levels))
        last = table[f"layers.{levels - 1}.blocks.0.conv1.weight"]
        if last.ndim != 5 or len(last) != init_filters << (levels - 1):
            raise ValueError("no level has twice the features of the one before")
        settings = SegResSettings(channels=channels, init_filters=init_filters, blocks_down=blocks)
    except (KeyError, ValueError) as error:
        why = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise CheckpointFailure(f"{path} is not a CT-FM encoder", why=why, do="name another file") from error
    with torch.device("meta"):  # compared before it takes memory
        network = encoders.build("segresenc", **asdict(settings))
    expected = {name.removeprefix("network."): tensor for name, tensor in network.state_dict().items()}
    if wrong := differences(expected, table):
        raise _misfit(path, wrong)
    _agree(found.config, settings, found.decoder, path)
    return settings


def _said(settings: SegResSettings) -> tuple[str, ...]:
    """A sentence where the shapes are not those that were published."""
    if settings == SegResSettings():
        return ()
    blocks, channels = settings.blocks_down, settings.channels
    found = f"{settings.init_filters} features in the first level, blocks {blocks}, channels {channels}"
    return (f"that is not the published size: {found}",)


def _outputs(decoder: Weights) -> tuple[int, int]:
    """How many outputs the heads of a decoder have, and how many heads there are; one of each where there are none."""
    sizes = [one.numel() for name, one in decoder.items() if HEAD.match(name) and name.endswith("bias")]
    return (sizes[0], len(sizes)) if sizes else (1, 1)


def _news(untrained: tuple[str, ...], left_out: list[str]) -> list[str]:
    """Sentences about what of the file is not used, and what is random."""
    news = [f"not in this network, and left out: {', '.join(sorted(left_out))}"] if left_out else []
    if untrained:
        heads = {name.rpartition(".")[0] for name in untrained if HEAD.match(name)}
        what = ", ".join(sorted(heads)) if 2 * len(heads) == len(untrained) else "the whole decoder"
        news.append(f"random until trained: {what}")
    return news


def _misfit(path: Path, wrong: list[str]) -> CheckpointFailure:
    return CheckpointFailure(
        f"the weights in {path} are not those of CT-FM",
        why=some(wrong),
        do="copy the file again from where it came, or name one of the published layouts",
    )


def _checked_config(path: Path) -> dict[str, Any]:
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
    return config


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"it is a {type(config).__name__}")
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointFailure(f"{path / CONFIG} cannot be read", why=str(error), do="copy it again") from error
    return config


def _agree(config: Mapping[str, Any], settings: SegResSettings, decoder: Weights, path: Path) -> None:
    """The configuration must say what the weights show."""
    shown: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": settings.channels,
        "init_filters": settings.init_filters,
        "blocks_down": list(settings.blocks_down),
    }
    outputs, depths = _outputs(decoder)
    shown |= {"out_channels": outputs, "dsdepth": depths} if decoder else {"out_channels": "none", "dsdepth": "none"}
    wrong = [
        f"{name} is {config[name]}, the weights have {value}"
        for name, value in shown.items()
        if name in config and config[name] != value
    ]
    if wrong:
        raise CheckpointFailure(
            f"{path / CONFIG} contradicts {MODEL}", why="; ".join(wrong), do="copy the folder again as a whole"
        )
