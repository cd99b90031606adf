"""Weights into a network: every one of them, as it should be, or none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from headct.failure import Failure

SHOWN = 5
COPY_AGAIN = "copy it again from where it came, as a whole"
"""What to do about a folder or file that is not what was written."""


class CheckpointFailure(Failure):
    """A folder or file is no checkpoint, is damaged, or does not give what it promises."""


def damaged(path: Path, cause: Exception | str) -> CheckpointFailure:
    """The error for a file that cannot be read, or says what cannot be."""
    return CheckpointFailure(f"{path} is damaged", why=said(cause), do=COPY_AGAIN)


def said(cause: Exception | str) -> str:
    """The first line of a cause; an exception is told with its kind."""
    text = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else cause
    return text.partition("\n")[0][:300]


def differences(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with weights: names that are missing or not expected, shapes, kinds, values that cannot be.

    Of what is expected only names, shapes and kinds are looked at, so that a network on the device "meta" will do.
    """
    wrong = [f"{name} is missing" for name in expected if name not in weights]
    wrong += [f"{name} is not expected" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        given, wanted = weights[name], expected[name]
        if given.shape != wanted.shape:
            wrong.append(f"{name} is {tuple(given.shape)}, expected {tuple(wanted.shape)}")
        elif given.is_floating_point() != wanted.is_floating_point():
            wrong.append(f"{name} is {given.dtype}, expected {wanted.dtype}")
        elif given.is_floating_point() and not torch.isfinite(given).all():
            wrong.append(f"{name} holds values that are not finite")
        elif name.endswith("running_var") and (given < 0).any():
            wrong.append(f"{name} holds negative variances")
    return sorted(wrong)


def counted(names: Iterable[str], prefix: str) -> int:
    """How many parts `prefix0.`, `prefix1.`, ... these names have, so that a network can be built to fit them.

    It is a count, never a number that was read: no name can ask for a network larger than its file. Raises KeyError,
    with the first part that is missing, where they are not numbered without a gap.
    """
    found = {name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)}
    numbers = {number for number in found if re.fullmatch(r"0|[1-9][0-9]*", number)}
    for number in range(max(1, len(numbers))):
        if str(number) not in numbers:
            raise KeyError(f"{prefix}{number}")
    return len(numbers)


def full_precision(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights in float32, and a sentence where they were not."""
    kinds = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} - {torch.float32}
    if not kinds:
        return dict(weights), ()
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    cast = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return cast, (f"weights in {names} were cast to float32",)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def some(wrong: list[str]) -> str:
    """The first few of a list of faults, and how many more there are."""
    return "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
