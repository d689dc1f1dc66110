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
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..errors import InvalidInputError, UnsafeInputError
from ..images import fetch_image, is_address
from ..pipelines.answering import answer_questions
from ..pipelines.opening import open_pipeline
from ..web import BoundedBodies, OwnNamesOnly, check_port, error_body, own_names
from .chat_requests import ChatRequest, RequestError, read_body, read_request


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
    the last piece has them.

    Requests are answered one at a time; a client that leaves stops its own. Answers are greedy unless a request gives
    `temperature` or `top_p`.

    Args:
        model: A folder or Hub id of a saved system, or of any reader, which then needs `knowledge`, or `"offline"`;
            clients name it in `model`.
        k: Passages per question, 0 for none; `None` for as many as the model's config says.
        knowledge, encoder: What is searched, if it is not in the folder of the model, and what encodes it; see
            `hf_ravlm.pipelines.knowledge.open_knowledge`.
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
    reader = Reader(model, open_pipeline(model, knowledge, encoder, device), k, default_seed)
    server = ChatServer(chat_app(reader, host, fetch_images), host, port, reader)
    if non_blocking:
        server.start()
    else:
        server.server.run()
        reader.close()
    return server


class Reader:
    """One system behind the server: it answers one question at a time, in a thread of its own.

    Args:
        name: What clients call it.
        pipe: The pipeline: `model`, `processor`, `retriever`, `policy`.
        k: Passages per question; `None` for as many as the model's config says.
        default_seed: Where a request that samples gives none.
    """

    def __init__(self, name: str, pipe: Any, k: int | None = None, default_seed: int | None = None) -> None:
        self.name, self.pipe, self.k, self.default_seed = name, pipe, k, default_seed
        self._thread = ThreadPoolExecutor(1, "hf_ravlm-reader")
        self._writings: set[Writing] = set()

    def submit(self, asked: ChatRequest, images: list[Any], writing: Writing) -> Future[Answer]:
        self._writings.add(writing)
        future = self._thread.submit(self._answer, asked, images, writing)
        future.add_done_callback(lambda _: self._writings.discard(writing))
        return future

    def close(self) -> None:
        """Ends what is being written, and the thread."""
        for writing in list(self._writings):
            writing.leave()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _answer(self, asked: ChatRequest, images: list[Any], writing: Writing) -> Answer:
        writing.check()
        pipe, settings = self.pipe, asked.generate_kwargs()
        if settings.get("do_sample") and (seed := self.default_seed if asked.seed is None else asked.seed) is not None:
            torch.manual_seed(seed)
        if asked.stop:
            settings["stopping_criteria"] = StoppingCriteriaList([_AtStop(writing)])
        prompt = dict(asked.prompt)
        if asked.system is not None:
            prompt["system_message"] = asked.system
        ((answer,),) = answer_questions(
            *(pipe.model, pipe.processor, pipe.retriever, [images] if images else None, [asked.question]),
            k=self.k if asked.k is None else asked.k,
            with_posterior=False,
            policy=pipe.policy,
            prompt=prompt,
            streamer=writing,
            **settings,
        )
        writing.finish(answer.text)
        return answer


class _ClientLeftError(Exception):
    """The client has left."""


