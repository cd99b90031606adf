"""Whether virtual patients can be learned, and only by their lesions.

    headct simulate --patients 3200 --masks --out COHORT
    python benchmarks/soundness.py COHORT... [--test COHORT...] [--epochs 8] [--told] [--out FILE] [--again 600]
                                   [--fresh 0] [--no-nuisances] [--threads 1]

Cohorts that differ in their seed or in how often they have a finding are taken together. Networks and baselines are
tested on a quarter of their patients, who are held out, or on those of other cohorts alone (`--test`), which (a) takes
together with the rest.

Five tables. (a) What age, sex, the scanner's table, air, what was drawn for the visit (noise, pose, motion) and for the
patient (form, calcifications, metal, surgery, bruises), and the noise of the image, say of each finding: within a site
they should say nothing. For their noise some patients are taken again at the same visit with other noise: the
difference of the two images holds no anatomy. Two things stand apart that findings bring with them: the texture of
brain away from lesions (what is left of it less itself smoothed, which wide sulci alter too), and a swollen scalp, for
fractures bring one and epidural bleeding brings them. (b) Whether larger lesions are scored higher. (c) A plain
supervised network beside baselines on patients it has not seen; with `--told` the network is told in training where
lesions are. (d) The same network where lesions are filled with what lies around them, and one that is trained and
tested on blanked lesions, with lesions of others blanked in those who have none. (e) Of `--fresh` patients, none of
whom is scanned, what (a) asks of labels, asked of findings that were drawn. Intervals of (a) are too narrow, for folds
share what they learn from, so what it finds is to be asked of fresh patients before it is believed. A label that is
empty (there, but hardly to be seen) is left out everywhere. Intervals are 95 % by bootstrap over patients.

A shift in mm, volumes in ml and the like are truth, not nuisances: none is an input. `--out` keeps the network's
weights, for `severity.py`. To take scans again costs what making them did; 10 epochs on 1,275 patients took half an
hour of one core that multiplies bf16 matrices, and an hour to an hour and a half of one without AVX-512.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from realism import auroc, show  # which lies beside this file
from scipy import ndimage
from scipy.stats import kurtosis, rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import nn

from headct import Cohort
from headct.embedding.machine import choose
from headct.encoders.settling import settling
from headct.failure import Failure
from headct.preparing import Prepared, prepare
from headct.preparing.recipe import named
from headct.virtual.findings.bone import Bruise, Surgery
from headct.virtual.findings.mixture import PREVALENCE
from headct.virtual.job import EDITION, VOLUMES
from headct.virtual.labels import FINDINGS
from headct.virtual.metal import metal_of
from headct.virtual.simulated import Simulation
from headct.virtual.truth import CLASSES

SHAPE, CROP, PLAY = (96, 112, 96), (80, 104, 80), (8, 4, 12)
"""Of the arrays, of what the network sees, and where that begins; it shifts by up to 2 voxels in training."""
WINDOWS = ((35, 40), (40, 80), (80, 200), (600, 2800))
LESIONS = tuple(name for name in CLASSES if name in VOLUMES)
DRAWN = tuple(name for name in FINDINGS if name in PREVALENCE)
"""What does not follow from others."""
SEVERITY = (
    {name: f"{name}_visible_ml" for name in LESIONS}
    | {name: f"{name}_ml" for name in ("hydrocephalus", "dementia")}
    | {name: f"{name}_mm" for name in ("midline_shift", "mass_effect")}
)
"""The column of `labels.csv` that says how much of a finding there is; `ich` has none."""
FIRST_LESION, SKULL = min(CLASSES.index(name) for name in LESIONS) + 1, CLASSES.index("skull") + 1
PUSHING = {"iph", "sdh", "edh", "tumor", "infarct", "edema"}
"""Lesions that move brain or close sulci, or can: filling them does not undo that."""
RIM = 2
"""Voxels (4 mm) by which a mask is widened, so that partial volume is covered too."""
BLANK_HU = 300.0
PURE_HU = (22.0, 48.0)
"""Of brain without fluid or blood in it, after smoothing."""
MIDDLE, TEXTURE_VOXELS, FEW = (slice(16, 80), slice(16, 96), slice(24, 76)), (3, 5, 7), 300
"""Where texture is measured, over what widths it is told from anatomy, and in how many voxels at least."""
CENTRE = (slice(32, 64), slice(36, 76), slice(36, 64))
"""Where noise is measured: 64 x 80 x 56 mm that lie within every head."""
APART = ("texture", "swelling")
"""What findings bring with them: no nuisances, so not among `all`, nor counted."""
FOLDS = 5
"""By patient, of (a) and (e)."""
FRESH_SEED = 990
"""Of no cohort that a network learns from; `nuisances.py` scans some of these patients."""
CELLS_WEIGH = 20.0
"""Beside labels; nearly all cells hold nothing, so that their mean is small."""
LEVELS_HU = np.concatenate(
    [[-1000, -700, -400, -200, -120, -80, -50], np.arange(-30, 170), np.geomspace(172, 3071, 49)]
)
"""What the 256 codes stand for: single HU where soft tissue lies, so that a cohort fits into memory as bytes."""
CODE_OF = np.abs(np.arange(-1024, 3072)[:, None] - LEVELS_HU).argmin(axis=1).astype(np.uint8)


@dataclass
class Patients:
    """Cohorts in memory; row i of everything is scan i."""

    places: list[tuple[Path, str]]  # cohort and scan_id
    groups: np.ndarray  # (n,) patients
    table: pd.DataFrame  # labels.csv
    labels: np.ndarray  # (n, findings) 1, 0 or NaN
    codes: torch.Tensor  # (n, X, Y, Z) uint8
    lesions: list[np.ndarray]  # flat indices of all lesions and their rims
    features: dict[str, np.ndarray]  # (n, some) by name

    def classes(self, row: int) -> np.ndarray:
        return classes_of(*self.places[row])


def classes_of(cohort: Path, scan_id: str) -> np.ndarray:
    """The map of `CLASSES`."""
    return np.asarray(nib.Nifti1Image.from_filename(cohort / "masks" / f"{scan_id}.nii.gz").dataobj)


def check(path: Path, *, masks: bool) -> None:
    """Raises SystemExit for what is no cohort of arrays of 2 mm, or one without masks where they are needed."""
    try:
        recipe = Cohort(path).about["recipe"]["name"]
    except Failure as error:
        raise SystemExit(str(error)) from error
    if recipe != "head":
        raise SystemExit(f"{path} is prepared by {recipe}, not by head: simulate it with --recipe head")
    if masks and not (path / "masks").is_dir():
        raise SystemExit(f"{path} has no masks: simulate it with --masks")


def codes_of(hu: np.ndarray) -> torch.Tensor:
    """A prepared array as bytes."""
    return torch.from_numpy(CODE_OF[hu.clip(-1024, 3071).astype(np.int32) + 1024])


def labels_of(cohort: Cohort) -> pd.DataFrame:
    """`labels.csv`, a row a scan in the order of the cohort."""
    return pd.read_csv(cohort.path / "labels.csv").set_index("scan_id").loc[list(cohort)].reset_index()


def load(paths: Sequence[Path], again: int) -> Patients:
    """Read everything once; features of scans are worked out on the way. `again` of each cohort are taken twice."""
    cohorts = [Cohort(path) for path in paths]
    places = [(cohort.path, scan_id) for cohort in cohorts for scan_id in cohort]
    table = pd.concat([labels_of(cohort) for cohort in cohorts], ignore_index=True)
    codes = torch.empty((len(places), *SHAPE), dtype=torch.uint8)
    lesions: list[np.ndarray] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("air", "texture", "histogram", "height")}
    ball = ndimage.generate_binary_structure(3, 1)
    arrays = (cohort.array(scan_id) for cohort in cohorts for scan_id in cohort)
    for row, (place, hu) in enumerate(zip(places, arrays, strict=True)):
        codes[row] = codes_of(hu)
        classes = classes_of(*place)
        sick = classes >= FIRST_LESION
        sick = ndimage.binary_dilation(sick, ball, iterations=RIM) if sick.any() else sick
        lesions.append(np.flatnonzero(sick).astype(np.int32))
        for name, values in (features_of(hu) | {"texture": texture_of(hu, classes)}).items():
            columns[name].append(values)
    features = {name: np.array(rows) for name, rows in columns.items()}
    told = scanners_of(cohorts)
    print("columns of the table that vary:", *told.columns)
    features["table"] = told.fillna(-1).to_numpy()
    drawn = [drawn_of(simulation_of(one), map(Simulation.index_of, labels_of(one)["patient_id"])) for one in cohorts]
    features |= {what: np.concatenate([one[what] for one in drawn]) for what in drawn[0]}
    if again:
        features["noise"] = np.concatenate([noise_of(cohort, again) for cohort in cohorts])
    labels = table[list(FINDINGS)].to_numpy(dtype=float)
    return Patients(places, table["patient_id"].to_numpy(), table, labels, codes, lesions, features)


def scanners_of(cohorts: Sequence[Cohort]) -> pd.DataFrame:
    """What the tables of scans say of the scanner and the person (n, some), as far as it varies."""
    scans = pd.concat([cohort.scans for cohort in cohorts], ignore_index=True)
    told = scans.drop(columns=["scan_id", "patient_id", "study_id", "series_id", "affine", "flags",
                               "shard", "index", "crc32"])  # fmt: skip
    told = pd.get_dummies(told.drop(columns="slice_normal", errors="ignore"), dtype=float)
    told[["x_mm", "y_mm", "z_mm"]] = np.array(scans["affine"].tolist())[:, [3, 7, 11]]
    if "slice_normal" in scans:  # cohorts of earlier versions do not have it
        told[["normal_x", "normal_y", "normal_z"]] = scans["slice_normal"].tolist()
    return told.loc[:, told.nunique() > 1].astype(float)


def features_of(hu: np.ndarray) -> dict[str, np.ndarray]:
    """Of one scan: what air, a histogram and the height of the head say."""
    coarse = ndimage.binary_opening(hu[::2, ::2, ::2] > -250)
    parts, count = ndimage.label(coarse)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    head = parts == sizes.argmax()
    head = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(head, 2, 0)], axis=2)
    far = ~ndimage.binary_dilation(head, iterations=3)
    head, far = (np.kron(mask, np.ones((2, 2, 2), dtype=bool)) for mask in (head, far))
    air = hu[far & (hu < -600) & (hu != -1000)].astype(np.float32)  # -1000 is what nothing was acquired of
    shares = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    corners = [hu[x, y, 20:70].std() for x in (slice(0, 8), slice(-8, None)) for y in (slice(0, 8), slice(-8, None))]
    inside = hu[head]
    edges = np.concatenate([[-1025, -500, -150, -60], np.arange(-20, 101, 2), [150, 300, 600, 1000, 1500, 4000]])
    high = np.flatnonzero(head.any(axis=(0, 1)))
    return {
        "air": np.array([len(air), air.mean(), air.std(), *np.quantile(air, shares), *corners]),
        "histogram": np.log1p(np.histogram(inside, edges)[0]),
        "height": np.array([high[0], high[-1], len(high), *np.quantile(np.nonzero(head)[2], (0.1, 0.5, 0.9))]),
    }


def texture_of(hu: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Size, tails and colour of what is left of each slice less itself smoothed, where all smoothed is healthy brain.

    Noise, and what of edges of ventricles and sulci is left: hydrocephalus and dementia have no mask to keep away
    from, so that places as dark as diluted fluid are left out, which does not leave out all of it.
    """
    hu, deep = hu[MIDDLE].astype(np.float32), deep_brain(hu, classes)
    values: list[float] = []
    for width in TEXTURE_VOXELS:
        rest = hu - ndimage.uniform_filter(hu, (width, width, 1))
        sd = 1.48 * float(np.median(np.abs(rest[deep])))
        rest = rest.clip(-4 * sd, 4 * sd)  # what is beyond is a calcification
        values += size_and_tails(rest, deep)
        if width == min(TEXTURE_VOXELS):  # the colour of what is coarser is that of gyri
            values += colour(rest, deep)
    return np.array(values)


