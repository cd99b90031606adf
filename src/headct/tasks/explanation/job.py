"""`headct explain`: maps of one scan and one detector, each with the checks that it passes or fails.

A map by itself proves nothing: nearly all of them look plausible. So each is asked whether the score falls when what it
shows is evened out, whether it returns when that alone is put back, and whether random weights would have drawn the
same. A map that fails says so in its table, on its page and in its picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from headct.detection import Detector
from headct.detection.training.attentive import FittedAttentive
from headct.embedding.inputs import Ready
from headct.embedding.machine import Machine
from headct.failure import Misuse
from headct.tasks.explanation.evening import HEAD_HU, evened_head
from headct.tasks.explanation.faithfulness import (
    LOOKS_OF_AN_ORDER,
    Curves,
    Faith,
    Place,
    curves,
    order_of,
    place_of,
    random_orders,
)
from headct.tasks.explanation.gradients import integrated_gradients
from headct.tasks.explanation.judging import Judge, Unfit, can_look, randomised
from headct.tasks.explanation.looks import LOOKS_OF_A_GRADIENT, Looks, Progress
from headct.tasks.explanation.maps import METHODS, Map
from headct.tasks.explanation.occlusion import Boxes, losses, occlusion
from headct.tasks.explanation.rollout import rollout
from headct.tasks.explanation.sanity import ALIKE, likeness

LEAST_ORDERS = 19
"""Of fewer random orders, being better than all of them is no surprise (one in twenty)."""
SURE = 0.05
MOST_GAP = 0.1
"""Share of the difference in score that the sum of gradients may miss."""
LEAST_INSIDE = 0.5
"""Share of a mask that must lie in the head: else it is of another scan."""
LEAST_FALL = 0.01
"""In logits: a score that falls by less when the whole head is evened out does not rest on anything in it. It is a
quarter of a per cent of probability at most, and what is below may be rounding."""
SAMPLED = 128
"""Boxes at which random weights are asked by occlusion: enough for a rank correlation within about 0.09."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How maps are made and checked. Raises Misuse for what cannot be.

    `methods` and `findings` are all that there are, unless named.
    """

    methods: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    box_mm: float = 32.0  # edge of what is hidden at a time, of which, as it fades, little more than the middle half
    steps: int = 16  # of the way along which gradients are summed up
    smooth_mm: float = 4.0  # of gradients
    orders: int = LEAST_ORDERS  # random ones, which a map has to be better than
    randomised: int = 2  # detectors of random weights, from which a map has to differ
    seed: int = 0
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in METHODS:
                raise Misuse(f"there is no method {name!r}", do=f"name one of {', '.join(METHODS)}")
        for name in ("box_mm", "smooth_mm"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise Misuse(f"{name} must be above 0, got {getattr(self, name):g}")
        for name in ("steps", "randomised", "batch_size"):
            if getattr(self, name) < 1:
                raise Misuse(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.orders < LEAST_ORDERS:
            raise Misuse(
                f"{self.orders} random orders are too few",
                why="a map that is better than all of them might still be luck",
                do=f"take {LEAST_ORDERS} or more",
            )


@dataclass(frozen=True)
class Subject:
    """A head that is explained, and the evened-out one."""

    ready: Ready
    even: np.ndarray  # (X, Y, Z) int16
    domain: np.ndarray  # (X, Y, Z) bool: where the two differ, so that evening out does anything

    @property
    def hu(self) -> np.ndarray:
        """(X, Y, Z) int16, RAS."""
        return self.ready.array


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A map, what it is asked about one finding, and what came of it.

    `alike` is None where that cannot be asked: weights cannot be exchanged, or say the same of everything at random.
    """

    map: Map
    finding: str
    faith: Faith
    deletion: np.ndarray  # logits by `SHARES`
    insertion: np.ndarray
    alike: float | None  # the largest of the rank correlations with maps of random weights
    gap: float | None  # of gradients
    place: Place | None  # where the lesion is known

    @property
    def faults(self) -> list[str]:
        """What it fails at, in words."""
        if not self.has_something:
            return []
        faith, found = self.faith, []
        if faith.deletion_p > SURE:
            found.append(f"evened out in its order the score falls no sooner than at random (p {faith.deletion_p:.2f})")
        if faith.insertion_p > SURE:
            found.append(f"put back in its order it returns no sooner than at random (p {faith.insertion_p:.2f})")
        if self.alike is not None and self.alike >= ALIKE:
            found.append(f"random weights draw much the same map (rank correlation {self.alike:.2f})")
        if self.gap is not None and self.gap > MOST_GAP:
            found.append(f"the parts miss {self.gap:.0%} of the score that they ought to sum up to")
        return found

    @property
    def has_something(self) -> bool:
        """Whether the scan scores above the evened-out head, so that there is anything to explain."""
        return self.faith.fall > LEAST_FALL

    @property
    def verdict(self) -> str:
        """passes, fails, unproven (random weights cannot be asked), or nothing to explain."""
        if not self.has_something:
            return "nothing to explain"
        if self.faults:
            return "fails"
        return "unproven" if self.alike is None else "passes"


