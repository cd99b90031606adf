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
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from headct import __version__, encoders
from headct.checkpoints.card import Card, write_up
from headct.checkpoints.pretrained import PretrainedEncoder
from headct.checkpoints.strict import CheckpointFailure, differences, some
from headct.encoders import Encoder, Features
from headct.failure import Misuse

FORMAT = 1
CONFIG, MODEL, SELFTEST, README = "config.json", "model.safetensors", "selftest.safetensors", "README.md"

DECISIVE = "decisive_sha256"
"""Where the self-test's file keeps the hash of what decides the vectors."""

TOLERANCE: Mapping[torch.dtype, float] = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of a feature in the self-test, by the dtype of the weights. Normalised features are of size 1;
between machines, sums in another order move them by about 1e-5 in float32, and by one rounding step in the others."""


def save(folder: Path, encoder: Encoder, card: Card, *, replace_existing: bool = False) -> None:
    """Write a checkpoint; the folder is there completely or not at all.

    The encoder must come from `encoders.build` and lie on the CPU. Raises Misuse where the folder exists already, or
    the encoder does not fit its card.
    """
    folder = Path(folder)
    if folder.exists() and not replace_existing:
        raise Misuse(f"{folder} exists already", do="name another folder, or remove it first")
    _check_card(encoder, card)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, content in _files(encoder.eval(), card).items():
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(0o755)  # mkdtemp makes folders for one user only
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(model: str | Path) -> PretrainedEncoder:
    """The encoder of a checkpoint folder, or of the run folder that holds one, in evaluation mode on the CPU.

    Strict: every key, shape and dtype, the SHA-256 of the weights, and the self-test must agree. Raises Misuse where
    there is no such folder, CheckpointFailure where its content is not right.
    """
    folder = find(model)
    config = _read_config(folder)
    weights = _read(folder, MODEL)
    sha256 = hashlib.sha256(weights).hexdigest()
    recorded = str(config.get("model_sha256"))
    if sha256 != recorded:
        raise CheckpointFailure(
            f"{folder / MODEL} is not the file that was saved",
            why=f"its SHA-256 is {sha256[:12]}..., {CONFIG} records {recorded[:12]}...",
            do="copy the checkpoint again from where it came",
        )
    encoder, card = _rebuild(folder, config, _tensors(folder, MODEL, weights))
    example = _read(folder, SELFTEST)
    _self_test(encoder, _tensors(folder, SELFTEST, example), folder)
    _check_unchanged(config, example, folder)
    return PretrainedEncoder(encoder, card, sha256).eval()


def find(model: str | Path) -> Path:
    """The checkpoint folder that `model` means: the folder itself, or `checkpoint/` in a run folder."""
    folder = Path(model)
    for place in (folder, folder / "checkpoint"):
        if (place / CONFIG).is_file():
            return place
    if not folder.exists():
        raise Misuse(f"no model {str(model)!r}", why="there is no such folder", do="name a checkpoint or run folder")
    raise Misuse(
        f"{folder} is not a checkpoint", why=f"it holds no {CONFIG}", do="name a checkpoint folder, or a finished run"
    )


def describe(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about itself, without loading its weights. Raises CheckpointFailure for a damaged one."""
    return _read_config(folder)


def _files(encoder: Encoder, card: Card) -> dict[str, bytes]:
    model = to_bytes({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()})
    config = {
        "format": FORMAT,
        "architecture": encoder.architecture,
        "settings": asdict(encoder.settings),
        **card.to_config(),
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "written_by": {"headct": __version__, "torch": torch.__version__},
    }
    return {
        MODEL: model,
        SELFTEST: to_bytes(_example(encoder), {DECISIVE: _decisive(config)}),
        CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
        README: write_up(card, encoder, __version__).encode(),
    }


def _decisive(config: Mapping[str, Any]) -> str:
    """SHA-256 of what decides how a scan becomes a vector, the weights apart."""
    decisive = [config[name] for name in ("architecture", "settings", "recipe", "windows")]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _check_unchanged(config: Mapping[str, Any], example: bytes, folder: Path) -> None:
    """No self-test of the encoder sees a window, which is applied before it: so their hash is part of the test."""
    header = json.loads(example[8 : 8 + int.from_bytes(example[:8], "little")])  # the tensors could be read: it is one
    if header.get("__metadata__", {}).get(DECISIVE) != _decisive(config):
        raise CheckpointFailure(
            f"{folder / CONFIG} is not what it was when the checkpoint was saved",
            why="its settings, recipe or windows were changed, and other vectors would come out",
            do="copy the checkpoint again from where it came",
        )


def _put_in_place(partial: Path, folder: Path) -> None:
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old)
    else:
        os.replace(partial, folder)


