"""The folder that `headct demo` makes for itself."""

from __future__ import annotations

from pathlib import Path

import pydicom

from headct.virtual.demonstration import write_demonstration


def test_the_demonstration_holds_heads_and_what_must_be_refused(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_demonstration(tmp_path / name, patients=1)
    files = sorted(path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.dcm"))
    for file in files:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    types = {pydicom.dcmread(tmp_path / "first" / file, stop_before_pixels=True).ImageType[2] for file in files}
    assert types == {"AXIAL", "LOCALIZER", "SCREEN SAVE"}
    assert sum(path.stat().st_size for path in (tmp_path / "first").rglob("*.dcm")) < 4e6