def deep_brain(hu: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The voxels of `MIDDLE` with only pure brain around them in the slice; of all pure brain if there are few."""
    hu, classes = hu[MIDDLE].astype(np.float32), classes[MIDDLE]
    level = ndimage.uniform_filter(hu, 3)
    brain = (classes == CLASSES.index("brain") + 1) & (level > PURE_HU[0]) & (level < PURE_HU[1])
    reach = max(TEXTURE_VOXELS) + RIM
    deep: np.ndarray = ndimage.minimum_filter(brain, size=(reach, reach, 1))
    return deep if deep.sum() > FEW else brain


def size_and_tails(rest: np.ndarray, where: np.ndarray) -> list[float]:
    """Standard deviation by the median and by itself, and kurtosis."""
    return [1.48 * float(np.median(np.abs(rest[where]))), float(rest[where].std()), float(kurtosis(rest[where]))]


def colour(rest: np.ndarray, where: np.ndarray) -> list[float]:
    """How far a voxel goes with its neighbour, along each axis."""
    return [float((rest * np.roll(rest, 1, axis))[where].mean() / rest[where].var()) for axis in range(3)]


def noise_of(cohort: Cohort, scans: int) -> np.ndarray:
    """Size, tails and colour (n, 6) of noise without anatomy, of `scans` patients who lay still; else no numbers.

    The same patient at the same visit with other noise, less the scan, in a box that is the same for all: noise is
    stronger in the middle of an image, so a region of brain would tell how wide its ventricles are. Of a patient who
    moved the difference holds anatomy, as other slices are displaced.
    """
    recipe = named(cohort.about["recipe"]["name"])
    simulation = simulation_of(cohort).prepared_by(recipe)
    values, taken = np.full((len(cohort), 6), np.nan), 0
    for row, (scan_id, patient_id) in enumerate(zip(cohort, labels_of(cohort)["patient_id"], strict=True)):
        if taken == scans:
            break
        first = next(simulation.scans(Simulation.index_of(patient_id)))
        if first.visit.motion_mm[0]:
            continue
        visit = replace(first.visit, noise_seed=first.visit.noise_seed + 1)
        second = prepare(replace(first, visit=visit).scan, recipe)
        assert isinstance(second, Prepared)
        hu = cohort.array(scan_id)[CENTRE].astype(np.float32)
        rest, acquired = (hu - second.array[CENTRE]) / np.sqrt(2, dtype=np.float32), hu != -1000
        values[row] = size_and_tails(rest, acquired) + colour(rest, acquired)
        taken += 1
    return values


def simulation_of(cohort: Cohort) -> Simulation:
    """What the patients were drawn by. Raises SystemExit for another edition, whose patients cannot be drawn again."""
    edition, settings = (cohort.about["simulated"][name] for name in ("edition", "simulation"))
    if edition != EDITION:
        raise SystemExit(f"{cohort.path} is of edition {edition} of the generator, which now draws edition {EDITION}")
    return Simulation(**{name: settings[name] for name in ("seed", "site", "prevalence", "twin", "rescan")})


def drawn_of(simulation: Simulation, patients: Iterable[int]) -> dict[str, np.ndarray]:
    """What was drawn (n, some) for each `visit`, for each `patient` beside findings, and how far scalps are swollen."""
    rows: dict[str, list[np.ndarray]] = {"visit": [], "patient": [], "swelling": []}
    for index in patients:
        scanned = next(simulation.scans(index))
        patient, visit = scanned.patient, scanned.visit
        metal, found = metal_of(patient.seed), patient.findings
        told: dict[str, Any] = {
            "metal": (len(metal), sum(m.streaks_hu for m in metal), any(m.place_mm[2] > -60 for m in metal)),
            "surgery": next(((1, f.flap, f.catheter, f.radius_mm) for f in found if isinstance(f, Surgery)), (0,) * 4),
            "bruise": next(((1, f.swelling_mm) for f in found if isinstance(f, Bruise)), (0, 0)),
        }
        told |= asdict(patient.anatomy) | {"sex": patient.anatomy.sex == "M"}
        for what, drawn in (("visit", asdict(visit)), ("patient", told)):
            kept = [
                np.ravel(v) for k, v in drawn.items() if k not in ("protocol", "site", "noise_seed", "seed", "shifts")
            ]
            rows[what].append(np.hstack(kept).astype(float))
        rows["swelling"].append(np.array([max((getattr(f, "swelling_mm", 0.0) for f in found), default=0)]))
    return {what: np.nan_to_num(np.array(values), nan=-99.0) for what, values in rows.items()}  # of what one lacks


def between(value: Callable[[np.ndarray], float], n: int, rounds: int = 400) -> str:
    """A statistic that takes rows, of all of them, with 95 % by bootstrap."""
    rng = np.random.default_rng(0)
    drawn = [value(rng.integers(0, n, n)) for _ in range(rounds)]
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return f"{value(np.arange(n)):.3f} ({low:.3f} to {high:.3f})"


def measured(score: np.ndarray, label: np.ndarray) -> str:
    """AUROC with interval; labels that are empty are left out."""
    known = np.isfinite(label)
    score, positive = score[known], label[known] == 1
    return between(lambda rows: auroc(score[rows], positive[rows]), len(score))


def counted(finding: str, label: np.ndarray) -> dict[str, Any]:
    """The first columns of a row."""
    return {"finding": finding, "n": int(np.isfinite(label).sum()), "pos": int(np.nansum(label))}


def linear() -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=400))


def boosted() -> HistGradientBoostingClassifier:
    return HistGradientBoostingClassifier(max_iter=60, learning_rate=0.06, max_leaf_nodes=7, min_samples_leaf=30)


def show_nuisances(patients: Patients) -> None:
    """(a) Five folds by patient."""
    features = {name: patients.features[name] for name in ("table", "air", "visit", "patient")}
    everyone, some = np.hstack(list(features.values())), {name: patients.features[name] for name in APART}
    some |= {"noise": patients.features["noise"]} if "noise" in patients.features else {}
    if "noise" in some:
        check_folds("(a), noise (--again)", FINDINGS, patients.labels[np.isfinite(some["noise"]).all(axis=1)])
    runs = [(name, boosted) for name in (*features, *some)] + [("all", linear), ("all", boosted)]
    features = features | some | {"all": everyone}
    rows = []
    for column, finding in enumerate(FINDINGS):
        row = counted(finding, patients.labels[:, column])
        for name, make in runs:
            told = np.isfinite(features[name]).all(axis=1)
            known = np.flatnonzero(np.isfinite(patients.labels[:, column]) & told)
            label = patients.labels[known, column]
            score = out_of_fold(make, features[name][known], label, patients.groups[known])
            row[f"{name}, {make.__name__}"] = measured(score, label)
        rows.append(row)
    told = pd.DataFrame(rows).filter(like=", ")
    lows = told.apply(lambda column: column.str.extract(r"\((\S+) ")[0].astype(float))
    said = "; ".join(f"{name}: {above}" for name, above in (lows > 0.5).sum().items())
    lows = lows.drop(columns=[f"{name}, boosted" for name in APART])
    if "noise" in some:
        print(f"noise: of {np.isfinite(some['noise']).all(axis=1).sum()} patients")
    above = f"{(lows > 0.5).sum().sum()} of {lows.size} intervals but those of {' and '.join(APART)} lie above 0.5"
    note = f"{above}; chance alone gives {0.025 * lows.size:.0f} (by column: {said})"
    show("(a) nuisances alone: AUROC in five folds by patient", rows, note)


def out_of_fold(make: Callable[[], Any], x: np.ndarray, label: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Ranks (n,) from 0 to 1 that models of the other four folds give."""
    score = np.empty(len(x))
    for seen, unseen in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(x, label, groups):
        odds = make().fit(x[seen], label[seen]).predict_proba(x[unseen])[:, 1]
        score[unseen] = rankdata(odds) / len(odds)  # levels differ from fold to fold
    return score


def check_folds(what: str, findings: Sequence[str], labels: np.ndarray) -> None:
    """Raises SystemExit where patients with these labels (n, findings) do not fill folds with and without each."""
    fewest = [min(int((of == value).sum()) for value in (0, 1)) for of in labels.T]
    if lacking := [name for name, n in zip(findings, fewest, strict=True) if n < FOLDS]:
        few = f"of {len(labels)} patients fewer than {FOLDS} have, or lack: {', '.join(lacking)}"
        raise SystemExit(f"{what}: {few}; simulate more patients, or leave this out")


def which_were_drawn(people: int) -> np.ndarray:
    """Of fresh patients, 1 for each of `DRAWN` that was drawn for them, else 0 (people, findings)."""
    fresh = map(Simulation(seed=FRESH_SEED).patient, range(people))
    drawn = [{finding.name for finding in patient.findings} for patient in fresh]
    return np.array([[float(finding in one) for finding in DRAWN] for one in drawn])


def show_drawn(people: int) -> None:
    """Whether what was drawn for the visit and the patient tells which findings were drawn; no one is scanned."""
    simulation = Simulation(seed=FRESH_SEED)
    told = drawn_of(simulation, range(people))
    x, groups = np.hstack([told["visit"], told["patient"]]), np.arange(people)
    rows = []
    for finding, label in zip(DRAWN, which_were_drawn(people).T, strict=True):
        models = {make.__name__: measured(out_of_fold(make, x, label, groups), label) for make in (linear, boosted)}
        rows.append(counted(finding, label) | models)
    show("(e) findings that were drawn, by what was drawn for visit and patient: AUROC in five folds by patient", rows)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU(True))


