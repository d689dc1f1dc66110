"""How the page is served: to this machine, without a share link, and without a call to anywhere else."""

from __future__ import annotations

import os
from typing import Any

from ..web import check_port


MAX_FILE_SIZE = 100_000_000  # of one uploaded file, in bytes
# The browser loads nothing from elsewhere.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; form-action 'self'; "
    "base-uri 'self'"
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
        app_kwargs={"middleware": [Middleware(OwnAddressOnly)]},
    )
    return address


class OwnAddressOnly:
    """ASGI middleware: every answer forbids the browser to load anything from another address."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"content-security-policy", _POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)
