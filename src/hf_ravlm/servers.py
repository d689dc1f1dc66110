"""Asking a server of OpenAI's kind (vLLM, SGLang, TGI, Ollama, llama.cpp, our own), within bounds of time and size.

Only the address that the caller named is asked: redirects are not followed, so that neither a question nor a key goes
anywhere else. A server that is busy, away or breaks off is asked again, ever more patiently, until the time is over.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

from .errors import InvalidInputError, RemoteServerError


CONNECT_SECONDS = 10.0
MAX_REPLY_BYTES = 64_000_000
KEY, OPENAI_KEY = "HF_RAVLM_API_KEY", "OPENAI_API_KEY"
_OPENAI = "api.openai.com"
_ROUTES = ("/chat/completions", "/completions", "/embeddings", "/models")
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0  # seconds until a server is asked again
_MOST_SHOWN = 300  # letters of what a server says, in messages

_Found = TypeVar("_Found")


class RefusedError(InvalidInputError):
    """A server took a request and refused it; `status` is that of HTTP."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class _TryAgainError(Exception):
    """Something that may be over soon; `after` is how many seconds the server asks for."""

    def __init__(self, message: str, after: float | None = None):
        super().__init__(message)
        self.after = after


class Server:
    """A server by its address.

    Args:
        address (`str`): Such as `"http://localhost:8000/v1"`; a key is taken from the environment, `HF_RAVLM_API_KEY`
            (for api.openai.com also `OPENAI_API_KEY`).
        timeout (`float`): Seconds until a request is answered whole, however often it is tried.
        retries (`int`): How often a request is tried again.

    Raises:
        InvalidInputError: If the address is none, or a setting is out of range.

    >>> Server("http://localhost:8000").address, Server("http://[::1]:8080/v1/chat/completions").address
    ('http://localhost:8000/v1', 'http://[::1]:8080/v1')
    """

    def __init__(self, address: str, timeout: float = 120.0, retries: int = 3):
        self.address = _plain_address(address)
        is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
        if not is_number or not 0 < timeout < float("inf"):
            raise InvalidInputError(f"timeout={timeout!r}: expected a positive number of seconds")
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise InvalidInputError(f"retries={retries!r}: expected a whole number from 0")
        self.timeout, self.retries = float(timeout), retries

    def models(self) -> list[str]:
        """Names of the models that it lists.

        Raises:
            RefusedError: It lists none, or wants a key.
            RemoteServerError: It cannot be reached, or answers nonsense.
        """
        found = self.ask("/models")
        listed = found.get("data")
        if not isinstance(listed, list):
            raise RemoteServerError(f"{self.address}/models: it lists no models; is this a server of OpenAI's kind?")
        return [one["id"] for one in listed if isinstance(one, dict) and isinstance(one.get("id"), str)]

    def ask(self, route: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that a route answers with; without a body it is got, else the body is posted.

        Raises:
            RefusedError: The server refuses the request.
            RemoteServerError: It cannot be reached, is too slow, breaks off or answers nonsense.
        """

        def once(deadline: float) -> dict[str, Any]:
            with ExitStack() as stack:
                response = self._open(stack, route, body, deadline)
                return self._object(b"".join(self._pieces(response, deadline)))

        return self._patiently(once)

    def events(self, route: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a stream, as they come; until the first one it is tried again. Errors are those of `ask`."""
        stack = ExitStack()

        def once(deadline: float) -> tuple[dict[str, Any] | None, Iterator[dict[str, Any]]]:
            stack.close()
            coming = self._events(self._open(stack, route, body, deadline), deadline)
            return next(coming, None), coming

        with stack:
            first, others = self._patiently(once)
            try:
                yield from (event for event in itertools.chain([first], others) if event is not None)
            except _TryAgainError as error:
                raise RemoteServerError(f"{self.address}: {error}. What it wrote until then is not whole.") from error

    @cached_property
    def _client(self) -> Any:
        import httpx

        headers = {"User-Agent": "hf_ravlm", "Accept-Encoding": "identity"}
        if key := _key(urlsplit(self.address)):
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=256, keepalive_expiry=5)
        # A proxy of the network does not lead to this machine.
        return httpx.Client(headers=headers, limits=limits, trust_env=not _is_here(self.address))

    def _patiently(self, once: Callable[[float], _Found]) -> _Found:
        deadline = time.monotonic() + self.timeout
        for attempt in itertools.count():
            try:
                return once(deadline)
            except _TryAgainError as error:
                wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1)
                wait = max(wait, min(error.after or 0, _LONGEST_WAIT))
                if attempt >= self.retries or time.monotonic() + wait >= deadline:
                    tried = f"; tried {attempt + 1} times" if attempt else ""
                    raise RemoteServerError(
                        f"{self.address}: {error}{tried}. Is the server running, and is this its address?"
                    ) from error
                time.sleep(wait)
        raise AssertionError  # the loop does not end

    def _open(self, stack: ExitStack, route: str, body: dict[str, Any] | None, deadline: float) -> Any:
        """A response of status 200, whose body is still to come."""
        import httpx

        left = max(deadline - time.monotonic(), 0.01)
        patience = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS))
        method, sent = ("GET", {}) if body is None else ("POST", {"json": body})
        try:
            opened = self._client.stream(method, self.address + route, timeout=patience, **sent)
            response = stack.enter_context(opened)
        except httpx.HTTPError as error:
            raise self._failure(error) from error
        if response.status_code != 200:
            self._refuse(response, deadline)
        return response

    def _refuse(self, response: Any, deadline: float) -> None:
        """Raises what a status other than 200 means."""
        status, address = response.status_code, self.address
        if 300 <= status < 400:
            where = _shown(response.headers.get("Location", "elsewhere"))
            raise RefusedError(f"{address}: it has moved to {where}. Name the address where it is now.", status)
        said = _message(b"".join(self._pieces(response, deadline)))
        if status in _BUSY:
            after = response.headers.get("Retry-After", "")[:9]
            raise _TryAgainError(f"the server answered {status} ({said})", float(after) if after.isdecimal() else None)
        if status in (401, 403):
            raise RefusedError(f"{address}: it lets nobody in without a key ({said}). Set {KEY} to it.", status)
        raise RefusedError(f"{address}: the server refused the request, status {status}: {said}", status)

    def _pieces(self, response: Any, deadline: float) -> Iterator[bytes]:
        """The body as it comes, within bounds."""
        import httpx

        size = 0
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise RemoteServerError(f"{self.address}: it sends a packed body, which was not asked for")
        try:
            for piece in response.iter_raw():
                size += len(piece)
                if size > MAX_REPLY_BYTES:
                    raise RemoteServerError(f"{self.address}: it sends more than {MAX_REPLY_BYTES:,} bytes")
                if time.monotonic() >= deadline:
                    raise _TryAgainError(self._slow())
                yield piece
        except httpx.HTTPError as error:
            raise self._failure(error) from error

    def _events(self, response: Any, deadline: float) -> Iterator[dict[str, Any]]:
        """The events of a body in the format of server-sent events."""
        rest = b""
        for piece in self._pieces(response, deadline):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                name, _, data = line.strip().partition(b":")
                if name != b"data":
                    if line.strip()[:1] in (b"{", b"<"):  # JSON or a page in place of a stream
                        raise RemoteServerError(f"{self.address}: it does not stream: {_shown(_text(line))}")
                    continue
                if data.strip() == b"[DONE]":
                    return
                yield self._object(data)
        if rest.strip():
            raise _TryAgainError(f"the stream ended within a line: {_shown(_text(rest))}")

    def _object(self, body: bytes) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as error:
            said = _shown(_text(body)) or "nothing"
            raise RemoteServerError(f"{self.address}: it answered no JSON: {said}") from error
        if not isinstance(found, dict):
            raise RemoteServerError(f"{self.address}: it answered {_shown(_text(body))}, expected a JSON object")
        if found.get("error"):
            raise RemoteServerError(f"{self.address}: it could not go on: {_message(body)}")
        return found

    def _failure(self, error: Exception) -> _TryAgainError:
        import httpx

        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            return _TryAgainError(self._slow())
        away = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
        what = "it cannot be reached" if away else "it broke off"
        return _TryAgainError(f"{what} ({_shown(str(error) or type(error).__name__)})")

    def _slow(self) -> str:
        return f"it has not answered within {self.timeout:g} s (timeout=)"


