"""Encoders for models of images and texts (CLIP, SigLIP, ...), and for those of images alone (DINOv2, ...)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...errors import InvalidInputError
from ...tokenization import tokenize
from ..unit_vectors import unit_or_zero
from .encoders import Images, Texts, count_rows, require_attributes, require_batch_size
from .inference_model import InferenceModel, image_settings, processor_settings
from .text_counts import TextCounts, counts_of, warn_of_queries
from .text_model_encoder import longest_text
from .token_batches import encode_in_batches


# Trained on texts padded to the full length, without a mask: shorter padding changes their vectors.
_FULLY_PADDED = ("siglip", "siglip2")
_MAX_SIGLIP_LENGTH = 64
# SigLIP 2 was trained on lower case, which its Gemma tokenizer leaves to the caller.
_CASED_TOKENIZERS = ("GemmaTokenizer", "GemmaTokenizerFast")


class DualEncoder:
    """Encodes with a model of two towers, such as CLIP, SigLIP or SigLIP 2, and its processor.

    A row with image and text becomes the normalised sum of the two unit vectors.

    Args:
        model: Has `get_image_features(pixel_values=...)` and `get_text_features(input_ids=...)`.
        processor: Holds an `image_processor` and a `tokenizer`.
        batch_size: How many rows go through a tower at once.
        dtype: See `RavlmEncoder`.
        query_prompt, passage_prompt: Put before the text of every query or passage.

    Attributes:
        text_counts: How many texts were read and cut, see `TextCounts`.

    Raises:
        InvalidInputError: If model or processor are of another kind, or `batch_size < 1`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        batch_size: int = 64,
        dtype: str | None = None,
        *,
        query_prompt: str = "",
        passage_prompt: str = "",
    ) -> None:
        require_attributes(model, ("get_image_features", "get_text_features"), "a dual encoder such as CLIPModel")
        require_attributes(processor, ("image_processor", "tokenizer"), "the processor of the model")
        require_batch_size(batch_size)
        self.processor = processor
        self.batch_size = batch_size
        self.query_prompt, self.passage_prompt = query_prompt, passage_prompt
        self._inference_model = InferenceModel(model, dtype)
        self._fully_padded = getattr(getattr(model, "config", None), "model_type", None) in _FULLY_PADDED
        self.text_counts = TextCounts(limit=self._text_options()["max_length"])

    @property
    def name(self) -> str:
        """Class and number type of the model, for messages."""
        return self._inference_model.describe()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and their type, settings of the network, image processing, tokenizer and prompts."""
        settings: dict[str, Any] = {**processor_settings(self.processor), "text_options": self._text_options()}
        if self._lowers_case():
            settings["lower_case"] = True
        if self.query_prompt or self.passage_prompt:
            settings["prompts"] = [self.query_prompt, self.passage_prompt]
        return self._inference_model.fingerprint(**settings)

    @property
    def logit_scale(self) -> float | None:
        """`1 / temperature`, which the model was trained with; `None` if it has none."""
        model = self._inference_model.model
        scale, temperature = getattr(model, "logit_scale", None), getattr(model, "temperature", None)
        if isinstance(scale, torch.Tensor) and scale.numel() == 1:
            return float(scale.detach().float().exp())
        return float(1 / temperature.detach().float()) if isinstance(temperature, torch.Tensor) else None

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) of images, texts, or both.

        Raises:
            InvalidInputError: If there are none, or their numbers differ.
        """
        before = counts_of(self)
        vectors = self._encode(images, texts, self.query_prompt)
        warn_of_queries(self, before)
        return vectors

    def encode_passages(self, texts: Texts, images: Images) -> np.ndarray:
        """Returns unit vectors (n, D) of passages, which are encoded as queries are, but for the prompt."""
        return self._encode(images, texts, self.passage_prompt)

    def _encode(self, images: Images | None, texts: Texts | None, prompt: str) -> np.ndarray:
        num_rows = count_rows(images, texts)
        if num_rows == 0:
            return np.zeros((0, 0), np.float32)
        texts = None if texts is None else [None if text is None else prompt + text for text in texts]
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

    def _tower_vectors(self, features: Callable[[list[Any]], Any], items: list[Any]) -> np.ndarray:
        def encode(rows: list[int]) -> list[np.ndarray]:
            return list(_pooled(features([items[row] for row in rows])))

        lengths = [len(item) if isinstance(item, str) else 0 for item in items]
        return unit_or_zero(np.stack(encode_in_batches(encode, lengths, "Encoding", max_rows=self.batch_size)))

    def _image_features(self, model: Any, images: list[Image.Image]) -> Any:
        inputs = self.processor.image_processor(images=images, return_tensors="pt")
        return model.get_image_features(**self._inference_model.inputs(inputs))

    def _text_features(self, model: Any, texts: list[str]) -> Any:
        if self._lowers_case():
            texts = [text.lower() for text in texts]
        tokenizer = self.processor.tokenizer
        inputs = tokenize(tokenizer, texts, return_tensors="pt", **self._text_options())
        self.text_counts.note(tokenizer, inputs, texts)
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        return model.get_text_features(**self._inference_model.inputs(kept))

    def _lowers_case(self) -> bool:
        """Whether texts are to be in lower case, and the tokenizer does not see to that."""
        return self._fully_padded and type(self.processor.tokenizer).__name__ in _CASED_TOKENIZERS

    def _text_options(self) -> dict[str, Any]:
        length = longest_text(self._inference_model.model, self.processor.tokenizer)
        length = min(length, _MAX_SIGLIP_LENGTH) if self._fully_padded else length
        padding = "max_length" if self._fully_padded else True
        return {"padding": padding, "truncation": True, "max_length": int(length), "split_special_tokens": True}


