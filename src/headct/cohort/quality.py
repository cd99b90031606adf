"""The quality page of a cohort: what was found, how it looks, what was rejected and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from headct.cohort.cohort import Cohort
from headct.cohort.journal import expect_writable, refused
from headct.preparing import windows
from headct.preparing.recipe import Recipe, Windows
from headct.reading.pixels import CODECS
from headct.reporting.charts import histogram, tallies
from headct.reporting.intake import Intake, flow_of_files, rejections_by_reason, what_to_do, what_was_found
from headct.reporting.page import Page, Provenance, Section, check_place, software_versions
from headct.reporting.pictures import View, Window, montage
from headct.reporting.tables import Column, table
from headct.reporting.words import NOT_STATED, count, is_missing, joined, number, sentence_case, visible
from headct.scan import FLAGS

PICTURES_BYTES = 8_000_000
"""What all pictures may weigh before base64, so that a page of 1,000 scans stays under 15 MB."""
LEAST_BYTES, MOST_BYTES = 6_000, 60_000
"""What the pictures of one scan are given at least and at most, whatever the number of scans."""
MANY_SCANS = 150
"""Up to this many scans are drawn at `FINE_MM` a pixel where the array holds as much, more at `COARSE_MM`."""
FINE_MM, COARSE_MM = 1.0, 2.0
EVEN_MM = 0.05
"""Gaps that differ by less are written as one."""
NAMED_WINDOWS = [Window(name, *levels) for name, levels in windows.WINDOWS.items()]


def write_page(cohort: Cohort, out: Path, *, virtual: bool = False) -> None:
    """Write the page to `out`: one self-contained HTML file that depends on nothing but the cohort.

    `virtual` says that its patients are, on the page and under every figure. Raises Misuse where `out` is not the
    place for a page, Failure where it cannot be written.
    """
    check_place(out)
    expect_writable(out)
    intake = Intake(cohort.scans, cohort.rejections, cohort.files)
    page = Page(
        title=_title(visible(cohort.path.resolve().name)),
        kind="quality of a cohort",
        answer=[*what_was_found(intake), *_worth_a_look(intake.scans)],
        to_do=what_to_do(intake),
        sections=[
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
            *_of_scans(cohort),
        ],
        provenance=_provenance(cohort),
        virtual=virtual,
    )
    try:
        page.write(out)
    except OSError as error:
        raise refused(out, error) from error


def _title(name: str) -> str:
    """`Cohort night`; a folder that is called cohort says so itself."""
    return sentence_case(name) if name.lower().startswith("cohort") else f"Cohort {name}"


def _of_scans(cohort: Cohort) -> Iterator[Section]:
    """The sections that need at least one accepted scan."""
    if len(cohort) == 0:
        return
    yield Section(
        title="What the scans are",
        lead=f"How the {count(len(cohort), 'accepted scan')} were acquired, before anything was resampled.",
        body=distributions(cohort.scans),
    )
    yield Section(
        title="How the scans look",
        lead="The three middle slices of every prepared array, all at one scale. The patient's right is on your left "
        "in axial and coronal slices; sagittal slices look to your left. Select a strip to enlarge it.",
        body=_gallery(cohort),
    )
    yield Section(
        title="All accepted scans",
        lead="One row a scan, as in the cohort's own table. Select a header to sort by it.",
        body=scans_table(cohort.scans),
    )


def _worth_a_look(scans: pd.DataFrame) -> Iterator[str]:
    """How many scans are alternates, and which flags say that something was repaired or is unusual."""
    alternates = int((~scans["preferred"]).sum())
    if alternates:
        yield (
            f"{count(alternates, 'scan is an alternate', 'scans are alternates')}: another series of the same study "
            "is preferred when only one is taken."
        )
    flagged = flag_counts(scans)
    if flagged:
        most = sorted(flagged.items(), key=lambda item: (-item[1], item[0]))[:4]
        listed = joined([f"{flag} ({n:,})" for flag, n in most])
        yield f"{count(_flagged(scans), 'scan carries', 'scans carry')} a flag worth a look, most often {listed}."


def _flagged(scans: pd.DataFrame) -> int:
    """How many scans carry any flag."""
    return int(scans["flags"].map(len).gt(0).sum())


def flag_counts(scans: pd.DataFrame) -> dict[str, int]:
    """How many scans carry each flag, by name."""
    counts = scans["flags"].explode().dropna().value_counts()
    return {str(flag): int(counts[flag]) for flag in sorted(counts.index)}


def distributions(scans: pd.DataFrame) -> Markup:
    """Small multiples: geometry, coverage, scanner and protocol of the accepted scans, and their flags."""
    scanner = (scans["manufacturer"].fillna("") + " " + scans["model"].fillna("")).str.strip()
    kvp = scans["kvp"].map(lambda value: "" if is_missing(value) else f"{value:g} kV")
    contrast = scans["contrast"].map(lambda value: "" if is_missing(value) else "given" if value else "none")
    plots = [
        histogram(scans["gap_median_mm"], title="Gap between slices, median", unit="mm"),
        histogram(scans["gap_max_mm"], title="Gap between slices, largest", unit="mm"),
        histogram(scans["thickness_mm"], title="Slice thickness", unit="mm"),
        histogram(scans["pixel_mm"], title="Pixel spacing", unit="mm"),
        histogram(scans["slices"], title="Slices"),
        histogram(scans["tilt_deg"], title="Gantry tilt", unit="°"),
        histogram(100 * scans["coverage"], title="Brain covered", unit="%", highest=100),
        histogram(scans["age"], title="Age", unit="years"),
        _tally(scanner, "Scanner"),
        _tally(scans["kernel"], "Kernel"),
        _tally(kvp, "Tube voltage"),
        _tally(contrast, "Contrast agent"),
        _tally(scans["source"], "Format"),
        _tally(scans["transfer_syntax"].map(_syntax_name), "Transfer syntax"),
        _tally(scans["site"], "Site"),
        tallies(flag_counts(scans), title="Flags", caption=f"on {_flagged(scans):,} of {count(len(scans), 'scan')}"),
    ]
    return Markup('<div class="plots">{}</div>').format(Markup("").join(plots))


def _syntax_name(uid: object) -> str:
    """What a transfer syntax is called; the UID of one that reading does not know."""
    return CODECS[str(uid)].name if uid in CODECS else "" if is_missing(uid) else str(uid)


def _tally(words: pd.Series, title: str) -> Markup:
    counts = words.fillna("").astype(str).value_counts()
    return tallies({str(word): int(n) for word, n in counts.items()}, title=title)


def scans_table(scans: pd.DataFrame) -> Markup:
    """A row for each scan, with what a reader sorts by."""
    columns = [
        Column(key="scan_id", header="Scan", write=_identifier),
        Column(key="patient_id", header="Patient", write=_identifier),
        Column(key="site", header="Site"),
        Column(key="manufacturer", header="Manufacturer"),
        Column(key="model", header="Model"),
        Column(key="kernel", header="Kernel"),
        Column(key="kvp", header="Voltage", unit="kV", decimals=0),
        Column(key="slices", header="Slices", decimals=0),
        Column(key="pixel_mm", header="Pixel", unit="mm", decimals=3),
        Column(key="gap_min_mm", header="Least gap", unit="mm", decimals=2),
        Column(key="gap_median_mm", header="Median gap", unit="mm", decimals=2),
        Column(key="gap_max_mm", header="Largest gap", unit="mm", decimals=2),
        Column(key="thickness_mm", header="Thickness", unit="mm", decimals=2),
        Column(key="tilt_deg", header="Tilt", unit="°", decimals=1),
        Column(key="coverage", header="Coverage", unit="%", decimals=0),
        Column(key="preferred", header="Choice", write=lambda value: "preferred" if value else "alternate"),
        Column(key="flags", header="Flags", write=", ".join),
    ]
    in_percent = scans.assign(coverage=100 * scans["coverage"])
    return table(in_percent, columns, f"{count(len(scans), 'accepted scan')}")


def _identifier(value: object) -> Markup:
    return Markup('<span class="id">{}</span>').format(NOT_STATED if is_missing(value) else visible(str(value)))


def _gallery(cohort: Cohort) -> Markup:
    """Every accepted scan with its pictures, and switches for the window and for what is listed."""
    limit_bytes = int(np.clip(PICTURES_BYTES / len(cohort), LEAST_BYTES, MOST_BYTES))
    least_mm = FINE_MM if len(cohort) <= MANY_SCANS else COARSE_MM
    items = Markup("").join(_card(row, cohort, limit_bytes, least_mm) for row in cohort.scans.to_dict("records"))
    return Markup('<div class="gallery">{}{}<ol class="scans">{}</ol></div>').format(
        _window_switch(cohort.recipe), _listing_switch(cohort.scans), items
    )


def _window_switch(recipe: Recipe) -> Markup:
    names = [] if _several_windows(recipe) else [window.name for window in NAMED_WINDOWS]
    return _switch("Window", "show", ["all", *names], ["all", *names]) if names else Markup("")


def _listing_switch(scans: pd.DataFrame) -> Markup:
    some = {"flagged": _flagged(scans), "alternate": int((~scans["preferred"]).sum())}
    offered = {name: n for name, n in some.items() if 0 < n < len(scans)}
    if not offered:
        return Markup("")
    labels = [f"all {len(scans):,}", *(f"{name} {n:,}" for name, n in offered.items())]
    return _switch("Scans", "only", ["all", *offered], labels)


def _switch(legend: str, name: str, values: list[str], labels: list[str]) -> Markup:
    """Radio buttons, the first one chosen; the style sheet acts on which is checked."""
    buttons = Markup("").join(
        Markup('<label><input type="radio" name="{0}" id="{0}-{1}"{3}>{2}</label>').format(
            name, value, label, Markup(" checked") if index == 0 else Markup("")
        )
        for index, (value, label) in enumerate(zip(values, labels, strict=True))
    )
    return Markup('<fieldset class="switch"><legend>{}</legend>{}</fieldset>').format(legend, buttons)


def _card(row: Mapping[Any, Any], cohort: Cohort, limit_bytes: int, least_mm: float) -> Markup:
    scan_id = row["scan_id"]
    spacing_mm, views = seen(cohort.array(scan_id), cohort.affine(scan_id), cohort.recipe)
    pictures = montage(
        views,
        spacing_mm,
        subject=f"scan {visible(scan_id)}",
        mm_per_pixel=max(least_mm, min(spacing_mm)),
        limit_bytes=limit_bytes,
    )
    kinds = "scan" + (" flagged" if len(row["flags"]) else "") + ("" if row["preferred"] else " alternate")
    alternate = Markup("") if row["preferred"] else Markup(' <span class="tag">alternate</span>')
    return Markup('<li class="{}"><h3><span class="id">{}</span>{}</h3><p>{}</p>{}{}</li>').format(
        kinds, visible(scan_id), alternate, acquisition(row), pictures, _flags(row["flags"])
    )


def acquisition(row: Mapping[Any, Any]) -> str:
    """How a scan was acquired, in one line: who, on what, spacing, thickness, tilt, coverage. Unknowns are left out."""
    known = {key: value for key, value in row.items() if not is_missing(value)}
    scanner = " ".join(visible(known[key]) for key in ("manufacturer", "model", "kernel") if key in known)
    parts = [
        f"patient {visible(known['patient_id'])}" if "patient_id" in known else "",
        f"{known['age']:.0f} years" if "age" in known else "",
        known.get("sex", ""),
        scanner or "scanner not stated",
        f"{count(row['slices'], 'slice')} of {row['rows']} × {row['cols']}",
        f"pixel {number(row['pixel_mm'], 2)} mm",
        f"gap {_gaps(known)} mm" if "gap_median_mm" in known else "",
        f"thickness {number(known['thickness_mm'], 2)} mm" if "thickness_mm" in known else "",
        f"tilt {number(row['tilt_deg'], 1)}°",
        f"{100 * known['coverage']:.0f} % of the brain covered" if "coverage" in known else "",
    ]
    return " · ".join(part for part in parts if part)


def _gaps(row: Mapping[Any, Any]) -> str:
    """One distance where slices are evenly spaced, else the range and the median."""
    least, median, largest = (row[f"gap_{name}_mm"] for name in ("min", "median", "max"))
    if largest - least <= EVEN_MM:
        return number(median, 2)
    return f"{number(least, 2)} to {number(largest, 2)} (median {number(median, 2)})"


def _flags(flags: list[str]) -> Markup:
    """Each flag with what it means."""
    if not len(flags):
        return Markup("")
    entries = Markup("").join(
        Markup("<div><dt>{}</dt> <dd>{}</dd></div>").format(flag, FLAGS.get(flag, "not known to this version"))
        for flag in flags
    )
    return Markup("<dl>{}</dl>").format(entries)


def seen(array: np.ndarray, affine: np.ndarray, recipe: Recipe) -> tuple[tuple[float, float, float], list[View]]:
    """What of a prepared array can be looked at: spacing (x, y, z) in mm and views in HU, RAS.

    Our own recipes hold HU, shown in the three named windows; so do published ones with a single wide window, once
    it is undone. Those with several windows hold no more than these, and each is shown in its own.
    """
    order, signs = _to_ras(recipe.axes)
    steps_mm = np.linalg.norm(affine[:3, :3], axis=0)
    spacing_mm = (float(steps_mm[order[0]]), float(steps_mm[order[1]]), float(steps_mm[order[2]]))
    step = recipe.step(Windows)
    if step is None:
        volume = array if array.ndim == 3 else array[0]
        return spacing_mm, [View(window, _turned(volume, order, signs)) for window in NAMED_WINDOWS]
    channels = array if step.stacked_along == "channel" else np.split(array[0], len(step.windows))
    in_hu = [
        _turned(np.asarray(channel, dtype=np.float32) * width + (level - width / 2), order, signs)
        for channel, (level, width) in zip(channels, step.windows, strict=True)
    ]
    if not _several_windows(recipe):
        return spacing_mm, [View(window, in_hu[0]) for window in NAMED_WINDOWS]
    return spacing_mm, [View(_named(*levels), hu) for levels, hu in zip(step.windows, in_hu, strict=True)]


def _several_windows(recipe: Recipe) -> bool:
    step = recipe.step(Windows)
    return step is not None and len(step.windows) > 1


def _named(level_hu: int, width_hu: int) -> Window:
    """The window by its name where it has one."""
    nameless = Window("", level_hu, width_hu)
    return next((window for window in NAMED_WINDOWS if window[1:] == nameless[1:]), nameless)


def _to_ras(axes: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For axes such as `SPL`: which of them become x, y, z, and -1 where one has to be turned round."""
    pairs = ("RL", "AP", "SI")
    x, y, z = (next(index for index, letter in enumerate(axes) if letter in pair) for pair in pairs)
    a, b, c = (1 if axes[index] == pair[0] else -1 for index, pair in zip((x, y, z), pairs, strict=True))
    return (x, y, z), (a, b, c)


