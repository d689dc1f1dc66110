"""A server that chat clients of OpenAI's kind can ask, answering with evidence: pip install "hf_ravlm[serve]".

`transformers serve FOLDER --trust-remote-code` serves our readers, too, but closed-book, and its clients choose which
models are loaded and what is fetched. Here there is one system, opened before the first request, and four routes:
`POST /v1/chat/completions`, `GET /v1/models`, `GET /v1/models/NAME`, `GET /health`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InvalidInputError, UnsafeInputError
from ..images import fetch_image, is_address
from ..pipelines.opening import open_pipeline
from ..pipelines.parts import is_remote
from ..pipelines.streaming import StreamLeftError
from ..web import BoundedBodies, OwnNamesOnly, check_port, error_body, own_names
from .chat_requests import ChatRequest, RequestError, read_body, read_request
from .served_reader import MAX_BATCH, Reader


if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ..pipelines.answer import Answer

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32_000_000
HEAD_SECONDS = 20.0  # until the head of a request has come
FETCH_SECONDS = 10.0  # for an image by its address
MAX_CONNECTIONS = 256
_PASSAGE_FIELDS = ("id", "text", "score", "rank", "source", "licence", "url", "title")  # in a reply


def serve(
    model: str,
    k: int | None = None,
    *,
    knowledge: Any = None,
    encoder: Any = None,
    reader_name: str | None = None,
    sees_images: bool | None = None,
    max_batch: int = MAX_BATCH,
    host: str = "localhost",
    port: int = 8000,
    device: str | None = None,
    default_seed: int | None = None,
    fetch_images: bool = False,
    non_blocking: bool = False,
) -> ChatServer:
    """Serves a reader with what it reads; returns when the server is stopped.

    Of a conversation, the last user message is the question, with its own images or, if it has none, the last ones
    before it; system messages are told to the reader. A request may say how many passages it
    wants, 0 for none: `{"chat_template_kwargs": {"k": 0}}`, and there, too, settings of the prompt, such as
    `"cite": true`, for which the message has `citations`, each checked. The message of the reply has a field
    `evidence`, a list of the passages that were read, best first, and `unread`, those that had no room; of a stream,
    a piece before the first word has them, and the last one again, with citations and thoughts.

    Requests that come while others are written are answered together (`max_batch`), each as if it were alone; a client
    that leaves stops its own. Answers are greedy unless a request gives `temperature` or `top_p`, and is then answered
    alone.

    Args:
        model: A folder or Hub id of a saved system, or of any reader, which then needs `knowledge`, or `"offline"`;
            clients name it in `model`.
        k: Passages per question, 0 for none; `None` for as many as the model's config says.
        knowledge, encoder: What is searched, if it is not in the folder of the model, and what encodes it; see
            `hf_ravlm.pipelines.knowledge.open_knowledge`.
        reader_name, sees_images: Of a reader behind another server, as of `RemoteReader`; clients call it by its name.
        max_batch: Requests that are answered together; 1 for one at a time.
        host, port: Where to listen; on this machine alone, under its own names alone, by default.
        device: Of the model; the graphics card if there is one.
        default_seed: Where a request that samples gives none.
        fetch_images: Whether a client's images may be addresses, which are then fetched from the open network, never
            from a private one. By default they come in the request, as `data:` texts, and nothing is fetched.
        non_blocking: Returns a running server, which `kill_server()` stops.

    Raises:
        ImportError: If the server's own requirements are missing.
        InvalidInputError: If the model is no reader, or something else listens at the port.

    Example:

    ```python
    >>> server = serve("examples/flags/checkpoint", port=8000, non_blocking=True)  # doctest: +SKIP
    >>> client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none")  # doctest: +SKIP
    >>> client.chat.completions.create(model="examples/flags/checkpoint", messages=messages)  # doctest: +SKIP

    ```
    """
    from transformers.utils import import_utils

    if not import_utils.is_serve_available():
        raise ImportError('Serving needs: pip install "hf_ravlm[serve]"')
    check_port(host, port)  # before a large model is loaded for nothing
    pipe = open_pipeline(model, knowledge, encoder, device, reader_name, sees_images)
    reader = Reader(pipe.model.name if is_remote(pipe.model) else model, pipe, k, default_seed, max_batch)
    server = ChatServer(chat_app(reader, host, fetch_images), host, port, reader)
    if non_blocking:
        server.start()
    else:
        server.server.run()
        reader.close()
    return server


class _Found(NamedTuple):
    """What is read of what was found, and what is not."""

    read: list[Any]
    unread: list[Any]


class _Done(NamedTuple):
    """What ends the pieces of an answer: the answer, or why there is none."""

    answer: Answer | None = None
    error: BaseException | None = None


class _Reply:
    """One answer on its way to a client."""

    def __init__(self, reader: Reader, asked: ChatRequest, images: list[Any]) -> None:
        loop = asyncio.get_running_loop()
        self.reader, self.asked = reader, asked
        self.pieces: asyncio.Queue[str | _Found | _Done] = asyncio.Queue()
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": reader.name}

        def tell(piece: str | _Found | _Done) -> None:
            loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        def done(future: Future[Answer]) -> None:
            error = None if future.cancelled() else future.exception()
            tell(_Done(error=error or StreamLeftError()) if future.cancelled() or error else _Done(future.result()))

        tell_evidence = (lambda read, unread: tell(_Found(read, unread))) if asked.stream else None
        self.writing = reader.writing_for(asked, tell, tell_evidence)
        reader.submit(asked, images, self.writing).add_done_callback(done)

    def message(self, answer: Answer) -> dict[str, Any]:
        """Beside the words: what they rest on."""
        found: dict[str, Any] = {"evidence": _records(answer.evidence), "unread": _records(answer.unread)}
        for name in ("thinking", "citations"):
            if (value := getattr(answer, name)) is not None:
                found["reasoning_content" if name == "thinking" else name] = value
        if answer.decision is not None:
            found["abstained"] = answer.decision.abstained
        return found

    def ending(self, answer: Answer) -> tuple[str, dict[str, int]]:
        """Why the answer ends, and how many tokens were read and written."""
        read, written = self.writing.prompt_tokens, self.writing.num_tokens
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        usage = usage if answer.usage is None else answer.usage  # of a reader behind another server
        is_cut = not self.writing.stopped and usage.get("completion_tokens", 0) >= self.asked.max_new_tokens
        return "length" if is_cut else "stop", usage

    def whole(self, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.writing.text, **self.message(answer)}
        reason, usage = self.ending(answer)
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, Any], reason: str | None = None, **others: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _event({**self.head, "object": "chat.completion.chunk", "choices": [choice], **others})

    async def chunks(self, piece: str | _Found | _Done) -> AsyncIterator[str]:
        """Server-sent events, from the first piece on."""
        try:
            yield self.chunk({"role": "assistant", "content": ""})
            while not isinstance(piece, _Done):
                if isinstance(piece, _Found):
                    yield self.chunk({"evidence": _records(piece.read), "unread": _records(piece.unread)})
                else:
                    yield self.chunk({"content": piece})
                piece = await self.pieces.get()
            if piece.answer is None:
                _, words, param, code = _told(piece.error)
                yield _event(error_body(words, 500, param, code))
                return
            reason, usage = self.ending(piece.answer)
            yield self.chunk(self.message(piece.answer), reason, usage=usage)
            if self.asked.with_usage:
                counted = {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
                yield _event(counted)
            yield "data: [DONE]\n\n"
        finally:
            self.writing.leave()


def chat_app(reader: Reader, host: str = "localhost", fetch_images: bool = False) -> Any:
    """The ASGI application."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    listed = {"id": reader.name, "object": "model", "created": int(time.time()), "owned_by": "hf_ravlm"}

    async def chat(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refusal(415, "expected a request of the type application/json")
        try:
            asked = read_request(read_body(await request.body()), reader.name, fetch_images)
            images = [await _fetched(image) for image in asked.images]
        except (InvalidInputError, UnsafeInputError) as error:
            return _refusal(*_told(error))
        return await _answered(request, _Reply(reader, asked, images))

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [listed]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(listed) if name == reader.name else _refusal(404, "this model is not served here")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def no_route(request: Request, _: Exception) -> Response:
        return _refusal(404, "there is only /v1/chat/completions (POST), /v1/models and /health (GET)")

    async def failed(request: Request, error: Exception) -> Response:
        logger.error("A request failed", exc_info=error)
        return _refusal(500, "the request could not be answered")

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", one_model, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
    ]
    guards = [
        Middleware(OwnNamesOnly, names=own_names(host)),
        Middleware(BoundedBodies, max_bytes=MAX_BODY_BYTES),
    ]
    handlers: Any = {404: no_route, 405: no_route, 500: failed}
    return Starlette(routes=routes, middleware=guards, exception_handlers=handlers)


