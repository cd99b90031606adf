"""From a download to a table. Oracles: scikit-learn, DeLong, numpy's histogram, and bleeding that was painted in.

The set is a CT-ICH of sixteen patients in its own layout; the encoder is a tiny network with random weights, so what
is tested is the way and not what a model knows.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from studies import protocol_trees as trees

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.datasets import SETS
from headct.detection import methods
from headct.detection.linear import FittedLinear, Linear
from headct.detection.method import Progress, Task, quiet
from headct.detection.shots import DRAWS, SHOTS
from headct.detection.training.finetune import Full
from headct.detection.training.loop import Schedule
from headct.embedding.machine import choose
from headct.evaluation.comparison import delong
from headct.failure import Failure, Misuse
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS
from headct.studies import protocol_job
from headct.studies.protocol import PROTOCOLS, Protocol, named
from headct.studies.protocol_features import channels_hu
from headct.studies.protocol_job import Walked, Way, run_protocol
from headct.studies.protocol_page import page_of
from headct.studies.protocol_results import HISTOGRAM, MODEL, RANDOM, Learner, learners

MACHINE = choose("fp32", "cpu")
LINEAR = ("linear",)
PROTOCOL = replace(named("ct-ich"), shots=(1, 2), few=(("linear", 3),))


class Place(NamedTuple):
    """A download, a model, and what came out of the first walk."""

    data: Path
    model: Path
    out: Path
    way: Way
    walked: Walked

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.out / "table.csv")

    def again(self, out: Path, protocol: Protocol = PROTOCOL, model: Path | None = None, **way: object) -> Walked:
        """Another walk over the set that was prepared by the first."""
        other = replace(self.way, **{"prepared": self.out / "set", **way})  # type: ignore[arg-type]
        return run_protocol(protocol, self.data, out, load(model or self.model), MACHINE, other)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("protocol")
    data, model, out = trees.ct_ich(folder / "download"), trees.model(folder / "model"), folder / "out"
    (folder / "key").write_text("cd" * 32)
    way = Way(methods=LINEAR, workers=1, key=folder / "key", draws=100)
    return Place(data, model, out, way, run_protocol(PROTOCOL, data, out, load(model), MACHINE, way))


# The list


@pytest.mark.parametrize("name", PROTOCOLS)
def test_findings_are_those_of_the_set_and_numbers_of_others_have_a_source(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert set(protocol.findings) <= set(SETS[protocol.dataset].findings)
    assert all(known.source and known.finding in protocol.findings for known in protocol.published)
    assert {method for method, _ in protocol.few} <= set(protocol.methods)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cq500", "did you mean fm-hct-cq500 or ct-fm-cq500"),
        ("fm-hct-cq50", "did you mean fm-hct-cq500"),
        ("instance-2022", "all of its volumes bleed"),
        ("zzz", "take one of fm-hct-cq500"),
    ],
)
def test_a_name_that_is_none_leads_to_one(name: str, says: str) -> None:
    with pytest.raises(Misuse, match=says):
        named(name)


@pytest.mark.parametrize("name", ["fm-hct-cq500", "fm-hct-rsna", "ct-ich", "bhsd"])
def test_shots_and_draws_are_those_that_are_drawn_without_asking(name: str) -> None:
    assert PROTOCOLS[name].shots == SHOTS
    assert PROTOCOLS[name].few == (("linear", DRAWS),)


def test_numbers_of_others_are_those_that_were_published(shared: Path) -> None:
    """Oracle: the charts of FM-HCT, measured, and CT-FM's table of predictions, evaluated by others."""
    fm_hct = json.loads((shared / "fixtures" / "fm-hct" / "published_numbers.json").read_text())
    read = {"CQ500": PROTOCOLS["fm-hct-cq500"], "RSNA": PROTOCOLS["fm-hct-rsna"]}
    named_otherwise = {"Any": "ICH", "BleedLocation-Left": "ich_left", "BleedLocation-Right": "ich_right"}
    named_otherwise |= {"MidlineShift": "midline_shift", "MassEffect": "mass_effect"}
    systems = {"ViT scratch": "the transformer of FM-HCT from", "ResNet50-3D scratch": "a 3D ResNet-50 from scratch"}
    for place, protocol in read.items():
        told = {(one.finding, one.method, one.source.split(",")[0]): one for one in protocol.published}
        for chart, method in (("fine_tuning", "full"), ("linear_probe_auroc", "linear")):
            for finding, row in fm_hct[chart][place].items():
                for system, value in row.items():
                    at = named_otherwise.get(finding, finding).lower(), method, systems.get(system, system)
                    (known,) = [one for key, one in told.items() if key[:2] == at[:2] and key[2].startswith(at[2])]
                    seen = value.get("auroc", value)
                    assert float(known.theirs) == pytest.approx(seen["value"], abs=0.0051)
                    assert ("± 0.05" in known.source) >= seen.get("overlap", False)
                    told.pop((known.finding, known.method, known.source.split(",")[0]))
        assert not told
        assert {one.finding for one in protocol.published} == set(protocol.findings)
        assert protocol.not_comparable
    ct_fm = json.loads((shared / "fixtures" / "ct-fm" / "head_ct_metrics.json").read_text())["datasets"]
    for name, place in (("ct-fm-sinoct", "SinoCT"), ("ct-fm-cq500", "CQ500")):
        (known,) = PROTOCOLS[name].published
        assert float(known.theirs) == pytest.approx(ct_fm[place]["systems"]["ct_fm_100pct"]["auroc"], abs=0.0005)
        assert known.cases.startswith(f"{ct_fm[place]['n']} ")
        assert known.cases.endswith(f"{ct_fm[place]['positives']} abnormal")


