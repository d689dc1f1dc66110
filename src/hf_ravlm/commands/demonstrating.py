"""Knows how the demo page is opened from the command line."""

from __future__ import annotations

import argparse
import logging

from .outcome import Outcome, positive, torch_device


logger = logging.getLogger(__name__)

_EXAMPLES = """examples:
  hf-ravlm demo my_model
  hf-ravlm demo my_model --knowledge birds --port 7861

The page is served to this machine alone (http://127.0.0.1:7860); nothing is sent anywhere. It needs gradio:
pip install "hf_ravlm[demo]".
"""


def add_demo_command(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declares `demo`.

    Args:
        commands: Where it is added.
        common: Options that every command has.
    """
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="open a page on which a model answers questions about pictures, with its evidence",
        description="Opens a page: a picture and a question in; the answer, its evidence and its reasons out.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=demonstrate, interrupted="Stopped.")
    parser.add_argument("model", metavar="MODEL", help="a folder or Hub id of a RAVLM with its processor")
    parser.add_argument("--knowledge", metavar="FOLDER", help="the knowledge base, if it is not in that of the model")
    parser.add_argument("--port", type=positive, default=7860, help="where it listens (default: 7860)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address it listens on (default: 127.0.0.1, this machine alone; whoever reaches another one can use "
        "the page, there is no password)",
    )
    parser.add_argument(
        "--device", type=torch_device, help="such as cuda or cpu (default: the graphics card, if there is one)"
    )


def demonstrate(arguments: argparse.Namespace) -> Outcome:
    """`demo`: loads the model, serves the page until Ctrl-C."""
    from ..demo.page import build_page
    from ..demo.serving import check_port, require_gradio, serve_page
    from .explaining import open_reader

    check_port(arguments.host, arguments.port)  # before a large model is loaded for nothing
    require_gradio()
    reader = open_reader(arguments.model, arguments.knowledge, arguments.device)
    page = build_page(reader.model, reader.processor, reader.retriever)
    address = serve_page(page, arguments.host, arguments.port)
    logger.info("The page is open at %s. Ctrl-C closes it.", address)
    page.block_thread()
    return Outcome({"address": address}, "Closed.")