def _plain_address(address: str) -> str:
    expected = "expected an address such as 'http://localhost:8000/v1'"
    if not isinstance(address, str):
        raise InvalidInputError(f"the server's address came as {type(address).__name__}: {expected}")
    try:
        parts = urlsplit(address.strip())
        found = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        found = False
    if not found or not address.isprintable() or " " in address.strip():
        raise InvalidInputError(f"{_shown(address)}: {expected}")
    if parts.username is not None or parts.password is not None:  # which would stand in messages and logs
        raise InvalidInputError(f"the address of {parts.hostname} holds a name or password: set {KEY} instead")
    if parts.query or parts.fragment:
        raise InvalidInputError(f"{_shown(address)}: {expected}, without ? and #")
    path = parts.path.rstrip("/")
    path = next((path.removesuffix(route) for route in _ROUTES if path.endswith(route)), path)
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{path or '/v1'}"


def _key(parts: Any) -> str | None:
    key = os.environ.get(KEY) or (os.environ.get(OPENAI_KEY) if parts.hostname == _OPENAI else None)
    if key and not (key.isascii() and key.isprintable()):
        raise InvalidInputError(f"{KEY} holds what no key is made of: letters beyond ASCII, or a line break")
    return key or None


def _is_here(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _message(body: bytes) -> str:
    """What a server says of an error, in the shapes that are in use."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return _shown(_text(body)) or "it does not say why"
    for name in ("error", "message", "detail"):
        while isinstance(found, dict) and found.get(name):
            found = found[name]
    return _shown(found if isinstance(found, str) else json.dumps(found))


def _text(body: bytes) -> str:
    return body[: 4 * _MOST_SHOWN].decode("utf-8", "replace")


def _shown(text: str) -> str:
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


__all__ = ["RefusedError", "Server"]
