"""The pictures of the documentation can be drawn, and those that are shown are there."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_picture_can_be_drawn_and_is_shown(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("geometry_pictures", DOCS / "scripts" / "geometry_pictures.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.main(tmp_path)
    shown = set(re.findall(r"\(geometry/([\w-]+\.webp)\)", (DOCS / "explanation" / "geometry.md").read_text("utf-8")))
    assert shown == {path.name for path in tmp_path.iterdir()} == {path.name for path in script.FOLDER.iterdir()}
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 60_000
        with Image.open(path) as drawn, Image.open(script.FOLDER / path.name) as kept:
            assert drawn.size == kept.size
