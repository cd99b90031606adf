"""FM-HCT's training as its fixtures describe it, in our parts: for the tests and for `benchmarks/parity.py`.

Tolerances are those of the fixtures' manifest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from encoders.published import DINO_HEAD, VIT, published_name, vit, volume, weight

from headct.pretraining.loop import descend
from headct.pretraining.objectives import Sight
from headct.pretraining.objectives.dino import Dino, DinoSettings
from headct.pretraining.objectives.objective import follow
from headct.pretraining.published import (
    PublishedView,
    along_axes,
    fill,
    published_clip,
    published_lr,
    published_momentum,
    published_optimizer,
    published_temperature,
)
from headct.pretraining.schedules import cosine
from headct.pretraining.views import Seen, ViewSettings

SCHEDULE = {"rtol": 1e-9, "atol": 1e-15}
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "lr_used": SCHEDULE,
    "wd_used": SCHEDULE,
    "momentum_used": SCHEDULE,
    "center": {"atol": 1e-6},
    "grad_l2_after_clip": {"atol": 1e-4, "rtol": 1e-3},
    "student_l2": {"atol": 1e-4},
    "teacher_l2": {"atol": 1e-4},
    "student_qkv_bias_l2": {"atol": 3e-3},
    "teacher_qkv_bias_l2": {"atol": 3e-3},
}
"""Of what a step gives; 5e-5 of all else."""


def filled(image: torch.Tensor, view: PublishedView, shape: tuple[int, int, int]) -> torch.Tensor:
    """One view of one image (C, X, Y, Z)."""
    voxels = (image.shape[1], image.shape[2], image.shape[3])
    seen = torch.full((len(image), *shape), torch.nan, dtype=image.dtype)
    fill(seen, image, view, [matrices[0] for matrices in along_axes([view], voxels, shape)])
    return seen


def recorded(name: str, case: dict[str, Any]) -> PublishedView:
    """The view that the published code drew; starts of local views are counted in the middle 192 voxels."""
    within = 16 if name.startswith("local") else 0
    return PublishedView(
        start=tuple(start + within for start in case["crop_start"]),
        edges=tuple(case["crop_size"]),
        flipped=tuple(case.get("flip_axis0_axis1_axis2", (False, False, False))),
        offset=case.get("shift") or 0.0,
        sigma=case.get("smooth_sigma_xyz"),
        gamma=case.get("gamma"),
    )


def their_name(ours: str) -> str:
    """What a weight of a scorer is called in the published code."""
    part, rest = ours.split(".", 1)
    names, prefix = (VIT, "backbone.") if part == "encoder" else (DINO_HEAD, "head.")
    return prefix + published_name(rest, names)


def published_dino(case: dict[str, Any]) -> Dino:
    """Student and teacher as that case starts them, each on its own."""
    params = {
        "img_size": 24,
        "patch_size": 12,
        "in_chans": 3,
        "hidden_size": 48,
        "mlp_dim": 96,
        "num_layers": 2,
        "num_heads": 4,
        "pos_embed": "sincos",
        "qkv_bias": True,
        "num_register_tokens": case["registers"],
    }
    settings = DinoSettings(
        prototypes=64,
        hidden=32,
        bottleneck=24,
        batch_norm=False,
        frozen_prototypes=case["freeze_last_layer_epochs"] / case["epochs"],
    )
    encoder = vit(params | {"pos_embed": "learnable"})  # published sines and cosines are trained as well
    with torch.no_grad():
        encoder.positions.table.copy_(vit(params).positions.table)
    dino = Dino(encoder, settings, Sight(ViewSettings(), [(40, 80)])).train()
    with torch.no_grad():
        for name, scorer in (("student", dino.student), ("teacher", dino.teacher)):
            for ours, parameter in scorer.named_parameters():
                theirs = their_name(ours)
                if not theirs.endswith("position_embeddings"):
                    parameter.copy_(weight(f"{name}.{theirs}", tuple(parameter.shape)))
                if case["zero_tokens"] and theirs.endswith(("cls_token", "register_tokens")):
                    parameter.zero_()
    return dino


def norms(scorer: torch.nn.Module, order: list[str], *, gradients: bool = False) -> np.ndarray:
    """Norms of weights, or of their gradients, in the published order; NaN where there are none."""
    found = {}
    for ours, parameter in scorer.named_parameters():
        value = parameter.grad if gradients else parameter
        found[their_name(ours)] = np.nan if value is None else value.detach().norm().item()
    return np.array([found.get(name, np.nan) for name in order])


def steps_of(dino: Dino, case: dict[str, Any]) -> Iterator[dict[str, np.ndarray]]:
    """What each step of a fixture's training gives, under the fixture's own names."""
    optimizer = published_optimizer(dino.student)
    per_epoch, epochs, names = case["steps_per_epoch"], case["epochs"], case["param_names_in_order"]
    steps = per_epoch * epochs
    for step in range(steps):
        views = [volume(f"crop{crop}_step{step}", [4, 3, 24, 24, 24]) for crop in range(4)]
        seen = [Seen(view, torch.ones(4, 3), torch.zeros(())) for view in views]
        temperature = published_temperature(step // per_epoch, 0.04, 0.07, warmup=2)
        dino.settings = replace(dino.settings, teacher_temperature=(temperature, temperature))
        loss, _ = dino.compared(seen[:2], seen[2:], step, steps)
        loss.backward()
        published_clip(dino.student.parameters(), case["grad_clip"])
        dino.restrain(step, steps)
        clipped = norms(dino.student, names, gradients=True)
        lr = published_lr(step, steps, case["warmup_steps"], case["base_lr"], case["min_lr"])
        decay = cosine(step, steps, 0.04, 0.4)
        descend(optimizer, lr=lr, decay=decay, clip=float("inf"))
        momentum = published_momentum(step % per_epoch, epochs, per_epoch, 0.994)
        follow(dino.teacher, dino.student, momentum)
        dino.centre.move()
        student, teacher = dino.student, dino.teacher
        found: dict[str, Any] = {
            "lr_used": lr,
            "wd_used": decay,
            "momentum_used": momentum,
            "loss": loss,
            "center": dino.centre.value,
            "grad_l2_after_clip": clipped,
            "student_cls_token": student.encoder.class_token,
            "student_register_tokens": student.encoder.register_tokens,
            "student_pos_embed_row3": student.encoder.positions.table[0, 3],
        }
        for who, scorer in (("student", student), ("teacher", teacher)):
            found[f"{who}_block1_qkv_weight_rows0_3"] = scorer.encoder.blocks[1].attention.qkv.weight[:4]
            found[f"{who}_weight_v_rows0_3"] = scorer.head.prototypes.weight[:4]
            found[f"{who}_l2"] = norms(scorer, names)
        yield {
            name: value.detach().numpy().copy() if isinstance(value, torch.Tensor) else np.array(value)
            for name, value in found.items()
        }


def pairs(
    found: Mapping[str, np.ndarray], stored: Mapping[str, np.ndarray], name: str, step: int, case: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Ours and theirs of a step. Biases of queries, keys and values stand apart; a fixed gain is no weight of ours."""
    names = np.array(case["param_names_in_order"])
    biases = np.char.endswith(names, "qkv.bias")
    for key, ours in found.items():
        theirs = stored[f"{name}/{key}"][step]
        ours = ours.reshape(theirs.shape)
        if not key.endswith("_l2"):
            yield key, ours, theirs
            continue
        others = ~biases & (names != "head.last_layer.weight_g")
        yield key, ours[others], theirs[others]
        yield key.replace("_l2", "_qkv_bias_l2"), ours[biases], theirs[biases]
