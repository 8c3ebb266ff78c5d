"""A client as plain as curl: what it returns is what was on the wire."""

import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Stream:
    """An SSE answer, read line by line."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = _headers(response)
        self._response = response

    def lines(self) -> Iterator[str]:
        """The lines that are not empty, as they come."""
        while line := self._response.readline():
            if text := line.decode().rstrip("\r\n"):
                yield text

    def next_comment(self) -> str:
        return next(line for line in self.lines() if line.startswith(":"))

    def next_data(self) -> Any:
        line = next(line for line in self.lines() if line.startswith("data: "))
        return json.loads(line.removeprefix("data: "))

    def read_text(self) -> str:
        """The content of all that follows; raises if the stream has an error or no end."""
        text = ""
        for line in self.lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                frame = json.loads(line.removeprefix("data: "))
                assert "error" not in frame, frame
                text += "".join(c["delta"].get("content") or "" for c in frame["choices"])
        raise AssertionError(f"the stream ended without [DONE], after {text!r}")


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


@contextlib.contextmanager
def _request(
    method: str, url: str, body: Any, timeout_seconds: float
) -> Iterator[http.client.HTTPResponse]:
    parts = urlsplit(url)
    assert parts.hostname
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_seconds)
    try:
        payload = None if body is None else json.dumps(body).encode()
        connection.request(method, parts.path, payload, {"content-type": "application/json"})
        yield connection.getresponse()
    finally:
        connection.close()


def post(url: str, body: Any, timeout_seconds: float = 90.0) -> Answer:
    with _request("POST", url, body, timeout_seconds) as response:
        return Answer(response.status, _headers(response), response.read().decode())


@contextlib.contextmanager
def open_stream(url: str, body: Any, timeout_seconds: float = 90.0) -> Iterator[Stream]:
    with _request("POST", url, body, timeout_seconds) as response:
        yield Stream(response)


def get_json(url: str, timeout_seconds: float = 10.0) -> Any:
    with _request("GET", url, None, timeout_seconds) as response:
        return json.loads(response.read())
