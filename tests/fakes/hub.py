"""A model hub on a port: as much of its HTTP as a download of small files needs."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """`with FakeHub({"org/model": folder}) as hub`; clients find it at `hub.url`."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(repositories))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
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


def _handler(repositories: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

        def _serve(self) -> None:
            path = self.path.partition("?")[0].strip("/")
            for name, folder in repositories.items():
                if path.startswith(f"api/models/{name}/revision/"):
                    self._answer(_description(name, folder), "application/json")
                    return
                if path.startswith(f"api/models/{name}/tree/"):
                    self._answer(_tree(folder), "application/json")
                    return
                file = folder / path.rpartition("/")[2]
                if path.startswith(f"{name}/resolve/") and file.is_file():
                    self._answer(file.read_bytes(), "application/octet-stream")
                    return
            self._answer(b"{}", "application/json", 404, {"X-Error-Code": "RepoNotFound"})

        def _answer(
            self, body: bytes, kind: str, status: int = 200, extra: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


def _description(name: str, folder: Path) -> bytes:
    files = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
    return json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": files}).encode()


def _tree(folder: Path) -> bytes:
    entries = [
        {
            "type": "file",
            "path": file.name,
            "size": file.stat().st_size,
            "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.iterdir())
    ]
    return json.dumps(entries).encode()
