"""Detectors: what was learned from labels, made ready for scans that nobody has labelled.

detector/
  config.json            the encoder's hash, method, findings, calibration, operating points, what it was learned from
  head.safetensors       all that was learned; the encoder's weights only where they were trained
  selftest.safetensors   small inputs, and the scores, probabilities and distances they must give
  splits.csv             who was learned from, and who was validated on; shots.csv where few were drawn
  README.md              the model card
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from headct import __version__, checkpoints
from headct.checkpoints import CheckpointFailure, PretrainedEncoder, layout
from headct.checkpoints.layout import CONFIG, README, SELFTEST
from headct.checkpoints.registry import read_sealed
from headct.checkpoints.strict import COPY_AGAIN, damaged
from headct.detection.calibration import POINT, Calibration
from headct.detection.card import write_up
from headct.detection.method import Fitted, Progress, Scans, quiet
from headct.detection.methods import METHODS, entry, fitted
from headct.detection.ood import Familiar
from headct.detection.reasons import VIRTUAL, Met, undecided, unfamiliar
from headct.detection.scans import Held
from headct.embedding.inputs import IDS, Inputs, Reading
from headct.embedding.machine import Machine, choose
from headct.embedding.vectors import Looked, look
from headct.evaluation.operating import FALLBACK
from headct.failure import Failure, Misuse
from headct.reading import Criteria

SEALED = layout.Sealed("headct-detector", 2, "detector", "headct adapt", "findings, calibration or operating points")
HEAD = "head.safetensors"
TOLERANCE = 1e-3
"""Largest difference in the self-test, as a share of the largest score: machines differ by less."""
PLAIN = Machine(torch.device("cpu"), "fp32", "for the self-test")
WHOSE = tuple(name for name in IDS if name != "scan_id")
"""Ids of whom a scan is of."""
SCORES = pa.schema(
    [
        ("scan_id", pa.string()),
        ("finding", pa.string()),
        ("probability", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("threshold", pa.float64()),
        ("answer", pa.string()),
        ("ood", pa.float64()),
        ("reasons", pa.list_(pa.string())),
    ]
)
PREDICTIONS = pa.schema([*SCORES, *((name, pa.string()) for name in WHOSE), ("files", pa.list_(pa.string()))])
"""With whose scan it is, and the files that it was read from; none for one of a cohort, whose `files` say."""


@dataclass(frozen=True)
class Known:
    """What is known of a scan besides what a network sees: traits as in `Ready`, and whether its patient exists."""

    scan_id: str
    traits: Mapping[str, Any]
    virtual: bool


@dataclass(frozen=True)
class Judged:
    """A batch of scans that were looked at: names of jobs as in `Looked`, rows by `PREDICTIONS`, and rejections."""

    met: Sequence[str]
    names: Sequence[str]
    rows: Mapping[str, list[dict[str, Any]]]  # by name of the job
    rejections: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Detector:
    """Scans to probabilities of findings, with an interval, a distance from what it knows, and reasons to doubt.

    `points` have, for each finding, the probability from which on it is called there, by name (`operating_points`);
    `record` is what is told of how it was made, plain values.
    """

    encoder: PretrainedEncoder
    fitted: Fitted
    calibrations: tuple[Calibration, ...]
    points: tuple[Mapping[str, float], ...]
    familiar: Familiar
    met: Met
    record: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""  # of config.json, which holds that of the tensors; empty until it was saved

    @property
    def findings(self) -> tuple[str, ...]:
        """Names, in order."""
        return self.fitted.findings

    @property
    def thresholds(self) -> dict[str, float]:
        """By finding, the probability from which on it is called."""
        return {name: points.get(POINT, FALLBACK) for name, points in zip(self.findings, self.points, strict=True)}

    @property
    def from_scratch(self) -> str:
        """The architecture of a network that began at random weights, for the encoder lends it none; else nothing."""
        settings = self.fitted.settings()
        return str(settings["architecture"]) if settings.get("initial") == "random" else ""

    @property
    def learned_by(self) -> str:
        """The method by name; of a network from scratch with its architecture."""
        return f"scratch, {self.from_scratch}" if self.from_scratch else self.fitted.method

    def __repr__(self) -> str:
        on = "" if self.from_scratch else f" on {self.encoder.architecture}"
        return f"Detector({', '.join(self.findings)}; {self.learned_by}{on})"

    # ---- scans to predictions ----

    def predict(
        self,
        inputs: Inputs,
        *,
        batch_size: int = 8,
        workers: int = 1,
        precision: str | None = None,
        device: str | None = None,
        criteria: Criteria | None = None,
        key: bytes | None = None,
        keep_ids: bool = False,
        progress: Progress = quiet,
    ) -> pd.DataFrame:
        """A row for each scan and finding: `SCORES`, and whose it is.

        Whose: patient_id, study_id, series_id and files (none for a scan of a cohort). `low` to `high` is the 95 %
        interval of calibration (`headct.detection.calibration`). The `answer` is yes from the probability `threshold`
        on, which was chosen on validation scans. `ood` is the share of validation scans that are more like the training
        scans; `reasons` to doubt are sentences, mostly none. Inputs and options are those of
        `headct.embed`. What cannot be looked at is in `.attrs["rejections"]`, a list of mappings with code, sentence,
        remedy and files, and a warning says how many. Raises Misuse where a cohort has another recipe, Failure where
        nothing could be looked at.
        """
        machine = choose(precision, device, graph=self.encoder.runtime)
        reading = Reading(recipe=self.encoder.recipe, criteria=criteria or Criteria(), key=key, keep_ids=keep_ids)
        seen = list(
            self.on(machine).judge(
                inputs, reading, machine, batch_size=batch_size, workers=workers, progress=progress
            )
        )  # fmt: skip
        by_scan: dict[str, list[dict[str, Any]]] = {}
        for rows in (rows for one in seen for rows in one.rows.values()):
            by_scan.setdefault(rows[0]["scan_id"], rows)
        rejections = [row for one in seen for row in one.rejections]
        if not by_scan:
            told = "; ".join(dict.fromkeys(str(row["sentence"]) for row in rejections)) or "the inputs hold no scans"
            raise Failure("nothing could be looked at", why=told, do="name files, folders or cohorts that hold scans")
        table = pd.DataFrame([row for rows in by_scan.values() for row in rows], columns=PREDICTIONS.names)
        if rejections:
            table.attrs["rejections"] = rejections
            warnings.warn(f'{len(rejections)} inputs were rejected: see .attrs["rejections"]', stacklevel=2)
        return table

    def judge(
        self,
        inputs: Inputs,
        reading: Reading,
        machine: Machine,
        *,
        batch_size: int = 8,
        workers: int = 1,
        done: Collection[str] = (),
        progress: Progress = quiet,
    ) -> Iterator[Judged]:
        """Batch after batch; inputs whose jobs are `done` are passed over. Call it of `on(machine)`."""
        for batch in look(
            self.encoder, inputs, reading, machine,
            batch_size=batch_size, workers=workers, done=done, progress=progress,
        ):  # fmt: skip
            yield Judged(batch.met, batch.names, self._rows(batch), batch.rejections)

    def _rows(self, batch: Looked) -> dict[str, list[dict[str, Any]]]:
        if not batch.ready:
            return {}
        arrays = spacing_mm = None
        if not METHODS[self.fitted.method].frozen:
            arrays = np.stack([ready.array for _, ready in batch.ready])
            spacing_mm = np.stack([ready.spacing_mm for _, ready in batch.ready]).astype(np.float32)
        known = [Known(ready.ids["scan_id"], ready.traits, ready.virtual) for _, ready in batch.ready]
        told = self.rows(Held(batch.vectors, arrays, spacing_mm), known)
        found: dict[str, list[dict[str, Any]]] = {}
        for (job, ready), rows in zip(batch.ready, told, strict=True):
            whose = {name: ready.ids[name] for name in WHOSE} | {"files": list(ready.files)}
            found[job.name] = [row | whose for row in rows]
        return found

    def rows(self, scans: Scans, known: Sequence[Known]) -> list[list[dict[str, Any]]]:
        """Of each scan a row for each finding, by `SCORES`. Call it of `on(machine)`."""
        every = np.arange(len(scans))
        middle, low, high = self.probabilities(self.fitted.scores(scans, every))
        far, thresholds = self.familiar(scans.vectors(every)), self.thresholds
        return [
            [
                {
                    "scan_id": one.scan_id,
                    "finding": finding,
                    "probability": float(middle[row, column]),
                    "low": float(low[row, column]),
                    "high": float(high[row, column]),
                    "threshold": thresholds[finding],
                    "answer": "yes" if middle[row, column] >= thresholds[finding] else "no",
                    "ood": float(far[row]),
                    "reasons": [
                        *undecided(low[row, column], high[row, column], self.points[column].get(POINT)),
                        *self._doubts(one, far[row]),
                    ],
                }
                for column, finding in enumerate(self.findings)
            ]
            for row, one in enumerate(known)
        ]

    def _doubts(self, scan: Known, far: float) -> list[str]:
        """Why anything that is said of a scan may be doubted."""
        unlike_any = [VIRTUAL] if self.record.get("virtual") and not scan.virtual else []
        return [*unlike_any, *unfamiliar(far, len(self.familiar.validation)), *self.met.doubts(scan.traits)]

    def probabilities(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probability, low and high, each (n, f), of logits (n, f)."""
        told = [one(logits[:, column]) for column, one in enumerate(self.calibrations)]
        middle, low, high = (np.stack(columns, axis=1) for columns in zip(*told, strict=True))
        return middle, low, high

    def on(self, machine: Machine) -> Detector:
        """The same, with networks of its own on a machine."""
        return self if METHODS[self.fitted.method].frozen else self._restored(machine)

    def _restored(self, machine: Machine) -> Detector:
        again = fitted(self.fitted.method).restore(
            self.encoder, self.findings, self.fitted.settings(), self.fitted.tensors(), self.fitted.facts, machine
        )
        return Detector(
            self.encoder, again, self.calibrations, self.points, self.familiar, self.met, self.record, self.sha256
        )

    # ---- to disk and back ----

    def save(self, folder: Path, tables: Mapping[str, pd.DataFrame] | None = None) -> Path:
        """Write the folder, as a whole or not at all, with the tables as CSV beside it; gives the folder.

        Raises Misuse where it exists already.
        """
        with layout.written_whole(Path(folder)) as new:
            for name, content in self._files(Path(folder)).items():
                (new / name).write_bytes(content)
            for name, table in (tables or {}).items():
                (new / f"{name}.csv").write_text(table.to_csv(index=False), encoding="utf-8")
        return Path(folder)

    def _files(self, folder: Path) -> dict[str, bytes]:
        head = to_bytes(self._tensors())
        config = {
            "format": SEALED.format,
            "format_version": SEALED.version,
            "method": self.fitted.method,
            "findings": list(self.findings),
            "settings": self.fitted.settings(),
            "facts": dict(self.fitted.facts),
            "encoder": {
                **_whereabouts(self.encoder.source, folder),
                "architecture": self.encoder.architecture,
                "sha256": self.encoder.sha256,
                "decisive_sha256": self.encoder.decisive_sha256,
                "recipe": {"id": self.encoder.recipe.id, "name": self.encoder.recipe.name},
                "licence": self.encoder.card.licence,
            },
            "calibration": [one.settings() for one in self.calibrations],
            "operating_points": [dict(points) for points in self.points],
            "met": self.met.to_dict(),
            "record": dict(self.record),
            "head_sha256": hashlib.sha256(head).hexdigest(),
            "written_by": {"headct": __version__, "torch": torch.__version__},
        }
        written = (json.dumps(config, indent=2, ensure_ascii=False, default=_plain) + "\n").encode()
        metadata = {layout.CONFIG_HASH: hashlib.sha256(written).hexdigest()}
        plain = self if METHODS[self.fitted.method].frozen else self._restored(PLAIN)
        return {
            HEAD: head,
            CONFIG: written,
            SELFTEST: to_bytes(plain._tested(_example(plain)), metadata),
            README: write_up(config, __version__).encode(),
        }

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"head": self.fitted.tensors(), "familiar": self.familiar.tensors()}
        parts |= {f"calibration.{column}": one.tensors() for column, one in enumerate(self.calibrations)}
        return {f"{part}.{name}": one.contiguous() for part, tensors in parts.items() for name, one in tensors.items()}

    def _tested(self, example: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The example and what it gives."""
        arrays = {name: tensor.numpy() for name, tensor in example.items()}
        scans = Held(arrays["vectors"], arrays.get("arrays"), arrays.get("spacing_mm"))
        scores = self.fitted.scores(scans, np.arange(len(scans)))
        told = {"scores": scores, "distances": self.familiar.distances(scans.held_vectors)}
        told |= dict(zip(("probability", "low", "high"), self.probabilities(scores), strict=True))
        return dict(example) | {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in told.items()}

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, model: str | os.PathLike[str] | None = None) -> Detector:
        """A detector and its encoder, which is looked for where it was when the detector was made, or is `model`.

        Strict: SHA-256, names, shapes, the encoder and the self-test must all agree. Raises Misuse where there is no
        detector or its encoder is not found, CheckpointFailure where its content is not right.
        """
        place, config, sha256 = read_sealed(folder, SEALED)
        head = layout.read(place, HEAD)
        if hashlib.sha256(head).hexdigest() != config["head_sha256"]:
            raise CheckpointFailure(f"{place / HEAD} is not the file that was saved", do=COPY_AGAIN)
        encoder = _encoder_of(config, place, model)
        try:
            found = _built(config, layout.tensors(place / HEAD, head), encoder, sha256)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError) as error:
            raise damaged(place / CONFIG, error) from error
        _self_test(found, layout.tensors(place / SELFTEST, layout.read(place, SELFTEST)), place)
        return found


def _whereabouts(source: str, folder: Path) -> dict[str, Any]:
    """How an encoder is found again: by its address, or from the detector's folder, so that both may move together."""
    if os.path.exists(source):
        return {"source": os.path.relpath(Path(source).resolve(), folder.resolve()), "local": True}
    return {"source": source, "local": False}


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a detector's record holds plain values, not {type(value).__name__}")


def _example(detector: Detector) -> dict[str, Tensor]:
    """Closed-form inputs: vectors about as far from the mean as those of scans, and arrays where they are needed."""
    encoder, scaling = detector.encoder, detector.familiar.scaling
    spread = layout.example((4, 1, 1, encoder.scan_width, 1)).reshape(4, -1).double().numpy() * 4 - 2
    vectors = (scaling.mean + spread * scaling.sd).astype(np.float32)
    if METHODS[detector.fitted.method].frozen:
        return {"vectors": torch.from_numpy(vectors)}
    x = layout.example((1, 1 if encoder.card.windows else encoder.channels, *encoder.example_shape))
    arrays = (x[:, 0] * 120 - 20).to(torch.int16) if encoder.card.windows else x
    return {
        "vectors": torch.from_numpy(vectors[:1].copy()),
        "arrays": arrays.contiguous(),
        "spacing_mm": torch.tensor([[1.5, 2.0, 3.0]]),
    }


def _encoder_of(config: Mapping[str, Any], folder: Path, model: str | os.PathLike[str] | None) -> PretrainedEncoder:
    """Raises Misuse where it is not found, or is another one."""
    wanted = config["encoder"]
    source = model
    if source is None:
        source = os.path.normpath(folder / wanted["source"]) if wanted["local"] else str(wanted["source"])
    try:
        encoder = checkpoints.load(source)
    except Misuse as error:
        raise Misuse(
            f"the encoder of {folder} is not found: {error.what}",
            why=f"the detector was made with {wanted['architecture']} (SHA-256 {wanted['sha256'][:12]}...)",
            do="say where it is now: --model MODEL, or Detector.load(folder, model=...)",
        ) from error
    if encoder.decisive_sha256 != wanted["decisive_sha256"]:
        raise Misuse(
            f"{source} is not the encoder that {folder} was made with",
            why=f"its weights or settings differ: SHA-256 {encoder.sha256[:12]}..., wanted {wanted['sha256'][:12]}...; "
            f"recipe {encoder.recipe.name} ({encoder.recipe.id}), "
            f"wanted {wanted['recipe']['name']} ({wanted['recipe']['id']})",
            do="name the encoder it was made with, or adapt again with this one",
        )
    return encoder


def _built(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], encoder: PretrainedEncoder, sha256: str
) -> Detector:
    findings = tuple(config["findings"])
    entry(config["method"])

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): one for key, one in tensors.items() if key.startswith(f"{name}.")}

    learned = fitted(config["method"]).restore(
        encoder, findings, config["settings"], part("head"), config["facts"], PLAIN
    )
    calibrations = tuple(
        Calibration.restore(settings, part(f"calibration.{column}"))
        for column, settings in enumerate(config["calibration"])
    )
    if not len(findings) == len(calibrations) == len(config["operating_points"]):
        raise ValueError(f"{len(findings)} findings, {len(calibrations)} calibrations")
    found = Detector(
        encoder,
        learned,
        calibrations,
        tuple(config["operating_points"]),
        Familiar.restore(part("familiar"), encoder.scan_width),
        Met.from_dict(config["met"]),
        config["record"],
        sha256,
    )
    if strange := tensors.keys() ^ found._tensors().keys():
        raise ValueError(f"{sorted(strange)[0]} is missing or not expected")
    return found


def _self_test(detector: Detector, recorded: Mapping[str, Tensor], folder: Path) -> None:
    expected = _example(detector).keys()
    try:
        given = detector._tested({name: recorded[name] for name in expected})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(folder / SELFTEST, error) from error
    for name in given.keys() - expected:
        before, now = recorded.get(name, torch.zeros(0)), given[name]
        scale = max(1.0, float(before.abs().max())) if before.numel() else 1.0
        gap = float((before - now).abs().max()) / scale if before.shape == now.shape else float("inf")
        if not gap <= TOLERANCE:  # also where it is not a number
            raise CheckpointFailure(
                f"the detector {folder} fails its self-test",
                why=f"{name} differ by {gap:.2g} of their size from what was recorded, allowed is {TOLERANCE:g}",
                do=f"{COPY_AGAIN}; if it stays, this version of headct or torch computes otherwise",
            )