def _check_card(encoder: Encoder, card: Card) -> None:
    if not encoder.architecture:
        raise Misuse("this encoder has no architecture name, so it could not be loaded", do="make it by encoders.build")
    channels = len(card.windows) or card.recipe.channels or 1
    if encoder.channels != channels:
        raise Misuse(
            f"the encoder takes {encoder.channels} channels, its card gives it {channels}",
            do="state the windows it was trained with",
        )
    for name, (level, width) in card.windows.items():
        if not (math.isfinite(level) and 0 < width < math.inf):
            raise Misuse(f"the window {name} is {level:g}/{width:g}", do="state level and width in HU")


def _example(encoder: Encoder) -> dict[str, Tensor]:
    """The self-test's input, closed-form and in 0..1 with air in its last third, and the features that it gives."""
    shape = (1, encoder.channels, *encoder.example_shape)
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    x = ((12.9898 * count).sin() * 43758.5453 % 1).reshape(shape).to(_dtype(encoder))
    x[:, :, :, -(shape[3] // 3) :] = 0  # else a setting of how air is treated would make no difference
    spacing_mm = torch.tensor([[1.5, 2.0, 3.0]])  # three different ones, for encoders that measure in mm
    features = _features(encoder, x, spacing_mm)
    found = {"scan": features.scan.contiguous(), "tokens": features.tokens.contiguous()}  # else safetensors refuses
    return {"input": x, "spacing_mm": spacing_mm, **found}


def _features(encoder: Encoder, x: Tensor, spacing_mm: Tensor) -> Features:
    with torch.no_grad():
        return encoder(x, spacing_mm)


def _dtype(encoder: Encoder) -> torch.dtype:
    return next(encoder.parameters()).dtype


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise CheckpointFailure(
            f"{folder} lacks {name}", why="a checkpoint is complete or none", do="copy it again from where it came"
        ) from None
    except OSError as error:
        raise _damaged(folder, name, error) from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(folder, CONFIG))
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, CONFIG, error) from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise CheckpointFailure(
            f"{folder / CONFIG} has the format {found!r}, this version reads {FORMAT}",
            do="update headct" if isinstance(found, int) and found > FORMAT else "copy it again from where it came",
        )
    return dict(config)


def _rebuild(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[Encoder, Card]:
    """The encoder with its weights, and its card; made on the device "meta" first, so that no size takes memory."""
    try:
        architecture, settings = config["architecture"], config["settings"]
        with torch.device("meta"):
            expected = encoders.build(architecture, **settings)
        card = Card.from_config(config)
        _check_card(expected, card)
        dtype = _compare(expected, weights, folder)
        encoder = encoders.build(architecture, **settings).to(dtype)
        encoder.load_state_dict(weights)
        return encoder.eval(), card
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(folder, CONFIG, error) from error
    except Misuse as error:
        raise CheckpointFailure(
            f"{folder / CONFIG} describes an encoder that cannot be: {error.what}",
            do="update headct, or copy it again from where it came",
        ) from error


def _tensors(folder: Path, name: str, content: bytes) -> dict[str, Tensor]:
    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise _damaged(folder, name, error) from error


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
            do=f"check architecture and settings in {CONFIG}, or copy the checkpoint again",
        )
    return dtypes.pop()


def _self_test(encoder: Encoder, example: Mapping[str, Tensor], folder: Path) -> None:
    if set(example) != {"input", "spacing_mm", "scan", "tokens"}:
        raise _damaged(folder, SELFTEST, f"it holds {', '.join(sorted(example))}")
    x, spacing_mm, dtype = example["input"], example["spacing_mm"], _dtype(encoder)
    if x.ndim != 5 or x.shape[1] != encoder.channels or x.dtype != dtype or spacing_mm.shape != (len(x), 3):
        raise _damaged(folder, SELFTEST, f"its input is {x.dtype} {tuple(x.shape)}")
    try:
        features = _features(encoder, x, spacing_mm)
    except (TypeError, ValueError, RuntimeError) as error:  # a setting of the wrong kind, or an input of no size
        raise _damaged(folder, f"{CONFIG} or {SELFTEST}", error) from error
    for name, given in (("scan", features.scan), ("tokens", features.tokens)):
        same_shape = given.shape == example[name].shape
        gap = float((given.float() - example[name].float()).abs().max()) if same_shape else float("inf")
        if not gap <= TOLERANCE[dtype]:  # also where it is not a number
            raise CheckpointFailure(
                f"the checkpoint {folder} fails its self-test",
                why=f"{name} differ by {gap:.2g} from what was recorded, allowed is {TOLERANCE[dtype]:g} in {dtype}",
                do="copy it again from where it came; if it stays, this version of headct or torch computes otherwise",
            )


def _damaged(folder: Path, name: str, cause: Exception | str) -> CheckpointFailure:
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else cause
    return CheckpointFailure(f"{folder / name} is damaged", why=text, do="copy the checkpoint again from where it came")