class Net(nn.Module):
    """Convolutions at 4, 8 and 16 mm; the mean and the maximum of each go to one linear layer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(
            nn.Conv3d(len(WINDOWS), 24, (4, 4, 2), 2, (1, 1, 0), bias=False), nn.BatchNorm3d(24), nn.ReLU(True)
        )
        self.middle = nn.Sequential(block(24, 48, 2), block(48, 48))
        self.place = nn.Parameter(torch.zeros(1, 48, 5, 7, 5))  # what is usual where
        self.deep = nn.Sequential(block(48, 96, 2), block(96, 96))
        self.score = nn.Linear(2 * (24 + 48 + 96), len(FINDINGS))

    def levels(self, codes: torch.Tensor, shift_hu: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """At 4, 8 and 16 mm, each (B, C, x, y, z), of bytes (B, X, Y, Z)."""
        shift = torch.zeros(len(codes)) if shift_hu is None else shift_hu
        level, width = torch.tensor(WINDOWS, dtype=torch.float32).T
        hu = torch.tensor(LEVELS_HU, dtype=torch.float32) + shift[:, None]
        shown = ((hu[..., None] - level + width / 2) / width).clamp(0, 1) - 0.3
        machine = choose("auto", "cpu")  # without units for them, half precision is many times slower
        shown = shown.bfloat16() if machine.precision == "bf16" else shown
        image = torch.stack([F.embedding(c.int(), table) for c, table in zip(codes, shown, strict=True)])
        with machine.arithmetic():
            fine = self.stem(image.movedim(-1, 1))
            middle = self.middle(fine)
            middle = middle + F.interpolate(self.place, size=middle.shape[2:], mode="trilinear")
            return fine, middle, self.deep(middle)

    def features(self, codes: torch.Tensor, shift_hu: torch.Tensor | None = None) -> torch.Tensor:
        """(B, F) of bytes (B, X, Y, Z)."""
        return pooled(self.levels(codes, shift_hu))

    def forward(self, codes: torch.Tensor, shift_hu: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, findings)."""
        logits: torch.Tensor = self.score(self.features(codes, shift_hu))
        return logits


