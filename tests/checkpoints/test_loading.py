"""`headct.load`: every way of naming a model, which one a text means, and where the encoder says it came from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from checkpoints import hub_server
from checkpoints.hub_server import Hub

import headct
from headct import encoders
from headct.checkpoints import Card, CheckpointFailure, folder, registry, save
from headct.encoders import Encoder
from headct.failure import Failure, Misuse
from headct.preparing import recipes

CARD = Card(recipe=recipes["head"], windows={"brain": (40, 80)}, objective={"name": "dino"})
REPOSITORY = "project-lighter/ct_fm_feature_extractor"


def small(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    shape = {"depth": 1, "width": 24, "heads": 2, "mlp_width": 32, "patch": (4, 4, 4), "grid": (2, 2, 2)}
    return encoders.build("vit-tiny", channels=1, **shape).eval()


def same(one: Encoder, other: Encoder) -> bool:
    x = torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(one(x).scan, other(x).scan)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Folders


def test_a_folder_is_loaded_and_remembered(here: Path) -> None:
    save(here / "run" / "checkpoint", small(), CARD)
    for name in ("run", "run/checkpoint", here / "run", f"{here}/run"):
        found = headct.load(name)
        assert same(found, small())
        assert found.source == str(name)
        assert found.notes == ()
        assert not found.training


@pytest.mark.parametrize("name", ["vit-base", "fm-hct"])
def test_a_folder_may_be_called_like_a_name_that_has_no_weights(here: Path, name: str) -> None:
    save(here / name, small(), CARD)
    assert same(headct.load(name), small())


def test_a_folder_called_like_published_weights_must_be_told_from_them(here: Path) -> None:
    save(here / "ct-fm", small(), CARD)
    with pytest.raises(Misuse, match="a folder here is called so too") as caught:
        headct.load("ct-fm")
    assert caught.value.do == f"write ./ct-fm for the folder, hub:{REPOSITORY} for the published weights"
    for name in ("./ct-fm", Path("ct-fm")):
        assert same(headct.load(name), small())


def test_a_folder_called_like_weights_of_the_package_must_be_told_from_them(here: Path) -> None:
    save(here / "virtual-coarse", small(), CARD)
    with pytest.raises(Misuse, match="a folder here is called so too") as caught:
        headct.load("virtual-coarse")
    assert caught.value.do == "write ./virtual-coarse for the folder, or move it away for the other"
    (here / "virtual-coarse").rename(here / "mine")
    with pytest.raises(Misuse, match="there is no folder or file virtual-coarse"):
        headct.load(Path("virtual-coarse"))
    found = headct.load("virtual-coarse")
    assert (found.architecture, found.source) == ("anatomy-conv", "virtual-coarse")  # not a place of this machine
    with pytest.raises(Misuse, match="has no revision 'main'"):
        headct.load("virtual-coarse", revision="main")


def test_weights_of_the_package_must_be_those_that_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(registry.MODELS["virtual-coarse"], sha256="0" * 64)
    monkeypatch.setattr(registry, "MODELS", MappingProxyType({**registry.MODELS, "virtual-coarse": other}))
    with pytest.raises(CheckpointFailure, match="is not the file that is registered as virtual-coarse"):
        headct.load("virtual-coarse")


def record(monkeypatch: pytest.MonkeyPatch, name: str, sha256: str | None) -> None:
    """Let the registry know this hash of these published weights."""
    published = tuple(replace(one, sha256=sha256) if one.name == name else one for one in registry.PUBLISHED)
    monkeypatch.setattr(registry, "PUBLISHED", published)
    models = {**registry.MODELS, **{one.name: one for one in published}}
    monkeypatch.setattr(registry, "MODELS", MappingProxyType(models))


@pytest.mark.parametrize("name", ["ct-fm", "ct_fm_feature_extractor"])
def test_a_copy_is_compared_with_what_is_recorded(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save(here / name, small(), CARD)
    sha256 = headct.load(here / name).sha256
    record(monkeypatch, "ct-fm", sha256)
    assert headct.load(here / name).notes == ()
    record(monkeypatch, "ct-fm", "0" * 64)
    with pytest.raises(CheckpointFailure, match="is not the file that is registered as ct-fm"):
        headct.load(here / name)
    (here / name).rename(here / "mine")
    assert headct.load(here / "mine").sha256 == sha256


def test_a_copy_without_a_recorded_hash_says_so(here: Path) -> None:
    save(here / "fm-hct", small(), CARD)
    found = headct.load("fm-hct")
    assert found.notes == (f"the registry has no SHA-256 of fm-hct to compare with; this file's is {found.sha256}",)


def test_a_file_of_a_checkpoint_is_not_taken_alone(here: Path) -> None:
    save(here / "c", small(), CARD)
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(Misuse, match="is a part of a checkpoint") as caught:
            headct.load(f"c/{name}")
        assert caught.value.do == "name the folder: c"


def test_a_run_that_has_not_finished_and_a_cohort_are_told_from_checkpoints(here: Path) -> None:
    for name, file, says, remedy in (
        ("run", "settings.toml", "is a run that has not finished", "`headct pretrain` line again"),
        ("night", "cohort.json", "is a cohort, not a model", "name a checkpoint folder"),
    ):
        (here / name).mkdir()
        (here / name / file).write_text("")
        for ask in (headct.load, registry.about):
            with pytest.raises(Misuse, match=says) as caught:
                ask(name)
            assert remedy in caught.value.do


def test_a_home_that_the_shell_left_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    save(here / "c", small(), CARD)
    assert same(headct.load("~/c"), small())
    assert registry.about("~/c")["where"] == str(here / "c")


@pytest.mark.parametrize("model", [None, 3])
def test_what_is_no_name_is_said(model: object) -> None:
    with pytest.raises(Misuse, match="names no model\n  do:  give a name"):
        headct.load(model)  # type: ignore[arg-type]


# A file that is none


def test_advice_that_is_not_safe_is_not_passed_on(here: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("run",)

    (here / "random.pth").write_bytes(bytes(range(256)))
    torch.save({"weights": Code()}, here / "code.pth")
    for name in ("random.pth", "code.pth"):
        with pytest.raises(CheckpointFailure, match="cannot be read as weights") as caught:
            headct.load(name)
        assert "weights_only" not in str(caught.value)
        assert "trust" not in str(caught.value)


# Names that give nothing


@pytest.mark.parametrize(
    ("model", "message", "remedy"),
    [
        ("vit-base", "vit-base has no weights", "headct pretrain --encoder vit-base"),
        ("fm-hct", "the weights of fm-hct are given on request", "ask at https://github.com/NYUMedML"),
        ("vit-bsae", "no model 'vit-bsae'", "did you mean vit-base?"),
        ("./vit-base", r"no model './vit-base'", ""),
        (Path("ct-fm"), "there is no folder or file ct-fm", "give the text 'ct-fm', not a Path"),
        ("nowhere/run", "no model 'nowhere/run'", "check the path"),
        ("hub:someone", "'hub:someone' names no repository", "hub:owner/name@revision"),
    ],
)
def test_what_names_no_weights_is_a_misuse(here: Path, model: str | Path, message: str, remedy: str) -> None:
    with pytest.raises(Misuse, match=message) as caught:
        headct.load(model)
    assert remedy in caught.value.do


def test_a_revision_belongs_to_a_repository(here: Path) -> None:
    save(here / "c", small(), CARD)
    with pytest.raises(Misuse, match="c has no revision 'v1'"):
        headct.load("c", revision="v1")
    with pytest.raises(Misuse, match="are two revisions"):
        headct.load("hub:someone/encoder@v1", revision="v2")


# The Hub


@pytest.fixture
def hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with two commits of a checkpoint, and a client whose cache and login are empty."""
    import huggingface_hub
    from huggingface_hub import constants

    versions = []
    for seed in (0, 1):
        save(here / f"made-{seed}", small(seed), CARD)
        versions.append({path.name: path.read_bytes() for path in (here / f"made-{seed}").iterdir()})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with hub_server.serve() as served:
        served.add(REPOSITORY, *versions)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(here / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield served
        huggingface_hub.close_session()


@pytest.mark.parametrize("model", ["ct-fm", f"hub:{REPOSITORY}", f"hub:{REPOSITORY}@main"])
def test_a_name_and_an_address_give_the_same_encoder(hub: Hub, model: str) -> None:
    found = headct.load(model)
    commit = hub.repositories[REPOSITORY].refs["main"]
    assert same(found, small(1))
    assert found.source == f"hub:{REPOSITORY}@{commit}"
    assert found.notes == (
        f"the registry has no SHA-256 of ct-fm to compare with; this file's is {found.sha256}",
        f"main of {REPOSITORY} is commit {commit}; name it to pin it",
    )


def test_a_commit_gives_the_same_weights_for_ever(hub: Hub) -> None:
    old, _ = hub.repositories[REPOSITORY].commits
    for found in (headct.load("ct-fm", revision=old), headct.load(f"hub:{REPOSITORY}@{old}")):
        assert same(found, small(0))
        assert found.source == f"hub:{REPOSITORY}@{old}"


def test_a_download_is_compared_with_what_is_recorded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    record(monkeypatch, "ct-fm", headct.load("ct-fm").sha256)
    assert len(headct.load("ct-fm").notes) == 1
    old, _ = hub.repositories[REPOSITORY].commits
    with pytest.raises(CheckpointFailure, match="is not the file that is registered as ct-fm"):
        headct.load("ct-fm", revision=old)


def test_a_downloaded_checkpoint_is_checked_like_any_other(hub: Hub, here: Path) -> None:
    files = {path.name: path.read_bytes() for path in (here / "made-0").iterdir()}
    hub.add("someone/mixed", {**files, folder.MODEL: (here / "made-1" / folder.MODEL).read_bytes()})
    with pytest.raises(CheckpointFailure, match="is not the file that was saved"):
        headct.load("hub:someone/mixed")


def test_gated_weights_fail_with_where_to_ask(hub: Hub) -> None:
    hub.repositories[REPOSITORY].gated = True
    with pytest.raises(Failure, match="is gated"):
        headct.load("ct-fm")


SCRIPT = """
import sys
import headct
from headct.cli.app import run

print("hub" if "huggingface_hub" in sys.modules else "no hub", file=sys.stderr)
assert headct.load(sys.argv[1]).sha256 == sys.argv[3]
assert run(["models"]) == run(["models", "show", "ct-fm"]) == run(["models", "show", sys.argv[1]]) == 0
print("hub" if "huggingface_hub" in sys.modules else "no hub", file=sys.stderr)
assert headct.load(sys.argv[2]).sha256 == sys.argv[3]
print("hub" if "huggingface_hub" in sys.modules else "no hub", file=sys.stderr)
"""


def test_the_client_is_loaded_for_the_hub_only_and_obeys_the_users_settings(hub: Hub, here: Path) -> None:
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(here / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    sha256 = headct.load(here / "made-1").sha256
    words = [sys.executable, "-c", SCRIPT, str(here / "made-1"), f"hub:{REPOSITORY}", sha256]
    done = subprocess.run(words, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["no hub", "no hub", "hub"]
    assert (here / "home" / "hub" / f"models--{REPOSITORY.replace('/', '--')}").is_dir()
