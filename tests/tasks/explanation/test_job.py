"""A painted head explained: which maps pass and which fail, files in patient space, the page, and what is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tasks.explanation import painted

from headct.checkpoints import Card, load, save
from headct.detection import Detector
from headct.detection.training.attentive import FindingQueries, FittedAttentive
from headct.embedding.inputs import Ready
from headct.encoders import build
from headct.failure import Misuse
from headct.preparing import recipes
from headct.tasks.explanation import Explanation, Settings, explain
from headct.tasks.explanation.showing import COLUMNS, metrics, write

QUICK = Settings(box_mm=32.0, steps=8, randomised=1, batch_size=16)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    return painted.linear_detector(painted.encoder_of(tmp_path_factory.mktemp("job") / "model"))


@pytest.fixture(scope="module")
def found(detector: Detector) -> Explanation:
    return explain(painted.ready(), detector, painted.MACHINE, QUICK, {"iph": painted.lesion()})


def test_occlusion_finds_the_bleeding_and_can_be_believed(found: Explanation) -> None:
    (one,) = [one for one in found.explained if (one.finding, one.map.method) == ("iph", "occlusion")]
    assert one.has_something
    assert one.place is not None
    assert one.place.hit
    assert one.place.overlap > 10 * one.place.overlap_by_chance
    assert (one.faith.deletion_p, one.faith.insertion_p) == (0.05, 0.05)
    assert one.faith.deletion < one.faith.random_deletion.min()
    assert one.alike is not None
    assert one.alike < 1
    assert one.verdict == ("fails" if one.faults else "passes")


def test_what_scores_no_higher_than_the_evened_out_head_has_nothing_to_explain(found: Explanation) -> None:
    """`sdh` is the finding whose score the bleeding lowers."""
    ones = [one for one in found.explained if one.finding == "sdh"]
    assert {one.verdict for one in ones} == {"nothing to explain"}
    assert all(one.faith.fall < 0 and not one.faults for one in ones)


def test_methods_that_do_not_fit_are_named(found: Explanation) -> None:
    assert {one.map.method for one in found.explained} == {"occlusion", "gradients"}
    assert found.left_out == {"rollout": "conv-tiny has no attention between patches of a volume"}


def test_the_verdict_is_what_its_checks_say(found: Explanation) -> None:
    (one,) = [one for one in found.explained if (one.finding, one.map.method) == ("iph", "occlusion")]
    assert replace(one, alike=0.2).verdict == "passes"
    assert replace(one, alike=None).verdict == "unproven"  # of an exported graph, whose weights stay as they are
    assert replace(one, alike=0.5).verdict == "fails"
    assert replace(one, alike=0.2, gap=0.3).faults == ["the parts miss 30% of the score that they ought to sum up to"]
    slow = replace(one.faith, deletion=one.faith.random_deletion.max())
    assert replace(one, alike=0.2, faith=slow).faults[0].startswith("evened out in its order the score falls no sooner")


def test_a_map_without_sense_is_reported_as_failing(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that has nothing to do with the detector, and is the same for random weights."""
    upside_down = np.arange(32**3, dtype=np.float32).reshape(painted.SHAPE)[None]
    monkeypatch.setattr("headct.tasks.explanation.job.rollout", lambda *_: upside_down)
    wanted = replace(QUICK, methods=("rollout",), findings=("iph",))
    (one,) = explain(painted.ready(), detector, painted.MACHINE, wanted).explained
    assert one.verdict == "fails"
    assert one.alike == pytest.approx(1)
    assert any("random weights draw much the same map" in fault for fault in one.faults)
    assert any("no sooner than at random" in fault for fault in one.faults)
    assert one.map.finding == ""  # it is the same for all


