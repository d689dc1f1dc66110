"""Encoders for CLIP, SigLIP, sentence-transformers and ColPali, and `load_encoder`, which chooses one.

Text encoders of transformers run faster in `text_model_encoder` than through sentence-transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ...errors import InvalidInputError
from ..unit_vectors import unit_or_zero
from .encoders import (
    Encoder,
    Images,
    RavlmEncoder,
    Texts,
    count_rows,
    require_attributes,
    require_batch_size,
    require_texts,
)
from .inference_model import InferenceModel, fingerprint_of, inference, processor_settings, tokenizer_digest
from .text_model_encoder import TextModelEncoder
from .token_batches import encode_halving, encode_in_batches


ENCODER_KINDS = ("auto", "ravlm", "dual", "text", "sentence-transformers")

# Trained on texts padded to the full length, without a mask: shorter padding changes their vectors.
_FULLY_PADDED = ("siglip", "siglip2")
_MAX_SIGLIP_LENGTH = 64


def load_encoder(
    name: str | os.PathLike[str],
    *,
    kind: str = "auto",
    dtype: str | None = None,
    device: str | None = None,
    hub_kwargs: dict[str, Any] | None = None,
) -> Encoder:
    """Loads a model and returns the encoder of its kind.

    Args:
        name: Folder or Hub id of a `RavlmModel`, a dual encoder such as CLIP, or a text encoder.
        kind: One of `ENCODER_KINDS`; `"auto"` looks at the model's settings.
        dtype: See `RavlmEncoder`.
        device: Such as `"cuda"`; `None` leaves the model on the CPU.
        hub_kwargs: `revision`, `token`, `cache_dir`, ... for the Hub.

    Raises:
        InvalidInputError: If there is no such kind, or the model is of another one.

    >>> load_encoder("google/siglip2-base-patch16-224", dtype="auto").name  # doctest: +SKIP
    'Siglip2Model dtype=bfloat16'
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor

    if kind not in ENCODER_KINDS:
        raise InvalidInputError(f"kind={kind!r} is not known. Choose one of {ENCODER_KINDS}.")
    hub_kwargs = hub_kwargs or {}
    if kind == "sentence-transformers":
        if dtype is not None:
            raise InvalidInputError(f"dtype={dtype!r}: a sentence-transformers model keeps its own number type.")
        return SentenceTransformerEncoder(_load_sentence_transformer(os.fspath(name), device=device, **hub_kwargs))
    if kind == "auto":
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
        kind = "auto" if hasattr(config, "vision_config") else "text"
    if kind == "text":
        return TextModelEncoder.from_pretrained(name, dtype=dtype, device=device, hub_kwargs=hub_kwargs)
    model = AutoModel.from_pretrained(name, trust_remote_code=False, **hub_kwargs).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    is_ours = hasattr(processor, "for_retrieval") if kind == "auto" else kind == "ravlm"
    encoder = RavlmEncoder if is_ours else DualEncoder
    return encoder(model if device is None else model.to(device), processor, dtype=dtype)


