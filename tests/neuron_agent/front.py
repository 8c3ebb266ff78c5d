"""A real front process for tests: started on a free port, asked over HTTP, ended clean."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

FAKE_DEVICE = json.dumps([sys.executable, "-m", "tests.fakes.fake_device"])
DEADLINE_SECONDS = 30.0


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll until the condition holds; return its value, or fail saying what was awaited."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"never happened: {what}")


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Return the error, having checked that it has OpenAI's shape."""
        error = self.json["error"]
        assert {"message", "type", "param", "code"} <= error.keys()
        assert isinstance(error["code"], str)
        return dict(error)

    @property
    def text(self) -> str:
        return str(self.json["choices"][0]["message"]["content"])


@dataclass
class Front:
    """`with Front(...) as front`. Settings are NEURON_* variables without the prefix."""

    settings: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] = field(init=False)
    host: str = "127.0.0.1"
    port: int = 0
    sockets: list[socket.socket] = field(default_factory=list)

    def __enter__(self) -> Self:
        settings = {
            "PORT": "0",
            "DEVICES__CPU": "1",
            "DEVICES__CUDA": "false",
            "DEVICES__CPU_MEMORY_MB": "100",
            "DEVICE_COMMAND": FAKE_DEVICE,
            **self.settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "neuron_agent"],
            env=os.environ
            | {f"NEURON_{name}": value for name, value in settings.items()}
            | self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "listening on" in line, line
        self.port = int(line.rsplit(":", 1)[1])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hang_up()
        devices = self.device_pids()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(DEADLINE_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        wait_until(lambda: not any(map(is_running, devices)), "no device process is left behind")

    # --- asking ----------------------------------------------------------------------------------

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE_SECONDS)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            lower = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, lower, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    def load(self, folder: Path, model_id: str = "org/tiny", **options: Any) -> Answer:
        body = {"model_id": model_id, "source": str(folder), "wait": True, **options}
        return self.ask("POST", "/models/load", body)

    def unload(self, model_id: str = "org/tiny", **options: Any) -> Answer:
        return self.ask("POST", "/models/unload", {"model_id": model_id, **options})

    def chat(
        self, content: str = "hi", headers: dict[str, str] | None = None, **fields: Any
    ) -> Answer:
        return self.ask("POST", "/v1/chat/completions", chat_body(content, **fields), headers)

    def stream(self, content: str = "hi", **fields: Any) -> list[bytes]:
        """Return the frames of a whole stream."""
        headers = fields.pop("headers", {})
        answer = self.chat(content, headers, stream=True, **fields)
        assert answer.status == 200, answer.body
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.body.endswith(b"\n\n")
        return answer.body.removesuffix(b"\n\n").split(b"\n\n")

    def open_chat(self, content: str, headers: str = "", **fields: Any) -> socket.socket:
        """Send a chat request and return the open connection, nothing read."""
        body = json.dumps(chat_body(content, **fields)).encode()
        sock = socket.create_connection((self.host, self.port), DEADLINE_SECONDS)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        sock.sendall(head.encode() + headers.encode() + b"\r\n" + body)
        self.sockets.append(sock)
        return sock

    def hang_up(self) -> None:
        """Close every connection that `open_chat` opened, whatever became of the test."""
        while self.sockets:
            self.sockets.pop().close()

    # --- looking ---------------------------------------------------------------------------------

    def model(self, model_id: str = "org/tiny") -> dict[str, Any]:
        models = self.get("/models")["models"]
        return next((dict(model) for model in models if model["id"] == model_id), {})

    def phase(self, model_id: str = "org/tiny") -> str | None:
        return self.model(model_id).get("phase")

    def num_requests(self, model_id: str = "org/tiny") -> int:
        for model in self.get("/health")["models"]:
            if model["id"] == model_id:
                return int(model["in_flight"] + model["queue_depth"])
        return 0

    def device_pids(self) -> list[int]:
        if self.process.poll() is not None:
            return []
        return [child.pid for child in psutil.Process(self.process.pid).children()]


def chat_body(content: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "org/tiny", "messages": messages, **fields}


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """Return what comes up to and with `end`, or until a cut, which fails."""
    data = b""
    while end not in data:
        received = sock.recv(65536)
        assert received, f"the connection was cut after {data[-200:]!r}"
        data += received
    return data


def read_answer(sock: socket.socket) -> bytes:
    """Return the rest of a chunked answer, and close the connection."""
    with sock:
        return read_until(sock, b"\r\n0\r\n\r\n")


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def data_frames(frames: list[bytes]) -> Iterator[Any]:
    """Yield the JSON of a stream's data frames, the end mark left out."""
    for frame in frames:
        if frame.startswith(b"data: ") and frame != b"data: [DONE]":
            yield json.loads(frame.removeprefix(b"data: "))


def text_of(frames: list[bytes]) -> str:
    chunks = [chunk for chunk in data_frames(frames) if chunk["choices"]]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
