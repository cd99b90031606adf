"""From whatever names a model to its encoder: `headct.load`.

What the text means is decided in this order, by its form and not by what happens to work:

1. `hub:owner/name@revision` is a repository of the Hugging Face Hub.
2. A `Path`, or text that is no registered name, is a folder or a file.
3. A registered name is the weights that the registry knows. Where the registry has none to give (an architecture, or
   weights on request), a folder of that name is taken; where it has, such a folder makes the name ambiguous, and
   `./name` says that the folder is meant.
"""

from __future__ import annotations

import os
from pathlib import Path

from headct.checkpoints import exported, folder, layout, published, registry
from headct.checkpoints.pretrained import PretrainedEncoder
from headct.checkpoints.registry import Entry
from headct.checkpoints.strict import sha256_of
from headct.failure import Misuse


def load(model: str | os.PathLike[str], *, revision: str | None = None) -> PretrainedEncoder:
    """The encoder that `model` names, in evaluation mode on the CPU, with `.recipe`, `.card`, `.notes` and `.source`.

    A checkpoint folder or a finished run, a published file or folder, a registered name (`headct models`), or
    `hub:owner/name@revision`. Only a name of the last two kinds fetches anything, and `revision` is for them: a branch,
    a tag, or, to get the same weights for ever, a commit.

    Every key and shape must be the expected one, and a self-test or a recorded SHA-256 must agree where there is one.
    Raises Misuse where `model` names nothing that can be loaded, Failure where it cannot be fetched, and
    CheckpointFailure where its content is not right.
    """
    if not isinstance(model, str | os.PathLike):
        raise Misuse(
            f"a {type(model).__name__} names no model",
            do="give a name (`headct models`), hub:owner/name, or the path of a checkpoint, a run or a weights file",
        )
    if isinstance(model, str) and model.startswith(registry.HUB):
        return _from_hub(model, revision)
    entry = registry.MODELS.get(model) if isinstance(model, str) else None
    path = layout.present(Path(os.path.expanduser(model)))
    if entry and (entry.downloads or entry.comes_with_us):
        _check_unambiguous(entry, path)
    if entry and entry.downloads:
        return _from_hub(str(entry.where), revision)
    if entry and not entry.comes_with_us and not path.exists():
        raise _without_weights(entry)
    if revision is not None:
        raise Misuse(f"{path} has no revision {revision!r}", why="it is a place on this machine", do="leave it out")
    if entry and entry.comes_with_us:  # the name is its source, for it holds wherever the package is
        return _from_disk(registry.SHIPPED / entry.name, source=entry.name, entry=entry)
    if not path.exists():
        raise registry.unknown(str(model))
    if path.is_file() and layout.is_ours(path.parent):
        raise Misuse(
            f"{path} is a part of a checkpoint",
            why="the files beside it say how its weights are used",
            do=f"name the folder: {path.parent}",
        )
    return _from_disk(path, source=str(path), entry=registry.of_copy(path))


def _from_hub(text: str, revision: str | None) -> PretrainedEncoder:
    from headct.checkpoints import hub  # with it comes the Hub's client, which nothing else needs

    address = hub.Address.parse(text)
    if revision is not None:
        if address.revision not in (None, revision):
            raise Misuse(f"{text} and revision {revision!r} are two revisions", do="name one")
        address = hub.Address(address.repository, revision)
    fetched = hub.fetch(address)
    source = str(hub.Address(address.repository, fetched.commit))
    found = _from_disk(fetched.folder, source=source, entry=registry.of_repository(address.repository))
    found.notes += fetched.notes
    return found


def _from_disk(path: Path, *, source: str, entry: Entry | None) -> PretrainedEncoder:
    """The encoder of a folder or file, wherever it came from. Each kind has one reader, and all are chosen here."""
    weights = path if path.is_file() else path / layout.MODEL
    if entry and weights.is_file():
        registry.check(entry, weights)
    if exported.is_exported(path):
        found = exported.read(path)
    elif published.recognise(path):
        found = _published(path, weights)
    else:
        found = folder.load(path)
    found.source = source
    if entry and entry.sha256 is None:
        found.notes += (f"the registry has no SHA-256 of {entry.name} to compare with; this file's is {found.sha256}",)
    return found


def _published(path: Path, weights: Path) -> PretrainedEncoder:
    found = published.read(path)
    return PretrainedEncoder(found.encoder, found.card, sha256_of(weights), notes=found.notes).eval()


def _check_unambiguous(entry: Entry, path: Path) -> None:
    if path.exists():
        ours = f"{entry.where} for the published weights" if entry.downloads else "or move it away for the other"
        raise Misuse(
            f"{entry.name} is a registered model, and a folder here is called so too",
            do=f"write .{os.sep}{entry.name} for the folder, {ours}",
        )


def _without_weights(entry: Entry) -> Misuse:
    if entry.gated:
        return Misuse(
            f"the weights of {entry.name} are given on request",
            why="they cannot be fetched by a program",
            do=f"ask at {entry.where}; with the file, name its path instead: load('path/of/the/file')",
        )
    return Misuse(
        f"{entry.name} has no weights",
        why="it is an architecture: random until it is trained",
        do=f"train it by `headct pretrain --encoder {entry.name}` and name the run, or take one of "
        + ", ".join(name for name, other in registry.MODELS.items() if other.downloads or other.comes_with_us),
    )