# What came out


def test_numbers_are_those_of_scikit_learn_on_test_patients_alone(place: Place) -> None:
    (predictions,) = (place.out / "parts").glob("*/model-linear.parquet")
    told = pd.read_parquet(predictions).query("split == 'test'")
    labels = pd.read_csv(place.out / "set" / "labels.csv", dtype={"scan_id": str}).set_index("scan_id")
    splits = pd.read_csv(place.out / "set" / "splits.csv", dtype=str).set_index("scan_id")["split"]
    assert set(splits[told["scan_id"]]) == {"test"}
    rows = place.table.query("learner == 'model, linear' and labels == 'all'").set_index("finding")
    assert list(rows.index) == ["ich", "iph", "fracture", "macro"]
    for finding, of_finding in told.groupby("finding"):
        truth = labels.loc[of_finding["scan_id"], finding]
        assert rows.loc[finding, "auroc"] == pytest.approx(roc_auc_score(truth, of_finding["probability"]))
        wanted = average_precision_score(truth, of_finding["probability"])
        assert rows.loc[finding, "average_precision"] == pytest.approx(wanted)
    assert rows.loc["macro", "auroc"] == pytest.approx(rows["auroc"][:3].mean())


def test_bleeding_that_was_painted_in_is_found(place: Place) -> None:
    rows = place.table.query("finding == 'ich' and labels == 'all'")
    assert (rows["auroc"] >= 0.8).all()
    assert (rows["scans"] == 10).all()
    assert (rows["positives"] == 5).all()


def test_every_learner_has_every_size_and_the_model_its_differences(place: Place) -> None:
    table = place.table
    assert set(table["learner"]) == {"model, linear", "random, linear", "histogram, linear"}
    assert set(table["labels"]) == {"all", "K = 1", "K = 2"}
    assert (table[table["labels"] != "all"]["draws"] == 3).all()
    of_model = table["features"] == "model"
    assert table.loc[of_model, ["less_random", "less_histogram"]].notna().all(axis=None)
    assert table.loc[~of_model, ["less_random", "less_histogram"]].isna().all(axis=None)


