"""One pipeline from the names that people type: of commands, evaluation and pages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, pipeline

from ..errors import InvalidInputError
from ..model import RavlmConfig
from ..model.backbones import reader_kind
from ..model.loading import loading_errors
from ..model.parts.adapters import adapter_base
from ..saving.reaching import OFFLINE, check_spelling, hub_or_cache
from .image_to_text import RavlmImageToTextPipeline
from .knowledge import check_place, open_knowledge
from .offline_reader import offline_reader
from .parts import named_encoder


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
    for part in (model, encoder):
        if isinstance(part, (str, os.PathLike)):
            check_spelling(os.fspath(part))
    if isinstance(knowledge, (str, os.PathLike)):
        check_place(knowledge)
    name = offline_reader() if os.fspath(model) == OFFLINE else os.path.expanduser(os.fspath(model))
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with hub_or_cache(_asked_for(name, encoder, knowledge)):
        check_reader(name, knowledge is None, called=os.fspath(model))
        encoder = named_encoder(encoder, device)  # a mistyped one costs no large reader
        searched = {"encoder": encoder, "knowledge": knowledge}
        if reading and knowledge is not None:
            searched = {"retriever": open_knowledge(knowledge, encoder, **reading)}
        with loading_errors("reader", name):
            return pipeline("image-to-text", model=name, device=device, **searched)


def _asked_for(*places: Any) -> str | None:
    """The first repository of the Hub among places, or the first that a saved system refers to."""
    for place in places:
        if not isinstance(place, (str, os.PathLike)) or os.fspath(place) == OFFLINE:
            continue
        folder = Path(place).expanduser()
        if not folder.exists():
            return os.fspath(place)
        try:
            references = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("references") or {}
            return str(next(iter(references.values()))["name"])
        except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
            continue  # no system of ours, or one that brings all that it needs
    return None


def check_reader(name: str, needs_knowledge: bool = True, called: str | None = None) -> None:
    """Looks at the settings of a model before its weights are loaded; in messages it is `called` as it was typed.

    Raises:
        InvalidInputError: There is no model, it is no reader, or, with `needs_knowledge`, it can have none beside it.
        HubUnavailableError: The Hub does not give it.
    """
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        return
    with loading_errors("reader", name):
        base, access = adapter_base(name, {}) or (name, {})  # of a repository that holds adapters alone
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **access)
    if config.model_type == RavlmConfig.model_type:
        return
    reader_kind(config)
    if needs_knowledge:
        raise InvalidInputError(
            f"{called or name}: this is a model of the type {config.model_type!r}, which brings no knowledge base. "
            "Name one: a folder of images and texts, a table, or a stored knowledge base."
        )
