"""uvicorn's HTTP protocol, with limits for clients that send slowly or without end.

It knows bytes and clocks, not paths. A request's head must be there within `HEAD_SECONDS` and be no
larger than about `MAX_HEAD_BYTES`; its body must keep coming, `BODY_STEP_BYTES` in every
`BODY_STEP_SECONDS`. Otherwise the connection is closed. Answers are not its business: they may take
as long as they like.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
MAX_HEAD_BYTES = 64 * 1024
BODY_STEP_SECONDS = 10.0
BODY_STEP_BYTES = 256 * 1024


class GuardedProtocol(HttpToolsProtocol):
    """Arms a timer while a request is being received, and only then."""

    _deadline: asyncio.TimerHandle | None = None
    _is_in_head = True
    _head_bytes = 0
    _step_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        # Counted in what is read at once: a head with its body behind it may come in one piece.
        if self._is_in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._close()
            return
        super().data_received(data)
        if self._is_in_head:
            self._head_bytes += len(data)
        is_answered = self.cycle is None or self.cycle.response_complete
        if self._deadline is None and is_answered:
            # Bytes that begin no request have stopped uvicorn's own timer for idle connections.
            self._arm(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._arm(HEAD_SECONDS)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head, self._step_bytes = False, 0
        self._arm(BODY_STEP_SECONDS)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._step_bytes += len(body)
        if self._step_bytes >= BODY_STEP_BYTES:
            self._step_bytes = 0
            self._arm(BODY_STEP_SECONDS)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._disarm()
        super().handle_websocket_upgrade()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.pipeline:
            # We ourselves read nothing more until the requests before it are answered.
            self._arm(BODY_STEP_SECONDS)
        else:
            self._close()

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()
