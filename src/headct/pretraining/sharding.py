"""A model in shards: each process keeps a share of weights, gradients and Adam's numbers (FSDP2, arXiv 2304.11277).

Student and teacher are cut alike, block by block and what is left as a whole, so a teacher follows shard by shard.
Saved states are those of a whole model, gathered tensor by tensor into the memory of the host: any number of processes,
sharded or not, goes on from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from headct.encoders.vit import Block
from headct.failure import Misuse
from headct.pretraining.objectives import Mixture
from headct.pretraining.processes import Processes


def sharded(objective: Mixture, processes: Processes) -> None:
    """Cut the weights of an objective over all processes, in place; before its optimiser is made.

    Raises Misuse where it cannot be (`expect_shardable`).
    """
    expect_shardable(objective)
    from torch.distributed.device_mesh import init_device_mesh  # a second, which runs without shards do not pay
    from torch.distributed.fsdp import fully_shard

    kind = processes.device.split(":")[0]
    if kind == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
    mesh = init_device_mesh(kind, (processes.ranks,))
    for block in _blocks(objective):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def expect_shardable(objective: Mixture) -> None:
    """Raises Misuse where scans decide which weights take part in a step: shards are exchanged by all or by none."""
    if objective.truth or objective.partners:
        raise Misuse(
            f"{' and '.join(objective.parts)} cannot be sharded",
            why="a scan without truth or partner leaves weights without a gradient, in one process and not in others",
            do="leave shard out, or take an objective of unlabelled scans alone",
        )


def bytes_saved(objective: nn.Module, ranks: int) -> int:
    """How many bytes fewer a process holds at most when a step's weights are cut over so many of them.

    Of weights, gradients and Adam's two numbers, float32 all, it keeps its share. For a time it holds more as a whole:
    what lies in no block, with its gradients, and of the blocks two, one of them with its gradients, as the next is
    fetched while one is worked on. Never below zero: a small model in shards takes no less.
    """
    weights, trained = _numbers(objective)
    blocks = [_numbers(block) for block in _blocks(objective)]
    loose = weights - sum(one for one, _ in blocks) + trained - sum(one for _, one in blocks)
    largest = max((2 * one + of_trained for one, of_trained in blocks), default=0)
    kept = 4 * (weights + 3 * trained)
    return max(0, kept - kept // ranks - 4 * (loose + largest))


def _blocks(objective: nn.Module) -> list[nn.Module]:
    return [module for module in objective.modules() if isinstance(module, Block)]


def _numbers(module: nn.Module) -> tuple[int, int]:
    """All weights, and those that are trained."""
    every = list(module.parameters())
    return sum(one.numel() for one in every), sum(one.numel() for one in every if one.requires_grad)


def gradients_summed(module: nn.Module, *, now: bool) -> bool:
    """Whether a module is in shards; then the next backward pass sums gradients over processes, or not yet."""
    summed = getattr(module, "set_requires_gradient_sync", None)
    if summed is not None:
        summed(now)
    return summed is not None


def together(value: Tensor) -> Tensor:
    """The whole tensor, on its device, of one that may be in shards."""
    return value.full_tensor() if _in_shards(value) else value  # type: ignore[attr-defined]


def whole(value: Any, processes: Processes) -> Any:
    """Tensors, alone or in a tree of dictionaries and lists, put together from their shards in the host's memory.

    Every process must call it, for each sends its share, but the first alone keeps what comes out, for the others get
    empty tensors. What is not sharded stays as it is.
    """
    if _in_shards(value):
        full = value.full_tensor()
        return full.cpu() if processes.first else full.new_empty(0)
    if isinstance(value, Mapping):
        return {name: whole(one, processes) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one, processes) for one in value]
    return value


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Strictly load whole weights into a module, of which a sharded one takes its share."""
    now = module.state_dict()
    module.load_state_dict({name: _share(value, now.get(name)) for name, value in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the whole state of an optimizer whose weights may be sharded."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    shares = {
        number: {name: _share(value, weights[number]) if name != "step" else value for name, value in of_weight.items()}
        for number, of_weight in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shares})


def _share(value: Tensor, like: Tensor | None) -> Tensor:
    """The part of a whole tensor that lies here if it is cut as `like` is."""
    if not _in_shards(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[union-attr]
    return distribute_tensor(value.to(mesh.device_type), mesh, placements, src_data_rank=None)


def _in_shards(value: object) -> bool:
    """Whether it is a DTensor, whose module takes a second to import."""
    return hasattr(value, "full_tensor")
