"""Knows how a model is served from the command line: an address that chat clients of OpenAI's kind can ask."""

from __future__ import annotations

import argparse

from .outcome import Outcome, port, positive, torch_device


_EXAMPLES = """examples:
  hf-ravlm serve my_model
  hf-ravlm serve my_model --port 9000 --k 3 --device cuda

Then ask it as you would ask any such server, with pictures as data:image/png;base64,... in the messages:
  openai.OpenAI(base_url="http://localhost:8000/v1", api_key="none").chat.completions.create(model="my_model", ...)
"""


def add_serve_command(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declares `serve`.

    Args:
        commands: Where it is added.
        common: Options that every command has.
    """
    parser = commands.add_parser(
        "serve",
        parents=[common],
        help="answer chat clients with evidence, as an OpenAI-compatible server",
        description="Starts the server of transformers with a model and the knowledge base in its folder, until it "
        'is stopped with Ctrl-C.\nNeeds: pip install "hf_ravlm[serve]"',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_server, interrupted="Stopped.")
    parser.add_argument("model", metavar="MODEL", help="a folder or Hub id of a RAVLM with its processor")
    parser.add_argument(
        "--host", default="localhost", help="who may ask (default: localhost, this machine alone; it asks no password)"
    )
    parser.add_argument("--port", type=port, default=8000, help="default: 8000")
    parser.add_argument("-k", "--k", type=positive, help="passages per question (default: as the model says)")
    parser.add_argument(
        "--device", type=torch_device, help="such as cuda or cpu (default: the graphics card, if there is one)"
    )


def run_server(arguments: argparse.Namespace) -> Outcome:
    """`serve`: answers until it is stopped."""
    from ..integrations.transformers_serve import serve
    from .encoder_choice import default_device
    from .evaluating import check_model

    check_model(arguments.model)
    device = arguments.device or default_device() or "cpu"
    serve(arguments.model, arguments.k, host=arguments.host, port=arguments.port, device=device)
    return Outcome({"model": arguments.model, "stopped": True}, "The server has stopped.")
