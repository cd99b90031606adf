"""Segmenters: what was learned from masks, made ready for scans that nobody has drawn on.

segmenter/
  config.json            classes, network, recipe, windows, how it walks through a volume, what it was learned from
  model.safetensors      all weights, the encoder's too
  selftest.safetensors   a small input and the logits that it must give
  README.md              the model card

None of them holds an id of a patient or a scan: whom it has learned from is kept as hashes, so that it can be told of a
patient whether they are among them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor

from headct import __version__
from headct.checkpoints import CheckpointFailure, layout
from headct.checkpoints.layout import CONFIG, MODEL, README, SELFTEST
from headct.checkpoints.registry import read_sealed
from headct.checkpoints.strict import COPY_AGAIN, damaged, differences, some
from headct.embedding.machine import Machine
from headct.encoders import Window
from headct.failure import Failure
from headct.preparing import Recipe
from headct.pretraining.step import kept_random
from headct.tasks.segmentation.network import Plan, SegmentationNetwork
from headct.tasks.segmentation.patches import Example
from headct.tasks.segmentation.training import look
from headct.tasks.segmentation.windows import Probabilities, Sliding

SEALED = layout.Sealed("headct-segmenter", 2, "segmenter", "headct segment train", "classes, recipe or windows")
TOLERANCE = 1e-3
"""Largest difference in the self-test, as a share of the largest logit: machines differ by less."""
EXAMPLE_MM = (1.5, 2.0, 3.0)


def hash_of(patient_id: str) -> str:
    """What stands for a patient in a segmenter: it shows nothing of an id that nobody can guess, as pseudonyms are."""
    return hashlib.sha256(f"headct-segmenter patient {patient_id}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Segmenter:
    """Prepared arrays to probabilities of classes at each voxel.

    `record` is what is told of how it was made, plain values; `definition` how its classes are found in masks.
    """

    network: SegmentationNetwork
    plan: Plan
    classes: tuple[str, ...]  # 1, 2, 3, ...; 0 is the background
    definition: str
    recipe: Recipe
    windows: Mapping[str, Window]  # a channel each; empty where the recipe has scaled the arrays
    sliding: Sliding
    record: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""  # of config.json, which holds that of the weights; empty until it was saved

    def __repr__(self) -> str:
        return f"Segmenter({', '.join(self.classes)}; {self.plan.decoder} on {self.plan.architecture})"

    def probabilities(self, array: np.ndarray, affine: np.ndarray, machine: Machine) -> Probabilities:
        """Probabilities (K, X, Y, Z), float32 on the machine's device, of an array as the recipe makes it.

        `affine` is its matrix (4, 4) to RAS mm. K counts the background, at 0. They are made when they are gone
        through, and the network must be `on` the machine then. Raises Failure where values are not finite.
        """
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Failure("the array holds values that are no numbers", do="look at the scan and its recipe")
        x, y, z = array.shape[-3:]
        spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
        example = Example(array, np.zeros((0, 0, 0), np.uint8), spacing_mm)

        def slabs(along: int) -> Iterator[Tensor]:
            yield from map(
                _softmax, look(self.network, example, list(self.windows.values()), self.sliding, machine, along)
            )

        return Probabilities((x, y, z), slabs)

    def on(self, machine: Machine) -> Segmenter:
        """The same, its network moved to a machine."""
        self.network.to(machine.device).eval()
        return self

    def save(self, folder: Path) -> Path:
        """Write the folder, as a whole or not at all; gives the folder.

        Raises Misuse where it exists already.
        """
        with layout.written_whole(Path(folder)) as new:
            for name, content in self._files().items():
                (new / name).write_bytes(content)
        return Path(folder)

    def _files(self) -> dict[str, bytes]:
        self.network.cpu().eval()
        model = to_bytes({name: one.contiguous() for name, one in self.network.state_dict().items()})
        config = {
            "format": SEALED.format,
            "format_version": SEALED.version,
            "classes": list(self.classes),
            "definition": self.definition,
            "network": asdict(self.plan),
            "recipe": {"id": self.recipe.id, **json.loads(self.recipe.to_json())},
            "windows": {name: list(window) for name, window in self.windows.items()},
            "sliding": asdict(self.sliding),
            "record": dict(self.record),
            "model_sha256": hashlib.sha256(model).hexdigest(),
            "written_by": {"headct": __version__, "torch": torch.__version__},
        }
        written = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        example = _example(self.network, self.plan)
        return {
            MODEL: model,
            CONFIG: written,
            SELFTEST: to_bytes(
                {**example, "logits": _logits(self.network, example)},
                {layout.CONFIG_HASH: hashlib.sha256(written).hexdigest()},
            ),
            README: _write_up(config).encode(),
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Segmenter:
        """A segmenter, on the CPU in evaluation mode.

        Strict: SHA-256, names, shapes and the self-test must all agree. Raises Misuse where there is none,
        CheckpointFailure where its content is not right.
        """
        place, config, sha256 = read_sealed(folder, SEALED)
        content = layout.read(place, MODEL)
        if hashlib.sha256(content).hexdigest() != config["model_sha256"]:
            raise CheckpointFailure(f"{place / MODEL} is not the file that was saved", do=COPY_AGAIN)
        try:
            found = _built(config, layout.tensors(place / MODEL, content), sha256)
            _self_test(found, layout.tensors(place / SELFTEST, layout.read(place, SELFTEST)), place)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise damaged(place / CONFIG, error) from error
        return found


@torch.inference_mode()
def _softmax(logits: Tensor) -> Tensor:
    """Over classes (K, ...), in place, so that none of it is there twice. Raises Failure for what is not finite."""
    if not bool(torch.isfinite(torch.stack(torch.aminmax(logits))).all()):
        raise Failure("the logits are not finite", do="look at the scan, or train again")
    logits -= logits.amax(dim=0)
    logits.exp_()
    logits /= logits.sum(dim=0)
    return logits


def _example(network: SegmentationNetwork, plan: Plan) -> dict[str, Tensor]:
    """A closed-form input whose sizes the network can take."""
    channels = int(plan.encoder_settings["channels"])
    shape = tuple(max(2, -(-16 // network.divisor)) * network.divisor for _ in range(3))
    return {"x": layout.example((1, channels, *shape)), "spacing_mm": torch.tensor([EXAMPLE_MM])}


@torch.inference_mode()
def _logits(network: SegmentationNetwork, example: Mapping[str, Tensor]) -> Tensor:
    logits: Tensor = network.eval()(example["x"], example["spacing_mm"])
    return logits.float().contiguous()


def _built(config: Mapping[str, Any], weights: Mapping[str, Tensor], sha256: str) -> Segmenter:
    plan = Plan(**config["network"])
    with kept_random("cpu"):  # a random start is drawn, and then overwritten
        network = plan.built()
    if wrong := differences(network.state_dict(), weights):
        raise ValueError(some(wrong))
    network.load_state_dict(dict(weights))
    content = dict(config["recipe"])
    recorded = content.pop("id")
    recipe = Recipe.from_json(json.dumps(content))
    if recipe.id != recorded or plan.outputs != len(config["classes"]) + 1:
        raise ValueError("recipe or classes are not those that were saved")
    return Segmenter(
        network.eval(),
        plan,
        tuple(config["classes"]),
        config["definition"],
        recipe,
        {name: (level, width) for name, (level, width) in config["windows"].items()},
        Sliding(**config["sliding"]),
        config["record"],
        sha256,
    )


def _self_test(segmenter: Segmenter, recorded: Mapping[str, Tensor], folder: Path) -> None:
    before, now = recorded["logits"], _logits(segmenter.network, recorded)
    scale = max(1.0, float(before.abs().max()))
    gap = float((before - now).abs().max()) / scale if before.shape == now.shape else float("inf")
    if not gap <= TOLERANCE:  # also where it is not a number
        raise CheckpointFailure(
            f"the segmenter {folder} fails its self-test",
            why=f"logits differ by {gap:.2g} of their size from what was recorded, allowed is {TOLERANCE:g}",
            do=f"{COPY_AGAIN}; if it stays, this version of headct or torch computes otherwise",
        )


def _write_up(config: Mapping[str, Any]) -> str:
    """The model card in Markdown."""
    network, recipe, record = config["network"], config["recipe"], config["record"]
    return "\n".join(
        [
            f"# Segmenter of {', '.join(config['classes'])} in head CT",
            "",
            "**Research software, not a medical device: not for decisions about a patient.**",
            "",
            f"Decoder `{network['decoder']}` on the encoder {network['architecture']}; scans by the recipe "
            f"`{recipe['name']}` ({recipe['id']}).",
            "",
            "## Use",
            "",
            "```text",
            "headct segment predict scans --segmenter path/of/this/folder --out drawn",
            "```",
            "",
            "## Learned from",
            "",
            *(f"- {sentence}" for sentence in record.get("sentences", ())),
            "",
            "Of these patients it holds hashes of their ids and nothing else.",
            "",
            "## Limits",
            "",
            "A voxel has one class. Validation scans chose the step at which training stopped, so numbers on them are "
            "too good: judge it on patients it has not seen (`headct segment evaluate`). Nothing is known about scans "
            "unlike those it was learned from: other scanners, children, contrast, surgery.",
            "",
            f"Licence of the encoder's weights: {record.get('licence', 'not stated')}. "
            f"Written by headct {config['written_by']['headct']}.",
            "",
        ]
    )