def pooled(levels: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, F): the mean and the maximum of each level."""
    parts = [part.movedim(1, -1).flatten(1, 3) for part in levels]
    return torch.cat([v for part in parts for v in (part.mean(1), part.max(1).values)], dim=1).float()


class Told(Net):
    """The same network, which also says of each cell of 8 mm which lesions it holds; the surest cell is scored too."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.where = nn.Conv3d(48 + 96, len(LESIONS), 1)
        nn.init.constant_(self.where.bias, -4.0)  # lesions are rare
        self.surest = nn.Linear(len(LESIONS), len(FINDINGS))

    def answers(self, codes: torch.Tensor, shift_hu: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, findings), and those of cells (B, lesions, x, y, z)."""
        fine, middle, deep = self.levels(codes, shift_hu)
        around = F.interpolate(deep, size=middle.shape[2:], mode="trilinear")
        cells = self.where(torch.cat([middle, around], dim=1)).float()
        return self.score(pooled((fine, middle, deep))) + self.surest(cells.amax(dim=(2, 3, 4))), cells

    def forward(self, codes: torch.Tensor, shift_hu: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, findings)."""
        return self.answers(codes, shift_hu)[0]


Batch = tuple[torch.Tensor, torch.Tensor]


def cropped(codes: torch.Tensor, rng: np.random.Generator | None = None) -> torch.Tensor:
    """What the network sees, moved and mirrored by chance if `rng` is given."""
    start = PLAY if rng is None else tuple(int(v) for v in np.array(PLAY) + rng.integers(-2, 3, 3))
    part = codes[tuple(slice(s, s + n) for s, n in zip(start, CROP, strict=True))]
    return part.flip(0) if rng is not None and rng.uniform() < 0.5 else part


