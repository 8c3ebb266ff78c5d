"""A model hub on a port: as much of its HTTP as a download of small files needs."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """`with FakeHub({"org/model": folder}) as hub`; clients find it at `hub.url`.

    With a `token`, others are turned away. The first download of a file that is longer than
    `break_after_bytes` ends there.
    """

    repositories: dict[str, Path]
    token: str | None = None
    break_after_bytes: int | None = None
    downloads: list[tuple[str, int]] = field(default_factory=list)
    """Names of files, and from which byte on."""
    tokens: set[str | None] = field(default_factory=set)
    """Of all callers so far."""

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def must_break(self, num_bytes: int) -> bool:
        """Whether a download of so many bytes is the one that is to break; asked once."""
        if self.break_after_bytes is None or num_bytes <= self.break_after_bytes:
            return False
        self.break_after_bytes = None
        return True


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

        def _serve(self) -> None:
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ") or None
            hub.tokens.add(token)
            if hub.token not in (None, token):
                self._answer(b"{}", "application/json", 401, {"X-Error-Code": "RepoNotFound"})
                return
            path = self.path.partition("?")[0].strip("/")
            for name, folder in hub.repositories.items():
                if re.fullmatch(rf"api/models/{re.escape(name)}(/revision/.+)?", path):
                    self._answer(_description(name, folder), "application/json")
                    return
                if path.startswith(f"api/models/{name}/tree/"):
                    self._answer(_tree(folder), "application/json")
                    return
                match = re.fullmatch(rf"{re.escape(name)}/resolve/[^/]+/(.+)", path)
                if match and (folder / match[1]).is_file():
                    self._send_file(match[1], (folder / match[1]).read_bytes())
                    return
            self._answer(b"{}", "application/json", 404, {"X-Error-Code": "RepoNotFound"})

        def _send_file(self, name: str, content: bytes) -> None:
            kind = "application/octet-stream"
            etag = hashlib.sha1(content).hexdigest()
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(wanted[1]) if wanted else 0
            if self.command == "GET":
                hub.downloads.append((name, start))
                if hub.must_break(len(content)):
                    self._answer(content, kind, etag=etag, num_sent=len(content) // 2)
                    return
            place = f"bytes {start}-{len(content) - 1}/{len(content)}"
            extra = {"Content-Range": place} if wanted else {}
            self._answer(content[start:], kind, 206 if wanted else 200, extra, etag=etag)

        def _answer(
            self,
            body: bytes,
            kind: str,
            status: int = 200,
            extra: dict[str, str] | None = None,
            etag: str | None = None,
            num_sent: int | None = None,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{etag or hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Connection", "close")  # nobody is served after the end
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:num_sent])

    return Handler


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _description(name: str, folder: Path) -> bytes:
    files = [
        {"rfilename": str(file.relative_to(folder)), "size": file.stat().st_size}
        for file in _files(folder)
    ]
    return json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": files}).encode()


def _tree(folder: Path) -> bytes:
    entries = [
        {
            "type": "file",
            "path": str(file.relative_to(folder)),
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }
        for file in _files(folder)
    ]
    return json.dumps(entries).encode()
