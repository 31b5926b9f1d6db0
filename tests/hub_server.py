"""A hub on loopback: the HTTP interface of huggingface.co, as far as reading goes, with faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import tempfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(.*))?"
)
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repo:
    """A repository: its commits, the newest last, and what its branches are."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False

    def commit(self, files: dict[str, bytes | str], branch: str = "main") -> str:
        content = {
            name: text.encode() if isinstance(text, str) else text for name, text in files.items()
        }
        seed = json.dumps([len(self.commits), {k: v.hex() for k, v in content.items()}])
        sha = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[sha] = content
        self.refs[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


class HubServer:
    """Serves repositories; `faults` are what it does to the next requests instead of answering.

    A fault is a status, `(status, headers)`, or `"reset"`; `always` is one for all requests.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.faults: list[object] = []
        self.always: object = None
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._home = tempfile.TemporaryDirectory(prefix="hub-")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def become_the_hub(self) -> None:
        """Have the Hugging Face libraries ask this hub, here and in processes that are started."""
        os.environ.update(
            HF_ENDPOINT=self.url,
            HF_HOME=self._home.name,
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
        )
        for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN"):
            os.environ.pop(name, None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._home.cleanup()

    def repo(self, kind: str, name: str) -> Repo:
        return self.repos.setdefault((kind, name), Repo())

    def clear(self) -> None:
        shutil.rmtree(Path(self._home.name) / "hub", ignore_errors=True)
        self.repos.clear()
        self.requests.clear()
        self.faults.clear()
        self.always = None

    def next_fault(self) -> object:
        return self.faults.pop(0) if self.faults else self.always


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer

    def do_GET(self) -> None:
        hub = self.server_hub
        hub.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        fault = hub.next_fault()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif isinstance(fault, tuple):
            self._answer(fault[0], b"", fault[1])
        elif isinstance(fault, int):
            self._answer(fault, b"", {})
        else:
            self._serve(unquote(urlsplit(self.path).path))

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names are the base class's

    def _serve(self, path: str) -> None:
        if found := _FILE.fullmatch(path):
            kind = "datasets" if found[1] else "models"
            self._file(kind, *found.groups()[1:])
        elif found := _API.fullmatch(path):
            kind, name, verb, revision, rest = found.groups()
            self._info(kind, name, verb, revision or "main", (rest or "").strip("/"))
        else:
            self._answer(404, b"", {})

    def _found(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.server_hub.repos.get((kind, name))
        if repo is None:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif repo.is_gated:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif (sha := repo.resolve(revision)) is None:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return sha, repo.commits[sha]
        return None

    def _info(self, kind: str, name: str, verb: str | None, revision: str, folder: str) -> None:
        found = self._found(kind, name, revision)
        if found is None:
            return
        sha, files = found
        if verb in {None, "revision"}:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": sha, "private": False, "siblings": siblings, "tags": []})
        elif verb == "tree":
            is_recursive = "recursive=true" in self.path.lower()
            self._json(_tree(files, folder, is_recursive=is_recursive))
        else:
            form = parse_qs(self.body.decode())
            wanted = form.get("paths") or json.loads(self.body or b"{}").get("paths", [])
            everything = {entry["path"]: entry for entry in _tree(files, "", is_recursive=True)}
            self._json([everything[path] for path in wanted if path in everything])

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        found = self._found(kind, name, revision)
        if found is None:
            return
        sha, files = found
        if path not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            self._answer(404, b"", headers)
            return
        etag = hashlib.sha1(files[path]).hexdigest()
        self._answer(200, files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": sha})

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: `requests` tells."""


def _tree(files: dict[str, bytes], folder: str, *, is_recursive: bool) -> list[dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    prefix = f"{folder}/" if folder else ""
    for path, content in files.items():
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            above = prefix + "/".join(parts[:depth])
            if depth == 1 or is_recursive:
                found[above] = {"type": "directory", "path": above, "oid": "0" * 40}
        if len(parts) == 1 or is_recursive:
            found[path] = _entry(path, content)
    return list(found.values())


def _entry(path: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}
