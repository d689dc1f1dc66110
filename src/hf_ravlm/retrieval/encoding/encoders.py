"""Encoders of images and texts: the protocols they follow, and the one for `RavlmModel`.

`text_model_encoder`, `dual_encoder`, `sentence_transformer_encoder` and `late_interaction_encoder` hold those for
other models, and `load_encoder` chooses one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ...errors import InvalidInputError
from ..passage import Passage
from ..unit_vectors import unit_vectors
from .inference_model import InferenceModel, fingerprint_of
from .text_counts import TextCounts, counts_of, warn_of_queries
from .token_batches import encode_in_batches


_TEXTS_PER_TOKENIZATION = 4_096
_TOKENS_PER_ROW = 64  # so that a batch of 64 rows may hold 4096 tokens where no padding is spent

Images = Sequence[Image.Image | None]
Texts = Sequence[str | None]


@runtime_checkable
class Encoder(Protocol):
    """What a retriever needs: unit vectors of queries and passages in one space, and an identity.

    Attributes:
        name: A description for messages.
        fingerprint: A SHA-256 in hexadecimal over weights, their number type and preprocessing.
    """

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors of shape (n, D) in float32; every row has an image, a text or both."""
        ...

    def encode_passages(self, texts: Texts, images: Images) -> np.ndarray:
        """Returns unit vectors of shape (n, D) in float32; every row has a text, an image or both."""
        ...


@runtime_checkable
class TokenEncoder(Protocol):
    """What late interaction (MaxSim) needs: one unit vector per token or image patch."""

    def encode_queries_tokens(self, images: Images | None, texts: Texts | None) -> list[np.ndarray]:
        """Returns per query an array (tokens, D) of unit vectors in float32."""
        ...

    def encode_passages_tokens(self, texts: Texts, images: Images) -> list[np.ndarray]:
        """Returns per passage an array (tokens, D) of unit vectors in float32."""
        ...