def plain_batches(patients: Patients, rows: np.ndarray, epochs: int, rng: np.random.Generator) -> Iterator[Batch]:
    """All findings of every patient, once an epoch."""
    for _ in range(epochs):
        for part in np.array_split(rng.permutation(rows), len(rows) // 12):
            codes = torch.stack([cropped(patients.codes[row], rng) for row in part])
            yield codes, torch.tensor(patients.labels[part], dtype=torch.float32)


def told_batches(
    patients: Patients, rows: np.ndarray, epochs: int, rng: np.random.Generator
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """As `plain_batches`, and which cells of 8 mm hold some of a lesion: (B, lesions, x, y, z)."""
    values = torch.tensor([CLASSES.index(name) + 1 for name in LESIONS])[:, None, None, None]
    for _ in range(epochs):
        for part in np.array_split(rng.permutation(rows), len(rows) // 12):
            both = [torch.stack([patients.codes[row], torch.from_numpy(patients.classes(row))], -1) for row in part]
            codes, classes = torch.stack([cropped(one, rng) for one in both]).unbind(-1)
            cells = torch.cat([F.max_pool3d((one == values).float()[None], 4) for one in classes])
            yield (codes, torch.tensor(patients.labels[part], dtype=torch.float32)), cells


def blanked(patients: Patients, row: int, other: int) -> torch.Tensor:
    """A scan without its own lesions, nor what lies where another patient has some."""
    codes = patients.codes[row].clone()
    for places in (patients.lesions[row], patients.lesions[other]):
        codes.view(-1)[torch.from_numpy(places).long()] = int(np.abs(LEVELS_HU - BLANK_HU).argmin())
    return codes


def blanked_batches(patients: Patients, rows: np.ndarray, steps: int, rng: np.random.Generator) -> Iterator[Batch]:
    """One finding for each sample: a positive with a negative's lesions blanked too, or the other way round."""
    of = {name: [rows[patients.labels[rows, FINDINGS.index(name)] == value] for value in (0, 1)] for name in LESIONS}
    for _ in range(steps):
        codes, labels = [], torch.full((12, len(FINDINGS)), torch.nan)
        for label in labels:
            name, positive = LESIONS[rng.integers(len(LESIONS))], int(rng.integers(2))
            row, other = rng.choice(of[name][positive]), rng.choice(of[name][1 - positive])
            codes.append(cropped(blanked(patients, row, other), rng))
            label[FINDINGS.index(name)] = positive
        yield torch.stack(codes), labels


def train(net: Net, batches: Iterator[Batch], steps: int, most: float, rng: np.random.Generator) -> Net:
    """By the cross-entropy of what is known, at levels that differ a little from scan to scan."""

    def losses() -> Iterator[torch.Tensor]:
        for codes, labels in batches:
            shift = torch.tensor(rng.normal(0, 1.5, len(codes)), dtype=torch.float32)
            known = labels.isfinite()
            yield F.binary_cross_entropy_with_logits(net(codes, shift)[known], labels[known])

    descend(net, losses(), steps, most)
    return net


def train_told(net: Told, batches: Iterator[tuple[Batch, torch.Tensor]], steps: int, rng: np.random.Generator) -> Told:
    """As `train`, and by the cross-entropy of cells."""

    def losses() -> Iterator[torch.Tensor]:
        for (codes, labels), cells in batches:
            shift = torch.tensor(rng.normal(0, 1.5, len(codes)), dtype=torch.float32)
            logits, where = net.answers(codes, shift)
            known = labels.isfinite()
            loss = F.binary_cross_entropy_with_logits(logits[known], labels[known])
            yield loss + CELLS_WEIGH * F.binary_cross_entropy_with_logits(where, cells)

    descend(net, losses(), steps, 3e-3)
    return net


def descend(net: nn.Module, losses: Iterable[torch.Tensor], steps: int, most: float) -> None:
    """By AdamW and one cycle of the learning rate; each loss is worked out when it is its turn."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    rest = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, most, total_steps=steps, pct_start=0.15)
    started_s = time.process_time()
    net.train()
    for step, loss in enumerate(losses):
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 8) == 0:
            print(f"  step {step} of {steps}, loss {loss:.3f}, {time.process_time() - started_s:.0f} s", flush=True)
    net.eval()


@torch.no_grad()
def passed(run: Callable[[torch.Tensor], torch.Tensor], volumes: Iterable[torch.Tensor]) -> np.ndarray:
    """What `run` says of each volume."""
    return np.concatenate([run(cropped(codes)[None]).numpy() for codes in volumes])


def random_features(patients: Patients, seen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Of every scan, by a network that has learned nothing."""
    net = Net(seed=1)
    with torch.no_grad(), settling(net):
        for codes, _ in plain_batches(patients, seen[:480], 1, rng):
            net.features(codes)
    return passed(net.features, patients.codes)


def show_network(patients: Patients, net: Net, seen: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> None:
    """(c) and (b)."""
    inputs = {name: patients.features[name] for name in ("histogram", "height")}
    inputs["random encoder"] = random_features(patients, seen, rng)
    truth, scores = patients.labels[test], {"network": passed(net, patients.codes[test])}
    for name, x in inputs.items():
        scores[name] = np.zeros(truth.shape)
        for column in range(len(FINDINGS)):
            known = seen[np.isfinite(patients.labels[seen, column])]
            model = linear().fit(x[known], patients.labels[known, column])
            scores[name][:, column] = model.decision_function(x[test])
    rows = [
        counted(finding, truth[:, i]) | {name: measured(score[:, i], truth[:, i]) for name, score in scores.items()}
        for i, finding in enumerate(FINDINGS)
    ]

    def macro(name: str, some: np.ndarray) -> float:
        pairs = zip(scores[name][some].T, truth[some].T, strict=True)
        return float(np.nanmean([auroc(score[k], label[k] == 1) for score, label in pairs if (k := label >= 0).any()]))

    def gain(name: str, some: np.ndarray) -> float:
        return macro("network", some) - macro(name, some)

    n = len(test)
    rows.append({"finding": "macro", "n": n} | {name: between(partial(macro, name), n) for name in scores})
    note = "network " + ", ".join(f"over {name} {between(partial(gain, name), n)}" for name in inputs)
    show(f"(c) AUROC on patients that no model has seen, {len(seen)} to learn from", rows, note)
    show_severity(patients.table.iloc[test], truth, scores["network"])


def show_severity(table: pd.DataFrame, truth: np.ndarray, scores: np.ndarray) -> None:
    """(b), of the rows of `table`."""
    rows = []
    for name, measure in SEVERITY.items():
        column = FINDINGS.index(name)
        sick = np.flatnonzero(truth[:, column] == 1)
        rho = partial(rank_correlation, table[measure].to_numpy()[sick], scores[sick, column])
        rows.append({"finding": name, "severity": measure, "pos": len(sick), "rho": between(rho, len(sick))})
    show("(b) rank correlation of the network's score with severity among positives that it has not seen", rows)


def rank_correlation(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> float:
    """Spearman's."""
    return float(np.corrcoef(rankdata(x[rows]), rankdata(y[rows]))[0, 1]) if len(np.unique(rows)) > 2 else np.nan


def filled(patients: Patients, row: int, finding: str, rim: int) -> torch.Tensor:
    """A scan in which a finding has the nearest healthy values: of bone for a fracture, else of brain or ventricles."""
    classes = patients.classes(row)
    mask = classes == CLASSES.index(finding) + 1
    if not mask.any():
        return patients.codes[row]
    mask = ndimage.binary_dilation(mask, iterations=rim) if rim else mask
    sick = np.zeros(mask.size, dtype=bool)
    sick[patients.lesions[row]] = True
    tissue = classes == SKULL if finding == "fracture" else (classes > 0) & (classes < SKULL)
    healthy = tissue & ~sick.reshape(mask.shape)
    if rim:
        mask &= (classes == SKULL) | (classes >= FIRST_LESION) if finding == "fracture" else classes != SKULL
    box = tuple(slice(max(0, c.start - 15), c.stop + 15) for c in ndimage.find_objects(mask.astype(int))[0])
    box = box if healthy[box].any() else (slice(None),) * 3
    nearest = ndimage.distance_transform_edt(~healthy[box], return_distances=False, return_indices=True)
    codes = patients.codes[row].numpy().copy()
    codes[box][mask[box]] = codes[box][tuple(nearest)][mask[box]]
    return torch.from_numpy(codes)


def show_blanked(patients: Patients, net: Net, strict: Net, test: np.ndarray, rng: np.random.Generator) -> None:
    """(d) Filled lesions for the network of (c), blanked ones for one that was trained on such."""
    rows = []
    for name in LESIONS:
        column, value = FINDINGS.index(name), CLASSES.index(name) + 1
        sick, well = (test[patients.labels[test, column] == label] for label in (1, 0))
        label = np.repeat([1.0, 0.0], [len(sick), len(well)])
        below = passed(net, patients.codes[well])[:, column]
        row = {"finding": name, "pushes": "yes" if name in PUSHING else "no", "neg": len(well), "pos": len(sick)}
        row["with mask"] = sum((patients.classes(i) == value).any() for i in sick)
        for how, rim in {"as it is": None, "filled": 0, "filled wider": RIM}.items():
            volumes = (patients.codes[i] if rim is None else filled(patients, i, name, rim) for i in sick)
            row[how] = measured(np.concatenate([passed(net, volumes)[:, column], below]), label)
        pairs = [(i, rng.choice(well)) for i in sick] + [(i, rng.choice(sick)) for i in well]
        row["trained on blanked"] = measured(passed(strict, (blanked(patients, *p) for p in pairs))[:, column], label)
        rows.append(row)
    title = (
        "(d) AUROC with lesions taken away: filled from around, as they are or wider by 4 mm, for the network of (c);"
    )
    note = "chance is to be expected only where nothing is pushed aside and no companion remains"
    show(f"{title} all blanked, for one that was trained so", rows, note)


def parted(patients: Patients, cohorts: Sequence[Path], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from and to be tested on: those of `cohorts`, or where there are none a quarter of the patients."""
    if cohorts:
        tested = np.array([path in cohorts for path, _scan_id in patients.places])
    else:
        people = rng.permutation(np.unique(patients.groups))
        tested = np.isin(patients.groups, people[: len(people) // 4])
    return np.flatnonzero(~tested), np.flatnonzero(tested)


def show_networks(patients: Patients, options: argparse.Namespace, rng: np.random.Generator) -> None:
    """(b) to (d)."""
    seen, test = parted(patients, options.test, rng)
    for part, rows in (("to learn from", seen), ("to be tested on", test)):
        lacking = [name for name, of in zip(FINDINGS, patients.labels[rows].T, strict=True) if {*of} & {0, 1} != {0, 1}]
        if lacking:
            raise SystemExit(
                f"of the {len(rows)} patients {part} all or none have: {', '.join(lacking)}; simulate more"
            )
    steps = options.epochs * (len(seen) // 12)
    net: Net
    if options.told:
        net = train_told(Told(), told_batches(patients, seen, options.epochs, rng), steps, rng)
    else:
        net = train(Net(), plain_batches(patients, seen, options.epochs, rng), steps, 3e-3, rng)
    if options.out:
        torch.save(net.state_dict(), options.out)
    show_network(patients, net, seen, test, rng)
    if options.blanked_steps:
        strict = type(net)()
        strict.load_state_dict(net.state_dict())  # what it has learned of lesions helps it to find their traces
        batches = blanked_batches(patients, seen, options.blanked_steps, rng)
        show_blanked(patients, net, train(strict, batches, options.blanked_steps, 1e-3, rng), test, rng)


def count(text: str) -> int:
    """At least 0."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def writable(text: str) -> Path:
    """A file in a folder that is there, to be known before hours are spent."""
    if not (path := Path(text)).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}")
    return path


def main() -> None:
    """Print one table after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("cohorts", type=Path, nargs="+", help="of `headct simulate --masks`, with the recipe head")
    parser.add_argument("--test", type=Path, nargs="+", default=[], help="cohorts to be tested on alone, not a quarter")
    parser.add_argument("--epochs", type=count, default=8, help="of training; 0 leaves (b) to (d), the networks, out")
    parser.add_argument(
        "--blanked-steps",
        type=count,
        default=600,
        help="on blanked lesions; 0 leaves (d), where lesions are taken away, out",
    )
    parser.add_argument("--again", type=count, default=600, help="scans of each cohort taken twice, for noise")
    parser.add_argument("--told", action="store_true", help="train with masks of lesions beside labels")
    parser.add_argument("--out", type=writable, help="a file for the network's weights")
    parser.add_argument(
        "--nuisances",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether to show (a), what nuisances say",
    )
    parser.add_argument(
        "--fresh",
        type=count,
        default=0,
        help="patients who are not scanned, for (e), what was drawn for them; 0 leaves it out",
    )
    parser.add_argument("--threads", type=int, default=1, help="of a processor")
    options = parser.parse_args()
    for name in ("out", "test"):
        if getattr(options, name) and not options.epochs:
            parser.error(f"--{name}: with --epochs 0 no network is trained; leave out one of the two")
    if not (options.nuisances or options.epochs or options.fresh):
        parser.error("--no-nuisances, --epochs 0 and no --fresh: nothing is left to show")
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    cohorts = [*options.cohorts, *options.test]
    for path in cohorts:
        check(path, masks=True)
    scanned = [name for path in cohorts for name in Cohort(path).scans["patient_id"]]
    if len(set(scanned)) < len(scanned):
        parser.error("give each patient once: intervals are over scans, and who is learned from must not be tested on")
    if options.nuisances:
        told = pd.concat([labels_of(Cohort(path)) for path in cohorts])
        check_folds("(a), nuisances", FINDINGS, told[list(FINDINGS)].to_numpy(dtype=float))
    if options.fresh:
        check_folds("(e), --fresh", DRAWN, which_were_drawn(options.fresh))
    patients, rng = load(cohorts, options.again if options.nuisances else 0), np.random.default_rng(0)
    print(f"{len(patients.places)} patients, {time.process_time():.0f} s; networks on {choose('auto', 'cpu')}")
    if options.nuisances:
        show_nuisances(patients)
    if options.fresh:
        show_drawn(options.fresh)
    if options.epochs:
        show_networks(patients, options, rng)
    print(f"{time.process_time():.0f} s of the processor")


if __name__ == "__main__":
    main()