class DualEncoder:
    """Encodes with a model of two towers, such as CLIP, SigLIP or SigLIP 2, and its processor.

    A row with image and text becomes the normalised sum of the two unit vectors.

    Args:
        model: Has `get_image_features(pixel_values=...)` and `get_text_features(input_ids=...)`.
        processor: Holds an `image_processor` and a `tokenizer`.
        batch_size: How many rows go through a tower at once.
        dtype: See `RavlmEncoder`.

    Raises:
        InvalidInputError: If model or processor are of another kind, or `batch_size < 1`.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 64, dtype: str | None = None) -> None:
        require_attributes(model, ("get_image_features", "get_text_features"), "a dual encoder such as CLIPModel")
        require_attributes(processor, ("image_processor", "tokenizer"), "the processor of the model")
        require_batch_size(batch_size)
        self.processor = processor
        self.batch_size = batch_size
        self._inference_model = InferenceModel(model, dtype)
        self._fully_padded = getattr(getattr(model, "config", None), "model_type", None) in _FULLY_PADDED

    @property
    def name(self) -> str:
        """Class and number type of the model, for messages."""
        return self._inference_model.describe()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and their type, settings of the network, image processing and tokenizer."""
        settings = processor_settings(self.processor)
        return self._inference_model.fingerprint(**settings, text_options=self._text_options())

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) of images, texts, or both.

        Raises:
            InvalidInputError: If there are none, or their numbers differ.
        """
        num_rows = count_rows(images, texts)
        if num_rows == 0:
            return np.zeros((0, 0), np.float32)
        total: np.ndarray | None = None
        with self._inference_model.running() as model:
            for items, features in ((images, self._image_features), (texts, self._text_features)):
                given = {row: item for row, item in enumerate([] if items is None else items) if item is not None}
                if given:
                    vectors = self._tower_vectors(partial(features, model), list(given.values()))
                    total = np.zeros((num_rows, vectors.shape[1]), np.float32) if total is None else total
                    total[list(given)] += vectors
        if total is None:
            raise InvalidInputError("There is nothing to encode: every row is empty. Pass images, texts, or both.")
        return unit_or_zero(total)

    def encode_passages(self, texts: Texts, images: Images) -> np.ndarray:
        """Returns unit vectors (n, D) of passages, which are encoded as queries are."""
        return self.encode_queries(images, texts)

    def _tower_vectors(self, features: Callable[[list[Any]], Any], items: list[Any]) -> np.ndarray:
        def encode(rows: list[int]) -> list[np.ndarray]:
            outputs = features([items[row] for row in rows])
            # transformers 5 returns pooled features in an output, older models as a tensor.
            return list(getattr(outputs, "pooler_output", outputs).float().cpu().numpy())

        lengths = [len(item) if isinstance(item, str) else 0 for item in items]
        return unit_or_zero(np.stack(encode_in_batches(encode, lengths, "Encoding", max_rows=self.batch_size)))

    def _image_features(self, model: Any, images: list[Image.Image]) -> Any:
        inputs = self.processor.image_processor(images=images, return_tensors="pt")
        return model.get_image_features(**self._inference_model.inputs(inputs))

    def _text_features(self, model: Any, texts: list[str]) -> Any:
        inputs = self.processor.tokenizer(texts, return_tensors="pt", **self._text_options())
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        return model.get_text_features(**self._inference_model.inputs(kept))

    def _text_options(self) -> dict[str, Any]:
        limit = self.processor.tokenizer.model_max_length
        text_config = getattr(self._inference_model.model.config, "text_config", None)
        positions = getattr(text_config, "max_position_embeddings", None) or limit
        length = min(limit, positions, _MAX_SIGLIP_LENGTH if self._fully_padded else limit)
        padding = "max_length" if self._fully_padded else True
        return {"padding": padding, "truncation": True, "max_length": int(length), "split_special_tokens": True}


class SentenceTransformerEncoder:
    """Encodes texts with a `sentence_transformers.SentenceTransformer`: pip install "hf_ravlm[sentence-transformers]".

    Args:
        model: The model, or a folder or Hub id to load it from. Its prompts for queries and documents are used.
        batch_size: How many texts go through the model at once.

    Raises:
        ImportError: If the package is missing and `model` is a name.
        InvalidInputError: If `batch_size < 1`.
    """

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        require_batch_size(batch_size)
        if isinstance(model, (str, os.PathLike)):
            model = _load_sentence_transformer(os.fspath(model))
        require_attributes(model, ("encode_query", "encode_document"), "a SentenceTransformer of version 5 or newer")
        self.model = model
        self.batch_size = batch_size

    @property
    def name(self) -> str:
        """The steps of the model, for messages."""
        return f"{type(self.model).__name__}({', '.join(type(step).__name__ for step in self.model)})"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and their type, the settings of every step, tokenizer, prompts and length."""
        tokenizer = getattr(self.model, "tokenizer", None)
        steps = [(step, step.get_config_dict() if hasattr(step, "get_config_dict") else None) for step in self.model]
        settings = {
            "steps": [[type(step).__name__, config] for step, config in steps],
            "prompts": [self.model.prompts, self.model.default_prompt_name],
            "tokenizer": None if tokenizer is None else tokenizer_digest(tokenizer),
            "max_length": self.model.max_seq_length,
        }
        return fingerprint_of(self.model, settings)

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) of queries; every one needs a text."""
        return self._encode(self.model.encode_query, images, texts)

    def encode_passages(self, texts: Texts, images: Images | None = None) -> np.ndarray:
        """Returns unit vectors (n, D) of passages; every one needs a text."""
        return self._encode(self.model.encode_document, images, texts)

    def _encode(self, encode: Any, images: Images | None, texts: Texts | None) -> np.ndarray:
        checked = require_texts(images, texts)
        options = {"batch_size": self.batch_size, "show_progress_bar": False, "convert_to_tensor": True}

        def encode_rows(rows: list[int]) -> np.ndarray:
            return unit_or_zero(encode([checked[row] for row in rows], **options).float().cpu().numpy())

        with inference(self.model):
            rows = list(range(len(checked)))
            return encode_halving(encode_rows, rows) if rows else np.zeros((0, 0), np.float32)


class LateInteractionEncoder:
    """Unit vectors per token of queries (texts) and per patch of passages (images): ColPali, ColQwen2 and the like.

    Args:
        model: Its output has `embeddings` (B, L, D).
        processor: Has `process_images(images)` and `process_queries(texts)`.
        batch_size: How many rows go through the model at once.
        dtype: See `RavlmEncoder`.

    Raises:
        InvalidInputError: If the processor is of another kind, or `batch_size < 1`.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 8, dtype: str | None = None) -> None:
        require_attributes(processor, ("process_images", "process_queries"), "the processor of ColPali or the like")
        require_batch_size(batch_size)
        self.processor = processor
        self.batch_size = batch_size
        self._inference_model = InferenceModel(model, dtype)

    @property
    def name(self) -> str:
        """Class and number type of the model, for messages."""
        return self._inference_model.describe()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and their type, settings of the network, image processing and tokenizer."""
        prompts = [getattr(self.processor, name, None) for name in ("visual_prompt_prefix", "query_prefix")]
        return self._inference_model.fingerprint(**processor_settings(self.processor), prompts=prompts)

    def encode_queries_tokens(self, images: Images | None, texts: Texts | None) -> list[np.ndarray]:
        """Returns per query the unit vectors (tokens, D) of its text."""
        return self._encode(self.processor.process_queries, require_texts(images, texts))

    def encode_passages_tokens(self, texts: Texts | None, images: Images) -> list[np.ndarray]:
        """Returns per passage the unit vectors (patches, D) of its image.

        Raises:
            InvalidInputError: If a passage has no image.
        """
        missing = [row for row in range(count_rows(images, texts)) if images is None or images[row] is None]
        if missing:
            raise InvalidInputError(
                f"{len(missing)} passages have no image (the first: row {missing[0]}), and {self.name} encodes "
                "passages as images. Use TextModelEncoder for texts."
            )
        return self._encode(self.processor.process_images, list(images))

    def _encode(self, process: Callable[[list[Any]], Any], items: list[Any]) -> list[np.ndarray]:
        with self._inference_model.running() as model:

            def encode(rows: list[int]) -> list[np.ndarray]:
                inputs = self._inference_model.inputs(process([items[row] for row in rows]))
                embeddings = model(**inputs).embeddings.float().cpu().numpy()  # (B, L, D)
                keep = inputs["attention_mask"].bool().cpu().numpy()
                return [unit_or_zero(vectors[mask]) for vectors, mask in zip(embeddings, keep, strict=True)]

            return encode_in_batches(encode, [0] * len(items), "Encoding tokens", max_rows=self.batch_size)


def _load_sentence_transformer(name: str, **options: Any) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        hint = 'Loading a sentence-transformers model needs: pip install "hf_ravlm[sentence-transformers]"'
        raise ImportError(hint) from error
    return SentenceTransformer(name, trust_remote_code=False, **options)
