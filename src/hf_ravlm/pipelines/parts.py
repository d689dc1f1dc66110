"""The parts of a pipeline as a user names them: any reader of transformers, any encoder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForImageTextToText, AutoModelForObjectDetection
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from ..errors import InvalidInputError
from ..images import is_address
from ..model import (
    RavlmConfig,
    RavlmForConditionalGeneration,
    RavlmForVisualQuestionAnswering,
    RavlmProcessor,
    from_backbones,
)
from ..model.backbones import load_generator, read_config, reader_kind
from ..model.from_backbones import unless_at_home
from ..model.loading import without_adapters
from ..model.parts.adapters import adapter_base
from ..model.parts.references import pin_revision, remember
from ..saving.safe_paths import at_home
from .remote.messages import RemotePrompts
from .remote.reader import RemoteReader


if TYPE_CHECKING:
    from ..retrieval import Encoder


READERS = {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, *MODEL_FOR_CAUSAL_LM_MAPPING}


def is_ours(model: Any) -> bool:
    """Whether a model is one of hf_ravlm, with its adapters if it has any."""
    return bool(without_adapters(model).config.model_type == RavlmConfig.model_type)


def is_remote(model: Any) -> bool:
    """Whether a reader is behind a server."""
    return isinstance(model, RemoteReader)


def brings_evidence(model: Any, *parts: Any) -> bool:
    """Whether a pipeline answers with evidence: by a model of ours or of a server, or by what it has to search."""
    return is_remote(model) or is_ours(model) or any(part is not None for part in parts)


def open_remote(
    reader: RemoteReader, prompts: Any = None, name: str | None = None, sees_images: bool | None = None
) -> tuple[RemoteReader, RemotePrompts]:
    """A reader behind a server that is there, and what writes its prompts.

    Raises:
        InvalidInputError: The server lists no model of that name alone, or the processor is that of a local reader.
        RemoteServerError: It cannot be reached.
    """
    if prompts is not None and not isinstance(prompts, RemotePrompts):
        raise InvalidInputError(
            f"processor= came as {type(prompts).__name__}, and a reader behind a server has its own: give settings of "
            "the prompt in the call, or RemotePrompts(...)"
        )
    if sees_images is not None:
        reader.sees_images = sees_images
    return reader.opened(name), prompts or RemotePrompts()


class ReaderLoader:
    """What `pipeline(model=NAME)` loads models with: readers remember their commit and know adapters."""

    @classmethod
    def from_pretrained(cls, name: str, **loading: Any) -> Any:
        """The model of a folder or repository, as `AutoModelForImageTextToText` or `load_generator` loads it.

        An address gives the reader of the server there; `~` is the home folder.
        """
        if is_address(name):
            return RemoteReader(name)
        name = at_home(name)
        loading = {key: value for key, value in loading.items() if key not in ("_from_pipeline", "code_revision")}
        asked = loading.get("revision")
        asked = None if asked is None else str(asked)  # the commit that it stands for is one of the base of adapters
        if adapter_base(name, {**loading, "revision": asked}) is not None:
            loading["revision"] = asked
        elif not os.path.isfile(os.path.join(name, "adapter_config.json")):
            config = read_config(name, "model", **loading)
            if RavlmForVisualQuestionAnswering.__name__ in (config.architectures or []):
                return RavlmForVisualQuestionAnswering.from_pretrained(name, **loading)
            if config.model_type == RavlmConfig.model_type or type(config) not in READERS:
                return AutoModelForImageTextToText.from_pretrained(name, **loading)
        return load_generator(name, **loading)


class DetectorLoader:
    """What `pipeline("object-detection", model=NAME)` loads models with: they remember their commit."""

    @classmethod
    def from_pretrained(cls, name: str, **loading: Any) -> Any:
        """The model as `AutoModelForObjectDetection` loads it."""
        wanted = ("revision", "token", "cache_dir", "local_files_only")
        access = pin_revision(name, {key: value for key, value in loading.items() if key in wanted})
        model = AutoModelForObjectDetection.from_pretrained(name, **{**loading, **access})
        if not is_ours(model):
            remember(model, name, access)
        return model


def reader_around(
    language_model: Any, processor: Any = None, tokenizer: Any = None
) -> tuple[RavlmForConditionalGeneration, RavlmProcessor]:
    """A reader around a model of transformers, which stays the object that it is, and the processor that asks it.

    Raises:
        InvalidInputError: If the model is no reader, or what prepares its inputs is not known.
    """
    sees = reader_kind(without_adapters(language_model).config) == "image_text"
    argument = "generator_processor" if sees else "tokenizer"
    given = processor if sees else tokenizer or getattr(processor, "tokenizer", None)
    given = unless_at_home(given, language_model, argument)
    return from_backbones(generator=language_model, **({} if given is None else {argument: given}))


def named_encoder(encoder: Any, device: Any = None) -> Encoder | None:
    """An encoder by its name, or as it is.

    Raises:
        InvalidInputError: If it is neither a name nor an encoder, or cannot be loaded.
    """
    if encoder is None or (hasattr(encoder, "encode_queries") and hasattr(encoder, "fingerprint")):
        return encoder
    if not isinstance(encoder, str) and not hasattr(encoder, "__fspath__"):
        raise InvalidInputError(
            f"encoder= came as {type(encoder).__name__}: expected the name of a model, such as "
            "'google/siglip2-base-patch16-224', 'offline', or what `load_encoder` returns"
        )
    from ..retrieval import load_encoder  # FAISS and pyarrow come only when needed

    return load_encoder(encoder, device=None if device is None or str(device) == "cpu" else str(device))


def own_encoder(model: Any, processor: RavlmProcessor) -> Encoder | None:
    """The towers of a reader as an encoder, or `None` where it has none."""
    towers = None if is_remote(model) else without_adapters(model).model
    if towers is None:
        return None
    from ..retrieval import RavlmEncoder

    return RavlmEncoder(towers, processor)
