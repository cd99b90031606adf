"""Checkpoint folders: written as a whole, believed only after a test at every load.

checkpoint/
  config.json            format, architecture, settings, the card's values, SHA-256 of the weights
  model.safetensors      weights
  selftest.safetensors   a small input with its voxel size, and the features it must give
  README.md              the model card
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from headct import __version__, encoders
from headct.checkpoints import layout
from headct.checkpoints.card import Card, check_fits, write_up
from headct.checkpoints.layout import CONFIG, MODEL, README, SELFTEST
from headct.checkpoints.pretrained import PretrainedEncoder
from headct.checkpoints.strict import COPY_AGAIN, CheckpointFailure, damaged, differences, full_precision, some
from headct.encoders import Encoder, Features
from headct.failure import Misuse

TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of a feature in the self-test, by the dtype of the weights. Normalised features are of size 1;
between machines, sums in another order move them by about 1e-5 in float32, and by one rounding step in the others."""

COHORT, RUN = "cohort.json", "settings.toml"
"""By which a folder that is taken for a checkpoint is told to be a cohort, or a run."""


def save(folder: Path, encoder: Encoder, card: Card, *, replace_existing: bool = False) -> None:
    """Write a checkpoint; the folder is there completely or not at all, and one that is replaced is lost at no moment.

    The encoder must come from `encoders.build` and lie on the CPU. Raises Misuse where the folder exists already, or
    the encoder does not fit its card.
    """
    if not encoder.architecture:
        raise Misuse("this encoder has no architecture name, so it could not be loaded", do="make it by encoders.build")
    check_fits(card, encoder)
    with layout.written_whole(Path(folder), replace_existing=replace_existing) as new:
        for name, content in _files(encoder.eval(), card).items():
            (new / name).write_bytes(content)


def load(model: str | Path) -> PretrainedEncoder:
    """The encoder of a checkpoint folder, or of the run folder that holds one, in evaluation mode on the CPU.

    Weights in half precision are tested as they were saved and then cast to float32, as inputs are; `notes` say so.
    Strict: every key, shape and dtype, the SHA-256 of the weights, and the self-test must agree. Raises Misuse where
    there is no such folder, CheckpointFailure where its content is not right.
    """
    folder = find(model)
    config = layout.read_config(folder)
    content = layout.read(folder, MODEL)
    sha256 = hashlib.sha256(content).hexdigest()
    recorded = str(config.get("model_sha256"))
    if sha256 != recorded:
        raise CheckpointFailure(
            f"{folder / MODEL} is not the file that was saved",
            why=f"its SHA-256 is {sha256[:12]}..., {CONFIG} records {recorded[:12]}...",
            do=COPY_AGAIN,
        )
    expected, card = layout.described(folder, config)
    weights = layout.tensors(folder / MODEL, content)
    dtype = _compare(expected, weights, folder)
    example = layout.read(folder, SELFTEST)
    encoder = _built(config, weights, dtype)
    _self_test(encoder, layout.tensors(folder / SELFTEST, example), folder)
    layout.check_unchanged(folder, config, example)
    weights, notes = full_precision(weights)
    if notes:  # built anew, for what is computed and not stored was rounded as well
        encoder = _built(config, weights, torch.float32)
    return PretrainedEncoder(encoder, card, sha256, notes=notes).eval()


def find(model: str | Path) -> Path:
    """The checkpoint folder that `model` means: the folder itself, or `checkpoint/` in a run folder."""
    folder = Path(model)
    for place in map(layout.present, (folder, folder / "checkpoint")):
        if (place / CONFIG).is_file():
            return place
    if not folder.exists():
        raise Misuse(f"no model {str(model)!r}", why="there is no such folder", do="name a checkpoint or run folder")
    if (folder / COHORT).exists():
        raise Misuse(f"{folder} is a cohort, not a model", do="name a checkpoint folder, a finished run, or a name")
    if (folder / RUN).exists():
        raise Misuse(
            f"{folder} is a run that has not finished",
            why="its checkpoint is written at the end",
            do="call its `headct pretrain` line again, which goes on where it stopped",
        )
    raise Misuse(
        f"{folder} is not a checkpoint", why=f"it holds no {CONFIG}", do="name a checkpoint folder, or a finished run"
    )


