"""A server of OpenAI's kind on loopback that answers as a test says: rightly, badly, slowly, or not at all."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StubServer:
    """Answers every question by its own last words, unless `behave(handler, body)` does otherwise."""

    def __init__(self, behave=None, models=("stub",)):
        self.behave, self.models, self.asked, self.keys = behave or answer, list(models), [], []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                send(self, 200, {"object": "list", "data": [{"id": name} for name in stub.models]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.asked.append(body)
                stub.keys.append(self.headers.get("Authorization"))
                stub.behave(self, body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def send(handler, status: int, value, **headers):
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.wfile.write(body)


def stream(handler, *events, done: bool = True):
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.end_headers()
    for event in events:
        handler.wfile.write(event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode())
        handler.wfile.flush()
    if done:
        handler.wfile.write(b"data: [DONE]\n\n")


def piece(text: str, reason: str | None = None, **delta) -> dict:
    return {"choices": [{"index": 0, "delta": {"content": text, **delta}, "finish_reason": reason}]}


def completion(*texts: str, logprob: float | None = None, **message) -> dict:
    sure = {} if logprob is None else {"logprobs": {"content": [{"token": "a", "logprob": logprob}] * 2}}
    choices = [
        {"index": n, "message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop", **sure}
        for n, text in enumerate(texts)
    ]
    return {"object": "chat.completion", "choices": choices, "usage": {"total_tokens": 12}}


def words_of(body) -> str:
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "<image>") for part in content)


def answer(handler, body):
    said = words_of(body).rpartition("\n")[2]
    if body.get("stream"):
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        counted = [{"choices": [], "usage": usage}] if body.get("stream_options") else []
        stream(handler, piece(""), *map(piece, said), piece("", "stop"), *counted)
    else:
        sure = -0.5 if body.get("logprobs") else None
        send(handler, 200, completion(*[said] * body.get("n", 1), logprob=sure))