class Writing:
    """A streamer of `generate`: what has been written so far, told to the loop that the server runs in.

    Args:
        decode: Makes text of a list of token ids.
        stop: Words before which the text ends.
        tell: Gets each new piece of text.
        at_once: Whether the text is told when it is whole only, because it may yet be withheld.
    """

    def __init__(self, decode: Any, stop: tuple[str, ...], tell: Any, at_once: bool = False) -> None:
        self._decode, self._stop, self._tell, self._at_once = decode, stop, tell, at_once
        self._left = threading.Event()
        self._tokens: list[int] = []
        self._told = self.text = ""
        self.stopped = False
        self.prompt_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    def leave(self) -> None:
        """Nobody waits any longer: the next token ends it."""
        self._left.set()

    def check(self) -> None:
        if self._left.is_set():
            raise _ClientLeftError

    def put(self, value: torch.Tensor) -> None:
        self.check()
        if self.prompt_tokens is None:
            self.prompt_tokens = value.numel()
            return
        self._tokens += value.flatten().tolist()
        if self._at_once and not self._stop:
            return
        text = self._until_stop(self._decode(self._tokens))
        # The end of a text may still become a stop word, another letter or a space that is stripped.
        kept = max([len(word) - 1 for word in self._stop], default=0)
        self._more(text if self.stopped else text[: max(len(text) - kept, 0)].rstrip("\ufffd"))

    def end(self) -> None:
        """Part of a streamer; the whole text comes to `finish`."""

    def finish(self, text: str) -> None:
        self._at_once = False
        self.text = self._until_stop(text)
        self._more(self.text)

    def _until_stop(self, text: str) -> str:
        places = [place for word in self._stop if (place := text.find(word)) >= 0]
        self.stopped = self.stopped or bool(places)
        return text[: min(places)] if places else text

    def _more(self, text: str) -> None:
        if not self._at_once and len(text) > len(self._told) and text.startswith(self._told):
            piece, self._told = text[len(self._told) :], text
            self._tell(piece)


class _AtStop(StoppingCriteria):
    def __init__(self, writing: Writing) -> None:
        self.writing = writing

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.writing.stopped, device=input_ids.device)


class _Done(NamedTuple):
    """What ends the pieces of an answer: the answer, or why there is none."""

    answer: Answer | None = None
    error: BaseException | None = None


class _Reply:
    """One answer on its way to a client."""

    def __init__(self, reader: Reader, asked: ChatRequest, images: list[Any]) -> None:
        loop = asyncio.get_running_loop()
        self.reader, self.asked = reader, asked
        self.pieces: asyncio.Queue[str | _Done] = asyncio.Queue()
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": reader.name}
        processor, prompt = reader.pipe.processor, asked.prompt

        def tell(piece: str | _Done) -> None:
            loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        def decode(tokens: list[int]) -> str:
            return processor.decode_answers([tokens], prompt)[0][0]

        def done(future: Future[Answer]) -> None:
            error = None if future.cancelled() else future.exception()
            tell(_Done(error=error or _ClientLeftError()) if future.cancelled() or error else _Done(future.result()))

        at_once = reader.pipe.policy is not None
        self.writing = Writing(decode, asked.stop, tell, at_once)
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

    def reason(self) -> str:
        return "length" if not self.writing.stopped and self.count() >= self.asked.max_new_tokens else "stop"

    def count(self) -> int:
        return self.writing.num_tokens

    def usage(self) -> dict[str, int]:
        read = self.writing.prompt_tokens or 0
        return {"prompt_tokens": read, "completion_tokens": self.count(), "total_tokens": read + self.count()}

    def whole(self, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.writing.text, **self.message(answer)}
        choice = {"index": 0, "message": message, "finish_reason": self.reason(), "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": self.usage()}

    def chunk(self, delta: dict[str, Any], reason: str | None = None, **others: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _event({**self.head, "object": "chat.completion.chunk", "choices": [choice], **others})

    async def chunks(self, piece: str | _Done) -> AsyncIterator[str]:
        """Server-sent events, from the first piece on."""
        try:
            yield self.chunk({"role": "assistant", "content": ""})
            while isinstance(piece, str):
                yield self.chunk({"content": piece})
                piece = await self.pieces.get()
            if piece.answer is None:
                _, words, param, code = _told(piece.error)
                yield _event(error_body(words, 500, param, code))
                return
            yield self.chunk(self.message(piece.answer), self.reason(), usage=self.usage())
            if self.asked.with_usage:
                counted = {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()}
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
    if not isinstance(error, _ClientLeftError):
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
