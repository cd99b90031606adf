"""Oracles: completeness (parts sum up to the difference in score), a closed form, Captum where it is installed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from tasks.explanation import painted

from headct.checkpoints import PretrainedEncoder
from headct.detection import Detector
from headct.detection.knn import FittedKnn, Knn
from headct.detection.scans import Held
from headct.detection.training.attentive import FindingQueries, FittedAttentive
from headct.detection.training.finetune import FittedFull
from headct.detection.training.network import Network, ProbeHead, copied
from headct.encoders import as_input
from headct.tasks.explanation.evening import evened_head
from headct.tasks.explanation.gradients import along_the_way, integrated_gradients
from headct.tasks.explanation.judging import Unfit, differentiable, judged


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PretrainedEncoder:
    return painted.encoder_of(tmp_path_factory.mktemp("gradients") / "vit", "vit-tiny", **painted.TINY_VIT)


@pytest.fixture(scope="module")
def detector(encoder: PretrainedEncoder) -> Detector:
    return painted.linear_detector(encoder)


def by_method(detector: Detector, method: str) -> Detector:
    encoder, findings = detector.encoder, detector.findings
    torch.manual_seed(1)
    if method == "attentive":
        head = FindingQueries(24, 2, heads=2, features=4)
        torch.nn.init.normal_(head.weight)
        made: Any = FittedAttentive(encoder, findings, head, {}, painted.MACHINE)
    elif method == "full":
        network = Network(copied(encoder), ProbeHead.of_probe(detector.fitted))  # type: ignore[arg-type]
        made = FittedFull(encoder, findings, network.eval(), "pretrained", {}, painted.MACHINE)
    else:
        return detector
    return replace(detector, fitted=made)


@pytest.mark.parametrize("method", ["linear", "attentive", "full"])
def test_the_function_with_a_gradient_is_the_one_that_scores(detector: Detector, method: str) -> None:
    one, hu = by_method(detector, method), painted.head(0, bleeding=True)
    scores = judged(one, [hu], painted.SPACING_MM, painted.MACHINE)
    x = as_input(torch.from_numpy(hu[None]), list(one.encoder.card.windows.values()))
    with torch.no_grad():
        ours = differentiable(one)(x, torch.full((1, 3), 4.0))
    assert_allclose(ours, scores, atol=2e-2 if method == "attentive" else 1e-4)  # its tokens are kept as float16


def test_parts_sum_up_to_the_difference_in_score(detector: Detector) -> None:
    hu = painted.head(0, bleeding=True)
    even = evened_head(hu, painted.SPACING_MM)
    found = integrated_gradients(
        detector, hu, even, painted.SPACING_MM, [0, 1], painted.MACHINE, steps=24, smooth_mm=1e-3
    )
    scores = judged(detector, [hu, even], painted.SPACING_MM, painted.MACHINE)
    assert found.gaps.max() < 0.02
    assert_allclose(found.maps.sum(axis=(1, 2, 3)), scores[0] - scores[1], rtol=0.02)
    assert (found.maps[:, hu == even] == 0).all()


def test_of_a_polynomial_parts_are_the_closed_form() -> None:
    """Of f = sum w x^2 on the way from a to b each part is w (b^2 - a^2); the midpoint rule is exact for it."""
    weights = torch.rand(1, 2, 3, 3, 3)

    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor, spacing: torch.Tensor) -> torch.Tensor:
            return (weights * x**2).sum().reshape(1, 1)

    start, end = torch.rand(1, 2, 3, 3, 3), torch.rand(1, 2, 3, 3, 3)
    found = along_the_way(Square(), start, end, torch.ones(1, 3), 0, 7)
    assert_allclose(found, weights * (end**2 - start**2), atol=1e-6)


def test_they_are_those_of_captum(detector: Detector) -> None:
    captum = pytest.importorskip("captum.attr", reason="needs Captum: pip install captum")
    network, hu = differentiable(detector).eval(), painted.head(0, bleeding=True)
    windows = list(detector.encoder.card.windows.values())
    even = evened_head(hu, painted.SPACING_MM)
    start, end = (as_input(torch.from_numpy(one[None]), windows) for one in (even, hu))
    ours = along_the_way(network, start, end, torch.full((1, 3), 4.0), 0, 6)
    theirs = captum.IntegratedGradients(lambda x: network(x, torch.full((len(x), 3), 4.0))).attribute(
        end, start, target=0, n_steps=6, method="riemann_middle"
    )
    assert_allclose(ours, theirs.detach(), atol=1e-5)


def test_a_vote_of_neighbours_has_none(encoder: PretrainedEncoder, detector: Detector) -> None:
    vectors = painted.vectors_of(encoder, [painted.head(0, bleeding=True), painted.head(1, bleeding=False)])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.array([[1, 0], [0, 1]], np.float32)
    knn = FittedKnn(("iph", "sdh"), np.zeros(24, np.float32), unit, labels, Knn())
    assert knn.scores(Held(vectors), np.arange(2)).shape == (2, 2)
    with pytest.raises(Unfit, match="has no gradient"):
        differentiable(replace(detector, fitted=knn))
