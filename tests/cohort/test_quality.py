"""The page of a cohort that the cohort's own writer made: everything on it, safe, repeatable, light enough.

Oracles: the tables of the cohort, and for the pictures the plane of the array that the convention names.
"""

from __future__ import annotations

import base64
import errno
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headct.cli.app import run
from headct.cohort import Cohort, publish, quality
from headct.cohort.publish import Content
from headct.cohort.quality import seen, write_page
from headct.cohort.shards import pack, shard_bytes
from headct.cohort.tables import SCANS
from headct.failure import Failure
from headct.preparing import windows
from headct.preparing.recipe import Recipe, recipes
from headct.scan import FLAGS, Rejection
from headct.virtual.phantom import Phantom

NASTY = "<script>alert('x')</script>"
AFFINE = np.array([[2.0, 0, 0, -95], [0, 2, 0, -111], [0, 0, 2, -100], [0, 0, 0, 1]])
REJECTIONS = (
    Rejection.because("no-head", "no ring of bone", ("in/chest/1", "in/chest/2")),
    Rejection.because("damaged", "ends after 3 bytes", (f"in/{NASTY}.dcm",)),
    Rejection.because("damaged", "has no preamble", ("in/\u202egpj.dcm",)),
)


@pytest.fixture(scope="module")
def heads() -> list[np.ndarray]:
    """Two virtual heads as the default recipe prepares them: (96, 112, 96) int16 at 2 mm."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (96, 112, 96)), indexing="ij"), axis=-1)
    points_mm = grid @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    return [Phantom(seed).hu_at(points_mm).astype(np.int16) for seed in (1, 2)]


def row(index: int, crc32: int, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(SCANS.names)
    values |= {"scan_id": f"{index:016x}", "patient_id": f"patient-{index // 2}", "study_id": "s", "source": "dicom"}
    values |= {"manufacturer": "SIEMENS", "model": f"SOMATOM {NASTY}", "kernel": "H31s", "kvp": 120.0, "age": 63.0}
    values |= {"slices": 30, "rows": 512, "cols": 512, "pixel_mm": 0.45, "thickness_mm": 5.0, "tilt_deg": 18.5}
    values |= {"gap_min_mm": 4.0, "gap_median_mm": 4.0, "gap_max_mm": 7.0, "coverage": 0.98}
    values |= {"transfer_syntax": "1.2.840.10008.1.2.4.80", "flags": ["tilt", "uneven"], "preferred": True}
    values |= {"shard": "000000.b2nd", "index": index, "crc32": crc32, "affine": AFFINE.ravel().tolist()}
    return values | changes


def cohort(
    folder: Path,
    arrays: list[np.ndarray],
    rejections: tuple[Rejection, ...] = REJECTIONS,
    recipe: Recipe = recipes["head"],
    changes: tuple[dict[str, Any], ...] = (),
) -> Cohort:
    """A cohort on disk, a file for each scan."""
    packed = [pack(array) for array in arrays]
    (folder / "volumes").mkdir(parents=True)
    if packed:
        (folder / "volumes" / "000000.b2nd").write_bytes(shard_bytes(packed, len(packed)))
    scans = tuple(row(i, one.crc32, **(changes[i] if changes else {})) for i, one in enumerate(packed))
    files = [(f"in/scans/{scan['scan_id']}", scan["scan_id"]) for scan in scans]
    files += [(name, rejection.code) for rejection in rejections for name in rejection.files]
    content = Content(
        scans=scans,
        rejections=tuple({**vars(rejection), "files": list(rejection.files)} for rejection in rejections),
        files=tuple({"path": path, "bytes": 9, "outcome": outcome} for path, outcome in files),
        shards=1 if packed else 0,
    )
    about = {
        "recipe": {"id": recipe.id, "name": recipe.name, "content": json.loads(recipe.to_json())},
        "criteria": {"contrast": "none"},
        "pseudonyms": "none",
    }
    publish.write(folder, content, about)
    return Cohort(folder)


def page(of: Cohort, out: Path) -> str:
    write_page(of, out)
    return out.read_text(encoding="utf-8")


def test_everything_is_on_the_page(tmp_path: Path, heads: list[np.ndarray]) -> None:
    changes = ({}, {"preferred": False, "flags": []})
    html = page(cohort(tmp_path / "night", heads, changes=changes), tmp_path / "page.html")
    assert "<h1>Cohort night</h1>" in html
    assert "2 scans of 1 patient were accepted, from 6 files." in html
    assert "3 series or single files were rejected" in html
    assert "1 scan is an alternate" in html
    for scan_id in ("0000000000000000", "0000000000000001"):
        assert html.count(f"slices of scan {scan_id}, ") == 3
    for window in ("brain 40/80", "subdural 80/200", "bone 600/2800"):
        assert html.count(f"<figcaption>{window}</figcaption>") == 2
    assert html.count('<span class="tag">alternate</span>') == 1
    assert html.count(f"<dt>tilt</dt> <dd>{FLAGS['tilt']}</dd>") == 1
    assert "gap 4.00 to 7.00 (median 4.00) mm" in html
    assert "tilt 18.5°" in html
    assert "98 % of the brain covered" in html
    assert "JPEG-LS lossless" in html
    for rejection in REJECTIONS:
        assert rejection.sentence in html
        assert f'<details id="rejected-{rejection.code}">' in html
    assert recipes["head"].id in html


def test_a_cohort_that_is_called_so_is_not_called_so_twice(tmp_path: Path) -> None:
    assert "<h1>Cohort</h1>" in page(cohort(tmp_path / "cohort", []), tmp_path / "page.html")


def test_hostile_names_stay_names(tmp_path: Path, heads: list[np.ndarray]) -> None:
    html = page(cohort(tmp_path / NASTY.replace("/", ":"), heads), tmp_path / "page.html")
    assert html.count("<script>") == 1  # the page's own
    assert "\u202e" not in html
    assert "in/\\u202egpj.dcm" in html


def test_the_same_cohort_gives_the_same_bytes_wherever_it_lies(tmp_path: Path, heads: list[np.ndarray]) -> None:
    pages = [page(cohort(tmp_path / place / "night", heads), tmp_path / place / "page.html") for place in ("a", "b")]
    assert pages[0] == pages[1]


def test_pictures_show_the_middle_slices_as_a_radiologist_sees_them(tmp_path: Path, heads: list[np.ndarray]) -> None:
    html = page(cohort(tmp_path / "night", heads[:1]), tmp_path / "page.html")
    encoded = re.search(r'w-brain"><span class="ct"><img src="data:image/webp;base64,([^"]+)"', html)
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded[1]))).convert("L")).astype(float)
    axial = 255 * windows.apply(heads[0], [windows.WINDOWS["brain"]])[0][::-1, ::-1, 48].T
    assert strip.shape == (112, 96 + 96 + 112)
    assert np.corrcoef(strip[:, :96].ravel(), axial.ravel())[0, 1] > 0.99  # WebP loses a little
    assert np.corrcoef(strip[:, :96].ravel(), axial[:, ::-1].ravel())[0, 1] < 0.98  # the mirrored head fits worse


def test_a_cohort_without_scans_says_what_became_of_the_files(tmp_path: Path) -> None:
    html = page(cohort(tmp_path / "night", []), tmp_path / "page.html")
    assert "No scan was accepted, from 4 files." in html
    assert "How the scans look" not in html


def test_a_cohort_without_rejections(tmp_path: Path, heads: list[np.ndarray]) -> None:
    html = page(cohort(tmp_path / "night", heads, rejections=()), tmp_path / "page.html")
    assert "Nothing was rejected." in html


def test_headers_that_say_little(tmp_path: Path, heads: list[np.ndarray]) -> None:
    silent = dict.fromkeys(("manufacturer", "model", "kernel", "transfer_syntax", "sex", "site"), "")
    silent |= dict.fromkeys(("kvp", "age", "coverage", "gap_min_mm", "gap_median_mm", "gap_max_mm"))
    html = page(cohort(tmp_path / "night", heads[:1], changes=(silent,)), tmp_path / "page.html")
    assert "scanner not stated" in html
    assert "· gap" not in html
    assert not re.search(r"\b(nan|None|NaT)\b", html)


def ras_head(shape: tuple[int, int, int]) -> np.ndarray:
    """HU that grow towards right, front and top, all within every window: (X, Y, Z)."""
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return (28.5 + 4 * x + 2 * y + z).astype(np.float32)


@pytest.mark.parametrize("name", ["fm-hct", "ct-fm-pretrain", "ct-fm-head"])
def test_published_arrays_are_turned_back_and_their_windows_undone(name: str) -> None:
    recipe = recipes[name]
    hu = ras_head((6, 8, 10))
    stored = hu if recipe.axes == "RAS" else hu.transpose(2, 1, 0)[:, ::-1, ::-1]  # SPL
    step = next(step for step in recipe.steps if hasattr(step, "windows"))
    channels = windows.apply(stored, step.windows).astype(recipe.dtype)
    array = channels if step.stacked_along == "channel" else np.concatenate(channels)[None]
    affine = np.diag([5.0, 2, 1, 1]) if recipe.axes == "SPL" else np.diag([1.0, 2, 5, 1])
    spacing_mm, views = seen(array, affine, recipe)
    assert spacing_mm == (1, 2, 5)
    assert len(views) == max(3, len(step.windows))
    for window, shown in views:
        inside = abs(window.level_hu - 30) < window.width_hu / 2
        assert shown.shape == hu.shape
        if inside:
            np.testing.assert_allclose(shown, hu, atol=1.0)  # HU; float16 holds 0..1 to 0.0005 of up to 2,800


def test_a_page_of_a_thousand_scans_stays_light(
    tmp_path: Path, heads: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty noisy heads are given what they would be given among 1,000: fifty times their weight is under 15 MB."""
    monkeypatch.setattr(quality, "PICTURES_BYTES", quality.PICTURES_BYTES // 50)
    monkeypatch.setattr(quality, "MANY_SCANS", 0)
    rng = np.random.default_rng(0)
    noisy = [(heads[i % 2] + rng.normal(0, 5, heads[0].shape)).astype(np.int16) for i in range(20)]
    without, twenty = (len(page(cohort(tmp_path / str(n), noisy[:n]), tmp_path / f"{n}.html")) for n in (0, 20))
    assert without + 50 * (twenty - without) < 15_000_000


def test_the_command_writes_the_same_page(
    tmp_path: Path, heads: list[np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = page(cohort(tmp_path / "night", heads[:1]), tmp_path / "page.html")
    assert run(["qc", str(tmp_path / "night"), "--out", str(tmp_path / "out" / "qc.html"), "--quiet"]) == 0
    assert (tmp_path / "out" / "qc.html").read_text(encoding="utf-8") == expected
    assert run(["qc", str(tmp_path), "--out", str(tmp_path / "none.html")]) == 2
    assert "is not a cohort" in capsys.readouterr().err
    assert not (tmp_path / "none.html").exists()


def test_a_page_replaces_a_page_of_ours_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    night = str(cohort(tmp_path / "night", []).path)
    (tmp_path / "report.html").write_text("<h1>My report</h1>")
    (tmp_path / "t.py").write_text("print('mine')")
    (tmp_path / "folder.html").mkdir()
    for name, says in (("report.html", "did not write it"), ("t.py", "name"), ("folder.html", "is a folder")):
        assert run(["qc", night, "--out", str(tmp_path / name)]) == 2
        assert says in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "<h1>My report</h1>"
    assert (tmp_path / "t.py").read_text() == "print('mine')"
    for _ in range(2):
        assert run(["qc", night, "--out", str(tmp_path / "ours.html")]) == 0


def test_a_missing_cohort_is_wrong_usage_and_a_place_that_cannot_be_written_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["qc", str(tmp_path / "typo"), "--out", str(tmp_path / "page.html")]) == 2
    assert f"there is no folder {tmp_path / 'typo'}" in capsys.readouterr().err
    night = str(cohort(tmp_path / "night", []).path)
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "page.html"
    assert run(["qc", night, "--out", str(out)]) == 1
    assert re.search(f"cannot write {out}\n  why: .*Not a directory\n  do:  ", capsys.readouterr().err)


def test_a_disk_that_fills_up_meanwhile_is_told_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    night = cohort(tmp_path / "night", [])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Failure, match=r"(?s)page.html.*No space left.*free some space"):
        write_page(night, tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["night"]
