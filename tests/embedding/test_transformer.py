"""The scikit-learn transformer: its own estimator checks where they apply, and pipelines on paths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pretraining.memory_cohort import MemoryCohort, heads
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from headct import HeadCTEncoder
from headct.checkpoints import PretrainedEncoder
from headct.embedding import embed
from headct.failure import Misuse
from headct.scan import Scan

APPLY = (
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_estimator_repr",
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_mixin_order",
)
"""The checks that do not fit the estimator to tables of random numbers, which are no scans."""


@pytest.mark.parametrize("name", APPLY)
def test_estimator_checks(name: str, checkpoint: Path) -> None:
    getattr(estimator_checks, name)("HeadCTEncoder", HeadCTEncoder(str(checkpoint)))


@pytest.fixture
def paths(files: Path) -> list[str]:
    return [str(files / "patient-0"), str(files / "patient-1")]


def test_rows_are_those_of_embed(checkpoint: Path, paths: list[str]) -> None:
    encoder = HeadCTEncoder(checkpoint)
    vectors = encoder.fit_transform(paths)
    np.testing.assert_allclose(vectors, embed(paths, checkpoint).vectors, atol=1e-5)
    assert len(encoder.get_feature_names_out()) == vectors.shape[1]
    again = clone(encoder).fit(np.array(paths)).transform(np.array(paths[::-1]))
    np.testing.assert_allclose(again, vectors[::-1], atol=1e-5)


def test_a_pipeline_on_paths(checkpoint: Path, paths: list[str], scans: list[Scan]) -> None:
    pipeline = make_pipeline(HeadCTEncoder(checkpoint), LogisticRegression(C=1e6))
    rows: list[Any] = [*paths, *scans]
    pipeline.fit(rows, [0, 1, 0, 1])
    assert pipeline.predict(paths).tolist() == [0, 1]


def test_a_row_that_is_not_one_scan_is_named(
    model: PretrainedEncoder, files: Path, paths: list[str], scans: list[Scan]
) -> None:
    encoder = HeadCTEncoder(model).fit(paths)
    water = replace(scans[0], hu=np.zeros_like(scans[0].hu))
    with pytest.raises(ValueError, match=r"row 0: it holds 2 scans; row 2: .+; row 3: "):
        encoder.transform([files, paths[0], files / "letter.txt", water])


@pytest.mark.parametrize("table", [pd.DataFrame, lambda column: np.array(column["path"])[:, None]])
def test_a_table_of_one_column_is_that_column(checkpoint: Path, paths: list[str], table: Any) -> None:
    vectors = HeadCTEncoder(checkpoint).fit_transform(table({"path": paths}))
    np.testing.assert_allclose(vectors, embed(paths, checkpoint).vectors, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("one", "got one"),
        ([1.0], "got float"),
        ([], "no rows"),
        (pd.DataFrame({"path": ["a"], "site": ["b"]}), r"one column .+ \(1, 2\)"),
        (np.array([["a", "b"], ["c", "d"]]), r"one column .+ \(2, 2\)"),
        (np.array("a"), "one column"),
    ],
)
def test_what_is_no_sequence_of_scans_is_refused(model: PretrainedEncoder, rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeadCTEncoder(model).fit(rows)


def test_a_cohort_is_no_sequence_of_scans(model: PretrainedEncoder) -> None:
    cohort = MemoryCohort(heads(1))
    for rows in (cohort, [cohort]):
        with pytest.raises(ValueError, match=r"cohort.+headct\.embed"):
            HeadCTEncoder(model).fit(rows)


def test_rows_that_come_up_again_are_rows_again(model: PretrainedEncoder, paths: list[str]) -> None:
    vectors = HeadCTEncoder(model).fit_transform([*paths, paths[0]])
    np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-5)


def test_fitting_loads_and_says_what_is_wrong(paths: list[str]) -> None:
    with pytest.raises(Misuse, match="no-such-model"):
        HeadCTEncoder("no-such-model").fit(paths)