@runtime_checkable
class MultiVectorEncoder(TokenEncoder, Protocol):
    """A `TokenEncoder` with the identity of an `Encoder`; one encoder may follow all three protocols."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


class RavlmEncoder:
    """Encodes with a dual encoder such as `RavlmModel` and its processor.

    The model runs in evaluation mode and without gradients, on its device; its modes are restored afterwards.

    Args:
        model: Has `get_query_features(**inputs)` and `get_passage_features(**inputs)`, which return tensors (n, D).
        processor: Has `for_retrieval(images=..., texts=...)`, which returns the inputs, and `retrieval_fingerprint()`,
            which returns a JSON-like dictionary of what shapes them.
        batch_size: Rows that go through the model at once; 64 tokens for each row where texts need no padding.
        dtype: `None` uses the live model as it is. `"auto"`, `"bfloat16"` or `"int8"` use a copy made now, which
            does not follow training; `"auto"` takes bfloat16 where this machine is fast in it. The number type is
            part of the fingerprint: a knowledge base is asked in the type that built it.

    Raises:
        InvalidInputError: If model or processor lack these methods, `batch_size < 1`, or `dtype` is not known.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 64, dtype: str | None = None) -> None:
        methods = ("get_query_features", "get_passage_features", "state_dict")
        require_attributes(model, methods, "the model of a dual encoder such as RavlmModel")
        require_attributes(processor, ("for_retrieval", "retrieval_fingerprint"), "the processor of a dual encoder")
        require_batch_size(batch_size)
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.text_counts = TextCounts(limit=getattr(processor, "max_text_length", None))
        self._inference_model = InferenceModel(model, dtype)

    @property
    def name(self) -> str:
        """Class, number type, towers and width of the model, for messages."""
        config = getattr(self.model, "config", None)
        parts = {
            "vision": getattr(getattr(config, "vision_config", None), "model_type", None),
            "text": getattr(getattr(config, "text_config", None), "model_type", None),
            "dim": getattr(config, "projection_dim", None),
        }
        described = [f"{key}={value}" for key, value in parts.items() if value is not None]
        return " ".join([self._inference_model.describe(), *described])

    @property
    def is_live(self) -> bool:
        """Whether queries are encoded by the model itself, and not by a copy in another number type."""
        return self._inference_model.model is self.model

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all weights of the model, bit by bit with their types, and over the preprocessing.

        Computed anew each time (about a second per gigabyte), for weights change in training.
        """
        return fingerprint_of(self._inference_model.model, self.processor.retrieval_fingerprint())

    @property
    def logit_scale(self) -> float | None:
        """`1 / temperature`, which the model was trained with; `None` if it has none."""
        scale = getattr(self.model, "get_logit_scale", None)
        return None if scale is None else float(scale().detach())

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) in float32 of questions, images, or both.

        Args:
            images: One per query; `None` for no images at all, or in single places.
            texts: One per query; `None` for no texts at all, or in single places.

        Raises:
            InvalidInputError: If both are `None`, or their lengths differ.
        """
        before = counts_of(self)
        vectors = self._encode("get_query_features", images, texts)
        warn_of_queries(self, before)
        return vectors

    def encode_passages(self, texts: Texts, images: Images) -> np.ndarray:
        """Returns unit vectors (n, D) in float32 of passages; arguments and errors as `encode_queries`."""
        return self._encode("get_passage_features", images, texts)

    def _encode(self, method: str, images: Images | None, texts: Texts | None) -> np.ndarray:
        num_rows = count_rows(images, texts)
        if num_rows == 0:
            return np.zeros((0, 0), np.float32)
        with self._inference_model.running() as model:
            features = partial(self._features, getattr(model, method))
            if texts is not None and _pick(images, range(num_rows)) is None:
                packed = model is not self._inference_model.model
                starts = range(0, num_rows, _TEXTS_PER_TOKENIZATION)
                chunks = (texts[start : start + _TEXTS_PER_TOKENIZATION] for start in starts)
                return np.concatenate([self._encode_texts(features, chunk, packed) for chunk in chunks])
            # Rows of similar length share a batch, so that little is spent on padding.
            lengths = [len(text or "") for text in texts] if texts is not None else [0] * num_rows

            def encode(rows: list[int]) -> np.ndarray:
                inputs = self.processor.for_retrieval(images=_pick(images, rows), texts=_pick(texts, rows))
                if texts is not None:
                    self._count(inputs, [texts[row] for row in rows])
                return features(inputs)

            return np.stack(encode_in_batches(encode, lengths, "Encoding", max_rows=self.batch_size))

    def _encode_texts(self, features: Callable[[Any], np.ndarray], texts: Texts, packed: bool) -> np.ndarray:
        """Texts alone are tokenized once; then each batch takes rows of one length, without their padding."""
        inputs = self.processor.for_retrieval(images=None, texts=list(texts))
        self._count(inputs, texts)
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        keeps_padding = getattr(self.processor, "pad_text", False)
        encode = lambda rows: features(_rows_of(inputs, rows, keeps_padding))  # noqa: E731
        most, tokens = self.batch_size, self.batch_size * _TOKENS_PER_ROW if packed else None
        return np.stack(encode_in_batches(encode, lengths, "Encoding texts", max_rows=most, max_tokens=tokens))

    def _count(self, inputs: Mapping[str, Any], texts: Texts) -> None:
        tokenizer = getattr(self.processor, "text_tokenizer", None)
        if tokenizer is None or "input_ids" not in inputs:
            return
        mask = inputs["attention_mask"].bool() if "attention_mask" in inputs else inputs["input_ids"] >= 0
        rows = [row for row, text in enumerate(texts) if text]
        ids = [inputs["input_ids"][row][mask[row]].tolist() for row in rows]
        self.text_counts.note(tokenizer, {"input_ids": ids}, [str(texts[row]) for row in rows])

    def _features(self, get_features: Callable[..., Any], inputs: Mapping[str, Any]) -> np.ndarray:
        device = self._inference_model.device
        features = get_features(**{name: tensor.to(device) for name, tensor in inputs.items()})  # (n, D)
        return np.asarray(features.float().cpu().numpy())


