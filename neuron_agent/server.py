"""The neuron's HTTP routes. Each parses, calls one function, and encodes.

No decision is taken here. Paths and bodies are those of protocol.py and of OpenAI's API; model
ids contain slashes, so they are matched as paths.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from neuron_agent import status
from neuron_agent.errors import NotFound
from neuron_agent.generation.embedding import embed
from neuron_agent.generation.plan import tokenize_conversation
from neuron_agent.generation.request import (
    Caller,
    cancel_request,
    generate_chat,
    generate_completion,
)
from neuron_agent.http_answer import (
    JSON,
    Collector,
    FramesAnswer,
    StreamAnswer,
    WholeAnswer,
    collect,
    json_answer,
    read_body,
)
from neuron_agent.http_boundary import Boundary
from neuron_agent.metrics import render_metrics
from neuron_agent.model_state import ModelState
from neuron_agent.protocol import (
    FRAMES_HEADER,
    PRINCIPAL_HEADER,
    LoadAccepted,
    LoadRequest,
    ModelPhase,
    RestartAccepted,
    RestartRequest,
    UnloadRequest,
)
from neuron_agent.sources import repository
from neuron_agent.supervisor import Supervisor
from neuron_agent.wire import sse
from neuron_agent.wire.chat_request import parse_chat_request
from neuron_agent.wire.chat_response import ChatCollector, ChatStreamEncoder
from neuron_agent.wire.completion_request import parse_completion_request
from neuron_agent.wire.completion_response import CompletionCollector, CompletionStreamEncoder
from neuron_agent.wire.embeddings import (
    EmbeddingRequest,
    encode_embeddings,
    parse_embedding_request,
)
from neuron_agent.wire.events import ChatEvent
from neuron_agent.wire.json_body import check_range, decode, parse_object
from neuron_agent.wire.stream_encoder import Framing, ResponseHead
from neuron_agent.wire.tokenize import (
    encode_prompt,
    encode_tokens,
    parse_detokenize_request,
    parse_tokenize_request,
)

EVENT_PERIOD_SECONDS = 2.0
"""A silent load is said to be alive this often, on its events stream."""

BIG_BODY_BYTES = 128 * 1024
MAX_DRAIN_SECONDS = 3600.0

T = TypeVar("T")


def build_app(supervisor: Supervisor) -> ASGIApp:
    """Return the front process's ASGI application."""
    routes = _Routes(supervisor)
    router = Router(
        [
            Route("/version", routes.version),
            Route("/discovery", routes.discovery),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            Route("/models", routes.models),
            Route("/models/load", routes.load, methods=["POST"]),
            Route("/models/unload", routes.unload, methods=["POST"]),
            Route("/models/{model_id:path}/endpoint", routes.endpoint),
            Route("/models/{model_id:path}/events", routes.events),
            Route("/v1/models", routes.openai_models),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/completions", routes.completion, methods=["POST"]),
            Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
            Route("/v1/requests/{request_id:path}", routes.cancel, methods=["DELETE"]),
            Route("/tokenize", routes.tokenize, methods=["POST"]),
            Route("/detokenize", routes.detokenize, methods=["POST"]),
            Route("/restart", routes.restart, methods=["POST"]),
        ],
        redirect_slashes=False,
    )
    return Boundary(router, supervisor.config.token)


