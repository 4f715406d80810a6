"""A model hub on loopback: a real HTTP server that speaks the part of the hub's API that is used.

    with FakeHub() as hub:
        hub.add_model("org/name", {"config.json": b"{}"}, gated=False)
        ... HF_ENDPOINT=hub.url ...
        hub.requests            # [("GET", "/api/models/org/name?blobs=true"), ...]

`hub.hostile["/config.json"] = answer` lets `answer(handler)` write whatever it wants to requests
whose path ends so: `endless`, `packed`, `with_headers`.

`hub.mode` makes it fail from then on: "hang" (accepts, never answers), "reset" (closes at once), a
status such as 500 or 429, or "ok". `hub.only` limits that to paths that contain this text.
Headers and error codes are those of the real hub, which `huggingface_hub` builds its errors from.
"""

from __future__ import annotations

import functools
import hashlib
import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Model:
    """One repository with one commit; `token` is what opens it when it is gated or private."""

    files: dict[str, bytes]
    commit: str
    gated: bool
    private: bool
    token: str
    revisions: frozenset[str]


class FakeHub:
    """See the module's docstring. Thread-safe enough for tests; closing it frees hanging calls."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.requests: list[tuple[str, str]] = []
        self.mode: str | int = "ok"
        self.only = ""
        self.hostile: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.tokens: list[tuple[str, str | None]] = []
        self.ranges: list[str] = []
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.daemon = True

    @property
    def url(self) -> str:
        """The endpoint, as HF_ENDPOINT wants it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add_model(
        self,
        model_id: str,
        files: Mapping[str, bytes],
        gated: bool = False,
        private: bool = False,
        token: str = "hf_letmein",
        revisions: tuple[str, ...] = ("main",),
    ) -> str:
        """Publish a repository and give the sha of its commit; the same id again replaces it."""
        content = b"".join(name.encode() + data for name, data in sorted(files.items()))
        commit = hashlib.sha1(model_id.encode() + content).hexdigest()
        self.models[model_id] = Model(
            dict(files), commit, gated, private, token, frozenset({*revisions, commit})
        )
        return commit

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that give up are what is tested; nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """The tests look at `hub.requests` instead."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path))
        path = unquote(urlsplit(self.path).path)
        hub.tokens.append((path, self.headers.get("Authorization")))
        for end, answer in hub.hostile.items():
            if path.endswith(end):
                answer(self)
                return
        if hub.mode != "ok" and hub.only in path:
            self._fail(hub.mode)
            return
        model_id, rest = self._split(path)
        model = hub.models.get(model_id)
        authorized = model is not None and self.headers.get("Authorization") == (
            f"Bearer {model.token}"
        )
        if model is None or (model.private and not authorized):
            self._error(404, "RepoNotFound", "Repository not found")
        elif path.startswith("/api/models/") and "/tree/" in path:
            self._tree(model, rest)
        elif path.startswith("/api/models/"):
            self._info(model_id, model, rest)
        elif model.gated and not authorized:
            message = f"Access to model {model_id} is restricted. You must be authenticated."
            self._error(401, "GatedRepo", message)
        else:
            self._file(model, rest)

    def _split(self, path: str) -> tuple[str, str]:
        """The model id and what follows it."""
        path = path.removeprefix("/api/models/").lstrip("/")
        for separator in ("/resolve/", "/revision/", "/tree/"):
            if separator in path:
                model_id, _, rest = path.partition(separator)
                return model_id, rest
        return path, ""

    def _fail(self, mode: str | int) -> None:
        if mode == "hang":
            self.hub.closing.wait()
            self.close_connection = True
        elif mode == "reset":
            # Linger 0: close() sends a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        else:
            self._send(int(mode), {}, b"busy")

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, headers, json.dumps({"error": message}).encode())

    def _info(self, model_id: str, model: Model, revision: str) -> None:
        if revision and revision not in model.revisions:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": _etag(data)}
            for name, data in model.files.items()
        ]
        info = {
            "_id": "0", "id": model_id, "modelId": model_id, "sha": model.commit,
            "private": model.private, "gated": "manual" if model.gated else False,
            "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings,
            "createdAt": "2024-01-01T00:00:00.000Z", "lastModified": "2024-01-01T00:00:00.000Z",
        }  # fmt: skip
        self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def _tree(self, model: Model, revision: str) -> None:
        """The files of a revision, as `snapshot_download` of huggingface_hub 1.x asks for them."""
        if revision not in model.revisions:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
            for name, data in model.files.items()
        ]
        self._send(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())

    def _file(self, model: Model, rest: str) -> None:
        revision = next(
            (r for r in sorted(model.revisions, key=len, reverse=True) if rest.startswith(f"{r}/")),
            None,
        )
        if revision is None:
            self._error(404, "RevisionNotFound", "Invalid rev id")
            return
        data = model.files.get(rest[len(revision) + 1 :])
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        headers = {
            "ETag": f'"{_etag(data)}"',
            "X-Repo-Commit": model.commit,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            self._send(200, headers, data)
            return
        self.hub.ranges.append(wanted)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)), len(data) - 1)
        if start >= len(data):
            self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
            return
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
        self._send(206, headers, data[start : stop + 1])

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    """Git's name for the content, as the hub's ETag has it for files outside LFS."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


# --- answers of a hostile server ------------------------------------------------------------


def with_headers(
    headers: Mapping[str, str], body: bytes = b"{}", status: int = 200
) -> Callable[[BaseHTTPRequestHandler], None]:
    """An orderly answer with these headers beside its length."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return answer


def endless(
    start: bytes = b"{",
    headers: Mapping[str, str] | None = None,
    piece: bytes = b" " * 65_536,
) -> Callable[[BaseHTTPRequestHandler], None]:
    """A body in pieces that never ends; it stops when the client has gone."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        for name, value in {"Transfer-Encoding": "chunked", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        try:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(start), start))
            while True:
                handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        except OSError:
            return  # what a client does that has enough

    return answer


def packed(size: int) -> Callable[[BaseHTTPRequestHandler], None]:
    """A gzip body of a thousandth of `size`, in bytes, that unpacks to `size` zeros. It is packed
    when it is first asked for."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        with_headers({"Content-Encoding": "gzip"}, _zeros(size))(handler)

    return answer


@functools.cache
def _zeros(size: int) -> bytes:
    piece = bytes(1 << 20)
    packer = zlib.compressobj(wbits=-15)
    # After a full flush nothing refers to what was before: the same bytes, any number of times.
    packed = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    count, checksum = size // len(piece), 0
    for _ in range(count):
        checksum = zlib.crc32(piece, checksum)
    header, last_block = b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\x03\0"
    trailer = struct.pack("<II", checksum, (count * len(piece)) & 0xFFFFFFFF)
    return header + packed * count + last_block + trailer