def _turned(volume: np.ndarray, order: tuple[int, int, int], signs: tuple[int, int, int]) -> np.ndarray:
    a, b, c = signs
    return volume.transpose(order)[::a, ::b, ::c]


def _provenance(cohort: Cohort) -> Provenance:
    about, recipe = cohort.about, cohort.recipe
    settings: dict[str, object] = {"recipe": recipe.name, "recipe id": recipe.id, "array": _array_words(recipe)}
    settings["recipe steps"] = json.dumps(json.loads(recipe.to_json())["steps"])
    terms = ("criteria", "pseudonyms", "hashed_paths")
    settings |= {name.replace("_", " "): _written(about[name]) for name in terms if name in about}
    digests = {f"{name}.parquet": entry["sha256"] for name, entry in about["tables"].items()}
    made_by = {f"{name} (cohort)": found for name, found in about["software"].items()}
    drawn_by = {f"{name} (page)": found for name, found in software_versions("headct", "pillow", "jinja2").items()}
    return Provenance(settings=settings, hashes=digests, versions=made_by | drawn_by)


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _array_words(recipe: Recipe) -> str:
    shape = "shape differs from scan to scan" if recipe.shape is None else " × ".join(map(str, recipe.shape))
    spacing = "" if recipe.spacing_mm is None else f", {' × '.join(f'{mm:g}' for mm in recipe.spacing_mm)} mm"
    return f"{recipe.dtype}, {shape}{spacing}, axes towards {recipe.axes}"
