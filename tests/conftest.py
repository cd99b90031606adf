"""What several test files share: where real scans and published numbers lie, when they are there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real scans and published numbers; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs real scans and published numbers, which lie outside the repository")
    return SHARED


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks as small as those of the tests run fastest on one thread, above all beside other work."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def kept_cell() -> Iterator[None]:
    """One worker keeps its cell from one ingest to the next: it takes longer to start than to read a small head."""
    from headct.cohort import executors

    local, thread = executors.local, executors.WaitingThreads(1)

    @contextlib.contextmanager
    def kept(workers: int) -> Iterator[executors.Crew]:
        with contextlib.ExitStack() as others:
            yield others.enter_context(local(workers)) if workers > 1 else executors.Crew(thread, lambda: 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "local", kept)
        yield
    thread.shutdown(wait=False)
