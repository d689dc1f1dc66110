"""An encoder for every model of sentence-transformers: of texts, and of images where the model sees them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...tokenization import tokenizer_lock
from ..unit_vectors import unit_or_zero
from .encoders import Images, Texts, count_rows, require_attributes, require_batch_size, require_texts
from .inference_model import fingerprint_of, inference, tokenizer_digest
from .prompts import stored_prompts
from .token_batches import encode_halving


class SentenceTransformerEncoder:
    """Encodes with a `sentence_transformers.SentenceTransformer`: pip install "hf_ravlm[sentence-transformers]".

    A model for texts ignores images. One for both gets text and image of a row together, if it can read them
    together; else their row becomes the normalised sum of two unit vectors.

    Args:
        model: The model, or a folder or Hub id to load it from.
        batch_size: How many rows go through the model at once.
        query_prompt, passage_prompt: Put before every query or passage; `None` for the model's own.

    Raises:
        ImportError: If the package is missing and `model` is a name.
        InvalidInputError: If `batch_size < 1`.
    """

    def __init__(
        self,
        model: Any,
        batch_size: int = 32,
        *,
        query_prompt: str | None = None,
        passage_prompt: str | None = None,
    ) -> None:
        require_batch_size(batch_size)
        if isinstance(model, (str, os.PathLike)):
            model = load_sentence_transformer(os.fspath(model))
        require_attributes(model, ("encode_query", "encode_document"), "a SentenceTransformer of version 5 or newer")
        self.model = model
        self.batch_size = batch_size
        self.query_prompt, self.passage_prompt = query_prompt, passage_prompt

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
        if (self.query_prompt, self.passage_prompt) != (None, None):
            settings["own_prompts"] = [self.query_prompt, self.passage_prompt]
        return fingerprint_of(self.model, settings)

    @property
    def modalities(self) -> list[Any]:
        """What the model reads, such as `["text", "image"]`."""
        return list(getattr(self.model, "modalities", ["text"]))

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) of queries; every one needs a text, or an image if the model sees them."""
        return self._encode(self.model.encode_query, images, texts, self._prompt(self.query_prompt, 0))

    def encode_passages(self, texts: Texts, images: Images | None = None) -> np.ndarray:
        """Returns unit vectors (n, D) of passages; every one needs a text, or an image if the model sees them."""
        return self._encode(self.model.encode_document, images, texts, self._prompt(self.passage_prompt, 1))

    def _prompt(self, given: str | None, side: int) -> dict[str, str]:
        own = stored_prompts(self.model.prompts, self.model.default_prompt_name)[side]
        prompt = own if given is None else given
        return {} if prompt is None else {"prompt": prompt}

    def _encode(self, encode: Any, images: Images | None, texts: Texts | None, prompt: dict[str, str]) -> np.ndarray:
        options = {"batch_size": self.batch_size, "show_progress_bar": False, "convert_to_tensor": True, **prompt}
        rows = self._rows(images, texts)
        if not rows:
            return np.zeros((0, 0), np.float32)
        vectors: list[np.ndarray] = [np.zeros(0)] * len(rows)
        with inference(self.model), tokenizer_lock(getattr(self.model, "tokenizer", None) or self.model):
            for kind in sorted({tuple(sorted(parts)) for parts in rows}):
                chosen = [row for row, parts in enumerate(rows) if tuple(sorted(parts)) == kind]
                for row, vector in zip(chosen, self._of_kind(encode, kind, rows, chosen, options), strict=True):
                    vectors[row] = vector
        return unit_or_zero(np.stack(vectors))

    def _of_kind(
        self,
        encode: Any,
        kind: tuple[str, ...],
        rows: list[dict[str, Any]],
        chosen: list[int],
        options: dict[str, Any],
    ) -> np.ndarray:
        """Vectors (n, D) of rows that have the same parts: a text, an image, or both."""

        def encoded(inputs: Sequence[Any]) -> np.ndarray:
            def part(places: list[int]) -> np.ndarray:
                return unit_or_zero(encode([inputs[place] for place in places], **options).float().cpu().numpy())

            return encode_halving(part, list(range(len(inputs))))

        together = {"message", ("image", "text"), ("text", "image")}.intersection(self.modalities)
        if len(kind) == 1:
            return encoded([rows[row][kind[0]] for row in chosen])
        if together:
            return encoded([rows[row] for row in chosen])
        parts: np.ndarray = sum(encoded([rows[row][name] for row in chosen]) for name in kind)  # type: ignore[assignment]
        return parts

    def _rows(self, images: Images | None, texts: Texts | None) -> list[dict[str, Any]]:
        """What each row has; for a model of texts, their texts, which all must have."""
        if not {"image", "message"}.intersection(self.modalities):
            return [{"text": text} for text in require_texts(images, texts)]
        num_rows = count_rows(images, texts)
        columns = {"text": texts, "image": images}
        rows = [
            {name: items[row] for name, items in columns.items() if items is not None and items[row] is not None}
            for row in range(num_rows)
        ]
        empty = [row for row, parts in enumerate(rows) if not parts]
        for row in empty:  # its vector is that of no words; the passage is named by whoever needs a direction
            rows[row] = {"text": ""}
        return rows


def load_sentence_transformer(name: str, **options: Any) -> Any:
    """Loads a model by folder or Hub id; `ImportError` if the package is missing."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        hint = 'Loading a sentence-transformers model needs: pip install "hf_ravlm[sentence-transformers]"'
        raise ImportError(hint) from error
    if "cache_dir" in options:
        options["cache_folder"] = options.pop("cache_dir")
    return SentenceTransformer(name, trust_remote_code=False, **options)