def test_a_difference_from_all_labels_is_delongs(place: Place) -> None:
    evaluations = place.walked.results.evaluations
    ours, theirs = (evaluations[Learner(features, "linear")].findings["fracture"] for features in (MODEL, HISTOGRAM))
    wanted = delong(ours.area, theirs.area)
    (line,) = (
        one
        for one in place.walked.results.lines
        if (one.finding, one.labels, one.learner) == ("fracture", "all", Learner(MODEL, "linear"))
    )
    found = line.less[HISTOGRAM]
    assert (found.estimate.value, found.p) == pytest.approx((wanted.estimate.value, wanted.p))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((wanted.estimate.low, wanted.estimate.high))


def test_the_record_has_what_went_in(place: Place) -> None:
    record = json.loads((place.out / "protocol.json").read_text())
    assert record["protocol"]["name"] == "ct-ich"
    assert record["model"]["decisive_sha256"] == load(place.model).decisive_sha256
    assert record["hashes"]["splits.csv"] == place.walked.report.splits_sha256
    assert record["splits"]["test"] == 10
    assert any(note == "ivh is left out: 0 training scans have it, 4 do not" for note in record["notes"])
    shots = pd.read_csv(place.out / "shots.csv")
    splits = pd.read_csv(place.out / "set" / "splits.csv", dtype=str).set_index("scan_id")["split"]
    assert set(splits[shots["scan_id"]]) == {"train"}


def test_every_number_of_the_tree_has_its_interval(place: Place) -> None:
    tree = json.loads((place.out / "metrics.json").read_text())
    assert set(tree["learners"]) == {"model, linear", "random, linear", "histogram, linear"}
    leaf = tree["few_labels"]["model, linear"]["K = 2"]["ich"]["auroc"]
    assert leaf["low"] <= leaf["value"] <= leaf["high"]
    assert set(tree["differences"]) == {
        "model, linear less random, linear",
        "model, linear less histogram, linear",
    }


def test_the_page_holds_the_table_and_accounts_for_the_scans(place: Place) -> None:
    page = page_of(place.walked)
    titles = [section.title for section in page.sections]
    assert titles[:2] == ["Performance", "The table"]
    assert {"Flow of scans", "Few examples", "Reporting checklists"} <= set(titles)
    html = page.html()
    assert "random, linear" in html
    assert place.walked.report.splits_sha256 in html


def test_a_page_with_numbers_of_others_says_why_they_are_not_comparable(place: Place) -> None:
    other = replace(PROTOCOL, published=named("fm-hct-cq500").published, not_comparable="other patients.")
    html = page_of(replace(place.walked, protocol=other)).html()
    assert "Not comparable: other patients." in html
    assert "arXiv 2502.02779" in html


# Again, and otherwise


def test_called_again_nothing_is_computed_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (place.out / "table.csv").read_bytes()

    def never(*args: object, **options: object) -> None:
        raise AssertionError("done a second time")

    monkeypatch.setattr(PretrainedEncoder, "see", never)
    monkeypatch.setattr(Linear, "fit", never)
    monkeypatch.setattr(protocol_job, "random_encoder", never)
    place.again(place.out)
    assert (place.out / "table.csv").read_bytes() == before


