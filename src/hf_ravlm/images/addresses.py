"""An image from the network: fetched within bounds of bytes, time and redirects, then through the one gate.

Names are looked up here, once, and the connection goes to the address that was checked: a name that points elsewhere a
moment later leads nowhere else.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from PIL import Image

from ..errors import InvalidInputError, UnsafeInputError
from .gate import MAX_BYTES, safe_image
from .sources import shortened


SECONDS = 30.0  # for all of it, redirects included
MAX_REDIRECTS = 5
_HEADERS = {"User-Agent": "hf_ravlm", "Accept": "image/*", "Accept-Encoding": "identity"}


def is_address(source: Any) -> bool:
    """Whether a source is text that begins with `http://` or `https://`.

    >>> is_address("HTTPS://example.org/a.png"), is_address("kite.png")
    (True, False)
    """
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def fetch_image(
    address: str, timeout: float | None = None, *, max_bytes: int = MAX_BYTES, private: bool = True
) -> Image.Image:
    """Fetches an image by its address and makes it safe, see `safe_image`; arguments and errors as `fetch_bytes`.

    Raises:
        UnsafeInputError: If what came is no image, too.
    """
    return safe_image({"bytes": fetch_bytes(address, timeout, max_bytes=max_bytes, private=private), "path": address})


def fetch_bytes(
    address: str, timeout: float | None = None, *, max_bytes: int = MAX_BYTES, private: bool = True
) -> bytes:
    """Fetches what lies at an address.

    Args:
        address: `http://...` or `https://...`.
        timeout: Seconds for all of it, however often something arrives; 30 by default.
        max_bytes: Of the body; reading stops there, whatever the server says of its length.
        private: Whether the address may lie in this machine or its own network, for somebody who names it himself. A
            redirect from elsewhere never leads there.

    Raises:
        InvalidInputError: If it cannot be fetched within the limits.
        UnsafeInputError: If it leads to a private address.
    """
    deadline = time.monotonic() + (SECONDS if timeout is None else timeout)
    place = address
    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = _get(place, deadline, max_bytes, private)
            if isinstance(answer, bytes):
                return answer
            target = urljoin(place, answer)
            private, place = private and urlsplit(target).hostname == urlsplit(place).hostname, target
        raise OSError(f"more than {MAX_REDIRECTS} redirects")
    except UnsafeInputError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        late = time.monotonic() >= deadline
        reason = "it took too long" if late else f"{type(error).__name__}: {shortened(str(error))}"
        raise InvalidInputError(
            f"{shortened(address)}: the image could not be fetched ({reason}). Download it and pass its path."
        ) from error


def _get(address: str, deadline: float, max_bytes: int, private: bool) -> bytes | str:
    """The body, or where a redirect leads."""
    with _connection(address, deadline, private) as (connection, target, sockets):
        connection.request("GET", target, headers=_HEADERS)
        sockets.append(connection.sock)  # under TLS another one than what was opened
        answer = connection.getresponse()
        if answer.status in (301, 302, 303, 307, 308) and answer.headers.get("Location"):
            return answer.headers["Location"]
        if answer.status != 200:
            raise OSError(f"the server answered {answer.status} {shortened(answer.reason)}")
        said = answer.headers.get("Content-Length", "")
        if said.isdecimal() and int(said) > max_bytes:
            raise OSError(f"{int(said):,} bytes, more than the limit of {max_bytes:,}")
        body = bytearray()
        while piece := answer.read1(1 << 16):
            body += piece
            if len(body) > max_bytes:
                raise OSError(f"more than the limit of {max_bytes:,} bytes")
        if time.monotonic() >= deadline:  # the connection was cut
            raise TimeoutError
        return bytes(body)


@contextmanager
def _connection(
    address: str, deadline: float, private: bool
) -> Iterator[tuple[http.client.HTTPConnection, str, list[socket.socket]]]:
    """A connection to the server of an address, what to ask it for, and what is cut at the deadline."""
    parts = urlsplit(address)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise OSError("it leads to something that is not http:// or https://")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    secure, host = parts.scheme.lower() == "https", parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    left = max(deadline - time.monotonic(), 0.01)
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme.lower())
    ends = (urlsplit(proxy).hostname or "", urlsplit(proxy).port or 8080) if proxy else (host, port)
    if proxy and not private and _is_private_name(host):
        raise _private_address(host)
    connection = (
        http.client.HTTPSConnection(*ends, timeout=left, context=ssl.create_default_context())
        if secure
        else http.client.HTTPConnection(*ends, timeout=left)
    )
    if proxy and secure:
        connection.set_tunnel(host, port)
    elif proxy:
        target = f"http://{parts.netloc.rpartition('@')[2]}{target}"
    opened: list[socket.socket] = []

    def connect(place: tuple[str, int], *_: Any, **__: Any) -> socket.socket:
        opened.append(_connected(*place, deadline, private or bool(proxy)))
        return opened[-1]

    connection._create_connection = connect  # type: ignore[attr-defined]  # which both kinds of connection call
    watch = threading.Timer(left, lambda: list(map(_cut, opened)))
    watch.daemon = True
    watch.start()
    try:
        yield connection, _ascii(target), opened
    finally:
        watch.cancel()
        connection.close()


def _connected(host: str, port: int, deadline: float, private: bool) -> socket.socket:
    """A socket to the first place that a name stands for and that answers; all of them must be public."""
    places = [info[4] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not private and not all(_is_public(str(place[0])) for place in places):
        raise _private_address(host)
    failure: OSError = OSError(f"nothing is known of {host}")
    for place in places:
        try:
            return socket.create_connection((str(place[0]), port), max(deadline - time.monotonic(), 0.01))
        except OSError as error:
            failure = error
    raise failure


def _cut(connection: socket.socket) -> None:
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # also under TLS
    except OSError:  # it is closed already
        return


def _is_public(host: str) -> bool:
    """Whether the numbers of an address lie in the open network, whatever they are wrapped in.

    >>> _is_public("93.184.215.14"), _is_public("127.0.0.1"), _is_public("::ffff:10.0.0.1"), _is_public("100.64.0.1")
    (True, False, False, False)
    """
    number = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour or (number.teredo and number.teredo[1])
        if inner or number in ipaddress.ip_network("64:ff9b::/96"):
            return _is_public(str(inner or ipaddress.ip_address(int(number) & 0xFFFFFFFF)))
    return number.is_global and not number.is_multicast and not number.is_reserved


def _is_private_name(host: str) -> bool:
    try:
        return not _is_public(host)
    except ValueError:
        return host.lower().rstrip(".").endswith(("localhost", ".local", ".internal"))


def _private_address(host: str) -> UnsafeInputError:
    return UnsafeInputError(
        f"{shortened(host)} lies in a private network, and images are not fetched from there. Pass the image itself."
    )


def _ascii(target: str) -> str:
    """A path and query as they travel: letters beyond ASCII and spaces become %xx; what is quoted stays."""
    return quote(target, safe="%/:=&?~#+!$,;'@()*[]")


__all__ = ["fetch_bytes", "fetch_image", "is_address"]
