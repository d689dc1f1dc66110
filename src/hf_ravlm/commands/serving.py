"""`hf-ravlm serve` and `hf-ravlm demo`: what answers until it is stopped."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from ..demo.looking import build_looking_page
from ..demo.page import build_page
from ..demo.serving import require_gradio, serve_page
from ..integrations import transformers_serve
from ..pipelines.opening import check_local, open_looking, open_pipeline
from ..web import check_port
from .models import default_device, of_server
from .outcome import Outcome


logger = logging.getLogger(__name__)


def serve(arguments: argparse.Namespace) -> Outcome:
    """`serve`: an address that chat clients of OpenAI's kind can ask."""
    device = arguments.device or default_device() or "cpu"
    settings: dict[str, Any] = {"host": arguments.host, "port": arguments.port, "device": device}
    given = {name: getattr(arguments, name) for name in ("knowledge", "encoder", "fetch_images")}
    settings |= {name: value for name, value in given.items() if value}
    settings |= {name: value for name, value in of_server(arguments).items() if value is not None}
    transformers_serve.serve(arguments.model, arguments.k, **settings)
    return Outcome({"model": arguments.model, "stopped": True}, "The server has stopped.")


def demonstrate(arguments: argparse.Namespace) -> Outcome:
    """`demo`: the demo page."""
    check_port(arguments.host, arguments.port)  # before a large model is loaded for nothing
    require_gradio()
    check_local(arguments.model, "the page")
    parts = (arguments.model, arguments.knowledge, arguments.encoder, arguments.device)
    look = open_looking(*parts)
    if look is None:
        reader = open_pipeline(*parts)
        page = build_page(reader.model, reader.processor, reader.retriever)
    else:
        page = build_looking_page(look)
    address = serve_page(page, arguments.host, arguments.port)
    logger.info("The page is open at %s. Ctrl-C closes it.", address)
    page.block_thread()
    return Outcome({"address": address}, "Closed.")
