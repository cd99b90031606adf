"""A server on this machine that answers as the Hugging Face Hub does, and misbehaves when told to.

As the client of huggingface_hub 2.4 meets it: repository facts and file trees under /api/models, files under
/OWNER/NAME/resolve/REVISION, where large ones are redirected to storage that is addressed by SHA-256 and takes ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = ".safetensors"  # such files are stored by SHA-256; others in git, by SHA-1

Files = Mapping[str, bytes]


@dataclass
class Repository:
    """Files of each commit; `refs` are branches and tags."""

    commits: dict[str, Files]
    refs: dict[str, str]
    gated: bool = False  # facts and trees are for all, files for those with the token

    def commit(self, revision: str) -> str | None:
        revision = self.refs.get(revision, revision)
        return revision if revision in self.commits else None


@dataclass
class Hub:
    """What the server serves, what it was asked, and how it fails."""

    url: str = ""
    storage_url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers in lower case
    token: str = "hf_allowed"
    breaks: int = 0  # answers from storage that still end halfway
    damaged: bool = False  # storage gives other bytes
    lost: frozenset[str] = frozenset()  # listed, but not there
    status: int | None = None  # the answer to everything
    error_message: str = ""
    portal: bool = False  # a login page is the answer to everything

    def add(self, name: str, *versions: Files, gated: bool = False) -> list[str]:
        """A repository with these commits, oldest first; `main` is the last. Returns the commits."""
        commits = [hashlib.sha1(f"{name}{number}".encode()).hexdigest() for number in range(len(versions))]
        refs = {"main": commits[-1]}
        self.repositories[name] = Repository(dict(zip(commits, versions, strict=True)), refs, gated)
        return commits

    def paths(self, method: str) -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub without repositories, and its storage at another address, while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _serving(handler) as hub.url, _serving(handler) as hub.storage_url:
        yield hub


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if self.hub.portal:
            return self._send(200, b"<html>Welcome to the guests' network</html>", {"Content-Type": "text/html"})
        if self.hub.status:
            return self._send(self.hub.status, b"", {"X-Error-Message": self.hub.error_message})
        if match := re.fullmatch(r"/storage/(\w+)", path):
            return self._storage(match[1])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            return self._tree(*match.groups())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._facts(*match.groups("main"))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        return self._send(404, b"")

    def _facts(self, name: str, revision: str) -> None:
        if found := self._find(name, revision):
            repository, commit = found
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._find(name, revision):
            repository, commit = found
            self._json([_listed(path, content) for path, content in repository.commits[commit].items()])

    def _file(self, name: str, revision: str, path: str) -> None:
        if not (found := self._find(name, revision)):
            return
        repository, commit = found
        if repository.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            status = 403 if "Authorization" in self.headers else 401
            return self._send(status, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        headers = {"X-Repo-Commit": commit}
        if path not in repository.commits[commit] or path in self.hub.lost:
            return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        content = repository.commits[commit][path]
        if not path.endswith(LARGE):
            return self._send(200, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
        return self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.storage_url}/storage/{sha256}"})

    def _storage(self, sha256: str) -> None:
        contents = [
            content
            for repository in self.hub.repositories.values()
            for files in repository.commits.values()
            for content in files.values()
        ]
        (content, *_) = [content for content in contents if hashlib.sha256(content).hexdigest() == sha256]
        if self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        if self.hub.breaks and self.command == "GET":
            self.hub.breaks -= 1
            return self._send(206 if start else 200, content[start:], headers, half=True)
        return self._send(206 if start else 200, content[start:], headers)

    def _find(self, name: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and its commit; None where an error was answered."""
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return None
        commit = repository.commit(revision)
        if commit is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"No revision {revision}"})
            return None
        return repository, commit

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None, half: bool = False) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if half else content)
        self.close_connection = self.close_connection or half


def _listed(path: str, content: bytes) -> dict[str, Any]:
    facts = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        facts["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return facts
