"""Repositories of the Hugging Face Hub as local folders, by the Hub's own client.

Its cache, its token and its settings (`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`) are the user's. Only the
files of a checkpoint are asked for, never code; nothing is reported about who asks.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of the library beneath
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from headct import __version__
from headct.checkpoints.layout import CONFIG, MODEL, README, SELFTEST
from headct.checkpoints.strict import sha256_of
from headct.failure import Failure, Misuse

SCHEME = "hub:"
FILES = (CONFIG, MODEL, SELFTEST, README)
NEEDED = (CONFIG, MODEL)
TIMEOUT_S = 10.0  # until the Hub counts as unreachable

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Address:
    """A repository and the branch, tag or commit of it; None: its main branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """From `hub:owner/name` or `hub:owner/name@revision`. Raises Misuse where it is neither."""
        repository, at, revision = text.removeprefix(SCHEME).partition("@")
        if repository.count("/") != 1 or not all(repository.split("/")) or (at and not revision):
            raise Misuse(f"{text!r} names no repository", do="write hub:owner/name or hub:owner/name@revision")
        return cls(repository, revision or None)

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Fetched:
    """A repository's files at one commit, in the client's cache."""

    folder: Path
    commit: str
    notes: tuple[str, ...]


def fetch(address: Address) -> Fetched:
    """Download what the cache lacks of a repository; without a network, take what the cache has.

    Raises Misuse for a repository or revision that does not exist, Failure for whatever else goes wrong.
    """
    unreachable = None
    try:
        with _nothing_reported():
            unreachable = _try(address)
            folder = Path(
                snapshot_download(
                    address.repository,
                    revision=address.revision,
                    allow_patterns=list(FILES),
                    local_files_only=unreachable is not None,
                    headers=_headers(),
                )
            )
    except (HTTPError, OSError, ValueError) as error:
        raise _explain(address, error, unreachable) from error
    for name in NEEDED:
        if not (folder / name).is_file():
            raise _not_cached(address, unreachable) if unreachable else _missing(address, name)
    _verify(address, folder / MODEL)
    return Fetched(folder, folder.name, _notes(address, folder.name, unreachable))


def _try(address: Address) -> Exception | None:
    """Why the Hub cannot be asked which commit a revision is now; None where it can, or a commit is named already."""
    if address.revision and COMMIT.fullmatch(address.revision):
        return None
    try:
        HfApi(headers=_headers()).model_info(address.repository, revision=address.revision, timeout=TIMEOUT_S)
    except (HTTPError, OSError, ValueError) as error:
        if not _is_unreachable(error):
            raise
        return error
    return None


def _headers() -> dict[str, str]:
    return {"user-agent": f"headct/{__version__}"}


@contextmanager
def _nothing_reported() -> Iterator[None]:
    """The client tells the Hub which other software is installed and who calls it, unless told not to."""
    before = constants.HF_HUB_DISABLE_TELEMETRY
    constants.HF_HUB_DISABLE_TELEMETRY = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


def _is_unreachable(error: Exception) -> bool:
    """No answer, or the answer of a server that does not work; as opposed to a refusal."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return not isinstance(error, HFValidationError)


def _notes(address: Address, commit: str, unreachable: Exception | None) -> tuple[str, ...]:
    branch = address.revision or constants.DEFAULT_REVISION
    if unreachable is not None:
        return (f"not asked again: {_reason(unreachable)}; {branch} is commit {commit} as of the last download",)
    return () if branch == commit else (f"{branch} of {address.repository} is commit {commit}; name it to pin it",)


def _verify(address: Address, path: Path) -> None:
    """Compare a file with the SHA-256 that the Hub announced, which the client itself does not do.

    Its cache stores a file under that name and links to it, except on systems without symbolic links.
    """
    if not path.is_symlink():
        return
    blob = path.parent / path.readlink()
    sha256 = sha256_of(path)
    if SHA256.fullmatch(blob.name) and sha256 != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise Failure(
            f"{path.name} of {address} was damaged on its way",
            why=f"its SHA-256 is {sha256[:12]}..., the Hub announced {blob.name[:12]}...",
            do="try again: the damaged file was removed from the cache",
        )


def _missing(address: Address, name: str) -> Failure:
    return Failure(
        f"{address} holds no {name}",
        why=f"a model is read from {' and '.join(NEEDED)}",
        do="check that this repository holds a model that headct reads, and the revision",
    )


BY_HAND = "or copy the repository's folder here by other means and name its path"


def _not_cached(address: Address, cause: Exception | None) -> Failure:
    return Failure(
        f"{address} cannot be fetched",
        why=f"{_reason(cause) if cause else 'the Hub cannot be reached'}, and the cache holds no complete copy",
        do=f"connect, or unset HF_HUB_OFFLINE where it is set, and try again; {BY_HAND}",
    )


def _explain(address: Address, error: Exception, unreachable: Exception | None) -> Failure:
    """What the client's error means for the user."""
    page = f"{constants.ENDPOINT}/{address.repository}"
    if isinstance(error, GatedRepoError):
        return Failure(
            f"{address} is gated",
            why="its owner gives access to those who ask, and your token is not among them",
            do=f"ask at {page}, then `hf auth login` or set HF_TOKEN; {BY_HAND}",
        )
    if isinstance(error, RevisionNotFoundError):
        return Misuse(
            f"{address.repository} has no revision {address.revision!r}", do=f"see {page}/commits/main for its commits"
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return Misuse(
            f"there is no repository {address.repository}, or it is private",
            do="check its spelling; for a private one, `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, LocalEntryNotFoundError):
        cause = unreachable or error.__cause__
        return _not_cached(address, cause if isinstance(cause, Exception) else None)
    if isinstance(error, EntryNotFoundError):
        return Failure(f"{address} lacks a file that it lists", why=_first_line(error), do="name another revision")
    if isinstance(error, HfHubHTTPError):
        return _refused(address, error)
    if isinstance(error, ValueError):  # an answer that is not the Hub's, from something in between
        return _not_cached(address, error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failure(
            f"{address} does not fit on the disk",
            why=f"{error.strerror}: {constants.HF_HUB_CACHE}",
            do="free some space, or point HF_HOME to another disk, and try again",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return Failure(
            f"{address} cannot be stored", why=str(error), do="check who may write there, or point HF_HOME elsewhere"
        )
    return Failure(f"the download of {address} was interrupted", why=_reason(error), do=f"try again; {BY_HAND}")


def _refused(address: Address, error: HfHubHTTPError) -> Failure:
    status = error.response.status_code
    remedies = {
        401: "log in again by `hf auth login`, or correct or unset HF_TOKEN",
        403: "take a token that may read this repository",
        429: "wait some minutes and try again",
    }
    return Failure(
        f"the Hub refuses {address}",
        why=f"it answers {status}: {_first_line(error)}",
        do=remedies.get(status, "try again later"),
    )


def _reason(error: Exception) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"the Hub cannot be reached ({type(error).__name__}: {_first_line(error)})"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
