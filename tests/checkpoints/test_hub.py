"""Repositories of the Hub, fetched by its real client from a server on this machine (`hub_server`) that also fails."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from checkpoints import hub_server
from checkpoints.hub_server import Hub
from huggingface_hub import constants

from headct import __version__
from headct.checkpoints.hub import Address, fetch
from headct.failure import Failure, Misuse

OLD = {"config.json": b'{"version": 1}', "model.safetensors": b"a" * 50_000, "README.md": b"old"}
NEW = {
    "config.json": b'{"version": 2}',
    "model.safetensors": bytes(range(256)) * 200,
    "selftest.safetensors": b"example",
    "README.md": b"new",
    "modeling.py": b"import os",
    "pytorch_model.bin": b"a pickle",
    ".gitattributes": b"",
}
NAME = "someone/encoder"
HERE = Address(NAME)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the repository `NAME` of two commits, and a client whose cache and login are empty."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it tries again
    with hub_server.serve() as served:
        served.add(NAME, OLD, NEW)
        _point(monkeypatch, served.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield served
        huggingface_hub.close_session()


def _point(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# What is fetched


def test_only_the_files_of_a_checkpoint_are_fetched(hub: Hub) -> None:
    found = fetch(HERE)
    names = {"config.json", "model.safetensors", "selftest.safetensors", "README.md"}
    assert {path.name: path.read_bytes() for path in found.folder.iterdir()} == {name: NEW[name] for name in names}
    assert found.commit == hub.repositories[NAME].refs["main"]
    assert found.notes == (f"main of {NAME} is commit {found.commit}; name it to pin it",)
    asked = {path.rpartition("/")[2] for path in hub.paths("GET") + hub.paths("HEAD") if "/resolve/" in path}
    assert asked == names


def test_the_hub_learns_what_is_asked_for_and_not_who_asks(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents"))  # else asked once per process
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None)
    before = constants.HF_HUB_DISABLE_TELEMETRY
    fetch(HERE)
    assert {headers["user-agent"] for _, _, headers in hub.asked} == {f"headct/{__version__}"}
    assert all(NAME in path or path.startswith("/storage/") for _, path, _ in hub.asked)
    assert before == constants.HF_HUB_DISABLE_TELEMETRY


def test_what_is_cached_is_not_downloaded_again(hub: Hub) -> None:
    first = fetch(HERE)
    hub.asked.clear()
    assert fetch(HERE) == first
    assert [path for path in hub.paths("GET") if "/resolve/" in path or "/storage/" in path] == []


def test_a_revision_is_pinned_by_its_commit(hub: Hub) -> None:
    old, new = hub.repositories[NAME].commits
    hub.repositories[NAME].refs["v1"] = old
    by_tag, by_commit, by_branch = (fetch(Address(NAME, revision)) for revision in ("v1", old, "main"))
    assert by_tag.folder == by_commit.folder != by_branch.folder
    assert (by_tag.commit, by_branch.commit) == (old, new)
    assert (by_commit.folder / "model.safetensors").read_bytes() == OLD["model.safetensors"]
    assert by_commit.notes == ()


def test_a_pinned_commit_that_is_cached_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = fetch(HERE).commit
    _point(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    assert fetch(Address(NAME, commit)).notes == ()


# Interrupted, damaged, incomplete


def test_an_interrupted_download_goes_on_where_it_stopped(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add(NAME, {"config.json": b"{}", "model.safetensors": NEW["model.safetensors"]})
    hub.breaks = 2
    assert (fetch(HERE).folder / "model.safetensors").read_bytes() == NEW["model.safetensors"]
    ranges = [headers.get("range") for method, path, headers in hub.asked if "/storage/" in path and method == "GET"]
    assert ranges[:2] == [None, "bytes=25000-"]
    assert len(ranges) == 3


def test_a_download_that_never_ends_is_a_failure_and_leaves_nothing_half(hub: Hub, tmp_path: Path) -> None:
    hub.breaks = 1000
    with pytest.raises(Failure, match="was interrupted") as caught:
        fetch(HERE)
    assert "try again" in caught.value.do
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(".incomplete")]
    hub.breaks = 0
    assert (fetch(HERE).folder / "model.safetensors").read_bytes() == NEW["model.safetensors"]


def test_other_bytes_than_announced_are_refused_and_not_kept(hub: Hub) -> None:
    hub.damaged = True
    for _ in range(2):
        with pytest.raises(Failure, match=r"model.safetensors of hub:someone/encoder was damaged on its way"):
            fetch(HERE)
    hub.damaged = False
    assert (fetch(HERE).folder / "model.safetensors").read_bytes() == NEW["model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_repository_without_a_needed_file_is_named(hub: Hub, name: str) -> None:
    hub.add(NAME, {key: value for key, value in OLD.items() if key != name})
    with pytest.raises(Failure, match=f"hub:{NAME} holds no {name}"):
        fetch(HERE)


def test_a_file_that_is_listed_but_lost_is_named(hub: Hub) -> None:
    hub.lost = frozenset({"model.safetensors"})
    with pytest.raises(Failure, match=r"lacks a file that it lists\n  why: 404"):
        fetch(HERE)


def test_a_full_disk_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(Failure, match="does not fit on the disk") as caught:
        fetch(HERE)
    assert str(tmp_path / "cache") in caught.value.why


# Who may


def test_gated_weights_are_for_those_with_the_right_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, NEW, gated=True)
    for token in ("", "hf_other"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(Failure, match="is gated") as caught:
            fetch(HERE)
        assert f"ask at {hub.url}/{NAME}" in caught.value.do
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (fetch(HERE).folder / "config.json").read_bytes() == NEW["config.json"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (Address("someone/else"), "there is no repository someone/else, or it is private"),
        (Address("some one/--"), "there is no repository some one/--"),
        (Address(NAME, "v9"), "someone/encoder has no revision 'v9'"),
        (Address(NAME, "0" * 40), "has no revision '0000"),
    ],
)
def test_what_does_not_exist_is_a_misuse(hub: Hub, address: Address, message: str) -> None:
    with pytest.raises(Misuse, match=message) as caught:
        fetch(address)
    assert caught.value.do


@pytest.mark.parametrize(
    ("status", "message", "remedy"),
    [
        (401, "Invalid credentials in Authorization header", "HF_TOKEN"),
        (403, "Forbidden", "a token that may read"),
        (429, "Too many requests", "wait some minutes"),
        (410, "Gone", "try again later"),
    ],
)
def test_a_refusal_is_told_with_what_helps(hub: Hub, status: int, message: str, remedy: str) -> None:
    hub.status, hub.error_message = status, message
    with pytest.raises(Failure, match=f"the Hub refuses hub:{NAME}\n  why: it answers {status}") as caught:
        fetch(HERE)
    assert remedy in caught.value.do


# Without a network


def unplugged(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    _point(monkeypatch, f"http://127.0.0.1:{closed_port()}")
    return "the Hub cannot be reached (ConnectError"


def told_to_stay_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "HF_HUB_OFFLINE is set"


def server_down(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    hub.status = 503
    return "the Hub cannot be reached (HfHubHTTPError"


def login_page_in_between(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    hub.portal = True
    return "the Hub cannot be reached (JSONDecodeError"


CUT_OFF = [unplugged, told_to_stay_offline, server_down, login_page_in_between]


@pytest.mark.parametrize("cut_off", CUT_OFF)
def test_without_the_hub_the_cache_serves_and_says_so(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, cut_off: Callable[[Hub, pytest.MonkeyPatch], str]
) -> None:
    online = fetch(HERE)
    reason = cut_off(hub, monkeypatch)
    offline = fetch(HERE)
    assert offline.folder == online.folder
    (note,) = offline.notes
    assert note.startswith(f"not asked again: {reason}")
    assert note.endswith(f"main is commit {online.commit} as of the last download")


@pytest.mark.parametrize("cut_off", CUT_OFF)
@pytest.mark.parametrize("revision", [None, "0" * 40])
def test_without_the_hub_and_a_copy_the_reason_is_told(
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    cut_off: Callable[[Hub, pytest.MonkeyPatch], str],
    revision: str | None,
) -> None:
    reason = cut_off(hub, monkeypatch)
    with pytest.raises(Failure, match="cannot be fetched") as caught:
        fetch(Address(NAME, revision))
    assert caught.value.why.startswith(reason)
    assert "copy the repository's folder here" in caught.value.do


def test_half_a_copy_is_not_taken_for_one(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (fetch(HERE).folder / "model.safetensors").unlink()
    unplugged(hub, monkeypatch)
    with pytest.raises(Failure, match="the cache holds no complete copy"):
        fetch(HERE)


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hub:a/b", Address("a/b")),
        ("hub:a/b@v1", Address("a/b", "v1")),
        ("hub:a/b@refs/pr/3", Address("a/b", "refs/pr/3")),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["hub:", "hub:a", "hub:a/", "hub:/b", "hub:a/b/c", "hub:a/b@"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Misuse, match="names no repository"):
        Address.parse(text)
