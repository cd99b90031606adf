"""The whole way once: files, cohort, a short pre-training without labels, vectors, and a page to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct import embedding, pretraining
from headct.cohort import Cohort
from headct.cohort.ingest import ingest
from headct.cohort.quality import NAMED_WINDOWS, acquisition, scans_table, write_page
from headct.embedding import Embeddings
from headct.failure import Failure, Misuse
from headct.pretraining import PretrainSettings, Run
from headct.pretraining.objectives.dino import DinoSettings
from headct.pretraining.views import Crops, ViewSettings
from headct.reporting.charts import curves
from headct.reporting.intake import Intake, flow_of_files, rejections_by_reason, what_to_do, what_was_found
from headct.reporting.neighbours import Neighbour, neighbour_strip
from headct.reporting.page import Page, Provenance, Section, software_versions
from headct.reporting.pictures import View, montage
from headct.reporting.words import count, visible
from headct.virtual.demonstration import write_demonstration

Say = Callable[[str], None]

VIRTUAL = "virtual-patients"
BRAIN = NAMED_WINDOWS[0]
SHOWN = 12
"""Scans whose slices the page shows; the quality page beside it shows all."""
QUERIES, NEIGHBOURS = 4, 3
ALIKE = 0.95
"""A median cosine above it is worth a word."""
LEAST_SCANS = 2
"""A contrast between scans needs two of them."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How much of everything a demo does."""

    patients: int
    budget_s: float  # of the pre-training


FULL = Length(patients=16, budget_s=60.0)
QUICK = Length(patients=8, budget_s=15.0)


def demo(out: Path, data: Path | None = None, *, quick: bool = False, say: Say = lambda line: None) -> Path:
    """Walk the whole way into the folder `out` and return the path of the page.

    `data` None: virtual patients are written as DICOM first. Called again it goes on where it stopped. Raises Failure
    where no scan is accepted; the page of the cohort then says why.
    """
    length = QUICK if quick else FULL
    _hold_to(out, f"{VIRTUAL if data is None else data.resolve()}{', quick' if quick else ''}")
    if data is None:
        data = out / VIRTUAL
        if not data.exists():
            say(f"writing {length.patients} virtual patients as DICOM")
            _write_virtual(data, length.patients)
    say(f"reading {data}")
    ingest([data], out / "cohort")
    cohort = Cohort(out / "cohort")
    say(f"{count(len(cohort), 'scan')} accepted, {count(len(cohort.rejections), 'rejection')}")
    write_page(cohort, out / "quality.html", virtual=_is_virtual(data, out))
    if len(cohort) == 0:
        raise Failure("no usable head CT was found", do=f"open {out / 'quality.html'}: it says why for every file")
    page = out / "report.html"
    if len(cohort) < LEAST_SCANS:
        say("one scan cannot be told apart from others: nothing is trained")
        _page(out, cohort, data, None, None).write(page)
        return page
    run = pretraining.pretrain([cohort], out / "run", settings(length.budget_s), progress=say)
    say("embedding")
    found = embedding.embed(cohort, run.checkpoint)
    found.write(out / "embeddings.parquet")
    _page(out, cohort, data, run, found).write(page)
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


def _write_virtual(folder: Path, patients: int) -> None:
    """Whole or not at all, so that a demo that was killed does not go on with half of its patients."""
    draft = folder.with_name(folder.name + ".partial")
    write_demonstration(draft, patients=patients)
    draft.rename(folder)


def _is_virtual(data: Path, out: Path) -> bool:
    return data == out / VIRTUAL


def _hold_to(out: Path, what: str) -> None:
    """A demo's folder holds one demo. Scans of another would be added to its cohort, and real ones called virtual."""
    note = out / "demo.txt"
    if note.exists() and (before := note.read_text(encoding="utf-8").strip()) != what:
        raise Misuse(
            f"{out} holds another demo (of {before}; now {what})",
            do="name another folder (--out DIR, make demo OUT=DIR), or remove this one",
        )
    out.mkdir(parents=True, exist_ok=True)
    note.write_text(what + "\n", encoding="utf-8")


# The page


def _page(out: Path, cohort: Cohort, data: Path, run: Run | None, found: Embeddings | None) -> Page:
    intake = Intake(cohort.scans, cohort.rejections, cohort.files)
    return Page(
        title="From head CT files to features",
        kind="demo",
        answer=[*what_was_found(intake), *_what_was_learned(run, found)],
        to_do=what_to_do(intake),
        sections=[
            *_of_features(cohort, run, found),
            Section(
                title="Where the files went",
                lead="Each file counts once, at the first step that stopped it. A reason leads to its list.",
                body=flow_of_files(intake),
            ),
            Section(
                title="What was rejected and why",
                lead="Most frequent first; each line opens to all its rejections with what was seen.",
                body=rejections_by_reason(intake),
            ),
            Section(
                title="How the scans look",
                lead=_slices_lead(len(cohort)),
                body=_slices(cohort),
            ),
            Section(
                title="All accepted scans",
                lead="One row a scan, as in the cohort's own table. Select a header to sort by it.",
                body=scans_table(cohort.scans),
            ),
        ],
        provenance=_provenance(cohort, run),
        virtual=_is_virtual(data, out),
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
            _shown(cohort, ids[query]),
            [_shown(cohort, ids[other], float(c)) for other, c in zip(nearest[query], cosine[query], strict=True)],
            BRAIN,
        )
        for query in queries
    ]
    return Markup("").join(strips)


def _shown(cohort: Cohort, scan_id: str, similarity: float | None = None) -> Neighbour:
    spacing_mm = np.linalg.norm(cohort.affine(scan_id)[:3, :3], axis=0)
    x, y, z = (float(mm) for mm in spacing_mm)
    return Neighbour(scan_id=scan_id, array=cohort.array(scan_id), spacing_mm=(x, y, z), similarity=similarity)


def _slices_lead(scans: int) -> str:
    which = "every accepted scan" if scans <= SHOWN else f"the first {SHOWN} of {scans} accepted scans"
    return (
        f"Three middle slices of {which}, in three windows and at one scale. The patient's right is on your left in "
        "axial and coronal slices. All of them are in quality.html beside this page."
    )


def _slices(cohort: Cohort) -> Markup:
    rows = cohort.scans.head(SHOWN).to_dict("records")
    return Markup('<ol class="scans">{}</ol>').format(Markup("").join(_card(cohort, row) for row in rows))


def _card(cohort: Cohort, row: dict[Any, Any]) -> Markup:
    scan = _shown(cohort, str(row["scan_id"]))
    pictures = montage(
        [View(window, scan.array) for window in NAMED_WINDOWS],
        scan.spacing_mm,
        subject=f"scan {visible(scan.scan_id)}",
        mm_per_pixel=2.0,
        limit_bytes=30_000,
    )
    return Markup('<li class="scan"><h3><span class="id">{}</span></h3><p>{}</p>{}</li>').format(
        visible(scan.scan_id), acquisition(row), pictures
    )


def _provenance(cohort: Cohort, run: Run | None) -> Provenance:
    hashes = {f"{name}.parquet": entry["sha256"] for name, entry in cohort.about["tables"].items()}
    trained = {} if run is None else pretraining.to_pairs(run.settings)
    return Provenance(
        settings={"recipe": cohort.recipe.name, "recipe id": cohort.recipe.id, **trained},
        hashes=hashes,
        versions=software_versions("headct", "torch", "numpy", "pydicom", "blosc2"),
    )
