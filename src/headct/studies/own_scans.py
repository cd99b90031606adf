"""The demo on scans of one's own, without labels: files, cohort, a short pre-training, vectors, and a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct import embedding, pretraining
from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.cohort.quality import NAMED_WINDOWS, write_page
from headct.embedding import Embeddings
from headct.failure import Failure
from headct.pretraining import PretrainSettings, Run
from headct.pretraining.objectives.dino import DinoSettings
from headct.pretraining.views import Crops, ViewSettings
from headct.reporting.charts import curves
from headct.reporting.intake import what_to_do, what_was_found
from headct.reporting.neighbours import neighbour_strip
from headct.reporting.page import Page, Provenance, Section, software_versions
from headct.reporting.words import count
from headct.studies.cohort_sections import intake_of, of_files, of_scans, shown

Say = Callable[[str], None]

BRAIN = NAMED_WINDOWS[0]
QUERIES, NEIGHBOURS = 4, 3
ALIKE = 0.95
"""A median cosine above it is worth a word."""
LEAST_SCANS = 2
"""A contrast between scans needs two of them."""


def own_scans(out: Path, data: Path, budget_s: float, say: Say) -> Path:
    """Walk the way of scans without labels into the folder `out` and return the path of the page.

    Raises Failure where no scan is accepted; the page of the cohort then says why.
    """
    say(f"reading {data}")
    ingest([data], out / "cohort")
    cohort = Cohort(out / "cohort")
    say(f"{count(len(cohort), 'scan')} accepted, {count(len(cohort.rejections), 'rejection')}")
    write_page(cohort, out / "quality.html")
    if len(cohort) == 0:
        raise Failure("no usable head CT was found", do=f"open {out / 'quality.html'}: it says why for every file")
    page = out / "report.html"
    if len(cohort) < LEAST_SCANS:
        say("one scan cannot be told apart from others: nothing is trained")
        _page(cohort, None, None).write(page)
        return page
    run = pretraining.pretrain([cohort], out / "run", settings(budget_s), progress=say)
    say("embedding")
    found = embedding.embed(cohort, run.checkpoint)
    found.write(out / "embeddings.parquet")
    _page(cohort, run, found).write(page)
    return page


def settings(budget_s: float) -> PretrainSettings:
    """DINO on a shallow transformer, with views small enough that two cores make some steps a second.

    The views differ little in scale and pose: among so few heads wider ones hide which head it is, and the teacher's
    targets then drift to uniform within a minute.
    """
    dino = DinoSettings(
        global_crops=Crops(views=2, shape=(64, 80, 64), edge_mm=(158.0, 168.0), overhang=0.03),
        local_crops=Crops(views=2, shape=(32, 32, 32), edge_mm=(80.0, 100.0), overhang=0.0),
    )
    return PretrainSettings(
        objectives={"dino": dino},
        encoder="vit-tiny",
        encoder_settings={"depth": 6},
        views=ViewSettings(rotation_deg=3.0),
        budget_s=budget_s,
        batch=8,
    )


# The page


def _page(cohort: Cohort, run: Run | None, found: Embeddings | None) -> Page:
    intake = intake_of(cohort)
    return Page(
        title="From head CT files to features",
        kind="demo",
        answer=[*what_was_found(intake), *_what_was_learned(run, found)],
        to_do=what_to_do(intake),
        sections=[*_of_features(cohort, run, found), *of_files(cohort), *of_scans(cohort)],
        provenance=_provenance(cohort, run),
    )


def _what_was_learned(run: Run | None, found: Embeddings | None) -> Iterator[str]:
    if run is None or found is None:
        yield "Nothing was trained: a contrast between scans needs at least two of them."
        return
    loss = run.history["loss"].to_numpy()
    first, last = _ends(loss)
    yield (
        f"In {count(len(loss), 'step')} of self-distillation without labels the loss went from {first:.2f} to "
        f"{last:.2f}; this shows that the way works, not that the features are good, which is not measured here."
    )
    if (cosine := _usual_cosine(found.vectors)) > ALIKE:
        yield (
            f"The features hardly tell these scans apart: half of all pairs have a cosine above {cosine:.3f}. "
            "It takes more scans and a longer training."
        )
    if run.stopped:
        yield f"The training was stopped: {run.stopped}."


def _usual_cosine(vectors: np.ndarray) -> float:
    """The median cosine of two different scans."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(np.median((unit @ unit.T)[np.triu_indices(len(unit), k=1)]))


def _ends(loss: np.ndarray) -> tuple[float, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    tenth = max(1, len(loss) // 10)
    return float(loss[:tenth].mean()), float(loss[-tenth:].mean())


def _of_features(cohort: Cohort, run: Run | None, found: Embeddings | None) -> Iterator[Section]:
    """The sections that need a trained encoder."""
    if run is None or found is None:
        return
    yield Section(
        title="What was learned",
        lead="The student is asked to say of a part of a head what the teacher says of another part.",
        body=_learning_curves(run.history),
    )
    yield Section(
        title="Which scans are alike",
        lead=f"A query and the {count(min(NEIGHBOURS, len(cohort) - 1), 'scan')} whose vectors have the largest "
        "cosine with its own. Expect a likeness of size, tilt and noise from so short a training, not of disease.",
        body=_neighbours(cohort, found),
    )


def _learning_curves(history: pd.DataFrame) -> Markup:
    steps = history["step"].to_numpy()
    loss = curves(
        {"loss": (steps, history["loss"].to_numpy())},
        title="Loss",
        x_label="step",
        y_label="loss",
        caption="cross-entropy between teacher and student, mean over pairs of views",
    )
    spread = curves(
        {"spread": (steps, history["spread"].to_numpy())},
        title="Spread of features",
        x_label="step",
        y_label="spread",
        caption="how far the scans of a batch lie apart; near zero, all look the same to the encoder",
    )
    return Markup('<div class="plots">{}{}</div>').format(loss, spread)


def _neighbours(cohort: Cohort, found: Embeddings) -> Markup:
    ids = found.table["scan_id"].tolist()
    nearest, cosine = embedding.neighbours(found.vectors, k=min(NEIGHBOURS, len(ids) - 1))
    queries = np.unique(np.linspace(0, len(ids) - 1, min(QUERIES, len(ids))).round().astype(int))
    strips = [
        neighbour_strip(
            shown(cohort, ids[query]),
            [shown(cohort, ids[other], float(c)) for other, c in zip(nearest[query], cosine[query], strict=True)],
            BRAIN,
        )
        for query in queries
    ]
    return Markup("").join(strips)


def _provenance(cohort: Cohort, run: Run | None) -> Provenance:
    hashes = {f"{name}.parquet": entry["sha256"] for name, entry in cohort.about["tables"].items()}
    trained = {} if run is None else pretraining.to_pairs(run.settings)
    return Provenance(
        settings={"recipe": cohort.recipe.name, "recipe id": cohort.recipe.id, **trained},
        hashes=hashes,
        versions=software_versions("headct", "torch", "numpy", "pydicom", "blosc2"),
    )