def _files(encoder: Encoder, card: Card) -> dict[str, bytes]:
    model = to_bytes({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()})
    config = {**layout.configuration(encoder, card), "model_sha256": hashlib.sha256(model).hexdigest()}
    return {
        MODEL: model,
        SELFTEST: to_bytes(_example(encoder), {layout.DECISIVE: layout.decisive(config)}),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        README: write_up(card, encoder, __version__).encode(),
    }


def _example(encoder: Encoder) -> dict[str, Tensor]:
    """The self-test's input and the features that it gives."""
    x = layout.example((1, encoder.channels, *encoder.example_shape)).to(_dtype(encoder))
    spacing_mm = torch.tensor([[1.5, 2.0, 3.0]])  # three different ones, for encoders that measure in mm
    features = _features(encoder, x, spacing_mm)
    found = {"scan": features.scan.contiguous(), "tokens": features.tokens.contiguous()}  # else safetensors refuses
    return {"input": x, "spacing_mm": spacing_mm, **found}


def _features(encoder: Encoder, x: Tensor, spacing_mm: Tensor) -> Features:
    with torch.no_grad():
        return encoder(x, spacing_mm)


def _dtype(encoder: Encoder) -> torch.dtype:
    return next(encoder.parameters()).dtype


def _built(config: Mapping[str, Any], weights: Mapping[str, Tensor], dtype: torch.dtype) -> Encoder:
    """The encoder, in evaluation mode; its configuration was found to be one, and the weights to fit it."""
    encoder = encoders.build(config["architecture"], **config["settings"]).to(dtype)
    encoder.load_state_dict(weights)
    return encoder.eval()


def _compare(encoder: Encoder, weights: Mapping[str, Tensor], folder: Path) -> torch.dtype:
    """The dtype of the weights. Raises CheckpointFailure unless each key, shape and dtype is the encoder's."""
    wrong = differences(encoder.state_dict(), weights)
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= TOLERANCE.keys():
        wrong.append(f"weights must share one of {', '.join(map(str, TOLERANCE))}, got {', '.join(map(str, dtypes))}")
    if wrong:
        raise CheckpointFailure(
            f"the weights in {folder} do not fit {encoder.architecture}",
            why=some(wrong),
            do=f"check architecture and settings in {CONFIG}, or {COPY_AGAIN}",
        )
    return dtypes.pop()


def _self_test(encoder: Encoder, example: Mapping[str, Tensor], folder: Path) -> None:
    if set(example) != {"input", "spacing_mm", "scan", "tokens"}:
        raise damaged(folder / SELFTEST, f"it holds {', '.join(sorted(example))}")
    x, spacing_mm, dtype = example["input"], example["spacing_mm"], _dtype(encoder)
    if x.ndim != 5 or x.shape[1] != encoder.channels or x.dtype != dtype or spacing_mm.shape != (len(x), 3):
        raise damaged(folder / SELFTEST, f"its input is {x.dtype} {tuple(x.shape)}")
    try:
        features = _features(encoder, x, spacing_mm)
    except (TypeError, ValueError, RuntimeError) as error:  # a setting of the wrong kind, or an input of no size
        raise damaged(folder / f"{CONFIG} or {SELFTEST}", error) from error
    for name, given in (("scan", features.scan), ("tokens", features.tokens)):
        same_shape = given.shape == example[name].shape
        gap = float((given.float() - example[name].float()).abs().max()) if same_shape else float("inf")
        if not gap <= TOLERANCE[dtype]:  # also where it is not a number
            raise CheckpointFailure(
                f"the checkpoint {folder} fails its self-test",
                why=f"{name} differ by {gap:.2g} from what was recorded, allowed is {TOLERANCE[dtype]:g} in {dtype}",
                do=f"{COPY_AGAIN}; if it stays, this version of headct or torch computes otherwise",
            )