class _Routes:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    # --- what the neuron says of itself ----------------------------------------------------------

    async def version(self, request: Request) -> Response:
        return json_answer(status.version(self._supervisor))

    async def discovery(self, request: Request) -> Response:
        cache_folder = self._supervisor.config.hf_cache
        cached = await asyncio.to_thread(repository.list_cached_models, cache_folder)
        return json_answer(status.discovery(self._supervisor, cached))

    async def health(self, request: Request) -> Response:
        return json_answer(status.health(self._supervisor))

    async def metrics(self, request: Request) -> Response:
        return Response(render_metrics(self._supervisor), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        return json_answer(status.models(self._supervisor))

    async def openai_models(self, request: Request) -> Response:
        ready = [m for m in self._supervisor.models.values() if m.phase is ModelPhase.READY]
        return json_answer({"object": "list", "data": [_openai_model(model) for model in ready]})

    async def endpoint(self, request: Request) -> Response:
        self._supervisor.find(request.path_params["model_id"])
        return json_answer({"url": str(request.base_url).rstrip("/")})

    async def restart(self, request: Request) -> Response:
        raw = parse_object(await read_body(request, may_be_empty=True) or b"{}")
        wanted = decode(raw, RestartRequest)
        check_range("drain_seconds", wanted.drain_seconds, 0, MAX_DRAIN_SECONDS)
        self._supervisor.drain(wanted.drain_seconds)
        activation = status.activation(self._supervisor)
        return json_answer(RestartAccepted(self._supervisor.boot_id, activation), 202)

    # --- loading ---------------------------------------------------------------------------------

    async def load(self, request: Request) -> Response:
        wanted = decode(parse_object(await read_body(request)), LoadRequest)
        model = self._supervisor.load(wanted)
        if wanted.wait:
            await self._supervisor.wait_until_loaded(model)
        code = 200 if model.phase is ModelPhase.READY else 202
        return json_answer(LoadAccepted(model.id, model.phase), code)

    async def unload(self, request: Request) -> Response:
        wanted = decode(parse_object(await read_body(request)), UnloadRequest)
        check_range("drain_seconds", wanted.drain_seconds, 0, MAX_DRAIN_SECONDS)
        model = await self._supervisor.unload(wanted)
        code = 200 if model.is_gone else 202
        return json_answer(LoadAccepted(model.id, model.phase), code)

    async def events(self, request: Request) -> Response:
        model = self._supervisor.find(request.path_params["model_id"])
        return FramesAnswer(_load_frames(model))

    # --- inference -------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        chat = await _parse(parse_chat_request, await read_body(request))
        events = generate_chat(self._supervisor, chat, _caller(request))
        head = _head("chatcmpl", chat.model)
        if not chat.is_streaming:
            return _whole(ChatCollector(head), events)
        framing = _framing(request, includes_usage=chat.includes_usage)
        return StreamAnswer(ChatStreamEncoder(head, framing), events)

    async def completion(self, request: Request) -> Response:
        wanted = await _parse(parse_completion_request, await read_body(request))
        events = generate_completion(self._supervisor, wanted, _caller(request))
        head = _head("cmpl", wanted.model)
        if not wanted.is_streaming:
            return _whole(CompletionCollector(head), events)
        framing = _framing(request, includes_usage=wanted.includes_usage)
        return StreamAnswer(CompletionStreamEncoder(head, framing), events)

    async def embeddings(self, request: Request) -> Response:
        wanted = await _parse(parse_embedding_request, await read_body(request))
        return WholeAnswer(partial(self._embed, wanted, _caller(request)))

    async def _embed(self, wanted: EmbeddingRequest, caller: Caller) -> bytes:
        embedded = await embed(self._supervisor, wanted, caller)
        return await asyncio.to_thread(
            encode_embeddings, wanted, embedded.vectors, embedded.num_tokens
        )

    async def cancel(self, request: Request) -> Response:
        request_id = request.path_params["request_id"]
        if not cancel_request(self._supervisor, request_id):
            raise NotFound("no such request is running", code="request_not_found")
        return json_answer({"id": request_id, "object": "request", "cancelled": True})

    async def tokenize(self, request: Request) -> Response:
        wanted = await _parse(parse_tokenize_request, await read_body(request))
        text = await self._supervisor.text_of(wanted.model)
        if wanted.conversation is not None:
            token_ids = await tokenize_conversation(text, wanted.conversation)
        else:
            token_ids = await asyncio.to_thread(
                text.encode, wanted.prompt or "", wanted.adds_special_tokens
            )
        model = self._supervisor.models.get(wanted.model.model_id)
        limit = model.context_tokens or None if model else None
        body = encode_tokens(token_ids, limit, returns_tokens=wanted.returns_tokens)
        return Response(body, media_type=JSON)

    async def detokenize(self, request: Request) -> Response:
        wanted = await _parse(parse_detokenize_request, await read_body(request))
        text = await self._supervisor.text_of(LoadRequest(wanted.model))
        prompt = await asyncio.to_thread(
            text.tokenizer.decode, list(wanted.token_ids), skip_special_tokens=False
        )
        return Response(encode_prompt(prompt), media_type=JSON)


def _caller(request: Request) -> Caller:
    return Caller(request.state.request_id, request.headers.get(PRINCIPAL_HEADER, ""))


def _head(prefix: str, model: str) -> ResponseHead:
    return ResponseHead(f"{prefix}-{uuid.uuid4().hex}", int(time.time()), model)


def _framing(request: Request, *, includes_usage: bool) -> Framing:
    return Framing.asked_by(request.headers.get(FRAMES_HEADER), includes_usage=includes_usage)


def _whole(collector: Collector, events: AsyncGenerator[ChatEvent, None]) -> Response:
    return WholeAnswer(partial(collect, collector, events))


async def _parse(parse: Callable[[bytes], T], body: bytes) -> T:
    """Parse a body; a big one beside the loop, where other streams do not wait for it."""
    return parse(body) if len(body) < BIG_BODY_BYTES else await asyncio.to_thread(parse, body)


def _openai_model(model: ModelState) -> dict[str, object]:
    return {
        "id": model.id,
        "object": "model",
        "created": int(model.created_at),
        "owned_by": "cortex",
        "max_model_len": model.context_tokens or None,
    }


async def _load_frames(model: ModelState) -> AsyncGenerator[bytes, None]:
    """Yield a load's progress each time it changes; the last frame is ready or failed."""
    last: bytes | None = None
    while True:
        name = _event_name(model)
        frame = sse.named_frame(name, status.model_info(model))
        if frame != last:
            yield frame
            last = frame
        if name != "progress":
            return
        try:
            async with asyncio.timeout(EVENT_PERIOD_SECONDS):
                await model.wait_for_change()
        except TimeoutError:
            yield sse.KEEP_ALIVE


def _event_name(model: ModelState) -> str:
    if model.phase is ModelPhase.READY:
        return "ready"
    is_over = model.failure is not None or model.is_gone
    return "failed" if is_over else "progress"
