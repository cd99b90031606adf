"""Trackers: TensorBoard's files read by TensorBoard, MLflow and W&B by stand-ins with the calls that theirs have.

Where MLflow or W&B is installed, the real one is asked too, offline.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pretraining.test_loop import SMALL, cohort

from headct.failure import Misuse
from headct.pretraining import pretrain
from headct.pretraining.tracking import SERVICES, TensorBoard, Trackers, check_installed


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def module(monkeypatch: pytest.MonkeyPatch, name: str, **entries: Any) -> None:
    """A stand-in for a package."""
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None)
    vars(made).update(entries)
    monkeypatch.setitem(sys.modules, name, made)


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    def found(name: str, real: Any = importlib.util.find_spec) -> Any:
        return None if name == package else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", found)


def test_a_run_leaves_its_numbers_for_tensorboard(tmp_path: Path) -> None:
    run = pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=3))
    found = scalars(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in found["loss"]] == [0, 1, 2]
    assert [value for _, value in found["loss"]] == pytest.approx(run.history["loss"].tolist())
    assert {"lr", "tflop_s", "memory_gb", "step_s"} <= set(found)


def test_steps_that_are_taken_again_replace_those_of_the_first_try(tmp_path: Path) -> None:
    for start, values in ((0, [1.0, 2.0, 3.0]), (1, [20.0, 30.0])):
        board = TensorBoard(tmp_path, start)
        for step, value in enumerate(values, start):
            board.note(step, {"loss": value})
        board.close()
    assert scalars(tmp_path / "tensorboard")["loss"] == [(0, 1.0), (1, 20.0), (2, 30.0)]


def test_without_tensorboard_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tensorboard")
    said: list[str] = []
    pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=2), progress=said.append)
    assert sum("pip install tensorboard" in line for line in said) == 1
    assert not (tmp_path / "run" / "tensorboard").exists()


class Client:
    """The part of `mlflow.MlflowClient` that is used."""

    def __init__(self, uri: str) -> None:
        self.uri, self.params, self.metrics, self.ended = uri, {}, [], []
        CLIENTS.append(self)

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str) -> str:
        return f"experiment {name}"

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{run_name} of {experiment_id}"))

    def log_param(self, run_id: str, name: str, value: str) -> None:
        self.params[name] = value

    def log_batch(self, run_id: str, metrics: list[Any]) -> None:
        self.metrics += [(metric.key, metric.value, metric.step) for metric in metrics]

    def set_terminated(self, run_id: str) -> None:
        self.ended.append(run_id)


CLIENTS: list[Client] = []


def metric(key: str, value: float, timestamp: int, step: int) -> Any:
    return SimpleNamespace(key=key, value=value, step=step)


@pytest.mark.parametrize("uri", ["", "http://tracking.example"])
def test_mlflow_writes_a_database_in_the_run_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    module(monkeypatch, "mlflow", MlflowClient=Client, entities=SimpleNamespace(Metric=metric))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    run = pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=2, track="mlflow"))
    client = CLIENTS.pop()
    assert client.uri == (uri or f"sqlite:///{tmp_path.resolve()}/run/mlflow.db")
    assert client.params["encoder"] == '"vit-tiny"'
    assert [entry for entry in client.metrics if entry[0] == "loss"] == [
        ("loss", value, step) for step, value in enumerate(run.history["loss"])
    ]
    assert client.ended == ["run of experiment headct"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize("mode", [None, "online"])
def test_wandb_stays_offline_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    begun: dict[str, Any] = {}
    logged: list[tuple[int, float]] = []

    def init(**given: Any) -> Any:
        begun.update(given)
        return SimpleNamespace(
            log=lambda values, step: logged.append((step, values["loss"])), finish=lambda: begun.update(over=True)
        )

    module(monkeypatch, "wandb", init=init)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    run = pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=2, track="wandb"))
    assert begun["mode"] == (None if mode else "offline")
    assert (begun["project"], begun["group"], begun["dir"]) == ("headct", "run", str(tmp_path / "run"))
    assert begun["over"]
    assert logged == list(enumerate(run.history["loss"]))
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


@pytest.mark.parametrize("service", SERVICES)
def test_the_real_service_takes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    if importlib.util.find_spec(service) is None:
        pytest.skip(f"{service} is not installed")
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    said: list[str] = []
    pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=2, track=service), progress=said.append)
    assert not [line for line in said if "without it" in line]
    assert any((tmp_path / "run").glob({"mlflow": "mlflow.db", "wandb": "wandb/offline-run-*"}[service]))


def test_a_service_that_is_missing_or_unknown_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "wandb")
    with pytest.raises(Misuse, match="wandb is not installed") as misuse:
        pretrain([cohort()], tmp_path / "run", replace(SMALL, track="wandb"))
    assert "pip install wandb" in str(misuse.value.do)
    assert not (tmp_path / "run").exists()
    with pytest.raises(Misuse, match="track must be mlflow or wandb, got 'neptune'"):
        replace(SMALL, track="neptune")
    check_installed(None)


def test_a_service_that_fails_is_said_once_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log(values: dict[str, float], step: int) -> None:
        raise ConnectionError("no route to host")

    module(monkeypatch, "wandb", init=lambda **given: SimpleNamespace(log=log, finish=lambda: None))
    said: list[str] = []
    run = pretrain([cohort()], tmp_path / "run", replace(SMALL, steps=3, track="wandb"), progress=said.append)
    assert len(run.history) == 3
    assert [line for line in said if "wandb" in line] == ["wandb failed (no route to host); the run goes on without it"]


def test_a_service_that_cannot_begin_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**given: Any) -> Any:
        raise PermissionError("log in first")

    module(monkeypatch, "wandb", init=init)
    without(monkeypatch, "tensorboard")
    said: list[str] = []
    trackers = Trackers(tmp_path, "wandb", {}, 0, said.append)
    trackers.note(0, {"loss": 1.0})
    trackers.close()
    assert said[1] == "wandb could not be begun (log in first); the run goes on without it"