class ImageEncoder:
    """Encodes images with a model that reads nothing else, such as DINOv2, ViT or ConvNeXt; texts are ignored.

    The vector of an image is what the model calls its pooled output; without one, the state of its first token.

    Args:
        model: Gives `pooler_output` or `last_hidden_state` for `pixel_values`.
        image_processor: Makes the inputs of images.
        batch_size: How many images go through the model at once.
        dtype: See `RavlmEncoder`.
        pooled: Whether to take the pooled output; `None` for whether there is one. A model whose checkpoint lacks the
            weights for it makes it by chance.

    Raises:
        InvalidInputError: If `batch_size < 1`.
    """

    modalities = ("image",)

    def __init__(
        self,
        model: Any,
        image_processor: Any,
        batch_size: int = 64,
        dtype: str | None = None,
        *,
        pooled: bool | None = None,
    ) -> None:
        require_batch_size(batch_size)
        self.image_processor = image_processor
        self.batch_size = batch_size
        self.pooled = pooled
        self._inference_model = InferenceModel(model, dtype)
        self._takes_noise = "noise" in inspect.signature(model.forward).parameters

    @property
    def name(self) -> str:
        """Class and number type of the model, for messages."""
        return self._inference_model.describe()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights and their type, settings of the network, and image processing."""
        return self._inference_model.fingerprint(**image_settings(self.image_processor), pooled=self.pooled)

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, D) of images; every query needs one.

        Raises:
            InvalidInputError: If a row has no image.
        """
        num_rows = count_rows(images, texts)
        missing = [row for row in range(num_rows) if images is None or images[row] is None]
        if missing:
            raise InvalidInputError(
                f"{len(missing)} of {num_rows} rows have no image (the first: row {missing[0]}), and this encoder "
                f"({self.name}) sees images only. Use an encoder for images and texts, such as SigLIP."
            )
        if num_rows == 0 or images is None:
            return np.zeros((0, 0), np.float32)
        with self._inference_model.running() as model:

            def encode(rows: list[int]) -> list[np.ndarray]:
                inputs = self.image_processor(images=[images[row] for row in rows], return_tensors="pt")
                return list(self._vectors(model, self._inference_model.inputs(inputs)))

            encoded = encode_in_batches(encode, [0] * num_rows, "Encoding images", max_rows=self.batch_size)
        return unit_or_zero(np.stack(encoded))

    def encode_passages(self, texts: Texts, images: Images) -> np.ndarray:
        """Returns unit vectors (n, D) of the images of passages; every passage needs one."""
        return self.encode_queries(images, texts)

    def _vectors(self, model: Any, inputs: dict[str, Any]) -> np.ndarray:
        if self._takes_noise:  # ViT-MAE shuffles and leaves out patches by it; here it keeps all, in their order
            config = model.config
            size, patch = (
                value if isinstance(value, (tuple, list)) else (value, value)
                for value in (config.image_size, config.patch_size)
            )
            patches = (size[0] // patch[0]) * (size[1] // patch[1])
            rows, device = len(inputs["pixel_values"]), inputs["pixel_values"].device
            inputs["noise"] = torch.arange(patches, device=device, dtype=torch.float32).expand(rows, patches)
        outputs = model(**inputs)
        return _pooled(outputs) if self.pooled is not False else _pooled(outputs.last_hidden_state)


def _pooled(outputs: Any) -> np.ndarray:
    """One vector per row (n, D) in float32: transformers 5 returns them in an output, older models as a tensor."""
    for name in ("image_embeds", "pooler_output", "last_hidden_state"):
        value = getattr(outputs, name, None)
        if value is not None:
            outputs = value
            break
    vectors: np.ndarray = outputs.float().cpu().numpy()
    if vectors.ndim == 4:
        if vectors.shape[2] == vectors.shape[3] == 1:  # ConvNets pool to a map of one place
            return np.asarray(vectors[:, :, 0, 0])
        return np.asarray(vectors.mean(axis=(2, 3)))
    return vectors[:, 0] if vectors.ndim == 3 else vectors  # FLAVA: that of the first token
