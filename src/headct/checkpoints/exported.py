"""Encoders as compiled graphs: smaller and, where the processor has units for it, several times as fast.

exported/
  config.json            as a checkpoint's, with `runtime`: which graph, in which precision, how near it came
  graph.onnx, or graph.xml and graph.bin
  selftest.safetensors   the features that the graph gave of a closed-form input
  README.md              the model card
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headct.checkpoints import layout
from headct.checkpoints.layout import CONFIG, SELFTEST
from headct.checkpoints.pretrained import PretrainedEncoder
from headct.checkpoints.strict import COPY_AGAIN, CheckpointFailure, damaged, sha256_of
from headct.encoders import Encoder, Features, Grid, Lattice
from headct.failure import Misuse

GRAPHS: Mapping[str, tuple[str, ...]] = {"onnx": ("graph.onnx",), "openvino": ("graph.xml", "graph.bin")}

NEAREST: Mapping[str, float] = {"fp32": 0.999999, "bf16": 0.9999, "int8": 0.9995}
"""Least cosine, by precision, between the features of a graph, scan vector and tokens each, and its encoder's."""

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From channels (1, C, X, Y, Z) float32 to scan (1, F) and tokens (1, N, W)."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a graph is, as `config.json` says it."""

    kind: str  # onnx or openvino
    precision: str  # fp32, bf16 or int8
    sha256: Mapping[str, str]  # of each file of the graph
    shape: tuple[int, int, int, int]  # (C, X, Y, Z) of one scan
    spacing_mm: tuple[float, float, float] | None  # the graph was made for; None: of no matter
    grid: Grid
    cosine: float  # the least of vectors and tokens, over the scans that it was compared on
    centred: float | None  # the same without what these scans have in common; None for one scan
    difference: float  # the largest of any feature
    compared_on: int

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Runtime:
        """Raises KeyError, TypeError or ValueError where the values are not those of a runtime."""
        channels, x, y, z = values["shape"]
        nx, ny, nz = values["grid"]
        spacing_mm = None if values["spacing_mm"] is None else tuple(values["spacing_mm"])
        found = {"shape": (channels, x, y, z), "spacing_mm": spacing_mm, "grid": (nx, ny, nz)}
        return cls(**{**values, **found, "sha256": dict(values["sha256"])})


class ExportedEncoder(Encoder):
    """A graph behind the signature of the encoder it was made from. It runs on the CPU, one scan after the other."""

    def __init__(self, twin: Encoder, runtime: Runtime, run: Run) -> None:
        super().__init__()
        self.architecture, self.settings, self.runtime = twin.architecture, twin.settings, runtime
        self._twin, self._run = [twin], run  # in a list, so that its weights, which hold nothing, are not ours

    @property
    def channels(self) -> int:
        return self.runtime.shape[0]

    @property
    def scan_width(self) -> int:
        return self._twin[0].scan_width

    @property
    def example_shape(self) -> tuple[int, int, int]:
        _, x, y, z = self.runtime.shape
        return x, y, z

    def lattice(self, shape: tuple[int, int, int]) -> Lattice:
        return self._twin[0].lattice(shape)

    def forward(self, x: Tensor, spacing_mm: Tensor | None = None) -> Features:
        """Features of x (B, C, X, Y, Z). Raises Misuse for another shape or spacing than the graph was made for."""
        if tuple(x.shape[1:]) != self.runtime.shape:
            raise Misuse(
                f"this graph takes arrays of {self.runtime.shape}, got {tuple(x.shape[1:])}",
                do="export the model for arrays of that shape, or take the checkpoint itself",
            )
        made_for_mm = self.runtime.spacing_mm
        if spacing_mm is not None and made_for_mm and not np.allclose(spacing_mm.cpu(), made_for_mm, rtol=1e-3):
            raise Misuse(
                f"this graph takes voxels of {made_for_mm} mm, got {spacing_mm.tolist()}",
                do="prepare the scans by the model's recipe, or take the checkpoint itself",
            )
        given = [self._run(one[None].float().cpu().numpy()) for one in x]
        scans, tokens = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*given, strict=True))
        return Features(scan=scans, tokens=tokens, grid=self.runtime.grid)


def is_exported(folder: Path) -> bool:
    """Whether the configuration in a folder speaks of a graph."""
    try:
        return "runtime" in layout.read_config(folder)
    except CheckpointFailure:
        return False


