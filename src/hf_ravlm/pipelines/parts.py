"""The parts of a pipeline as a user names them: any reader of transformers, any encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..model import RavlmConfig, RavlmForConditionalGeneration, RavlmProcessor, from_backbones
from ..model.backbones import reader_kind
from ..model.loading import without_adapters


if TYPE_CHECKING:
    from ..retrieval import Encoder


def is_ours(model: Any) -> bool:
    """Whether a model is one of hf_ravlm, with its adapters if it has any."""
    return bool(without_adapters(model).config.model_type == RavlmConfig.model_type)


def reader_around(
    language_model: Any, processor: Any = None, tokenizer: Any = None
) -> tuple[RavlmForConditionalGeneration, RavlmProcessor]:
    """A reader around a model of transformers, which stays the object that it is, and the processor that asks it.

    Raises:
        InvalidInputError: If the model is no reader, or what prepares its inputs is not known.
    """
    sees = reader_kind(without_adapters(language_model).config) == "image_text"
    own = (
        {"generator_processor": processor}
        if sees
        else {"tokenizer": tokenizer or getattr(processor, "tokenizer", None)}
    )
    return from_backbones(generator=language_model, **{name: part for name, part in own.items() if part is not None})


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
    if encoder == "offline":
        from ..retrieval.encoding.offline_encoder import load_offline_encoder

        return load_offline_encoder()
    from ..retrieval import load_encoder  # FAISS and pyarrow come only when needed

    return load_encoder(encoder, device=None if device is None or str(device) == "cpu" else str(device))


def own_encoder(model: Any, processor: RavlmProcessor) -> Encoder | None:
    """The towers of a reader as an encoder, or `None` where it has none."""
    towers = without_adapters(model).model
    if towers is None:
        return None
    from ..retrieval import RavlmEncoder

    return RavlmEncoder(towers, processor)
