"""A Hugging Face hub in a thread: the part of its protocol that ``./latentd pull`` uses."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One commit of files; what ends in .safetensors is in large-file storage."""

    files: Mapping[str, bytes]
    gated: bool = False
    #: Sent in place of the real bytes: transfers that go wrong.
    damaged: dict[str, bytes] = field(default_factory=dict)
    #: Claimed in place of the real sizes.
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        content = b"".join(name.encode() + data for name, data in sorted(self.files.items()))
        return hashlib.sha1(content).hexdigest()

    def siblings(self) -> list[dict[str, Any]]:
        result = []
        for name, data in self.files.items():
            size = self.sizes.get(name, len(data))
            entry = {
                "rfilename": name,
                "size": size,
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if name.endswith(".safetensors"):
                entry["lfs"] = {"size": size, "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
            result.append(entry)
        return result


class Hub:
    """``address`` is what HF_ENDPOINT is set to. Old commits stay to be had, as on the real one."""

    def __init__(self, **repositories: Repository) -> None:
        self.repositories = {name.replace("__", "/"): one for name, one in repositories.items()}
        #: "GET /path" with the range, if one was asked for.
        self.log: list[str] = []
        #: Bytes after which each answer stops until ``go_on`` is set.
        self.stall_after: int | None = None
        self.stalled = threading.Event()
        self.go_on = threading.Event()
        self._old: dict[str, Repository] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def push(self, name: str, files: Mapping[str, bytes]) -> None:
        """A new commit on main."""
        old = self.repositories[name]
        self._old[old.commit] = old
        self.repositories[name] = Repository(files=files, gated=old.gated)

    def fetched(self) -> list[str]:
        """The files that were asked for, in order."""
        return [line.split("/resolve/")[1].partition("/")[2] for line in self.log if "/resolve/" in line]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.log.append(f"GET {path} {request.headers.get('Range', '')}".strip())
        if path.startswith("/cdn/"):
            return self._send_bytes(request, *path.removeprefix("/cdn/").split("/", 1))
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            repository = self._find(name, revision)
            if repository is None:
                return self._refuse(
                    request, 404, "RepoNotFound" if name not in self.repositories else "RevisionNotFound"
                )
            body = {"id": name, "modelId": name, "sha": repository.commit, "siblings": repository.siblings()}
            return self._send_json(request, body)
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        commit, _, file = rest.partition("/")
        repository = self._find(name, commit)
        if repository is None or file not in repository.files:
            return self._refuse(request, 404, "EntryNotFound")
        if repository.gated and not request.headers.get("Authorization"):
            return self._refuse(request, 401, "GatedRepo")
        if repository.gated and request.headers["Authorization"] != "Bearer hf_accepted":
            return self._refuse(request, 403, "GatedRepo")
        if file.endswith(".safetensors"):
            request.send_response(302)
            request.send_header("Location", f"{self.address}/cdn/{repository.commit}/{file}")
            request.send_header("Content-Length", "0")
            return request.end_headers()
        return self._send_bytes(request, repository.commit, file)

    def _find(self, name: str, revision: str) -> Repository | None:
        current = self.repositories.get(name)
        if current is not None and revision not in ("main", current.commit):
            return self._old.get(revision)
        return current

    def _send_json(self, request: BaseHTTPRequestHandler, body: Any) -> None:
        data = json.dumps(body).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def _send_bytes(self, request: BaseHTTPRequestHandler, commit: str, file: str) -> None:
        repository = next(one for one in (*self.repositories.values(), *self._old.values()) if one.commit == commit)
        data = repository.damaged.get(file, repository.files[file])
        start = int((request.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        try:
            if self.stall_after is not None and len(data) - start > self.stall_after:
                request.wfile.write(data[start : start + self.stall_after])
                self.stalled.set()
                self.go_on.wait(60)
            else:
                request.wfile.write(data[start:])
        except OSError:
            # The client was killed.
            pass