def read(folder: Path, *, threads: int | None = None) -> PretrainedEncoder:
    """The graph in a folder, behind the encoder's signature.

    Believed only if each file has its SHA-256, the configuration is the one it was exported with, and the self-test
    agrees. `threads` None is as many as PyTorch uses.
    Raises CheckpointFailure where the folder is not right, Misuse where the runtime is not installed.
    """
    config = layout.read_config(folder)
    twin, card = layout.described(folder, config)
    try:
        runtime = Runtime.from_config(config["runtime"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(folder / CONFIG, error) from error
    if runtime.shape[0] != twin.channels:
        raise damaged(folder / CONFIG, f"its graph takes {runtime.shape[0]} channels, its encoder {twin.channels}")
    example = layout.read(folder, SELFTEST)
    expected = layout.tensors(folder / SELFTEST, example)
    layout.check_unchanged(folder, config, example)
    for name in GRAPHS.get(runtime.kind, ()):
        if not (folder / name).is_file():
            raise CheckpointFailure(f"{folder} lacks {name}", do=COPY_AGAIN)
        if sha256_of(folder / name) != runtime.sha256.get(name):
            raise damaged(folder / name, "it is not the file that was exported")
    run = start(folder, runtime.kind, runtime.precision, threads or torch.get_num_threads())
    encoder = ExportedEncoder(twin, runtime, run)
    _self_test(encoder, expected, folder)
    sha256 = "".join(runtime.sha256[name] for name in GRAPHS[runtime.kind])
    note = f"an {runtime.kind} graph in {runtime.precision}, at a cosine of {runtime.cosine:.6f} to its checkpoint"
    return PretrainedEncoder(encoder, card, hashlib.sha256(sha256.encode()).hexdigest(), notes=(note,)).eval()


def start(folder: Path, kind: str, precision: str, threads: int) -> Run:
    """A graph, loaded and compiled for this machine."""
    if kind not in GRAPHS or precision not in NEAREST:
        raise CheckpointFailure(
            f"{folder} is for the runtime {kind!r} in {precision!r}, which is not known", do="update headct"
        )
    graph = folder / GRAPHS[kind][0]
    return _onnx(graph, threads) if kind == "onnx" else _openvino(graph, precision, threads)


def runtime_module(name: str) -> ModuleType:
    """An optional library, without the telemetry that it would send home. Raises Misuse where it is not installed.

    The switches work before a library is imported: a program that has imported one itself has decided for itself.
    """
    # ONNX Runtime sends events over HTTPS from native code, and keeps an identifier of the machine below ~/.cache
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    # OpenVINO and NNCF report their use to the vendor where this package is; without it they take an empty stand-in
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Misuse(f"{name} is not installed", why=str(error), do=f"pip install {name}") from error


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine of two vectors."""
    a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(a @ b) / lengths if lengths else 0.0


def _onnx(path: Path, threads: int) -> Run:
    onnxruntime: Any = runtime_module("onnxruntime")
    onnxruntime.disable_telemetry_events()  # most of it, where it was imported before with telemetry on
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scan, tokens = session.run(None, {session.get_inputs()[0].name: channels})
        return scan, tokens

    return run


def _openvino(path: Path, precision: str, threads: int) -> Run:
    openvino: Any = runtime_module("openvino")
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = compiled(channels)
        return np.array(given[0]), np.array(given[1])

    return run


def _self_test(encoder: ExportedEncoder, expected: Mapping[str, Tensor], folder: Path) -> None:
    if set(expected) != {"scan", "tokens"}:
        raise damaged(folder / SELFTEST, f"it holds {', '.join(sorted(expected))}")
    features = encoder(layout.example((1, *encoder.runtime.shape)))
    given = {"scan": features.scan, "tokens": features.tokens}
    if wrong := [name for name, one in given.items() if one.shape != expected[name].shape]:
        raise damaged(folder / SELFTEST, f"its {wrong[0]} are {tuple(expected[wrong[0]].shape)}")
    near = np.min([cosine(one.numpy(), expected[name].float().numpy()) for name, one in given.items()])
    least = NEAREST[encoder.runtime.precision]
    if not near >= least:  # also where it is not a number
        raise CheckpointFailure(
            f"the exported model {folder} fails its self-test",
            why=f"its features have a cosine of {near:.6f} to those recorded, allowed is {least}",
            do="export it again on this machine: another processor may compute this precision otherwise",
        )
