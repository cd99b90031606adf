"""The page of a run: what it learned on, whether anything went wrong, its curves, how fast it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.pretraining.plan import duration
from headct.pretraining.settings import PretrainSettings, to_pairs
from headct.reporting.charts import curves
from headct.reporting.page import Page, Provenance, Section, software_versions
from headct.reporting.tables import pairs
from headct.reporting.words import count

CAPTIONS: Mapping[str, str] = {
    "loss": "of the objectives together, by their weights",
    "gradient_norm": "of all weights together, before it is clipped",
    "entropy": "of a target, as a share of the most it can be; 1 teaches nothing",
    "used": "entropy of the mean target, as a share of the most it can be; 0 says that one prototype takes all",
    "spread": "how far vectors of different scans lie apart; near zero, all look the same to the encoder",
    "matched": "share of vectors that are nearest to their own counterpart",
    "overlap": "of two crops of a head, what both cover as a share of what either covers, in the mean",
    "rank": "dimensions along which targets differ",
    "dimensions": "dimensions along which vectors of scans differ; near one, a single line tells them all apart",
    "target_spread": "how far targets lie apart; near zero, they teach nothing",
    "bce": "cross-entropy of every place: was it changed",
    "dice": "1 less the overlap (Dice) of changes as found and as made",
    "presence": "cross-entropy of whole crops: does one hold a change of each kind",
    "changed": "share of crops that hold a change; near zero, nothing is learned",
    "air": "share of the views that is neither patient nor table",
    "lr": "learning rate",
}
"""What the commonest numbers mean; others stand under their own name."""

OF_ONE = "of this objective alone, before it is weighted"
LEFT_OUT = {"step", "step_s", "data_s", "decay", "tflop_s", "mfu", "memory_gb"}
POINTS = 400
"""A curve is drawn through so many means at most."""


def page_of(
    history: pd.DataFrame,
    settings: PretrainSettings,
    data: Sequence[Mapping[str, Any]],
    stopped: str,
    *,
    uses_findings: bool,
) -> Page:
    """The page of a run that has ended."""
    names = sorted((name for name in history.columns if name not in LEFT_OUT), key=lambda name: name != "loss")
    return Page(
        title="A pre-training",
        kind="pre-training",
        answer=_answer(history, settings, data, stopped, uses_findings=uses_findings),
        sections=[
            Section(
                title="Curves",
                lead="Means over neighbouring steps where there are many. A falling loss says that the way works, not "
                "that the features are good: that is measured with labels, elsewhere. Where a teacher sets the targets "
                "(dino, dinov2, jepa, hybrid), the loss may rise while much is learned, for the targets change.",
                body=Markup('<div class="plots">{}</div>').format(
                    Markup("").join(_curve(history, name) for name in names)
                ),
            ),
            Section(
                title="Speed",
                lead="Waiting is the share of the time in which a step was ready before its scans were. Operations are "
                "those of the model, counted once; memory is that of tensors on a GPU, of the whole process on a CPU.",
                body=pairs(speed(history, settings), "Speed of this run"),
            ),
            Section(
                title="Data",
                lead="Cohorts by name, with a hash of the ids of their scans.",
                body=Markup("").join(
                    pairs({key.replace("_", " "): _said(value) for key, value in one.items()}, str(one["cohort"]))
                    for one in data
                ),
            ),
        ],
        provenance=Provenance(settings=to_pairs(settings), versions=software_versions("headct", "torch", "numpy")),
        virtual=all(bool(one.get("virtual")) for one in data),
    )


def _said(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _answer(
    history: pd.DataFrame,
    settings: PretrainSettings,
    data: Sequence[Mapping[str, Any]],
    stopped: str,
    *,
    uses_findings: bool,
) -> list[str]:
    first, last = ends(history["loss"].to_numpy())
    scans = sum(int(one["scans"]) for one in data)
    said = [
        f"{settings.encoder} was trained by {' and '.join(settings.objectives)} from {count(scans, 'scan')} in "
        f"{count(len(history), 'step')}; the loss went from {first:.3f} to {last:.3f} "
        "(means of the first and the last tenth).",
        "It knew of virtual patients what they have, so that no claim about few labels of such patients may rest on it."
        if uses_findings
        else "Labels were looked at now and then (`knn`), and nothing was trained by them."
        if settings.probe
        else "No label was read.",
        "Whether the features are of use is not measured here.",
    ]
    if stopped:
        said.insert(0, f"The run was stopped: {stopped}.")
    return said


def ends(values: np.ndarray) -> tuple[float, float]:
    """Mean of the first and of the last tenth."""
    tenth = max(1, len(values) // 10)
    return float(np.nanmean(values[:tenth])), float(np.nanmean(values[-tenth:]))


def speed(history: pd.DataFrame, settings: PretrainSettings) -> dict[str, object]:
    """How long steps took, what they waited for, and what they made of the device."""
    step_s, data_s = history["step_s"].to_numpy(), history["data_s"].to_numpy()
    said: dict[str, object] = {
        "all steps": duration(float(step_s.sum())),
        "a step, median": f"{np.median(step_s):.3f} s",
        "scans a second": f"{settings.batch / step_s.mean():.1f}",
        "waiting for data": f"{data_s.sum() / step_s.sum():.1%}",
    }
    if "tflop_s" in history:
        said["of the model, a process"] = f"{_rate(history['tflop_s']):.3g} TFLOP/s"
    if "mfu" in history:
        said["of the device's peak"] = f"{_rate(history['mfu']):.1%}"
    if "memory_gb" in history:
        said["memory at most"] = f"{history['memory_gb'].max():.2f} GB"
    return said


def _rate(rates: pd.Series) -> float:
    """The rate over all steps that have one: every step is as much work, so times are added and not rates."""
    return float(1 / (1 / rates.dropna()).mean())


def _curve(history: pd.DataFrame, name: str) -> Markup:
    steps, values = thinned(history["step"].to_numpy(), history[name].to_numpy(dtype=float))
    short = name.split("/")[-1]
    return curves(
        {name: (steps, values)},
        title=name.replace("_", " "),
        x_label="step",
        y_label=short.replace("_", " "),
        caption=OF_ONE if short == "loss" and short != name else CAPTIONS.get(short, ""),
    )


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over blocks of neighbouring steps, so that a long run is no large page."""
    block = -(-len(steps) // POINTS)
    whole = len(steps) // block * block
    return (
        steps[:whole].reshape(-1, block).mean(axis=1),
        values[:whole].reshape(-1, block).mean(axis=1),
    )
