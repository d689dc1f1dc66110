"""Images by address: bounded in bytes, time and redirects; private addresses only for who names them himself."""

from __future__ import annotations

import io
import socket
import threading
import time

import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.images import addresses, fetch_image, is_address


def png(size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "lime").save(buffer, "PNG")
    return buffer.getvalue()


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.fixture
def site(monkeypatch):
    """A server of this machine: what it sends for each path, as bytes or as a function of the connection."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    pages, asked = {}, []
    listening = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        with connection:
            path = connection.recv(65536).split(b" ")[1].decode()
            asked.append(path)
            page = pages[path]
            try:
                page(connection) if callable(page) else connection.sendall(page)
            except OSError:
                return  # the other side has left

    def listen():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=listen, daemon=True).start()
    pages["asked"], pages["port"] = asked, listening.getsockname()[1]
    pages["address"] = f"http://127.0.0.1:{pages['port']}"
    yield pages
    listening.close()


def drip(connection, head: bytes = b"") -> None:
    connection.sendall(head)
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def test_an_image_is_fetched_through_the_gate(site):
    site["/bird.png?a=%20b"] = reply(png())
    image = fetch_image(f"{site['address']}/bird.png?a= b")
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert is_address(site["address"])
    site["/page"] = reply(b"<html>")
    with pytest.raises(UnsafeInputError, match=r"/page: the content is not an image"):
        fetch_image(f"{site['address']}/page")


def test_bytes_are_bounded_whatever_the_server_says(site):
    site["/honest"] = reply(png()).replace(b"Content-Length: ", b"Content-Length: 9000000000")
    site["/endless"] = lambda connection: [
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n"),
        [connection.sendall(bytes(65536)) for _ in range(10_000)],
    ]
    for path in ("/honest", "/endless"):
        with pytest.raises(InvalidInputError, match="more than the limit of"):
            fetch_image(site["address"] + path, max_bytes=100_000)


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nA: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_time_is_bounded_as_a_whole(site, head):
    site["/slow"] = lambda connection: drip(connection, head)
    start = time.monotonic()
    with pytest.raises(InvalidInputError, match="it took too long"):
        fetch_image(f"{site['address']}/slow", timeout=0.4)
    assert time.monotonic() - start < 60  # the server never stops


def test_redirects_are_followed_within_a_site_and_no_further_than_five(site):
    site["/old"] = reply(b"", "Location: /bird.png", status="301 Moved")
    site["/bird.png"] = reply(png())
    site["/round"] = reply(b"", "Location: /round", status="302 Found")
    assert fetch_image(f"{site['address']}/old").size == (6, 4)
    with pytest.raises(InvalidInputError, match="more than 5 redirects"):
        fetch_image(f"{site['address']}/round")
    for target in ("file:///etc/hostname", "data:image/png;base64,AAAA", "ftp://127.0.0.1/a.png"):
        site["/elsewhere"] = reply(b"", f"Location: {target}", status="302 Found")
        with pytest.raises(InvalidInputError, match="not http"):
            fetch_image(f"{site['address']}/elsewhere")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.1.2.3", "0.0.0.0", "2130706433"],
)
def test_a_client_s_address_is_never_private(site, host):
    with pytest.raises(UnsafeInputError, match="private network"):
        fetch_image(f"http://{host}:{site['port']}/bird.png", private=False)
    assert site["asked"] == []


def test_a_redirect_does_not_lead_into_the_own_network(site, monkeypatch):
    site["/bird.png"] = reply(b"", f"Location: http://localhost:{site['port']}/secret.png", status="302 Found")
    site["/secret.png"] = reply(png())
    with pytest.raises(UnsafeInputError, match="localhost lies in a private network"):
        fetch_image(f"{site['address']}/bird.png")
    assert site["asked"] == ["/bird.png"]


def test_the_place_that_was_checked_is_the_place_that_is_asked(site, monkeypatch):
    looked_up = []

    def rebound(host, port, **_):
        looked_up.append(host)
        public = len(looked_up) == 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14" if public else "127.0.0.1", port))]

    connected = []

    def connect(place, *_):
        connected.append(place[0])
        raise OSError("no network here")

    monkeypatch.setattr(addresses.socket, "getaddrinfo", rebound)
    monkeypatch.setattr(addresses.socket, "create_connection", connect)
    with pytest.raises(InvalidInputError, match="no network here"):
        fetch_image("http://rebinding.example/a.png", private=False)
    assert (looked_up, connected) == (["rebinding.example"], ["93.184.215.14"])


@pytest.mark.parametrize(
    "address", ["http://", "http://127.0.0.1:99999/a.png", "http://127.0.0.1:1/\n\nX: y", "https://["]
)
def test_what_is_no_address_is_told(address):
    with pytest.raises(InvalidInputError, match="could not be fetched"):
        fetch_image(address, timeout=5)
