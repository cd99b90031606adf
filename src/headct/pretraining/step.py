"""The parts of a training step, for the loop and for the plan that measures some steps before it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from headct import encoders
from headct.encoders import Encoder
from headct.encoders.vit import Block
from headct.failure import Misuse
from headct.pretraining.feed import Order, batches
from headct.pretraining.objectives import Batch, Mixture, Objective, Sight, mixture
from headct.pretraining.processes import Processes
from headct.pretraining.scans import Scans, places_of
from headct.pretraining.settings import PretrainSettings
from headct.pretraining.sharding import together


def new_objective(settings: PretrainSettings, device: str = "cpu", origin: Encoder | None = None) -> Mixture:
    """The objectives around a new encoder, on the device; their random start depends on the seed alone.

    `origin` is an encoder of the same settings whose weights it starts with.
    """
    with kept_random(device):
        torch.manual_seed(settings.seed)
        encoder = encoders.build(settings.encoder, **{"channels": len(settings.windows), **settings.encoder_settings})
        if origin is not None:
            encoder.load_state_dict(origin.state_dict())
        objective = mixture(encoder, settings.objectives, Sight(settings.views, list(settings.windows.values())))
    objective.to(device).train()
    if settings.recompute:
        for block in objective.modules():
            if isinstance(block, Block):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    if settings.compile:
        for part in encoders.compilable(objective):
            part.compile()  # in place, so that names of weights stay as they are
    return objective


def new_optimizer(objective: nn.Module) -> torch.optim.AdamW:
    """AdamW in two groups: weights of linear and convolutional layers decay; biases, norms and tokens do not."""
    trained = {name: weight for name, weight in objective.named_parameters() if weight.requires_grad}
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    weights = {f"{name}.weight" for name, module in objective.named_modules() if isinstance(module, layers)}
    decayed = [weight for name, weight in trained.items() if name in weights]
    free = [weight for name, weight in trained.items() if name not in weights]
    groups = [{"params": decayed, "decays": True}, {"params": free, "decays": False}]
    return torch.optim.AdamW(groups, fused=True)


def descend(optimizer: torch.optim.Optimizer, *, lr: float, decay: float, clip: float) -> Tensor:
    """One step down the gradients, clipped to a common norm, which then are gone; returns the norm before clipping.

    Gradients that are not finite change nothing; the device is not waited for to find out.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = together(nn.utils.clip_grad_norm_(weights, clip, foreach=True))
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, decay if group["decays"] else 0.0
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]  # fused kernels then skip
    optimizer.step()
    optimizer.zero_grad()
    return norm


def autocast(settings: PretrainSettings, device: str) -> torch.autocast:
    """Mixed precision, as the settings say."""
    return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=settings.precision == "bf16")


def order_of(scans: Scans, settings: PretrainSettings, processes: Processes) -> Order:
    """Which scans this process sees in each part of a step. Raises Misuse where a batch cannot be shared out."""
    names = [cohort.path.name for cohort in scans.cohorts]
    if len(set(names)) < len(names) and settings.shares:
        raise Misuse("shares name cohorts by their folders, of which two are called alike", do="rename one of them")
    if settings.shares and (min(settings.shares.values()) < 0 or max(settings.shares.values()) == 0):
        raise Misuse(f"shares must not be negative, nor all of them zero, got {dict(settings.shares)}")
    parts = settings.accumulate * processes.ranks
    if settings.batch % parts:
        raise Misuse(
            f"a batch of {settings.batch} scans has no {parts} equal parts",
            why=f"{processes.ranks} processes take it in {settings.accumulate} steps each",
            do=f"take a multiple of {parts}, or set accumulate to fewer parts",
        )
    unknown = sorted(set(settings.shares) - set(names))
    if unknown:
        raise Misuse(f"shares name {unknown[0]!r}, which is no cohort of this run", do=f"name {', '.join(names)}")
    shares = [settings.shares.get(name, float(size)) for name, size in zip(names, scans.sizes, strict=True)]
    for name, share, places in zip(names, shares, places_of(scans.sizes, shares), strict=True):
        if share > 0 and not places:
            raise Misuse(
                f"the share of {name} is so small that none of its scans would ever come",
                why=f"an epoch has {len(scans)} places",
                do="give it more, or leave it out",
            )
    return Order(settings.seed, settings.batch, tuple(shares), processes.rank, processes.ranks, settings.accumulate)


def feed_of(
    scans: Scans, objective: Objective, settings: PretrainSettings, processes: Processes, steps: range
) -> Generator[Batch]:
    """The batches of the steps, on the device."""
    order = order_of(scans, settings, processes)
    return batches(scans, objective, order, steps, workers=settings.workers, device=processes.device)


def kept_random(device: str) -> contextlib.AbstractContextManager[None]:
    """The random state that was there before the block is there after it."""
    return torch.random.fork_rng([device] if device.startswith("cuda") else [])