def test_random_weights_that_say_the_same_of_everything_prove_nothing(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> Detector:
        mute = copy.deepcopy(detector)
        for tensor in mute.encoder.state_dict().values():
            tensor.zero_()
        return mute

    monkeypatch.setattr("headct.tasks.explanation.job.randomised", silent)
    found = explain(painted.ready(), detector, painted.MACHINE, replace(QUICK, findings=("iph",)))
    assert [one.alike for one in found.explained] == [None] * len(found.explained)
    assert {one.verdict for one in found.explained if one.has_something} <= {"unproven", "fails"}


def test_files_lie_on_the_scan_in_patient_space(found: Explanation, detector: Detector, tmp_path: Path) -> None:
    write(found, detector, painted.MACHINE, QUICK, tmp_path / "out", virtual=True)
    scan = nibabel.load(tmp_path / "out" / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(scan.dataobj), found.subject.hu)
    drawn = nibabel.load(tmp_path / "out" / "maps" / "iph.occlusion.nii.gz")
    np.testing.assert_allclose(drawn.affine, painted.AFFINE)
    assert {one.name for one in (tmp_path / "out" / "maps").iterdir()} == {
        f"{finding}.{method}.nii.gz" for finding in ("iph", "sdh") for method in ("occlusion", "gradients")
    }
    table = pd.read_csv(tmp_path / "out" / "explained.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["verdict"].tolist()[-1] == "left out"
    row = table[(table["finding"] == "iph") & (table["method"] == "occlusion")].iloc[0]
    peak = np.linalg.inv(painted.AFFINE) @ [*row[["peak_r_mm", "peak_a_mm", "peak_s_mm"]].astype(float), 1]
    assert painted.lesion()[tuple(np.rint(peak[:3]).astype(int))]
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert told == json.loads(json.dumps(metrics(found)))
    assert told["iph"]["occlusion"]["overlap"].keys() == {"value", "low", "high", "n", "positives", "method"}
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert set(curves["order"]) == {"occlusion", "gradients", "random"}
    with Image.open(tmp_path / "out" / "overlays" / "iph.occlusion.png") as picture:
        assert picture.size == (3 * 128, 2 * (128 + 18) + 36)  # two windows, each of three planes


def test_another_call_leaves_no_maps_of_the_one_before(found: Explanation, detector: Detector, tmp_path: Path) -> None:
    write(found, detector, painted.MACHINE, QUICK, tmp_path / "out")
    (tmp_path / "out" / "maps" / "mine.nii.gz").write_bytes(b"not ours")
    fewer = replace(found, findings=("iph",), explained=[one for one in found.explained if one.finding == "iph"])
    write(fewer, detector, painted.MACHINE, QUICK, tmp_path / "out")
    places = {folder: {one.name for one in (tmp_path / "out" / folder).iterdir()} for folder in ("maps", "overlays")}
    assert places == {
        "maps": {"iph.occlusion.nii.gz", "iph.gradients.nii.gz", "mine.nii.gz"},
        "overlays": {"iph.occlusion.png", "iph.gradients.png"},
    }


def test_queries_of_a_finding_make_a_map_of_its_own(detector: Detector) -> None:
    """Also where it is the only one that is asked for."""
    encoder = detector.encoder
    width = encoder.see(torch.from_numpy(painted.head(0, bleeding=True)[None]), torch.full((1, 3), 4.0)).tokens.shape[2]
    head = FindingQueries(width, 2, heads=1, features=4)
    attending = replace(detector, fitted=FittedAttentive(encoder, ("iph", "sdh"), head, {}, painted.MACHINE))
    asked = replace(QUICK, methods=("rollout",), findings=("sdh",))
    (one,) = explain(painted.ready(), attending, painted.MACHINE, asked).explained
    assert one.map.finding == "sdh"


def test_the_page_says_which_maps_to_believe(found: Explanation, detector: Detector, tmp_path: Path) -> None:
    write(found, detector, painted.MACHINE, QUICK, tmp_path / "out", virtual=True)
    html = (tmp_path / "out" / "page.html").read_text()
    assert "Research software, not a medical device" in html
    assert "Every patient on this page is virtual" in html
    assert "maps that had something to explain" in html
    assert "Rollout: conv-tiny has no attention between patches of a volume." in html
    assert html.count('type="radio" name="map-iph"') == 3  # none, occlusion, gradients
    assert all(html.count(f'type="radio" name="slice-{finding}"') > 10 for finding in ("iph", "sdh"))
    assert html.count("<svg") == 4
    assert 'src="http' not in html


def other(detector: Detector, folder: Path) -> Detector:
    save(folder / "published", build("vit-tiny", **painted.TINY_VIT), Card(recipe=recipes["fm-hct"], windows={}))
    return replace(detector, encoder=load(folder / "published"))


def test_what_is_refused(detector: Detector, tmp_path: Path) -> None:
    ready = painted.ready()
    with pytest.raises(Misuse, match="no finding 'tumor'"):
        explain(ready, detector, painted.MACHINE, replace(QUICK, findings=("tumor",)))
    with pytest.raises(Misuse, match="no method fits") as none:
        explain(ready, detector, painted.MACHINE, replace(QUICK, methods=("rollout",)))
    assert "no attention between patches" in str(none.value)
    with pytest.raises(Misuse, match=r"shape \(4, 4, 4\)"):
        explain(ready, detector, painted.MACHINE, QUICK, {"iph": np.ones((4, 4, 4), bool)})
    outside = np.zeros(painted.SHAPE, bool)
    outside[:, :, 29:] = True
    with pytest.raises(Misuse, match="100% lies outside the head"):
        explain(ready, detector, painted.MACHINE, QUICK, {"iph": outside.astype(np.uint8) * 7})
    air = Ready(ready.ids, np.full(painted.SHAPE, -1000, np.int16), painted.AFFINE)
    with pytest.raises(Misuse, match="nothing in it that could be evened out"):
        explain(air, detector, painted.MACHINE, QUICK)
    with pytest.raises(Misuse, match="not in HU"):
        explain(ready, other(detector, tmp_path), painted.MACHINE, QUICK)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"methods": ("magic",)}, "no method 'magic'"),
        ({"box_mm": 0.0}, "box_mm must be above 0"),
        ({"smooth_mm": float("nan")}, "smooth_mm must be above 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"orders": 5}, "5 random orders are too few"),
    ],
)
def test_impossible_settings_are_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        Settings(**wrong)


def test_progress_is_told_in_looks_and_ends_where_it_was_planned(detector: Detector) -> None:
    """Of occlusion, in which one map is hundreds of looks; a method that does not fit is planned no more."""
    told: list[tuple[int, int | None]] = []
    wanted = replace(QUICK, methods=("rollout", "occlusion"), findings=("iph",), batch_size=8)
    explain(painted.ready(), detector, painted.MACHINE, wanted, progress=lambda *at: told.append(at))
    done, totals = zip(*told, strict=True)
    assert len(set(totals)) == 1
    assert max(after - before for before, after in pairwise(done)) <= wanted.batch_size
    assert done[-2:] == (totals[0], totals[0])  # the last look is the last one planned