def test_a_killed_walk_goes_on_with_the_next_draw(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three learners from all labels, then each from three draws of one and of two shots: 3 + 3 * 6 fits."""
    fit, done = Linear.fit, list[Task]()

    def killed_at_the_sixth(linear: Linear, task: Task, progress: Progress = quiet) -> FittedLinear:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(task)
        return fit(linear, task, progress)

    def counted(linear: Linear, task: Task, progress: Progress = quiet) -> FittedLinear:
        done.append(task)
        return fit(linear, task, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "fit", killed_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            place.again(tmp_path)
    assert not (tmp_path / "table.csv").exists()
    monkeypatch.setattr(Linear, "fit", counted)
    place.again(tmp_path)
    assert len(done) == 3 + 3 * 6
    assert (tmp_path / "table.csv").read_bytes() == (place.out / "table.csv").read_bytes()


def test_shares_of_the_patients_instead_of_shots(place: Place, tmp_path: Path) -> None:
    protocol = replace(PROTOCOL, findings=("ich",), shots=(), fractions=(0.75,), few=(("linear", 2),))
    walked = place.again(tmp_path, protocol)
    few = [line for line in walked.results.lines if line.draws is not None]
    assert [line.labels for line in few] == ["75 %"] * 3
    assert [line.finding for line in walked.results.lines if line.draws is None] == ["ich"] * 3
    assert (tmp_path / "fractions.csv").is_file()


def test_networks_are_trained_from_the_model_and_from_scratch_and_compared(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"full": Full(schedule=Schedule(steps=2, epochs=0, looks=1))}
    monkeypatch.setattr(protocol_job, "method", lambda name: short.get(name) or methods.method(name))
    monkeypatch.setattr(protocol_job, "scratch", lambda: replace(short["full"], initial="random"))
    protocol = replace(PROTOCOL, findings=("ich",), shots=(2,), few=(("full", 1),))
    walked = place.again(tmp_path, protocol, methods=("linear", "full"))
    lines = {(line.learner.name, line.labels): line for line in walked.results.lines}
    trained = lines["model, full", "all"]
    assert set(trained.less) == {RANDOM, HISTOGRAM}
    assert lines["model, full", "K = 2"].draws == 1
    assert set(lines["model, full", "K = 2"].less) == {RANDOM}  # no histogram learned from few labels here
    facts = walked.record["facts"]
    assert facts["model, full"]["start"] == "the frozen linear probe"
    assert facts["random, full"]["start"] == "random weights"
    assert "random, full" in page_of(walked).html()


def test_a_folder_holds_one_protocol_and_one_model(place: Place, tmp_path: Path) -> None:
    torch.manual_seed(5)
    card = Card(recipe=recipes["head-coarse"], windows=WINDOWS)
    save(tmp_path / "other", encoders.build("conv-tiny", stem=4, widths=(4, 8), blocks=(1, 1)), card)
    with pytest.raises(Misuse, match="holds results of another model"):
        place.again(place.out, model=tmp_path / "other")
    with pytest.raises(Misuse, match=r"holds results of another protocol \(ct-ich; now bhsd\)"):
        place.again(place.out, named("bhsd"))
    with pytest.raises(Misuse, match=r"another setting 'seed' of the protocol \(0; now 1\)"):
        place.again(place.out, replace(PROTOCOL, seed=1))
    with pytest.raises(Misuse, match=r"another setting 'shots' of the protocol \(\[1, 2\]; now \[1\]\)"):
        place.again(place.out, replace(PROTOCOL, shots=(1,)))


def test_what_a_protocol_says_of_itself_and_of_others_may_be_corrected(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.out, tmp_path / "out")
    corrected = replace(
        PROTOCOL, title="Another.", published=named("fm-hct-cq500").published, not_comparable="other patients."
    )
    place.again(tmp_path / "out", corrected)
    assert (tmp_path / "out" / "table.csv").read_bytes() == (place.out / "table.csv").read_bytes()
    assert json.loads((tmp_path / "out" / "protocol.json").read_text())["protocol"]["title"] == "Another."


def test_what_an_older_version_kept_is_not_gone_on_from(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its draws were all learned from with one seed: half a table of those would be mixed with these."""
    monkeypatch.setattr(protocol_job, "FORMAT", protocol_job.FORMAT - 1)
    place.again(tmp_path / "out")
    monkeypatch.undo()
    with pytest.raises(Misuse, match="holds results of another version of headct"):
        place.again(tmp_path / "out")


def test_a_model_of_another_recipe_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"head-coarse|recipe"):
        place.again(tmp_path / "out", model=trees.model(tmp_path / "model", recipe="head"))