@dataclass(frozen=True)
class Explanation:
    """All maps of a scan, by finding and then by method; `left_out` says of each method that does not fit why."""

    subject: Subject
    findings: tuple[str, ...]
    probabilities: Mapping[str, float]
    explained: Sequence[Explained]
    randoms: Mapping[str, tuple[np.ndarray, np.ndarray]]  # by finding, mean deletion and insertion at random
    left_out: Mapping[str, str]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)  # by finding, (X, Y, Z) bool
    notes: tuple[str, ...] = ()


def expect_hu(detector: Detector) -> None:
    """Raises Misuse where the arrays that a detector takes are not in HU, so that nothing can be evened out."""
    if not can_look(detector):
        recipe = detector.encoder.recipe
        raise Misuse(
            f"recipe {recipe.name} ({recipe.id}) gives arrays that are not in HU, which cannot be evened out",
            do="explain a detector whose encoder takes one of our recipes",
        )


def explain(
    ready: Ready,
    detector: Detector,
    machine: Machine,
    settings: Settings | None = None,
    masks: Mapping[str, np.ndarray] | None = None,
    *,
    progress: Progress = lambda done, total: None,
) -> Explanation:
    """Maps of a prepared head for the findings of a detector, each with its checks.

    `masks` (X, Y, Z) bool say of findings where their lesion is. Raises Misuse for a finding that the detector does not
    have, arrays that are not in HU, a head of air alone, a mask of another shape or outside the head, and where no
    method fits; Failure where scores are not finite. `progress` is told in looks at the scan.
    """
    expect_hu(detector)
    settings = settings or Settings()
    detector = detector.on(machine)
    findings = _columns(detector, settings.findings)
    subject = _subject(ready)
    masks = _checked(masks or {}, subject)
    maker = _Maker(subject, detector, machine, settings, list(findings.values()), Looks(progress))
    drawn, left_out = _drawn(maker, settings.methods or tuple(METHODS))
    ends = maker.judge([subject.hu, subject.even])
    random = _by_random_orders(maker, ends)
    probabilities = detector.probabilities(ends[:1])[0][0]
    explained = [
        _explained(maker, method, what, column, ends, random, masks)
        for column in findings.values()
        for method, what in drawn.items()
    ]
    maker.looks.end()
    return Explanation(
        subject=subject,
        findings=tuple(findings),
        probabilities={name: float(probabilities[column]) for name, column in findings.items()},
        explained=explained,
        randoms={name: _mean(random, column) for name, column in findings.items()},
        left_out=left_out,
        masks=masks,
        notes=_notes(masks, subject),
    )


def _by_random_orders(maker: _Maker, ends: np.ndarray) -> list[Curves]:
    """The curves of orders without sense, which all maps are compared with."""
    subject, settings = maker.subject, maker.settings
    orders = random_orders(subject.domain, maker.spacing_mm.tolist(), settings.orders, settings.seed)
    return [curves(maker.judge, subject.hu, subject.even, order, ends) for order in orders]


