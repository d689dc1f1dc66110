"""One pipeline from the names that people type: of commands, evaluation and pages."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoConfig, pipeline

from ..errors import InvalidInputError
from ..model import RavlmConfig
from ..model.backbones import reader_kind
from ..model.loading import loading_errors
from .image_to_text import RavlmImageToTextPipeline
from .knowledge import open_knowledge
from .offline_reader import offline_reader
from .parts import named_encoder


OFFLINE = "offline"


def open_pipeline(
    model: str | os.PathLike[str],
    knowledge: Any = None,
    encoder: Any = None,
    device: str | None = None,
    **reading: Any,
) -> RavlmImageToTextPipeline:
    """The `pipeline("image-to-text")` of a reader by its name.

    Args:
        model: A saved system, any reader of transformers on the Hub or in a folder, or `"offline"`.
        knowledge, encoder: As of the pipeline; a saved system has its own.
        device: Such as `"cuda"`; `None` for the graphics card, if there is one.
        **reading: How a source of knowledge is read, see `open_knowledge`: `on_error`, `text_column`, ...

    Raises:
        InvalidInputError: There is no such model, it is no reader, or it has nothing to read.
    """
    name = offline_reader() if os.fspath(model) == OFFLINE else os.path.expanduser(os.fspath(model))
    check_reader(name, needs_knowledge=knowledge is None)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    searched = {"encoder": encoder, "knowledge": knowledge}
    if reading and knowledge is not None:
        searched = {"retriever": open_knowledge(knowledge, named_encoder(encoder, device), **reading)}
    with loading_errors("reader", name):
        return pipeline("image-to-text", model=name, device=device, **searched)


def check_reader(name: str, needs_knowledge: bool = True) -> None:
    """Looks at the settings of a model before its weights are loaded.

    Raises:
        InvalidInputError: There is no model, it is no reader, or, with `needs_knowledge`, it can have none beside it.
        HubUnavailableError: The Hub does not give it.
    """
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        return
    with loading_errors("reader", name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type == RavlmConfig.model_type:
        return
    reader_kind(config)
    if needs_knowledge:
        raise InvalidInputError(
            f"{name}: this is a model of the type {config.model_type!r}, which brings no knowledge base. Name one: a "
            "folder of images and texts, a table, or a stored knowledge base."
        )
