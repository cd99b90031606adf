from __future__ import annotations

import re

import numpy as np

from headct.reporting.neighbours import Neighbour, neighbour_strip
from headct.reporting.pictures import Window


def scan(name: str, similarity: float | None = None) -> Neighbour:
    return Neighbour(
        scan_id=name, array=np.zeros((8, 8, 8), np.int16), spacing_mm=(2, 2, 2), similarity=similarity, note="<site>"
    )


def test_the_query_comes_first_and_each_neighbour_says_how_similar_it_is() -> None:
    html = neighbour_strip(scan("query-1"), [scan("b", 0.9871), scan("c", -0.5)], Window("brain", 40, 80))
    assert re.findall(r"<p><b>(.*?)</b>", html) == ["query", "similarity 0.987", "similarity -0.500"]
    assert re.findall(r'<span class="id">(.*?)</span>', html) == ["query-1", "b", "c"]
    assert html.count('<li class="query">') == 1
    assert html.count("brain 40/80") == 3
    assert "<site>" not in html
