"""`hf-ravlm demo`: the demo page."""

from __future__ import annotations

import argparse
import logging

from ..demo.page import build_page
from ..demo.serving import check_port, require_gradio, serve_page
from .models import open_reader
from .outcome import Outcome


logger = logging.getLogger(__name__)


def demonstrate(arguments: argparse.Namespace) -> Outcome:
    """`demo`: loads the model, serves the page until Ctrl-C."""
    check_port(arguments.host, arguments.port)  # before a large model is loaded for nothing
    require_gradio()
    reader = open_reader(arguments.model, arguments.knowledge, arguments.device)
    page = build_page(reader.model, reader.processor, reader.retriever)
    address = serve_page(page, arguments.host, arguments.port)
    logger.info("The page is open at %s. Ctrl-C closes it.", address)
    page.block_thread()
    return Outcome({"address": address}, "Closed.")
