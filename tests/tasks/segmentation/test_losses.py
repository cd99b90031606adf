"""The loss beside CT-FM's published values and gradients, and beside its formula as a loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.testing import assert_allclose

from headct.tasks.segmentation.losses import deeply_supervised, dice_and_cross_entropy, dice_loss


def test_values_and_gradients_are_the_published_ones(shared: Path) -> None:
    stored = np.load(shared / "fixtures" / "ct-fm" / "losses_and_schedules.npz")
    text = (shared / "fixtures" / "ct-fm" / "manifest.json").read_text()
    values = json.loads(text)["files"]["losses_and_schedules.npz"]["info"]
    told = values.get("values", values)
    levels = [torch.from_numpy(stored[f"seg_logits{level}"]).requires_grad_() for level in range(4)]
    labels = torch.from_numpy(stored["seg_label"])[:, 0].long()
    loss = deeply_supervised(levels, labels)
    loss.backward()
    assert_allclose(loss.item(), told["segmentation/deep_supervision_dicece"]["value"], rtol=1e-5)
    first = dice_and_cross_entropy(levels[0], labels).item()
    assert_allclose(first, told["segmentation/dicece_level0_only"]["value"], rtol=1e-5)
    for level, logits in enumerate(levels):
        assert_allclose(logits.grad, stored[f"segmentation/deep_supervision_dicece/grad{level}"], atol=1e-6, rtol=1e-4)


def test_the_overlap_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 2, 3, 2)), rng.integers(0, 3, size=(2, 2, 3, 2))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    costs = []
    for b in range(2):
        for c in range(3):
            g = labels[b] == c
            costs.append(1 - 2 * (p[b, c] * g).sum() / ((p[b, c] ** 2).sum() + g.sum() + 1e-5))
    assert_allclose(dice_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item(), np.mean(costs), rtol=1e-9)
