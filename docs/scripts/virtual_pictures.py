"""Draws the contact sheets of docs/explanation/virtual-patients.md: `python docs/scripts/virtual_pictures.py`.

Twelve patients for each finding, who have it alone, drawn one after the other and not chosen, at the slice that holds
most of it, in each window. What follows from other findings is shown with one of these alone, at the slice that holds
most of that, or of the ventricles for what moves them; patients in whom it does not follow are passed over. Takes
some minutes a sheet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from headct.virtual.acquisition import Acquisition
from headct.virtual.findings.mixture import one_of
from headct.virtual.patient import Patient
from headct.virtual.simulated import Simulated
from headct.virtual.sites import SITES

FOLDER = Path(__file__).resolve().parents[1] / "explanation" / "virtual-patients"
WINDOWS = {"brain": (35.0, 80.0), "subdural": (60.0, 200.0), "bone": (600.0, 2800.0)}  # level and width
SHEETS = {
    "bleeding": ("iph", "ivh", "sah", "sdh", "edh"),
    "tissue": ("tumor", "edema", "infarct"),
    "form": ("hydrocephalus", "dementia", "fracture"),
    "pushed": ("mass_effect", "midline_shift"),
}
CAUSES = dict.fromkeys(SHEETS["pushed"], ("sdh", "iph", "tumor", "edh", "infarct"))
"""Of what follows from another finding: by turns."""
BY_VENTRICLES = ("dementia", "midline_shift")
"""Which show best where most of the ventricles is."""
PATIENTS, PIXEL_MM, SIDE_PX = 12, 1.2, 120
TAKE_TURNS = ("site-a", "site-b", "site-a", "site-d")
PAPER, INK = (24, 24, 26), (235, 235, 235)


def cause_of(name: str, number: int) -> str:
    """The finding that is drawn."""
    causes = CAUSES.get(name, (name,))
    return causes[number % len(causes)]


def patients_of(name: str) -> Iterator[tuple[int, Simulated]]:
    """Patients who have this finding, be it hardly to be seen, with their numbers."""
    known = [one for names in SHEETS.values() for one in names]
    for number in count():
        seed, cause = 1000 * number + known.index(name), cause_of(name, number)
        patient = Patient(seed, Patient.draw(seed, prevalence={}).anatomy, (one_of(cause, seed),))
        visit = Acquisition.draw(seed, SITES[TAKE_TURNS[number % len(TAKE_TURNS)]]).coarsened(PIXEL_MM)
        simulated = Simulated(patient, visit, f"{name}-{number}", "1", tissues=name in BY_VENTRICLES)
        if simulated.labels.findings[name] != 0:
            yield number, simulated


def slice_of(number: int, simulated: Simulated, name: str) -> np.ndarray:
    """Values (rows, cols) of the slice that holds most of a finding."""
    taken = simulated.taken
    filled = taken.tissues["ventricles"] if name in BY_VENTRICLES else taken.shares[cause_of(name, number)]
    amount = filled.sum(axis=(1, 2), dtype=np.float64)
    values: np.ndarray = simulated.scan.hu[int(amount.argmax())]
    return values


def picture(hu: np.ndarray, window: tuple[float, float]) -> Image.Image:
    """Values in a window, as a square picture."""
    level, width = window
    grey = np.clip((hu - level) / width + 0.5, 0, 1) * 255
    margin = round(0.03 * len(hu))
    cut = grey[margin:-margin, margin:-margin].round().astype(np.uint8)
    return Image.fromarray(cut).resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS).convert("RGB")


def row_of(name: str, patients: list[tuple[int, Simulated]], window: str) -> Image.Image:
    """One line of a sheet; a point marks who has no label of the finding, for it can hardly be seen."""
    line = Image.new("RGB", (PATIENTS * (SIDE_PX + 4), SIDE_PX + 22), PAPER)
    draw = ImageDraw.Draw(line)
    draw.text((4, 2), f"{name}, {window} window", fill=INK, font=ImageFont.load_default(13))
    for place, (number, simulated) in enumerate(patients):
        left = place * (SIDE_PX + 4)
        line.paste(picture(slice_of(number, simulated, name), WINDOWS[window]), (left, 20))
        if simulated.labels.findings[name] != 1:
            draw.ellipse((left + 5, 25, left + 11, 31), fill=INK)
    return line


def sheet_of(rows: list[Image.Image]) -> Image.Image:
    """Lines below each other."""
    page = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), PAPER)
    for index, row in enumerate(rows):
        page.paste(row, (0, index * row.height))
    return page


def main(folder: Path = FOLDER) -> None:
    """Write every sheet."""
    torch.set_num_threads(1)  # a second one only waits: a slice is some hundred short operations
    folder.mkdir(parents=True, exist_ok=True)
    for sheet, names in SHEETS.items():
        rows: dict[str, list[Image.Image]] = {window: [] for window in WINDOWS}
        for name in names:
            patients = list(islice(patients_of(name), PATIENTS))
            for window, lines in rows.items():
                lines.append(row_of(name, patients, window))
        for window, lines in rows.items():
            sheet_of(lines).save(folder / f"{sheet}-{window}.webp", quality=82)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
