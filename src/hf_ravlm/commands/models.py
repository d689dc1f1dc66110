"""The encoder of a knowledge base, as the command line names it."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import torch

from ..errors import InvalidInputError
from ..retrieval import Encoder, load_encoder
from .outcome import one_line


logger = logging.getLogger(__name__)


def chosen_encoder(arguments: argparse.Namespace, folder: Path | None = None) -> Encoder:
    """The encoder that `--model` names, or the model that lies beside the knowledge base in `folder`.

    Raises:
        InvalidInputError: No model is named and none lies there, or it cannot be loaded.
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
        raise InvalidInputError(f"--model {name}: it cannot be loaded: {one_line(str(error))[:500]}") from error


def default_device() -> str | None:
    """The graphics card of this process, `None` for the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None