def _mean(random: Sequence[Curves], column: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean deletion and insertion of one finding."""
    deletions = np.mean([one.deletion[column] for one in random], axis=0)
    return deletions, np.mean([one.insertion[column] for one in random], axis=0)


def _notes(masks: Mapping[str, np.ndarray], subject: Subject) -> tuple[str, ...]:
    return tuple(
        f"the mask holds nothing of {name} where this head can be evened out"
        for name, mask in masks.items()
        if not (mask & subject.domain).any()
    )


@dataclass(frozen=True)
class _Drawn:
    """What a method drew: a map for each column asked for, or one for all; gaps of gradients; likeness to random."""

    values: np.ndarray  # (columns or 1, X, Y, Z)
    gaps: np.ndarray | None
    alike: Sequence[float | None]  # (columns or 1,)


class _Maker:
    """Makes maps of one head by detectors of one kind, and counts its looks."""

    def __init__(
        self,
        subject: Subject,
        detector: Detector,
        machine: Machine,
        settings: Settings,
        columns: Sequence[int],
        looks: Looks,
    ) -> None:
        self.subject, self.detector, self.machine = subject, detector, machine
        self.settings, self.columns, self.looks = settings, list(columns), looks
        self.spacing_mm = subject.ready.spacing_mm
        self.judge = self._judge(detector)
        looks.plan(2 + settings.orders * LOOKS_OF_AN_ORDER)

    def __call__(self, method: str, detector: Detector) -> tuple[np.ndarray, np.ndarray | None]:
        """Maps (columns or 1, X, Y, Z) and gaps. Raises Unfit where the detector does not allow the method."""
        hu, even = self.subject.hu, self.subject.even
        if method == "rollout":
            maps = rollout(detector, hu, self.spacing_mm, self.machine)
            self.looks()
            return (maps if self.is_shared(method) else maps[self.columns]), None
        if method == "gradients":
            found = integrated_gradients(
                detector, hu, even, self.spacing_mm, self.columns, self.machine,
                steps=self.settings.steps, smooth_mm=self.settings.smooth_mm,
                stepped=lambda: self.looks(LOOKS_OF_A_GRADIENT),
            )  # fmt: skip
            return found.maps, found.gaps
        return occlusion(self._judge(detector), hu, even, self._boxes())[self.columns], None

    def looks_of(self, method: str) -> int:
        """How many looks a method takes, its random weights and the curves of its maps included."""
        times = 1 + self.settings.randomised
        of_curves = LOOKS_OF_AN_ORDER * len(self.columns)
        if method == "rollout":
            return times + of_curves
        if method == "gradients":
            return times * len(self.columns) * self.settings.steps * LOOKS_OF_A_GRADIENT + of_curves
        boxes = len(self._boxes().that_hide(self.subject.hu, self.subject.even))
        return times + boxes + self.settings.randomised * min(SAMPLED, boxes) + of_curves

    def is_shared(self, method: str) -> bool:
        """Whether there is one map for all findings: attention that no query of a finding has started."""
        return method == "rollout" and not isinstance(self.detector.fitted, FittedAttentive)

    def likenesses(self, method: str, values: np.ndarray, other: Detector) -> list[float]:
        """Of each map to that of a detector of random weights; by occlusion in the middles of some boxes."""
        hu, even, domain = self.subject.hu, self.subject.even, self.subject.domain
        if method != "occlusion":
            others, _ = self(method, other)
            return [likeness(ours[domain], theirs[domain]) for ours, theirs in zip(values, others, strict=True)]
        boxes = self._boxes()
        begins = np.array(boxes.that_hide(hu, even))
        some = np.random.default_rng(self.settings.seed).permutation(begins)[:SAMPLED]
        lost = losses(self._judge(other), hu, even, some.tolist(), boxes)[:, self.columns]
        x, y, z = (some + np.array(boxes.edge) // 2).T  # where of all boxes hardly any but its own counts
        return [likeness(ours[x, y, z], theirs) for ours, theirs in zip(values, lost.T, strict=True)]

    def _judge(self, detector: Detector) -> Judge:
        return Judge(detector, self.spacing_mm.tolist(), self.machine, self.settings.batch_size, self.looks)

    def _boxes(self) -> Boxes:
        x, y, z = (
            min(n, max(1, round(self.settings.box_mm / float(mm))))
            for n, mm in zip(self.subject.hu.shape, self.spacing_mm, strict=True)
        )
        return Boxes(edge=(x, y, z))


def _drawn(maker: _Maker, methods: Sequence[str]) -> tuple[dict[str, _Drawn], dict[str, str]]:
    """What each method that fits draws, and why the others do not. Raises Misuse where none fits."""
    drawn, left_out = {}, {}
    looks_of = {method: maker.looks_of(method) for method in methods}
    maker.looks.plan(sum(looks_of.values()))
    for method in methods:
        try:
            values, gaps = maker(method, maker.detector)
        except Unfit as reason:
            left_out[method] = str(reason)
            maker.looks.plan(-looks_of[method])
            continue
        drawn[method] = _Drawn(values, gaps, _alike(maker, method, values))
    if not drawn:
        told = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise Misuse("no method fits this detector", why=told, do="leave out --method: occlusion fits every detector")
    return drawn, left_out


def _alike(maker: _Maker, method: str, values: np.ndarray) -> list[float | None]:
    """The largest likeness of each map to those of random weights; None where no random weights can be asked."""
    found = []
    for number in range(maker.settings.randomised):
        try:
            other = randomised(maker.detector, maker.settings.seed + number, maker.machine)
        except Unfit:
            return [None] * len(values)
        found.append(maker.likenesses(method, values, other))
    return [max((one for one in each if not math.isnan(one)), default=None) for each in zip(*found, strict=True)]


def _explained(
    maker: _Maker,
    method: str,
    drawn: _Drawn,
    column: int,
    ends: np.ndarray,
    random: Sequence[Curves],
    masks: Mapping[str, np.ndarray],
) -> Explained:
    subject, finding = maker.subject, maker.detector.findings[column]
    shared = maker.is_shared(method)
    at = 0 if shared else maker.columns.index(column)
    one = Map(method, "" if shared else finding, drawn.values[at])
    own = curves(maker.judge, subject.hu, subject.even, order_of(one.values, subject.domain), ends)
    deletion, insertion = own.areas
    of_random = np.array([curve.areas for curve in random])[:, :, column]  # (r, 2)
    mask = masks.get(finding)
    return Explained(
        map=one,
        finding=finding,
        faith=Faith(
            fall=float(ends[0, column] - ends[1, column]),
            deletion=float(deletion[column]),
            insertion=float(insertion[column]),
            random_deletion=of_random[:, 0],
            random_insertion=of_random[:, 1],
        ),
        deletion=own.deletion[column],
        insertion=own.insertion[column],
        alike=drawn.alike[at],
        gap=None if drawn.gaps is None else float(drawn.gaps[at]),
        place=None
        if mask is None or not (mask & subject.domain).any()
        else place_of(one.values, one.peak(subject.domain), mask, subject.domain, maker.spacing_mm.tolist()),
    )


def _subject(ready: Ready) -> Subject:
    even = evened_head(ready.array, ready.spacing_mm.tolist())
    domain = ready.array != even
    if not domain.any():
        raise Misuse(
            f"scan {ready.ids['scan_id']} has nothing in it that could be evened out",
            why="it is air, or the same everywhere",
            do="look at the scan, or name another one",
        )
    return Subject(ready, even, domain)


def _columns(detector: Detector, findings: Sequence[str]) -> dict[str, int]:
    """The findings that are explained, with their columns in the detector. Raises Misuse for one that it lacks."""
    for name in findings:
        if name not in detector.findings:
            raise Misuse(f"the detector has no finding {name!r}", do=f"name one of {', '.join(detector.findings)}")
    return {name: column for column, name in enumerate(detector.findings) if not findings or name in findings}


def _checked(masks: Mapping[str, np.ndarray], subject: Subject) -> dict[str, np.ndarray]:
    head, checked = subject.hu > HEAD_HU, {name: np.asarray(mask, dtype=bool) for name, mask in masks.items()}
    for name, mask in checked.items():
        if mask.shape != subject.hu.shape:
            raise Misuse(
                f"the mask of {name} has the shape {mask.shape}, the prepared head {subject.hu.shape}",
                do="bring it onto the head's grid first (read_mask)",
            )
        if mask.any() and (mask & head).sum() < LEAST_INSIDE * mask.sum():
            raise Misuse(
                f"of the mask of {name} {(mask & ~head).sum() / mask.sum():.0%} lies outside the head",
                why="it may be of another scan, or have lost its geometry",
                do="name the mask of this scan",
            )
    return checked