async def _fetched(image: str) -> Any:
    """An image in the request as it is; one by its address from the open network."""
    if not is_address(image):
        return image
    return await asyncio.to_thread(fetch_image, image, FETCH_SECONDS, private=False)


async def _answered(request: Request, reply: _Reply) -> Response:
    """Waits for the first piece, so that what cannot be answered is told by its status; or for all of them."""
    from starlette.responses import JSONResponse, Response, StreamingResponse

    left = asyncio.create_task(_until_left(request))
    try:
        while True:
            coming = asyncio.create_task(reply.pieces.get())
            await asyncio.wait({coming, left}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                reply.writing.leave()
                return Response(status_code=499)  # which nobody reads
            piece = coming.result()
            if isinstance(piece, _Done) and piece.answer is None:
                return _refusal(*_told(piece.error))
            if reply.asked.stream:
                return StreamingResponse(reply.chunks(piece), media_type="text/event-stream")
            if isinstance(piece, _Done) and piece.answer is not None:
                return JSONResponse(reply.whole(piece.answer))
    finally:
        left.cancel()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _told(error: BaseException | None) -> tuple[int, str, str | None, str | None]:
    """Status, message, field and code of an error, as the client sees it."""
    if isinstance(error, RequestError):
        return 400, str(error), error.param, error.code
    if isinstance(error, (InvalidInputError, UnsafeInputError)):
        return 400, str(error), "messages", None
    if not isinstance(error, StreamLeftError):
        logger.error("An answer failed", exc_info=error)
    return 500, "the answer could not be written", None, None


def _refusal(status: int, message: str, param: str | None = None, code: str | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse(error_body(message, status, param, code), status_code=status)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _records(passages: list[Any]) -> list[dict[str, Any]]:
    return [{name: getattr(passage, name) for name in _PASSAGE_FIELDS} for passage in passages]


class ChatServer:
    """The server with its thread, if it has one of its own.

    Args:
        app: What `chat_app` returned.
        host, port: Where it listens; port 0 is any that is free.
        reader: What answers.
    """

    def __init__(self, app: Any, host: str, port: int, reader: Reader) -> None:
        import uvicorn

        self.reader = reader
        settings: dict[str, Any] = {"log_level": "warning", "server_header": False, "timeout_graceful_shutdown": 5}
        limits: dict[str, Any] = {
            "limit_concurrency": MAX_CONNECTIONS,
            "timeout_keep_alive": 5,
            "http": _impatient_protocol(),
        }
        self.server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, **settings, **limits))
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self.server.run, name="hf_ravlm-server")
        self._thread.start()

    def kill_server(self) -> None:
        """Stops it; what is being written ends."""
        self.server.should_exit = True
        self.reader.close()
        if self._thread is not None:
            self._thread.join(timeout=20)


def _impatient_protocol() -> type:
    """HTTP that ends connections whose request does not come: uvicorn waits for the first head for ever."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class ImpatientProtocol(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_answering():
                self._stop_waiting()
            elif self._waiting is None:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self._give_up)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _give_up(self) -> None:
            if not self._is_answering():
                self.transport.close()

    return ImpatientProtocol


__all__ = ["serve"]