def encode_passages(
    encoder: Encoder,
    passages: Sequence[Passage],
    what: str,
    dim: int | None = None,
    part: Literal["both", "text", "image"] = "both",
) -> np.ndarray:
    """Returns the unit vectors (n, D) of passages, or of their texts or images alone; checks what the encoder gives.

    Raises:
        InvalidInputError: If the vectors have a wrong number, shape, width or type.
        UnsafeInputError: If one is zero, NaN or infinite, with the id of its passage.
    """
    texts = [passage.text if part != "image" else None for passage in passages]
    images = [passage.image if part != "text" else None for passage in passages]
    vectors = encoder.encode_passages(texts, images)
    if len(vectors) != len(passages):
        raise InvalidInputError(f"The encoder returned {len(vectors)} vectors for {len(passages)} passages.")
    return unit_vectors(vectors, what, dim, names=[repr(passage.id) for passage in passages])


def count_rows(images: Sequence[Any] | None, texts: Sequence[Any] | None) -> int:
    """Returns the number of rows to encode; refuses nothing at all, and lists of different lengths."""
    if images is None and texts is None:
        raise InvalidInputError("There is nothing to encode. Pass images, texts, or both.")
    if images is not None and texts is not None and len(images) != len(texts):
        raise InvalidInputError(f"{len(images)} images came with {len(texts)} texts. Pass one per row, or None.")
    return len(images if images is not None else texts or ())


def require_texts(images: Images | None, texts: Texts | None) -> list[str]:
    """Returns the texts of all rows, for encoders that read nothing else; refuses rows without one."""
    num_rows = count_rows(images, texts)
    checked = list(texts) if texts is not None else [None] * num_rows
    missing = [row for row, text in enumerate(checked) if text is None]
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of {num_rows} rows have no text (the first: row {missing[0]}), and this encoder reads "
            "texts only. Use an encoder for images and texts, such as DualEncoder or RavlmEncoder."
        )
    return [str(text) for text in checked]


def modalities_of(encoder: Any) -> tuple[str, ...]:
    """Returns what an encoder reads: `"text"`, `"image"` or both, which is what one is taken to that does not say."""
    named = [name for entry in getattr(encoder, "modalities", ("text", "image")) for name in _names(entry)]
    known = tuple(dict.fromkeys(name for name in named if name in ("text", "image")))
    return ("text", "image") if "message" in named else known


def _names(modality: Any) -> tuple[str, ...]:
    return (modality,) if isinstance(modality, str) else tuple(modality)


def require_batch_size(batch_size: int) -> None:
    """Refuses a batch without rows."""
    if batch_size < 1:
        raise InvalidInputError(f"batch_size={batch_size}: expected at least 1.")


def present(items: list[Any]) -> list[Any] | None:
    """Returns the items, some of which may be `None`; `None` if all of them are."""
    return None if all(item is None for item in items) else items


def require_attributes(thing: Any, names: Sequence[str], expected: str) -> None:
    """Refuses a model or processor of another kind, naming what it lacks."""
    missing = [name for name in names if not hasattr(thing, name)]
    if missing:
        raise InvalidInputError(f"A {type(thing).__name__} without {missing} came, but {expected} is needed.")


def _pick(items: Sequence[Any] | None, rows: Sequence[int]) -> list[Any] | None:
    return None if items is None else present([items[row] for row in rows])


def _rows_of(inputs: Mapping[str, Any], rows: list[int], keeps_padding: bool) -> dict[str, Any]:
    """Some rows of padded inputs, without the columns that are padding in all of them, unless that is read, too."""
    if keeps_padding:
        return {name: tensor[rows] for name, tensor in inputs.items()}
    mask = inputs["attention_mask"][rows]  # (n, L)
    used = mask.any(dim=0).nonzero()
    width = int(used[-1]) + 1 if len(used) else 1
    full = inputs["attention_mask"].shape[1]
    return {
        name: tensor[rows][:, :width] if tensor.dim() == 2 and tensor.shape[1] == full else tensor[rows]
        for name, tensor in inputs.items()
    }
