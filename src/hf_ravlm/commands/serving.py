"""`hf-ravlm serve`: an address that chat clients of OpenAI's kind can ask."""

from __future__ import annotations

import argparse

from ..integrations import transformers_serve
from .models import check_model, default_device
from .outcome import Outcome


def serve(arguments: argparse.Namespace) -> Outcome:
    """`serve`: answers until it is stopped."""
    check_model(arguments.model)
    device = arguments.device or default_device() or "cpu"
    transformers_serve.serve(arguments.model, arguments.k, host=arguments.host, port=arguments.port, device=device)
    return Outcome({"model": arguments.model, "stopped": True}, "The server has stopped.")