@pytest.mark.parametrize(
    ("methods", "says"), [(("knn",), "knn is no method of the protocol ct-ich"), (("liner",), "no method is called")]
)
def test_a_method_that_the_protocol_does_not_have_is_refused(
    methods: tuple[str, ...], says: str, place: Place, tmp_path: Path
) -> None:
    with pytest.raises(Misuse, match=says):
        place.again(tmp_path, methods=methods)


def test_what_trains_a_network_needs_arrays_of_one_shape(place: Place, tmp_path: Path) -> None:
    encoder = encoders.build("conv-tiny", channels=1, stem=4, widths=(4, 8), blocks=(1, 1))
    save(tmp_path / "model", encoder, Card(recipe=recipes["ct-fm-pretrain"], windows={}))
    with pytest.raises(Misuse, match="full cannot be used with this model") as told:
        place.again(tmp_path / "out", model=tmp_path / "model", methods=("full",))
    assert "the arrays of recipe ct-fm-pretrain differ in shape" in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_an_error(place: Place, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    encoder = load(place.model)
    with pytest.raises(Failure, match="lacks the table of slices"):
        run_protocol(PROTOCOL, tmp_path / "data", tmp_path / "out", encoder, MACHINE, place.way)
    assert not (tmp_path / "out").exists()
    with pytest.raises(Misuse, match="there is no"):
        run_protocol(PROTOCOL, tmp_path / "none", tmp_path / "out", encoder, MACHINE, place.way)


def test_scans_that_a_set_gives_to_two_patients_are_named(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an error, as it is for a user's own scans: the set is as it was published."""
    real = protocol_job.duplicates
    monkeypatch.setattr(protocol_job, "duplicates", lambda *of: real(*of, alike=-1.0))  # every two are alike
    (note,) = [note for note in place.again(tmp_path).notes if "same vector" in note]
    splits = pd.read_csv(place.out / "set" / "splits.csv")
    sizes = splits["split"].value_counts()
    pairs, apart = len(splits) * (len(splits) - 1) // 2, sum(size * (size - 1) // 2 for size in sizes)
    assert note.startswith(
        f"{pairs} pairs of scans of different patients have the same vector, {pairs - apart} of them"
    )
    assert not any("same vector" in note for note in place.walked.notes)


def test_findings_that_nobody_has_are_an_error(place: Place, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="nothing of ct-ich can be learned and tested") as told:
        place.again(tmp_path, replace(PROTOCOL, findings=("ivh", "sah")))
    assert "ivh: 0 training scans have it, 4 do not" in str(told.value)


# Baselines


def test_learners_are_each_method_on_each_features_and_histograms_are_probed() -> None:
    assert [one.slug for one in learners(("linear", "full"))] == [
        *("model-linear", "model-full", "random-linear", "random-full", "histogram-linear"),
    ]
    assert Learner(MODEL, "full").beside(RANDOM) == Learner(RANDOM, "full")
    assert Learner(MODEL, "full").beside(HISTOGRAM) == Learner(HISTOGRAM, "linear")


@pytest.mark.parametrize(("recipe", "shape"), [("fm-hct", (3, 8, 9, 7)), ("ct-fm-head", (1, 16, 9, 7))])
def test_channels_of_published_recipes_are_binned_from_0_to_1(recipe: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).random(shape).astype(np.float32)
    channels = channels_hu(array, recipes[recipe])
    wanted = list(array) if recipe == "fm-hct" else [array[0, first : first + 4] for first in range(0, 16, 4)]
    assert len(channels) == len(wanted)
    for channel, values in zip(channels, wanted, strict=True):
        found = np.histogram(channel, 30, (-20, 100))[0]
        np.testing.assert_allclose(found, np.histogram(values, 30, (0, 1))[0], atol=1)  # at an edge, either bin
    assert channels_hu(array[0].astype(np.int16), recipes["head"])[0].dtype == np.int16
