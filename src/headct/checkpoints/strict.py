"""Weights into a network: every one of them, as it should be, or none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from headct.failure import Failure

SHOWN = 5


class CheckpointFailure(Failure):
    """A folder or file is no checkpoint, is damaged, or does not give what it promises."""


def differences(network: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the weights of a network: names that are missing or not expected, shapes, kinds, values."""
    expected = network.state_dict()
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
    return sorted(wrong)


def some(wrong: list[str]) -> str:
    """The first few of a list of faults, and how many more there are."""
    return "; ".join(wrong[:SHOWN]) + (f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
