"""What every folder that we write shares: its files, its configuration, and that it is there as a whole or not at all.

Checkpoints (`folder`) and graphs (`exported`) differ in where their weights are; the rest is owned here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from torch import Tensor

from headct import __version__, encoders
from headct.checkpoints.card import Card, check_fits
from headct.checkpoints.strict import COPY_AGAIN, CheckpointFailure, damaged
from headct.cohort.journal import to_disk
from headct.encoders import Encoder
from headct.failure import Misuse

FORMAT = 2
CONFIG, MODEL, SELFTEST, README = "config.json", "model.safetensors", "selftest.safetensors", "README.md"

DECISIVE = "decisive_sha256"
"""Where the self-test's file keeps the hash of what decides the vectors."""
CONFIG_HASH = "config_sha256"
"""Where the self-test's file of a sealed folder keeps the hash of its configuration."""
OF_THE_GRAPH = ("kind", "precision", "shape", "spacing_mm", "grid")
"""What decides the vectors of a graph, among the facts about it."""


def configuration(encoder: Encoder, card: Card, runtime: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Plain values for `config.json`, without those that belong to one kind of folder alone."""
    return {
        "format": FORMAT,
        "architecture": encoder.architecture,
        "settings": asdict(encoder.settings),
        **card.to_config(),
        **({} if runtime is None else {"runtime": dict(runtime)}),
        "written_by": {"headct": __version__, "torch": torch.__version__},
    }


def decisive(config: Mapping[str, Any]) -> str:
    """SHA-256 of what decides how a scan becomes a vector, the weights apart. The order of windows is that of channels.

    Of the recipe its id stands for it, which `Card.from_config` compares with its content.
    """
    runtime = config.get("runtime")
    values = [
        config["architecture"],
        config["settings"],
        config["recipe"]["id"],
        list(config["windows"].items()),
        [runtime[name] for name in OF_THE_GRAPH] if runtime else None,
    ]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def read(folder: Path, name: str) -> bytes:
    """One of a folder's files. Raises CheckpointFailure where it cannot be read."""
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise CheckpointFailure(
            f"{folder} lacks {name}", why="a checkpoint is complete or none", do=COPY_AGAIN
        ) from None
    except OSError as error:
        raise damaged(folder / name, error) from error


def read_config(folder: Path) -> dict[str, Any]:
    """What a folder says about itself. Raises CheckpointFailure where it is damaged or of another format."""
    try:
        config = json.loads(read(folder, CONFIG))
    except (ValueError, RecursionError) as error:
        raise damaged(folder / CONFIG, error) from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        older, newer = "write it again with this version, or read it with the one that wrote it", "update headct"
        raise CheckpointFailure(
            f"{folder / CONFIG} has the format {found!r}, this version reads {FORMAT}",
            do=COPY_AGAIN if not isinstance(found, int) else newer if found > FORMAT else older,
        )
    return dict(config)


@dataclass(frozen=True)
class Sealed:
    """A kind of folder whose configuration is sealed: the self-test's file holds its SHA-256."""

    format: str
    version: int
    noun: str  # what such a folder is called
    made_by: str  # the command that writes it
    sealed: str  # what would be changed by a hand in the configuration

    def read_config(self, folder: Path) -> tuple[dict[str, Any], str]:
        """The configuration and its SHA-256.

        Raises Misuse where the folder is none of this kind, CheckpointFailure where it is damaged, of another version
        or was changed.
        """
        none = Misuse(f"{folder} is not a {self.noun}", do=f"name a folder that `{self.made_by}` has written")
        if is_ours(folder) or is_ours(folder / "checkpoint"):  # a finished run holds one
            raise self.of_model(str(folder))
        if not folder.exists():
            raise Misuse(f"{folder} does not exist", do=none.do)
        if not (folder / CONFIG).is_file():
            raise none
        content = read(folder, CONFIG)
        try:
            config = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise damaged(folder / CONFIG, error) from error
        if not isinstance(config, dict) or config.get("format") != self.format:
            raise none
        if config.get("format_version") != self.version:
            raise CheckpointFailure(
                f"{folder} has the format {config.get('format_version')!r}, this version reads {self.version}",
                do=f"update headct, or make it again by `{self.made_by}`",
            )
        example = read(folder, SELFTEST)
        tensors(folder / SELFTEST, example)  # its header can be read
        header = json.loads(example[8 : 8 + int.from_bytes(example[:8], "little")])
        sha256 = hashlib.sha256(content).hexdigest()
        if header.get("__metadata__", {}).get(CONFIG_HASH) != sha256:
            raise CheckpointFailure(
                f"{folder / CONFIG} is not what it was when the {self.noun} was saved",
                why=f"{self.sealed} may have been changed",
                do=COPY_AGAIN,
            )
        return config, sha256

    def of_model(self, model: str) -> Misuse:
        """The error for a model that was named instead of what is made from one."""
        return Misuse(
            f"{model} is not a {self.noun}",
            why="it is a model",
            do=f"make a {self.noun} from it: `{self.made_by}` with --model {model}",
        )


def tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """The named tensors of a file's content. Raises CheckpointFailure where there are none."""
    try:
        return from_bytes(content)
    except SafetensorError as error:
        raise damaged(path, error) from error


def described(folder: Path, config: Mapping[str, Any]) -> tuple[Encoder, Card]:
    """The encoder that a configuration describes, on the device "meta" so that no size takes memory, and its card.

    Raises CheckpointFailure where there is no such encoder, or the card is not one for it.
    """
    try:
        with torch.device("meta"):
            encoder = encoders.build(config["architecture"], **config["settings"])
        card = Card.from_config(config)
        check_fits(card, encoder)
        return encoder, card
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise damaged(folder / CONFIG, error) from error
    except Misuse as error:
        raise CheckpointFailure(
            f"{folder / CONFIG} describes an encoder that cannot be: {error.what}", do=f"update headct, or {COPY_AGAIN}"
        ) from error


def check_unchanged(folder: Path, config: Mapping[str, Any], example: bytes) -> None:
    """Compare a configuration with the hash in the content of a self-test's file, whose tensors could be read.

    No self-test sees a window, which is applied before it, nor what a graph calls its grid: so their hash is part of
    it. Raises CheckpointFailure where the hash is not that of the configuration.
    """
    header = json.loads(example[8 : 8 + int.from_bytes(example[:8], "little")])
    if header.get("__metadata__", {}).get(DECISIVE) != decisive(config):
        raise CheckpointFailure(
            f"{folder / CONFIG} is not what it was when the checkpoint was saved",
            why="its settings, recipe, windows or graph were changed, and other vectors would come out",
            do=COPY_AGAIN,
        )


def example(shape: tuple[int, ...]) -> Tensor:
    """A closed-form input (B, C, X, Y, Z) of self-tests, float32 in 0..1, with air in the last third along Y.

    Without it a setting of how air is treated would make no difference.
    """
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    x = ((12.9898 * count).sin() * 43758.5453 % 1).reshape(shape).float()
    x[:, :, :, shape[3] - shape[3] // 3 :] = 0
    return x


@contextmanager
def written_whole(folder: Path, *, replace_existing: bool = False) -> Iterator[Path]:
    """A new folder to fill; it becomes `folder` when the block ends, and leaves nothing behind where that fails.

    Whenever a process is killed, the disk holds the old folder or the new one whole: where the old one was moved
    aside and the new one not yet moved there, `present` finds the old one and the next call here moves it back.
    Raises Misuse where the folder exists already, unless it is to be replaced.
    """
    aside = _aside(folder)
    if aside.exists() and not folder.exists():
        os.replace(aside, folder)
    if not replace_existing:
        check_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        new = workspace / "new"  # within, because mkdtemp makes folders for one user only
        new.mkdir()
        yield new
        for path in (*new.iterdir(), new):
            to_disk(path)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)  # left where a process was killed after it had moved the new one
            os.replace(folder, aside)
        os.replace(new, folder)
        to_disk(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def check_new(folder: Path) -> None:
    """Raises Misuse where a folder, or something else of its name, exists already."""
    if present(folder).exists():
        raise Misuse(f"{folder} exists already", do="name another folder, or remove it first")


def is_ours(folder: Path) -> bool:
    """Whether a folder has a configuration that we have written, of whichever format."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "architecture", "recipe"} <= config.keys()


def present(folder: Path) -> Path:
    """Where a folder's content is: there, or moved aside, if the process that was replacing it was killed.

    It is not moved back here, for a reader does not know whether that process still runs.
    """
    aside = _aside(folder)
    return aside if aside.is_dir() and not folder.exists() else folder


def _aside(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"
