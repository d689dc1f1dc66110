"""What a server of ours asks of every request before anything reads it: whom it is for, and how large it is.

Plain ASGI, for the demo page and for the server of chat clients.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from .errors import InvalidInputError


BODY_SECONDS = 60.0  # until a body has come

_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_Message = dict[str, Any]
_App = Callable[[Any, Any, Any], Awaitable[None]]


def check_port(host: str, port: int) -> None:
    """Refuses an address that cannot be listened on.

    Raises:
        InvalidInputError: If something else listens there already, or the address is not of this machine.
    """
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise InvalidInputError(f"--port {port}: it cannot be used ({error}). Choose another one.") from error


def own_names(host: str) -> frozenset[str] | None:
    """The names under which a server that listens at `host` may be asked; `None` for all.

    A page in the browser of this machine's user may point a name of its own at 127.0.0.1 and ask what others cannot
    reach. Who opens a server to the network has opened it to such pages, too.

    >>> sorted(own_names("127.0.0.1")), own_names("0.0.0.0")
    (['127.0.0.1', '::1', 'localhost'], None)
    """
    try:
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    return frozenset({*_OWN_NAMES, host}) if is_own else None


def error_body(message: str, status: int = 400, param: str | None = None, code: str | None = None) -> _Message:
    """An error in the shape of OpenAI's; `detail` is where clients of FastAPI look."""
    message = message.encode("utf-8", "replace").decode()  # half a character pair cannot be sent
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}, "detail": message}


async def refuse(send: Any, status: int, message: str) -> None:
    """Answers a request that goes no further, and ends the connection."""
    body = json.dumps(error_body(message, status)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def header(scope: _Message, name: bytes) -> str:
    """A header of a request, empty where it has none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


class OwnNamesOnly:
    """ASGI middleware: refuses requests under other names, and from pages of other sites."""

    def __init__(self, app: _App, names: frozenset[str] | None) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: _Message, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket") and self.names is not None:
            host, origin = header(scope, b"host"), header(scope, b"origin")
            if _name_of(host) not in self.names or (origin and _name_of(origin.partition("://")[2]) not in self.names):
                if scope["type"] == "http":
                    await refuse(send, 403, "This server answers on its own machine only, under its own name.")
                return
        await self.app(scope, receive, send)


class BoundedBodies:
    """ASGI middleware: reads the body of a request within bounds of size and time, then hands it on whole.

    Args:
        app: What comes next.
        max_bytes: The largest body.
        applies: Whether a request is to be bounded here.
        check (*optional*): Gets the body; says why it is refused, or `None`.
    """

    def __init__(
        self,
        app: _App,
        max_bytes: int,
        applies: Callable[[_Message], bool] = lambda _: True,
        check: Callable[[bytes], str | None] | None = None,
    ) -> None:
        self.app, self.max_bytes, self.applies, self.check = app, max_bytes, applies, check

    async def __call__(self, scope: _Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS") or not self.applies(scope):
            await self.app(scope, receive, send)
            return
        length = header(scope, b"content-length")
        too_large = f"The request has more than {self.max_bytes:,} bytes. Send smaller images."
        if length.isdecimal() and int(length[:20]) > self.max_bytes:
            await refuse(send, 413, too_large)
            return
        try:
            body = await asyncio.wait_for(_body(receive, self.max_bytes), BODY_SECONDS)
        except asyncio.TimeoutError:
            await refuse(send, 408, f"The request did not come within {BODY_SECONDS:.0f} s.")
            return
        except OverflowError:
            await refuse(send, 413, too_large)
            return
        if body is None:  # the client has left
            return
        if self.check is not None and (reason := self.check(body)) is not None:
            await refuse(send, 403, reason)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_whole() -> _Message:
            return next(messages, None) or await receive()

        await self.app(scope, receive_whole, send)


async def _body(receive: Any, max_bytes: int) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise OverflowError
        if not message.get("more_body"):
            return bytes(body)


def _name_of(place: str) -> str:
    """The name in `name:port`, where an address of IPv6 stands in brackets."""
    inside, bracket, _ = place.removeprefix("[").partition("]") if place.startswith("[") else ("", "", "")
    return inside.lower() if bracket else place.rpartition(":")[0].lower() if ":" in place else place.lower()
