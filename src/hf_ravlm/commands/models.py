"""The models that commands load: the encoder of a knowledge base, and the reader with what lies beside it."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, pipeline

from ..errors import InvalidInputError
from ..retrieval import Encoder, RavlmEncoder, RavlmRetriever, load_encoder
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


def check_model(name: str) -> None:
    """Refuses what is no RAVLM, by its settings alone: loaded as one, another model would get random weights.

    Raises:
        InvalidInputError: There is no model, or it is of another type.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{name}: there is no model that can be loaded. Expected the folder or Hub id of a RAVLM. "
            f"({one_line(str(error))[:300]})"
        ) from error
    if config.model_type != "ravlm":
        raise InvalidInputError(
            f"{name}: this is a model of the type {config.model_type!r}. Expected a RAVLM with a generator, as "
            "`RavlmForConditionalGeneration.save_pretrained` writes it."
        )


def open_reader(name: str, knowledge: str | None = None, device: str | None = None) -> Any:
    """The pipeline of a RAVLM: `model`, `processor`, and `retriever` (`None` where there is no knowledge base).

    Args:
        name: A folder or Hub id.
        knowledge: The folder of another knowledge base, built by the model's own encoder.
        device: Such as `"cuda"`; `None` for the graphics card, if there is one.

    Raises:
        InvalidInputError: There is no RAVLM.
        KnowledgeBaseNotFoundError: There is no knowledge base in `knowledge`.
    """
    check_model(name)
    reader = pipeline("image-to-text", model=name, device=device or default_device() or "cpu")
    if knowledge is not None:
        encoder = RavlmEncoder(reader.model.model, reader.processor)
        reader.retriever = RavlmRetriever.from_pretrained(knowledge, encoder=encoder)
    return reader
