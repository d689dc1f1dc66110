"""A reader behind the chat server that looks at the images of a request and says that it did."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from types import SimpleNamespace

from hf_ravlm.images import safe_image
from hf_ravlm.integrations.transformers_serve import chat_app
from hf_ravlm.pipelines.answer import Answer
from hf_ravlm.pipelines.streaming import Writing


class StubReader:
    name = "stub"
    pipe = SimpleNamespace(processor=None, policy=None)

    def writing_for(self, asked, tell, tell_evidence):
        return Writing(tell, stop=asked.stop)

    def submit(self, asked, images, writing):
        future = Future()
        try:
            for image in images:
                safe_image(image)
            writing.finish("seen")
            future.set_result(Answer("seen"))
        except Exception as error:
            future.set_exception(error)
        return future


def asked(body, path: str = "/v1/chat/completions", method: str = "POST", fetch_images: bool = False, **headers):
    """Sends a request to the application itself; status and reply."""
    import httpx

    async def ask():
        transport = httpx.ASGITransport(chat_app(StubReader(), fetch_images=fetch_images), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent = {"Content-Type": "application/json", **headers}
            reply = await client.request(method, path, content=content, headers=sent)
            return reply.status_code, (reply.json() if reply.content[:1] == b"{" else reply.text)

    return asyncio.run(ask())


def with_image(url) -> dict:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": parts}]}
