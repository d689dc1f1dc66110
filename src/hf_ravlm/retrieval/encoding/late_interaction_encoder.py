"""An encoder that gives a vector per token and per image patch: ColPali, ColQwen2 and the like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import InvalidInputError
from ...tokenization import tokenizer_lock
from ..unit_vectors import unit_or_zero
from .encoders import Images, Texts, count_rows, require_attributes, require_batch_size, require_texts
from .inference_model import InferenceModel, processor_settings
from .token_batches import encode_in_batches


class LateInteractionEncoder:
    """Unit vectors per token of queries (texts) and per patch of passages (images): ColPali, ColQwen2 and the like.

    A retriever searches by one vector each, the mean of those, and `LateInteractionReranker` orders what it found by
    all of them.

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

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D), each the direction of the mean over the tokens of a query's text."""
        return _mean_vectors(self.encode_queries_tokens(images, texts))

    def encode_passages(self, texts: Texts | None, images: Images) -> np.ndarray:
        """Returns unit vectors (n, D), each the direction of the mean over the patches of a passage's image."""
        return _mean_vectors(self.encode_passages_tokens(texts, images))

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
        if not items:
            return []
        with self._inference_model.running() as model:

            def encode(rows: list[int]) -> list[np.ndarray]:
                with tokenizer_lock(self.processor.tokenizer):
                    processed = process([items[row] for row in rows])
                inputs = self._inference_model.inputs(processed)
                embeddings = model(**inputs).embeddings.float().cpu().numpy()  # (B, L, D)
                keep = inputs["attention_mask"].bool().cpu().numpy()
                return [unit_or_zero(vectors[mask]) for vectors, mask in zip(embeddings, keep, strict=True)]

            return encode_in_batches(encode, [0] * len(items), "Encoding tokens", max_rows=self.batch_size)


def _mean_vectors(tokens: list[np.ndarray]) -> np.ndarray:
    if not tokens:
        return np.zeros((0, 0), np.float32)
    return unit_or_zero(np.stack([vectors.mean(axis=0) for vectors in tokens]))
