"""The encoder of a knowledge base, as the command line names it."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidInputError, RavlmError
from ..retrieval import Encoder, load_encoder, store_info
from ..retrieval.encoding.load_encoder import load_recorded_encoder
from ..retrieval.store.saving import find_store
from .outcome import one_line


logger = logging.getLogger(__name__)


def chosen_encoder(arguments: argparse.Namespace, folder: Path | None = None) -> Encoder:
    """The encoder that `--model` names, or that the knowledge base in `folder` does, or the model that lies beside it.

    Raises:
        InvalidInputError: No model is named and none lies there, or it cannot be loaded.
        HubUnavailableError: The Hub does not give it.
    """
    name = arguments.model
    if name is None and folder is not None:
        store = find_store(folder, "knowledge_base")
        reference = store_info(store)["encoder"].get("reference")
        if reference is not None:
            dtype = {} if arguments.dtype is None else {"dtype": arguments.dtype}
            return load_recorded_encoder({**reference, **dtype}, folder, {}, arguments.device or default_device())
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
    except RavlmError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # as transformers and torch report what is wrong with a model
        raise InvalidInputError(f"--model {name}: it cannot be loaded: {one_line(str(error))[:500]}") from error


def of_server(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is said of a reader behind a server, as of `open_pipeline`."""
    return {"reader_name": arguments.reader_name, "sees_images": False if arguments.words_only else None}


def default_device() -> str | None:
    """The graphics card of this process, `None` for the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else None
