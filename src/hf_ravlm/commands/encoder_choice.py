"""Knows how the command line names the model that turns passages and questions into vectors."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InvalidInputError
from ..retrieval.encoding.encoder_adapters import ENCODER_KINDS, load_encoder
from .outcome import torch_device


if TYPE_CHECKING:
    from ..retrieval import Encoder


logger = logging.getLogger(__name__)


def add_encoder_arguments(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Declares the model and how it runs."""
    group = parser.add_argument_group("the model")
    where = "" if required else "; by default the model in FOLDER itself"
    group.add_argument(
        "--model",
        required=required,
        metavar="FOLDER|ID",
        help=f"a local folder or the id of a model on the Hub{where}",
    )
    group.add_argument(
        "--encoder", choices=ENCODER_KINDS, default="auto", help="what the model is; auto: its settings tell (default)"
    )
    group.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16", "int8"], help="default: as the model is stored"
    )
    group.add_argument(
        "--device", type=torch_device, help="such as cuda or cpu (default: the graphics card, if there is one)"
    )


def chosen_encoder(arguments: argparse.Namespace, folder: Path | None = None) -> Encoder:
    """Loads the model.

    Args:
        arguments: As `add_encoder_arguments` declared them.
        folder: The knowledge base, beside which a model may lie.

    Raises:
        InvalidInputError: If no model is named and none lies there, or it cannot be loaded.
    """
    name = arguments.model
    if name is None:
        if folder is None:
            raise InvalidInputError("There is no model to encode with. Name the one that built it with --model.")
        # Beside the knowledge base, whether the folder given is that of the model or the knowledge base in it.
        candidates = [place for place in (folder, folder.absolute().parent) if (place / "config.json").is_file()]
        if not candidates:
            raise InvalidInputError(
                f"{folder}: no model lies here (no config.json). Name the one that built the knowledge base with "
                "--model; `hf-ravlm index info` tells which it was."
            )
        name = str(candidates[0])
    logger.info("Loading the model %s", name)
    device = arguments.device or default_device()
    try:
        return load_encoder(name, kind=arguments.encoder, dtype=arguments.dtype, device=device)
    except InvalidInputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # as transformers and torch report what is wrong with a model
        reason = " ".join(str(error).split())[:500]
        raise InvalidInputError(f"--model {name}: it cannot be loaded: {reason}") from error


def default_device() -> str | None:
    """The graphics card of this process, `None` for the CPU."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None
