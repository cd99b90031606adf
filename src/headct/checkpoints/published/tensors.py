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

from headct.checkpoints.strict import CheckpointFailure

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
        raise CheckpointFailure(f"{path} is missing", do="copy it again from where it came") from None
    except SafetensorError as error:
        raise _damaged(path, error) from error
    except Exception as error:
        # torch's unpickler fails in many ways on bytes that are no checkpoint; all of them mean this
        raise _damaged(path, error) from error


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


def full_precision(weights: Weights) -> tuple[Weights, tuple[str, ...]]:
    """The weights in float32, and a sentence where they were not."""
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} - {torch.float32}
    if not kinds:
        return weights, ()
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    cast = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return cast, (f"weights in {names} were cast to float32",)


def _damaged(path: Path, error: Exception) -> CheckpointFailure:
    return CheckpointFailure(
        f"{path} cannot be read as weights",
        why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300],
        do="copy it again from where it came; a file that needs code to be opened is not opened",
    )
