"""The numbers of a run, step by step, for those who follow it elsewhere than in its folder.

TensorBoard's files are always written where the package is installed; MLflow and W&B are asked for. Nothing leaves the
machine unless their own variables say so: MLflow writes a database in the run (`MLFLOW_TRACKING_URI` names another),
W&B files that `wandb sync` sends later (`WANDB_MODE` says otherwise).
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from headct.failure import Misuse

Say = Callable[[str], None]


class Tracker(Protocol):
    """Something that keeps the numbers of steps."""

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Keep those of one step."""

    def close(self) -> None:
        """Nothing is noted after it."""


class TensorBoard:
    """Event files in RUN/tensorboard; steps from `start` on replace those of an earlier try."""

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=start or None)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `headct`."""

    def __init__(self, run: Path, settings: Mapping[str, str]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before it is imported
        import mlflow

        self._mlflow, run = mlflow, run.resolve()
        self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run / 'mlflow.db'}")
        known = self._client.get_experiment_by_name("headct")
        experiment = known.experiment_id if known else self._client.create_experiment("headct")
        self._run_id: str = self._client.create_run(experiment, run_name=run.name).info.run_id
        for name, value in settings.items():
            self._client.log_param(self._run_id, name, value)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [self._mlflow.entities.Metric(name, value, now_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


class Wandb:
    """A run of the project `headct`, or of `WANDB_PROJECT`; one that goes on is another of the same group."""

    def __init__(self, run: Path, settings: Mapping[str, str]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would be sent to its makers
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "headct"),
            group=run.resolve().name,
            dir=str(run),
            config=dict(settings),
            mode=None if "WANDB_MODE" in os.environ else "offline",
        )

    def note(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


SERVICES: Mapping[str, Callable[[Path, Mapping[str, str]], Tracker]] = MappingProxyType(
    {"mlflow": MLflow, "wandb": Wandb}
)
"""By the name of their package."""


def check_installed(service: str | None) -> None:
    """Raises Misuse where the package of a service is missing."""
    if service is not None and importlib.util.find_spec(service) is None:
        raise Misuse(f"{service} is not installed", do=f"pip install {service}, or leave --track out")


class Trackers:
    """All trackers of a run. One that fails is said and left out from then on: it must not end a run of days."""

    def __init__(self, run: Path, service: str | None, settings: Mapping[str, str], start: int, say: Say) -> None:
        self._say, self._open = say, dict[str, Tracker]()
        if importlib.util.find_spec("tensorboard") is None:
            say("TensorBoard is not installed, so its files are not written; pip install tensorboard")
        else:
            self._begin("TensorBoard", lambda: TensorBoard(run, start))
        if service is not None:
            self._begin(service, lambda: SERVICES[service](run, settings))

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the numbers of a step."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.note, step, values)

    def close(self) -> None:
        """Nothing is noted after it."""
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.close)
        self._open.clear()

    def _begin(self, name: str, begun: Callable[[], Tracker]) -> None:
        try:
            self._open[name] = begun()
        except Exception as error:  # noqa: BLE001  # a service fails in its own ways
            self._say(f"{name} could not be begun ({error}); the run goes on without it")

    def _guarded(self, name: str, work: Callable[..., Any], *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:  # noqa: BLE001  # of a network, a full disk, or a service of its own kind
            self._open.pop(name, None)
            self._say(f"{name} failed ({error}); the run goes on without it")
