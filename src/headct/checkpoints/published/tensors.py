"""Published files to named tensors: safetensors, or pickles of tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from headct.checkpoints.strict import COPY_AGAIN, CheckpointFailure, said

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Stripped:
    """Weights without the prefixes that wrappers put before every name."""

    weights: Weights
    prefixes: tuple[str, ...]  # in the order in which they were taken off

    @property
    def note(self) -> tuple[str, ...]:
        """A sentence about it, if there is anything to say."""
        taken = " and ".join(self.prefixes)
        return (f"prefixes taken off: {taken}",) if taken else ()


def content(path: Path) -> Any:
    """What a file holds: named tensors, or a container that holds some. No code of the file is run.

    Raises CheckpointFailure where it cannot be read, or asks for more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointFailure(f"{path} is missing", do=COPY_AGAIN) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointFailure(f"{path} cannot be read as weights", why=said(error), do=COPY_AGAIN) from error
    except Exception as error:
        # torch's unpickler fails in many ways on bytes that are no checkpoint; all of them mean this, and none is told,
        # for its text advises to open the file by running what is in it
        raise CheckpointFailure(
            f"{path} cannot be read as weights",
            why="it is no file of tensors and plain values, and what needs code to be opened is not opened",
            do=f"name a file of weights; if this is one, {COPY_AGAIN}",
        ) from error


def part(container: Any, name: str, path: Path) -> Weights:
    """The named tensors under `name` in a container, or all of it if `name` is empty."""
    found = container.get(name) if name else container
    if not isinstance(found, Mapping) or not found or not all(map(_is_named_tensor, found.items())):
        where = f"its {name}" if name else "it"
        raise CheckpointFailure(
            f"{path} holds no weights", why=f"{where} is no table of named tensors", do="name another file"
        )
    return dict(found)


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def strip(weights: Weights, prefixes: Sequence[str]) -> Stripped:
    """Take off known prefixes that all names share, one after the other."""
    taken: list[str] = []
    while shared := [one for one in prefixes if weights and all(name.startswith(one) for name in weights)]:
        weights = {name.removeprefix(shared[0]): tensor for name, tensor in weights.items()}
        taken.append(shared[0])
    return Stripped(weights, tuple(taken))
