"""A small encoder with random weights, cohorts with findings painted in, and a detector learned from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detection import made

from headct import encoders
from headct.checkpoints import Card, PretrainedEncoder, load, save
from headct.cohort import Cohort
from headct.cohort.labels import Labels, read_labels
from headct.detection import Adapted, AdaptSettings, adapt
from headct.embedding.machine import choose
from headct.preparing import recipes
from headct.preparing.windows import WINDOWS


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (8, 8, 8), "grid": (6, 7, 6)}
    folder = tmp_path_factory.mktemp("models") / "checkpoint"
    card = Card(recipe=recipes["head"], windows=WINDOWS)
    save(folder, encoders.build("vit-tiny", **shape, pooling="class+mean"), card)
    return folder


@pytest.fixture(scope="session")
def encoder(checkpoint: Path) -> PretrainedEncoder:
    return load(checkpoint)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """48 patients, two scans each."""
    return made.make(tmp_path_factory.mktemp("cohorts") / "night", 48, scans_each=2)


@pytest.fixture(scope="session")
def table(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    made.truth(cohort).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def labels(cohort: Cohort, table: Path) -> Labels:
    return read_labels(table, [cohort])


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache") / "vectors"


@pytest.fixture(scope="session")
def adapted(cohort: Cohort, labels: Labels, encoder: PretrainedEncoder, cache: Path) -> Adapted:
    machine = choose("fp32", "cpu")
    return adapt([cohort], labels, encoder, machine, cache, AdaptSettings(method="linear"))


@pytest.fixture(scope="session")
def folder(adapted: Adapted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved detector."""
    return adapted.save(tmp_path_factory.mktemp("detectors") / "detector")
