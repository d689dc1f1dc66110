"""How the page is served: to this machine, without a share link, and without a call to anywhere else."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from ..web import BoundedBodies, OwnNamesOnly, check_port, header, own_names, refuse
from .uploads import NOT_UPLOADED, is_uploaded


MAX_FILE_SIZE = 100_000_000  # of one uploaded file, in bytes
MAX_CALL_SIZE = 1_000_000  # of a call, which names files that were uploaded before
# The browser loads nothing from elsewhere.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'; "
    "base-uri 'self'"
)
# What gradio can do for a visitor that this page does not: fetch an address, record, change the program, keep runs.
_CLOSED = re.compile(
    r"/(proxy=|file=[a-z][a-z0-9+.\-]+:|(undo-)?vibe|process_recording|deep_link|run-history|dev/|profiling|monitoring)",
    re.IGNORECASE,
)


def require_gradio() -> Any:
    """The module, with its telemetry off.

    Raises:
        ImportError: names the extra.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise ImportError('The demo page needs gradio: pip install "hf_ravlm[demo]"') from error
    return gradio


def serve_page(page: Any, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serves a page in the background.

    Args:
        page: What `build_page` returned.
        host, port: Where to listen; `127.0.0.1` is this machine alone.

    Returns:
        The address to open in a browser.

    Raises:
        InvalidInputError: If something else listens there already.
    """
    gradio = require_gradio()
    check_port(host, port)
    from starlette.middleware import Middleware

    system = ["system-ui", "sans-serif"]  # the fonts of the machine, not of a server
    theme = gradio.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])
    names = own_names(host)
    guards = [Middleware(OwnNamesOnly, names=names), Middleware(OwnAddressOnly)]
    guards += [Middleware(BoundedBodies, max_bytes=MAX_CALL_SIZE, applies=_is_call, check=names_no_other_file)]
    page.queue(max_size=32)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        max_file_size=MAX_FILE_SIZE,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=["api"],
        theme=theme,
        app_kwargs={"middleware": guards},
    )
    return address


def names_no_other_file(body: bytes) -> str | None:
    """Why a call to the page is refused: it names a file that no visitor uploaded, or an address.

    gradio itself opens what some of its parts are given, and fetches addresses; here neither gets as far.
    """
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return "The call is no JSON." if body.strip() else None
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path") is not None and not is_uploaded(value["path"]):
                return NOT_UPLOADED
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return None


def _is_call(scope: Any) -> bool:
    return not header(scope, b"content-type").lower().startswith("multipart/")


class OwnAddressOnly:
    """ASGI middleware: every answer forbids the browser to load anything from another address, and we fetch none."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _CLOSED.search(scope["path"]):
            await refuse(send, 403, "This page has no such part.")
            return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)
