"""CT-FM's folders and files: each case of silent or failed loading through the published wrapper, and what we do.

Oracle: the published record of 39 cases (which are silent there, and what would be right), and the network itself:
what loads has every weight of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import ctfm_formula as formula
from safetensors.torch import save_file

from headct.checkpoints import CheckpointFailure, load
from headct.checkpoints.published import read, read_segmentation, recognise
from headct.encoders import SegResEncoder, SegResSettings, segmentation_network
from headct.failure import Failure, Misuse

Table = dict[str, torch.Tensor]
SETTINGS = SegResSettings(init_filters=4)
CONFIG = {"spatial_dims": 3, "in_channels": 1, "init_filters": 4, "blocks_down": [1, 2, 2, 4, 4]}


@pytest.fixture(scope="module")
def encoder() -> Table:
    """The names and weights of an encoder of width 4, as published ones are."""
    return formula.weights(SegResEncoder(SETTINGS).network.state_dict())


@pytest.fixture(scope="module")
def segmentation() -> Table:
    return formula.weights(segmentation_network(SETTINGS, outputs=2).state_dict())


def put(folder: Path, weights: Table, **config: Any) -> Path:
    folder.mkdir(parents=True)
    save_file({name: one.contiguous() for name, one in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    return folder


def prefixed(weights: Table, prefix: str) -> Table:
    return {f"{prefix}{name}": one for name, one in weights.items()}


def without(weights: Table, part: str) -> Table:
    return {name: one for name, one in weights.items() if part not in name}


def lightning(weights: Table, path: Path, middle: str = "") -> Path:
    head = {f"model.{middle}projection_head.layers.0.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": prefixed(weights, f"model.{middle}backbone.") | head, "epoch": 449}, path)
    return path


def assert_loaded(path: Path, weights: Table, said: str = "") -> None:
    assert recognise(path)
    found = read(path)
    state = found.encoder.network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], one) for name, one in weights.items())
    assert not found.encoder.training
    assert said in "; ".join(found.notes)
    assert found.card.recipe.name == "ct-fm-pretrain"


def assert_holds(network: torch.nn.Module, weights: Table) -> None:
    state = network.state_dict()
    assert all(torch.equal(state[name], one) for name, one in weights.items())
    assert not network.training


@contextmanager
def refused(words: str, kind: type[Failure] = CheckpointFailure) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert words in str(caught.value)


Case = Callable[[Path, Table, Table], None]
CASES: dict[str, Case] = {}


def case(*names: str) -> Callable[[Case], Case]:
    def note(function: Case) -> Case:
        CASES.update(dict.fromkeys(names, function))
        return function

    return note


@case("L01")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    assert_loaded(put(place / "a", encoder), encoder, "leave out the resampling")


@case("L04", "L06", "S01")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    """Whatever else is in a file, what is asked for is its encoder, and the rest is named."""
    inside = {name.removeprefix("encoder."): one for name, one in segmentation.items() if name.startswith("encoder.")}
    assert_loaded(put(place / "a", segmentation, out_channels=2, dsdepth=1), inside, "left out: up_layers")
    torch.save(segmentation, place / "loose.pt")
    assert_loaded(place / "loose.pt", inside, "prefixes taken off: encoder.")


@case("L02")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    found = read_segmentation(put(place / "a", segmentation, out_channels=2, dsdepth=1))
    assert_holds(found.network, segmentation)
    assert found.untrained == ()


@case("L05", "A02")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    """A decoder that no file gives is named as random; how many classes it has must be said."""
    for path in (put(place / "a", encoder), lightning(encoder, place / "last.ckpt")):
        with refused("outputs=", Misuse):
            read_segmentation(path)
        found = read_segmentation(path, outputs=2)
        assert_holds(found.network, prefixed(encoder, "encoder."))
        assert set(found.untrained) == {name for name in segmentation if name.startswith("up_layers.")}
        assert "random until trained: the whole decoder" in found.notes


@case("L21")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    found = read_segmentation(put(place / "a", segmentation), outputs=5)
    assert_holds(found.network, without(segmentation, ".head."))
    assert found.untrained == ("up_layers.3.head.bias", "up_layers.3.head.weight")
    assert "random until trained: up_layers.3.head" in found.notes
    assert found.network(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 5, 16, 16, 16)


@case("L22")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    found = read_segmentation(put(place / "a", segmentation), depths=4)
    assert_holds(found.network, segmentation)
    assert "random until trained: up_layers.0.head, up_layers.1.head, up_layers.2.head" in found.notes
    fewer = put(place / "b", formula.weights(segmentation_network(SETTINGS, outputs=2, depths=2).state_dict()))
    assert any("left out: up_layers.2.head.bias" in note for note in read_segmentation(fewer, depths=1).notes)


@case("L07", "L08", "L29", "L30")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    folder = put(place / "a", encoder)
    (folder / "config.json").unlink()
    with refused("lacks config.json"):
        read(folder)
    with refused("no config.json", Misuse):
        load(folder)


@case("L09", "L10", "L11", "A04")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    """Known prefixes come off, and it is said; others are refused."""
    assert_loaded(put(place / "a", prefixed(encoder, "module.")), encoder, "module.")
    assert_loaded(put(place / "b", prefixed(encoder, "model.backbone.")), encoder, "model. and backbone.")
    with refused("conv_init.weight"):
        read(put(place / "c", prefixed(encoder, "net.")))


@case("L12")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    with refused("running_mean is missing"):
        read(put(place / "a", without(encoder, "running_")))


@case("L13")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    with refused("missing"):
        read(put(place / "a", without(encoder, "layers.2.")))


@case("L14")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    half = {name: one.half() if one.is_floating_point() else one for name, one in encoder.items()}
    cast = {name: one.float() if one.is_floating_point() else one for name, one in half.items()}
    assert_loaded(put(place / "a", half), cast, "float16 were cast to float32")


@case("L15", "L16", "L17", "L20")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    for index, blocks in enumerate(([1, 2, 2, 4], [1, 2, 2, 4, 3], [1, 2, 2, 4, 5])):
        with refused("blocks_down is"):
            read(put(place / str(index), encoder, blocks_down=blocks))


@case("L18")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    with refused("init_filters is 8, the weights have 4"):
        read(put(place / "a", encoder, init_filters=8))


@case("L19")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    with refused("not_an_argument"):
        read(put(place / "a", encoder, not_an_argument=1))


@case("L23")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    with refused("in_channels is 4, the weights have 1"):
        read(put(place / "a", encoder, in_channels=4))


@case("L24")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    folder = put(place / "a", encoder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with refused("cannot be read as weights"):
        read(folder)


@case("L25")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    folder = put(place / "a", encoder)
    (folder / "model.safetensors").unlink()
    with refused("missing"):
        read(folder)


@case("L26")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    bad = encoder | {"conv_init.weight": torch.full_like(encoder["conv_init.weight"], float("nan"))}
    with refused("conv_init.weight holds values that are not finite"):
        read(put(place / "a", bad))


@case("A01", "A02", "S02", "S03")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    assert_loaded(lightning(encoder, place / "last.ckpt"), encoder, "left out: projection_head")
    torch.save(prefixed(encoder, "model.backbone."), place / "bare.ckpt")
    assert_loaded(place / "bare.ckpt", encoder, "model. and backbone.")


@case("A03")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    assert_loaded(lightning(encoder, place / "last.ckpt", "_orig_mod."), encoder, "_orig_mod.")


@case("A05", "A06")
def _(place: Path, encoder: Table, segmentation: Table) -> None:
    torch.save({"conv_init.weight": encoder["conv_init.weight"]}, place / "one.pt")
    with refused("one.pt"):
        read(place / "one.pt")
    torch.save(without(encoder, "layers.3."), place / "four.pt")
    with refused("missing"):
        read(place / "four.pt")


CANNOT_BE_SAID = {
    "L03": "weights are loaded by a function, not through an instance that could be kept without them",
    "L27": "there is no head_module",
    "L28": "headct.load never gives an encoder without weights",
}
"""Cases of the published record that our interface has no words for."""


def test_every_published_case_is_here(shared: Path) -> None:
    record = json.loads((shared / "fixtures" / "ct-fm" / "loading_behaviour.json").read_text())
    assert {one["id"] for one in record["cases"]} == CASES.keys() | CANNOT_BE_SAID.keys()


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_case_loads_wholly_or_is_refused(name: str, tmp_path: Path, encoder: Table, segmentation: Table) -> None:
    CASES[name](tmp_path, encoder, segmentation)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"out_channels": 118, "dsdepth": 1}, "out_channels is 118, the weights have 2"),
        ({"out_channels": 2, "dsdepth": 4}, "dsdepth is 4, the weights have 1"),
        ({"blocks_down": 5}, "blocks_down is 5"),
        ({"spatial_dims": 2}, "spatial_dims is 2"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(
    tmp_path: Path, segmentation: Table, config: dict[str, Any], words: str
) -> None:
    for reader in (read, read_segmentation):
        with refused(words):
            reader(put(tmp_path / reader.__name__, segmentation, **config))


def test_an_encoder_alone_has_no_classes(tmp_path: Path, encoder: Table) -> None:
    with refused("out_channels is 2, the weights have none"):
        read(put(tmp_path / "a", encoder, out_channels=2))


def test_a_decoder_with_gaps_is_refused(tmp_path: Path, segmentation: Table) -> None:
    for number, part in enumerate(("up_layers.2.blocks", "up_layers.3.head.bias", "up_layers.3.head")):
        with refused(part):
            read_segmentation(put(tmp_path / str(number), without(segmentation, part)))


def test_no_name_asks_for_a_network_larger_than_its_file(tmp_path: Path, encoder: Table) -> None:
    for number, name in enumerate(("layers.300.blocks.0.x", "layers.0.blocks.100000000.x")):
        with refused("is missing"):
            read(put(tmp_path / str(number), encoder | {name: torch.zeros(1)}))


def test_a_variance_below_zero_is_refused(tmp_path: Path, encoder: Table) -> None:
    name = "layers.0.blocks.0.norm1.running_var"
    with refused(f"{name} holds negative variances"):
        read(put(tmp_path / "a", encoder | {name: -encoder[name]}))


def test_other_sizes_than_the_published_one_are_said(tmp_path: Path, encoder: Table) -> None:
    """A loose file that has lost the last block of a level as a whole is a smaller network, and looks like one."""
    torch.save(without(encoder, "layers.4.blocks.3."), tmp_path / "a.pt")
    assert any("not the published size" in note and "(1, 2, 2, 4, 3)" in note for note in read(tmp_path / "a.pt").notes)


def test_words_for_the_other_family_are_refused(tmp_path: Path, encoder: Table) -> None:
    folder = put(tmp_path / "a", encoder)
    with refused("no attention heads", Misuse):
        read(folder, heads=4)
    with refused("teacher or student", Misuse):
        read(folder, weights="techer")


def test_a_folder_is_loaded_by_its_path(tmp_path: Path, encoder: Table) -> None:
    found = load(put(tmp_path / "ct_fm_feature_extractor_copy", encoder))
    assert found.architecture == "segresenc"
    assert found.recipe.name == "ct-fm-pretrain"
    assert len(found.sha256) == 64
    assert any("resampling" in note for note in found.notes)
