"""A checkpoint in other forms: a folder for the Hub, or a graph that other runtimes run, compared with eager first."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from headct import __version__
from headct.checkpoints import exported, folder, layout
from headct.checkpoints.card import write_up
from headct.checkpoints.exported import GRAPHS, NEAREST, Run, Runtime
from headct.checkpoints.pretrained import PretrainedEncoder
from headct.checkpoints.strict import sha256_of
from headct.encoders import Features, as_input
from headct.failure import Failure, Misuse
from headct.preparing import Recipe
from headct.preparing.recipe import Windows
from headct.preparing.windows import apply

PRECISIONS: Mapping[str, tuple[str, ...]] = {"onnx": ("fp32",), "openvino": ("fp32", "bf16", "int8"), "hub": ("fp32",)}
"""In which a model can be written, by form."""
QUIET = ("nncf", "torch.onnx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Exported:
    """What was written, and how near the graph comes to the encoder; `runtime` is None for the Hub."""

    folder: Path
    runtime: Runtime | None


def export(
    model: PretrainedEncoder, to: str, out: Path, *, precision: str = "fp32", arrays: Sequence[np.ndarray] = ()
) -> Exported:
    """Write `model` as a folder for the Hub (`to` hub), or as an onnx or openvino graph, into the new folder `out`.

    `arrays` are prepared scans of the model's recipe, all of one shape, on which the graph is compared with the
    encoder; for int8 every other one calibrates it instead. Without them simple heads are drawn, which says less. A
    model card is always written, and `model` moved to the CPU. Raises Misuse where the form or precision does not
    exist, `out` does, or the encoder measures in millimetres and its recipe has no one spacing; Failure, with nothing
    left behind, where the graph is not near enough to the encoder (`exported.NEAREST`).
    """
    check(to, out, precision)
    check_model(model)
    model = model.eval().cpu()
    if to == "hub":
        folder.save(out, model.encoder, model.card)
        return Exported(out, None)
    with layout.written_whole(out) as new:
        runtime = _write(model, to, precision, list(arrays) or drawn_heads(model.recipe), new)
    return Exported(out, runtime)


def check(to: str, out: Path, precision: str) -> None:
    """What can be known before the model is there. Raises Misuse as `export` does."""
    if to not in PRECISIONS:
        raise Misuse(f"a model is exported to one of {', '.join(sorted(PRECISIONS))}, not {to!r}")
    if precision not in PRECISIONS[to]:
        others = [form for form in PRECISIONS if precision in PRECISIONS[form]]
        do = f"name --to {others[0]}, which takes it" if others else "leave out the precision"
        raise Misuse(f"{to} takes the precision {' or '.join(PRECISIONS[to])}, not {precision!r}", do=do)
    layout.check_new(out)


def check_model(model: PretrainedEncoder) -> None:
    """Raises Misuse where the model is a graph already."""
    if isinstance(model.encoder, exported.ExportedEncoder):
        raise Misuse("this model is an exported one", do="export the checkpoint that it was made from")


class _Graph(nn.Module):
    """What is exported: channels of one scan to its vector and tokens, at the recipe's spacing if it has one.

    Without, an encoder that measures in millimetres refuses, as it must: its scans differ in what a graph would fix.
    """

    def __init__(self, model: PretrainedEncoder) -> None:
        super().__init__()
        self.encoder, self.made_for_mm = model.encoder, model.recipe.spacing_mm
        self.register_buffer("spacing_mm", None if self.made_for_mm is None else torch.tensor([self.made_for_mm]))

    def features(self, channels: Tensor) -> Features:
        return self.encoder(channels, self.spacing_mm)

    def forward(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(channels)
        return features.scan, features.tokens


def _write(model: PretrainedEncoder, to: str, precision: str, arrays: Sequence[np.ndarray], out: Path) -> Runtime:
    """Fill the folder `out`; gives what was found in comparing."""
    inputs = [as_input(torch.from_numpy(array[None]), list(model.card.windows.values())) for array in arrays]
    if len({tuple(one.shape) for one in inputs}) != 1:
        raise Misuse("the scans have several shapes, and a graph is for one", do="name scans of one shape")
    calibrating, compared = inputs[::2], inputs
    if precision == "int8":
        compared = inputs[1::2] or inputs  # what it was calibrated with would flatter it
    graph = _Graph(model).eval()
    with _quiet(), torch.no_grad():
        graph(inputs[0])  # what the encoder refuses is said in its own words, not in a converter's
        _convert(graph, to, precision, calibrating, out)
    run = exported.start(out, to, precision, torch.get_num_threads())
    runtime = _compare(run, graph, compared, to, precision, out)
    _describe(model, runtime, run, out)
    return runtime


def _convert(graph: _Graph, to: str, precision: str, inputs: Sequence[Tensor], out: Path) -> None:
    if to == "onnx":
        exported.runtime_module("onnxscript")
        program: Any = torch.onnx.export(graph, (inputs[0],), dynamo=True, input_names=["channels"], verbose=False)
        program.save(str(out / GRAPHS["onnx"][0]), external_data=False)
        return
    openvino: Any = exported.runtime_module("openvino")
    converted = openvino.convert_model(graph, example_input=inputs[0], input=list(inputs[0].shape))
    if precision == "int8":
        nncf: Any = exported.runtime_module("nncf")
        shown = nncf.Dataset([one.numpy() for one in inputs])
        converted = nncf.quantize(
            converted,
            shown,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(inputs),
            fast_bias_correction=True,
            # Weights of 7 bits: without VNNI, sums of two products of 8 bits saturate, silently
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    openvino.save_model(converted, str(out / GRAPHS["openvino"][0]), compress_to_fp16=False)


def _compare(run: Run, graph: _Graph, inputs: Sequence[Tensor], to: str, precision: str, out: Path) -> Runtime:
    """How near what runs is to the encoder. Raises Failure where that is not near enough."""
    given, right, cosines, differences = [], [], [], []
    for channels in inputs:
        with torch.no_grad():
            wanted = graph.features(channels)
        scan, tokens = run(channels.numpy())
        given.append(scan)
        right.append(wanted.scan.numpy())
        for one, other in ((scan, right[-1]), (tokens, wanted.tokens.numpy())):
            cosines.append(exported.cosine(one, other))
            differences.append(np.abs(one - other).max())
    nearest = float(np.min(cosines))
    if not nearest >= NEAREST[precision]:  # also where one is not a number
        raise Failure(
            f"the {to} graph in {precision} is not near enough to the encoder",
            why=f"vectors or tokens have a cosine of {nearest:.6f}, allowed is {NEAREST[precision]}",
            do="take another precision, or calibrate on real scans: --calibrate COHORT",
        )
    _, count, x, y, z = inputs[0].shape
    return Runtime(
        kind=to,
        precision=precision,
        sha256={name: sha256_of(out / name) for name in GRAPHS[to]},
        shape=(count, x, y, z),
        spacing_mm=graph.made_for_mm,
        grid=wanted.grid,
        cosine=nearest,
        centred=_centred(given, right),
        difference=float(np.max(differences)),
        compared_on=len(inputs),
    )


def _centred(given: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float | None:
    """The least cosine once the mean of the right vectors is taken from all: whether what tells scans apart is kept."""
    if len(right) < 2:
        return None
    mean = np.mean(right, axis=0)
    return float(np.min([exported.cosine(one - mean, other - mean) for one, other in zip(given, right, strict=True)]))


def _describe(model: PretrainedEncoder, runtime: Runtime, run: Run, out: Path) -> None:
    """The configuration, the self-test and the card."""
    config = {
        **layout.configuration(model, model.card, asdict(runtime)),
        "made_from": {"sha256": model.sha256, "source": Path(model.source).name},
    }
    (out / layout.CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    scan, tokens = run(layout.example((1, *runtime.shape)).numpy())
    decisive = {layout.DECISIVE: layout.decisive(config)}
    features = to_bytes({"scan": torch.from_numpy(scan), "tokens": torch.from_numpy(tokens)}, decisive)
    (out / layout.SELFTEST).write_bytes(features)  # safetensors' own writer makes files for one user only
    said = (
        f"\n## This form\n\nA graph for {runtime.kind} in {runtime.precision}, for arrays of {runtime.shape}. On "
        f"{runtime.compared_on} scans its vectors and tokens had a cosine of at least {runtime.cosine:.6f} to those of "
        "the checkpoint that it was made from"
        + (
            ""
            if runtime.centred is None
            else f", and its vectors {runtime.centred:.3f} without what these scans have in common"
        )
        + ".\n"
    )
    (out / layout.README).write_text(write_up(model.card, model.encoder, __version__) + said, encoding="utf-8")


def drawn_heads(recipe: Recipe, count: int = 8) -> list[np.ndarray]:
    """Simple heads as the recipe's arrays, a skull around a brain with noise, for want of scans.

    Raises Misuse for a recipe whose arrays have no one shape, or other axes than RAS.
    """
    if recipe.shape is None or recipe.axes != "RAS":
        raise Misuse(f"no heads can be drawn for recipe {recipe.name}", do="name scans: --calibrate COHORT")
    windows = recipe.step(Windows)
    shape = recipe.shape[-3:]
    generator = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    heads = []
    for _ in range(count):
        radii = generator.uniform(0.6, 0.9, 3)
        distance = np.sqrt(sum((axis / radius) ** 2 for axis, radius in zip(axes, radii, strict=True)))
        hu = np.where(distance < 0.85, generator.uniform(25, 40), np.where(distance < 1, 1000.0, -1000.0))
        hu += generator.normal(0, 4, shape)
        heads.append((hu.round() if windows is None else apply(hu, windows.windows)).astype(recipe.dtype))
    return heads


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters print bars and warn about their own insides; what matters to a user is compared afterwards."""
    before = {name: logging.getLogger(name).level for name in QUIET}
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
