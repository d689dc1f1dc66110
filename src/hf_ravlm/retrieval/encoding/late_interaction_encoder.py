"""Knows how ColPali and its relatives become encoders of many vectors: one per token or image patch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import InvalidInputError
from .encoders import Images, Texts, count_rows, require_attributes, require_batch_size, require_texts
from .inference_model import InferenceModel, in_type_of, network_settings, tokenizer_digest, unit_or_zero
from .token_batches import cut_batches, encode_halving, with_progress


_PROMPTS = ("visual_prompt_prefix", "query_prefix")


class LateInteractionEncoder:
    """One vector per token or image patch from ColPali, ColQwen2, ColModernVBERT and the like: a `MultiVectorEncoder`.

    Passages are images (pages, pictures), queries are texts.

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
        settings = self.processor.image_processor.to_dict()
        return self._inference_model.fingerprint(
            {
                "network": network_settings(self._inference_model.model),
                "image_processor": {key: value for key, value in settings.items() if not key.startswith("_")},
                "tokenizer": tokenizer_digest(self.processor.tokenizer),
                "prompts": [getattr(self.processor, name, None) for name in _PROMPTS],
            }
        )

    def encode_queries_tokens(self, images: Images | None, texts: Texts | None) -> list[np.ndarray]:
        """Returns per query the unit vectors (tokens, D) of its text."""
        return self._encode(self.processor.process_queries, require_texts(images, texts))

    def encode_passages_tokens(self, texts: Texts | None, images: Images) -> list[np.ndarray]:
        """Returns per passage the unit vectors (patches, D) of its image."""
        missing = [row for row in range(count_rows(images, texts)) if images is None or images[row] is None]
        if missing:
            raise InvalidInputError(
                f"{len(missing)} passages have no image (the first: row {missing[0]}), and {self.name} encodes "
                "passages as images. Use TextModelEncoder for texts."
            )
        return self._encode(self.processor.process_images, list(images))

    def _encode(self, process: Any, items: list[Any]) -> list[np.ndarray]:
        encoded: list[np.ndarray] = []
        with self._inference_model.running() as model:

            def encode(rows: list[int]) -> list[np.ndarray]:
                inputs = process([items[row] for row in rows]).to(self._inference_model.device)
                embeddings = model(**in_type_of(model, inputs)).embeddings.float().cpu().numpy()  # (B, L, D)
                keep = inputs["attention_mask"].bool().cpu().numpy()
                return [unit_or_zero(vectors[mask]) for vectors, mask in zip(embeddings, keep, strict=True)]

            batches = cut_batches([1] * len(items), self.batch_size, padded=False)
            for start, end in with_progress(batches, "Encoding tokens"):
                encoded.extend(encode_halving(encode, list(range(start, end))))
        return encoded
