"""A server that is asked: patient with what passes, clear about what does not, and never endless."""

from __future__ import annotations

import socket
import time

import pytest

from hf_ravlm.errors import InvalidInputError, RemoteServerError
from hf_ravlm.servers import KEY, OPENAI_KEY, RefusedError, Server
from stub_server import StubServer, completion, piece, send, stream


CHAT, BODY = "/chat/completions", {"messages": [{"role": "user", "content": "Who?"}]}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("hf_ravlm.servers._FIRST_WAIT", 0.01)
    for name in (KEY, OPENAI_KEY):
        monkeypatch.delenv(name, raising=False)


def asked(behave, **settings):
    """What comes of one request to a server that behaves so, and how often it was asked."""
    with StubServer(behave) as stub:
        try:
            return Server(stub.address, **{"timeout": 5, **settings}).ask(CHAT, BODY), len(stub.asked)
        except (InvalidInputError, RemoteServerError) as error:
            return error, len(stub.asked)


@pytest.mark.parametrize(
    "address",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:99999", "http://host/v1?key=1", "http://a b/", 3],
)
def test_an_address_that_is_none_is_told(address):
    with pytest.raises(InvalidInputError, match="expected an address such as"):
        Server(address)


def test_a_password_does_not_stand_in_an_address():
    with pytest.raises(InvalidInputError, match=KEY) as told:
        Server("http://me:secret@host/v1")
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("settings", [{"timeout": 0}, {"timeout": "long"}, {"retries": -1}, {"retries": True}])
def test_settings_are_checked(settings):
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        Server("http://host", **settings)


def test_a_server_that_is_busy_is_asked_again():
    states = iter([503, 429, 200])

    def behave(handler, _):
        status = next(states)
        send(handler, status, completion("yes") if status == 200 else {"error": "busy"}, Retry_After="0")

    found, times = asked(behave)
    assert (found["choices"][0]["message"]["content"], times) == ("yes", 3)


def test_a_server_that_stays_busy_is_told_of():
    error, times = asked(lambda handler, _: send(handler, 503, {"error": {"message": "no\nroom"}}), retries=2)
    assert isinstance(error, RemoteServerError)
    assert times == 3
    assert "503 (no room); tried 3 times" in str(error)


def test_a_server_that_is_away_is_told_of():
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    with pytest.raises(RemoteServerError, match="cannot be reached.*tried 2 times"):
        Server(f"http://127.0.0.1:{port}/v1", retries=1).ask(CHAT, BODY)


@pytest.mark.parametrize("drips", [False, True])
def test_a_slow_server_is_not_waited_for_longer_than_said(drips):
    def behave(handler, _):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1200):  # a minute
            time.sleep(0.05)
            if drips:
                handler.wfile.write(b" ")
                handler.wfile.flush()

    start = time.monotonic()
    error, _ = asked(behave, timeout=0.3)
    assert isinstance(error, RemoteServerError)
    assert "within 0.3 s" in str(error)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        (lambda handler, _: send(handler, 200, b"<html>hello</html>"), "no JSON: <html>"),
        (lambda handler, _: send(handler, 200, b""), "no JSON: nothing"),
        (lambda handler, _: send(handler, 200, b"[" * 100_000), "no JSON"),
        (lambda handler, _: send(handler, 200, ["no", "object"]), "expected a JSON object"),
        (lambda handler, _: send(handler, 200, {"error": {"message": "out of memory"}}), "out of memory"),
        (lambda handler, _: send(handler, 200, b"{}", Content_Encoding="gzip"), "packed body"),
        (lambda handler, _: send(handler, 200, b" " * 3000), "more than 2,000 bytes"),
    ],
)
def test_nonsense_is_told_as_such(behave, said, monkeypatch):
    monkeypatch.setattr("hf_ravlm.servers.MAX_REPLY_BYTES", 2_000 if "2,000" in said else 64_000_000)
    error, times = asked(behave)
    assert isinstance(error, RemoteServerError)
    assert said in str(error)
    assert "\n" not in str(error)
    assert times == 1


@pytest.mark.parametrize(("status", "said"), [(400, "bad"), (404, "bad"), (401, KEY), (403, KEY)])
def test_what_is_refused_is_not_asked_again(status, said):
    error, times = asked(lambda handler, _: send(handler, status, {"detail": "bad"}))
    assert isinstance(error, RefusedError)
    assert (error.status, times) == (status, 1)
    assert said in str(error)


def test_a_redirect_is_not_followed():
    with StubServer() as other:
        error, _ = asked(lambda handler, _: send(handler, 307, b"", Location=f"{other.address}/chat/completions"))
        assert "has moved to" in str(error)
        assert other.asked == []


def test_the_key_of_the_environment_goes_along(monkeypatch):
    with StubServer() as stub:
        monkeypatch.setenv(OPENAI_KEY, "of-openai")
        Server(stub.address).ask(CHAT, BODY)
        monkeypatch.setenv(KEY, "of-ours")
        Server(stub.address).ask(CHAT, BODY)
        assert stub.keys == [None, "Bearer of-ours"]
        monkeypatch.setenv(KEY, "two\nlines")
        with pytest.raises(InvalidInputError, match=KEY):
            Server(stub.address).ask(CHAT, BODY)


def streamed(behave, **settings):
    with StubServer(behave) as stub:
        return list(Server(stub.address, **{"timeout": 5, **settings}).events(CHAT, BODY))


def test_events_come_whole_however_they_are_cut():
    def behave(handler, _):
        stream(handler, b': hello\n\nevent: x\ndata: {"a"', b": 1}\r\n\r\nda", b'ta:{"a": "\xc3', b'\xa9"}\n\n')

    assert streamed(behave) == [{"a": 1}, {"a": "é"}]


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([piece("a"), b'data: {"cut'], "ended within a line"),
        ([piece("a"), b"data: nonsense\n\n"], "no JSON: nonsense"),
        ([piece("a"), {"error": {"message": "gone"}}], "gone"),
        ([b"<html>\n"], "does not stream"),
    ],
)
def test_a_stream_that_breaks_is_told_of(events, said):
    with pytest.raises(RemoteServerError, match=said):
        streamed(lambda handler, _: stream(handler, *events, done=False), retries=0)


def test_a_stream_that_stands_still_is_not_waited_for():
    def behave(handler, _):
        stream(handler, piece("a"), done=False)
        time.sleep(2)

    with pytest.raises(RemoteServerError, match=r"within 0.3 s.*not whole"):
        streamed(behave, timeout=0.3)
