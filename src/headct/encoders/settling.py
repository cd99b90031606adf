"""Statistics of BatchNorms that were never trained: without them a random network passes on next to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def settling(network: nn.Module) -> Iterator[bool]:
    """Within it, BatchNorms take plain means over all batches that pass; after it the network is in evaluation mode.

    Gives whether there are any, so that nothing need pass where there are none.
    """
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean, where the usual one would keep a part of what it began with
    network.train()
    try:
        yield bool(norms)
    finally:
        for norm, momentum in zip(norms, usual, strict=True):
            norm.momentum = momentum
        network.eval()
