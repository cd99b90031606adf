"""Numbers of agreement: misses count, lesions are bodies, intervals are of patients. Oracles: closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from headct.failure import Misuse
from headct.tasks.segmentation.measuring import COLUMNS, Agreement, Judging, compared

CLASSES = ("iph", "sdh")
MM = (2.0, 2.0, 2.0)


def cube(at: int, number: int, size: int = 4) -> np.ndarray:
    numbers = np.zeros((24, 24, 24), np.uint8)
    numbers[at : at + size, at : at + size, at : at + size] = number
    return numbers


def rows_of(cases: list[tuple[np.ndarray, np.ndarray]], patients: list[str]) -> pd.DataFrame:
    rows = []
    for index, ((found, true), patient) in enumerate(zip(cases, patients, strict=True)):
        for row in compared(found, true, MM, CLASSES, Judging()):
            rows.append({"scan_id": f"s{index}", "patient_id": patient, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_one_scan() -> None:
    true, found = cube(4, 1), cube(4, 1)
    true[18:21, 18:21, 18:21] = 1  # a second lesion, not drawn
    found[4, 4, 4] = 0
    found[2:5, 18:21, 18:21] = 1  # drawn where there is nothing
    iph, sdh = compared(found, true, MM, CLASSES, Judging())
    assert iph["true_ml"] == pytest.approx((64 + 27) * 0.008)
    assert iph["dice"] == pytest.approx(2 * 63 / (90 + 91))
    assert (iph["lesions"], iph["lesions_found"], iph["false_lesions"]) == (2, 1, 1)
    assert np.isnan(sdh["dice"])
    assert (sdh["lesions"], sdh["false_lesions"]) == (0, 0)
    with pytest.raises(Misuse, match="the truth"):
        list(compared(found[1:], true, MM, CLASSES, Judging()))


def test_misses_are_zeros_and_beyond_all() -> None:
    nothing = np.zeros((24, 24, 24), np.uint8)
    cases = [(cube(4, 1), cube(4, 1)), (nothing, cube(4, 1)), (nothing, cube(4, 1)), (cube(4, 2), nothing)]
    agreement = Agreement(rows_of(cases, ["a", "b", "c", "d"]), CLASSES, Judging())
    tree = agreement.metrics()
    assert tree["iph"]["dice"]["value"] == pytest.approx(1 / 3)
    assert tree["iph"]["dice"]["n"] == 3
    assert tree["iph"]["hausdorff_95_mm"]["value"] is None  # more than half were missed
    assert tree["iph"]["hausdorff_95_mm"]["positives"] == 2
    assert tree["iph"]["missed"]["value"] == pytest.approx(2 / 3)
    assert tree["iph"]["false_alarms"]["value"] == 0
    assert tree["iph"]["false_alarms"]["n"] == 1
    assert tree["iph"]["lesions_found"]["value"] == pytest.approx(1 / 3)
    assert tree["sdh"]["dice"]["value"] is None
    assert tree["sdh"]["false_alarms"]["value"] == pytest.approx(1 / 4)
    assert tree["sdh"]["false_lesions_per_scan"]["value"] == pytest.approx(1 / 4)
    assert "all" not in tree  # one class is there
    low, high = tree["iph"]["dice"]["low"], tree["iph"]["dice"]["high"]
    assert 0 <= low <= 1 / 3 <= high <= 1


def test_scans_listed_twice_add_no_certainty_and_one_patient_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0.2, 0.9, 12)

    def table(copies: int) -> pd.DataFrame:
        rows = []
        for copy in range(copies):
            for index, value in enumerate(values):
                row = dict.fromkeys(COLUMNS, 0.0) | {"class": "iph", "true_ml": 1.0, "found_ml": 1.0, "dice": value}
                rows.append(row | {"scan_id": f"{copy}-{index}", "patient_id": f"p{index}", "lesions": 1})
        return pd.DataFrame(rows)

    once, twice = (Agreement(table(n), ("iph",), Judging()).metrics()["iph"]["dice"] for n in (1, 2))
    assert once["value"] == pytest.approx(values.mean())
    assert (once["low"], once["high"]) == pytest.approx((twice["low"], twice["high"]))
    plain = values.mean() - 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert once["low"] == pytest.approx(plain, abs=0.03)
    alone = Agreement(table(1).assign(patient_id="p"), ("iph",), Judging()).metrics()["iph"]
    assert alone["dice"]["low"] is None
    assert alone["dice"]["value"] == pytest.approx(values.mean())


def test_what_is_the_same_in_all_patients_is_not_certain() -> None:
    """Oracles: a share of 0 or 1 in n patients has Wilson's limit z^2 / (n + z^2); no event in n, Poisson's."""
    patients, nothing = ["a", "b", "c"], np.zeros((24, 24, 24), np.uint8)
    found = Agreement(rows_of([(cube(4, 1), cube(4, 1))] * 3, patients), CLASSES, Judging()).estimates()["iph"]
    missed = Agreement(rows_of([(nothing, cube(4, 1))] * 3, patients), CLASSES, Judging()).estimates()["iph"]
    limit = 1.959964**2 / (3 + 1.959964**2)
    for name in ("dice", "surface_dice", "lesions_found"):
        assert (found[name].value, found[name].high) == (1, 1)
        assert found[name].low == pytest.approx(1 - limit, abs=1e-5)
        assert (missed[name].value, missed[name].low) == (0, 0)
        assert missed[name].high == pytest.approx(limit, abs=1e-5)
        assert "Wilson interval over patients" in found[name].method
    false = found["false_lesions_per_scan"]
    assert (false.value, false.low) == (0, 0)
    assert false.high == pytest.approx(-np.log(0.025) / 3)
    assert "exact Poisson interval over patients" in false.method
    for name in ("hausdorff_95_mm", "volume_error_ml"):
        assert (found[name].value, found[name].low) == (0, None)
        assert "no interval, as all patients give the same" in found[name].method
    two = cube(4, 1)
    two[15:18, 15:18, 15:18] = 1  # drawn in each where there is nothing: three events; the limits are Garwood's table
    each = Agreement(rows_of([(two, cube(4, 1))] * 3, patients), CLASSES, Judging()).estimates()["iph"]
    rate = each["false_lesions_per_scan"]
    assert (rate.value, rate.low, rate.high) == pytest.approx((1, 0.6187 / 3, 8.7673 / 3), abs=1e-4)


def test_two_segmenters_are_compared_in_pairs() -> None:
    true = [cube(4, 1), cube(8, 1), cube(6, 1), cube(3, 2)]
    worse = []
    for one in true:
        found = one.copy()
        found[tuple(axis[:20] for axis in np.nonzero(one))] = 0
        worse.append(found)
    patients = ["a", "b", "c", "d"]
    good, bad = (
        Agreement(rows_of(list(zip(found, true, strict=True)), patients), CLASSES, Judging()) for found in (true, worse)
    )
    apart = good.differences(bad)
    assert apart["iph"].value == pytest.approx(1 - 2 * 44 / (44 + 64))
    assert apart["iph"].low < apart["iph"].value < apart["iph"].high  # the same in each of three patients
    assert apart["iph"].method == "Dice less Dice, paired; Wilson interval over patients, as all give the same"
    none, turned = good.differences(good)["iph"], bad.differences(good)["iph"]
    assert (none.low, none.value) == (-none.high, 0)
    assert (turned.low, turned.high) == pytest.approx((-apart["iph"].high, -apart["iph"].low))
    assert set(apart) == {"iph", "sdh", "all"}
    assert apart["sdh"].low is None
    alone = [Agreement(one.rows.assign(patient_id="a"), CLASSES, Judging()) for one in (good, bad)]
    assert alone[0].differences(alone[1])["iph"].low is None  # three scans of one patient
    with pytest.raises(Misuse, match="same scans"):
        good.differences(Agreement(bad.rows[:2], CLASSES, Judging()))
