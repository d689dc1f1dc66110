"""One pipeline from the names that people type: of commands, evaluation and pages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, pipeline

from ..errors import InvalidInputError
from ..images import is_address
from ..model import RavlmConfig
from ..model.backbones import reader_kind
from ..model.loading import loading_errors
from ..model.parts.adapters import adapter_base
from ..saving.reaching import OFFLINE, check_spelling, hub_or_cache
from ..servers import Server
from .image_to_text import RavlmImageToTextPipeline
from .knowledge import check_encoded, check_place, open_knowledge, reading_words
from .offline_reader import offline_reader
from .parts import named_encoder
from .remote.reader import RemoteReader


# What classes of models are called, and the pipelines that look at images and are asked nothing.
LOOKING = {"ImageClassification": "image-classification", "ObjectDetection": "object-detection"}


def open_pipeline(
    model: str | os.PathLike[str],
    knowledge: Any = None,
    encoder: Any = None,
    device: str | None = None,
    reader_name: str | None = None,
    sees_images: bool | None = None,
    **reading: Any,
) -> RavlmImageToTextPipeline:
    """The `pipeline("image-to-text")` of a reader by its name.

    Args:
        model: A saved system, any reader of transformers on the Hub or in a folder, `"offline"`, or the address of a
            server, `"http://localhost:8000/v1"`.
        knowledge, encoder: As of the pipeline; a saved system has its own.
        device: Such as `"cuda"`; `None` for the graphics card, if there is one.
        reader_name, sees_images: Of a server, as of `RemoteReader`.
        **reading: How a source of knowledge is read, see `open_knowledge`: `on_error`, `text_column`, ...

    Raises:
        InvalidInputError: There is no such model, it is no reader, or it has nothing to read.
        RemoteServerError: The server cannot be reached.
    """
    for part in (model, encoder):
        if isinstance(part, (str, os.PathLike)) and not is_address(part):
            check_spelling(os.fspath(part))
    if isinstance(knowledge, (str, os.PathLike)):
        check_place(knowledge)
    if knowledge is None and reading:
        raise InvalidInputError(f"{reading_words(reading)}, and {model} brings its own knowledge base; leave it out")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    parts: dict[str, Any] = {"device": device, "reader_name": reader_name, "sees_images": sees_images}
    if is_address(model):
        _check_knowledge(model, knowledge)
        reader = RemoteReader(str(model)).opened(reader_name)  # before anything is encoded
        with hub_or_cache(_asked_for(encoder, knowledge)):
            return pipeline("image-to-text", model=reader, **parts | _searched(knowledge, encoder, device, reading))
    name = offline_reader() if os.fspath(model) == OFFLINE else os.path.expanduser(os.fspath(model))
    with hub_or_cache(_asked_for(name, encoder, knowledge)):
        if not check_reader(name, knowledge is None, called=os.fspath(model)) and encoder is None:
            check_encoded(knowledge)  # which needs no large reader, either
        parts |= _searched(knowledge, encoder, device, reading)  # a mistyped encoder costs no large reader
        with loading_errors("reader", name):
            return pipeline("image-to-text", model=name, **parts)


def open_looking(
    model: str | os.PathLike[str], knowledge: Any = None, encoder: Any = None, device: str | None = None
) -> Any:
    """The pipeline of a classifier or a detector by its name; `None` of any other model.

    Args:
        model, knowledge, encoder, device: As of `open_pipeline`; knowledge are labelled images.

    Raises:
        InvalidInputError: It cannot be loaded, or what is to be searched is not there.
    """
    name = os.path.expanduser(os.fspath(model))
    if is_address(name) or name == OFFLINE:
        return None
    with hub_or_cache(_asked_for(name, encoder, knowledge)):
        try:
            settings, _ = PreTrainedConfig.get_config_dict(name)
        except OSError:  # `open_pipeline` says what is wrong
            return None
        kinds = [named.rpartition("For")[2] for named in settings.get("architectures") or ()]
        tasks = [LOOKING[kind] for kind in kinds if kind in LOOKING]
        if not tasks:
            return None
        parts = {"knowledge": knowledge, "encoder": encoder, "device": device}
        with loading_errors("model", name):
            return pipeline(
                tasks[0], model=name, **{part: value for part, value in parts.items() if value is not None}
            )


def _searched(knowledge: Any, encoder: Any, device: str, reading: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline searches, as its arguments; a source is read here, before a large reader comes."""
    encoder = named_encoder(encoder, device)
    if knowledge is not None and (reading or encoder is not None):
        return {"retriever": open_knowledge(knowledge, encoder, **reading)}
    return {"encoder": encoder, "knowledge": knowledge}


def _asked_for(*places: Any) -> str | None:
    """The first repository of the Hub among places, or the first that a saved system refers to."""
    for place in places:
        if not isinstance(place, (str, os.PathLike)) or os.fspath(place) == OFFLINE or is_address(place):
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


def check_reader(name: str, needs_knowledge: bool = True, called: str | None = None) -> bool:
    """Looks at the settings of a model before its weights are loaded; in messages it is `called` as it was typed.

    Returns:
        Whether it is a model of ours, which may encode by itself and bring what it reads.

    Raises:
        InvalidInputError: There is no model, it is no reader, or, with `needs_knowledge`, it can have none beside it.
        HubUnavailableError: The Hub does not give it.
    """
    if is_address(name):
        Server(name)
        return False
    if os.path.isfile(os.path.join(name, "adapter_config.json")):
        return False
    with loading_errors("reader", name):
        base, access = adapter_base(name, {}) or (name, {})  # of a repository that holds adapters alone
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **access)
    if config.model_type == RavlmConfig.model_type:
        return True
    reader_kind(config)
    if needs_knowledge:
        raise InvalidInputError(
            f"{called or name}: this is a model of the type {config.model_type!r}, which brings no knowledge base. "
            "Name one: a folder of images and texts, a table, or a stored knowledge base."
        )
    return False


def check_local(name: str | os.PathLike[str], what: str) -> None:
    """Refuses the address of a server where the weights of a reader are needed.

    Raises:
        InvalidInputError: It is one.
    """
    if is_address(name):
        raise InvalidInputError(
            f"{name}: {what} needs the weights of the reader, and a server gives words alone. Name a folder or Hub id."
        )


def _check_knowledge(address: Any, knowledge: Any) -> None:
    if knowledge is None:
        raise InvalidInputError(
            f"{address}: a reader behind a server brings no knowledge base. Name one: a folder of images and texts, a "
            "table, or a stored knowledge base."
        )
