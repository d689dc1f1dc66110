"""Our encoders in the benchmarks of mteb: pip install "hf_ravlm[mteb]"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..retrieval import Encoder
from ..retrieval.encoding.encoders import modalities_of


if TYPE_CHECKING:
    from mteb.types import PromptType


class MtebEncoder:
    """Any encoder that a retriever takes, as a model that `mteb.evaluate` takes.

    Queries go to `encode_queries` and everything else to `encode_passages`, with their images where a task has any.
    The batch size is that of the encoder, not mteb's.

    Args:
        encoder: Such as `RavlmEncoder`, or what `load_encoder` returns.
        name: What mteb calls the model, of the form `organisation/model`.

    Raises:
        ImportError: If mteb is missing.

    Example:

    ```python
    >>> import mteb  # doctest: +SKIP
    >>> model = MtebEncoder(RavlmEncoder(model, processor), "me/flags")  # doctest: +SKIP
    >>> mteb.evaluate(model, mteb.get_tasks(["CUB200I2IRetrieval"]))  # doctest: +SKIP

    ```
    """

    def __init__(self, encoder: Encoder, name: str = "hf_ravlm/encoder") -> None:
        try:
            from mteb.models import ModelMeta
            from mteb.models.model_meta import ScoringFunction
        except ImportError as error:
            raise ImportError('Evaluating with mteb needs: pip install "hf_ravlm[mteb]"') from error
        self.encoder = encoder
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": encoder.fingerprint,
                "similarity_fn_name": ScoringFunction.COSINE,
                "modalities": [name for name in ("text", "image") if name in modalities_of(encoder)],
                "framework": ["PyTorch"],
            }
        )

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **options: Any) -> np.ndarray:
        """Returns unit vectors (n, D) in float32.

        Args:
            inputs: Batches of mteb: dictionaries with the lists `text`, `image`, or both.
            prompt_type: Whether these are queries or documents; `None` for tasks in which they are the same.
            **options: Of mteb, for other models.
        """
        texts: list[str | None] = []
        images: list[Any] = []
        for batch in inputs:
            num_rows = len(batch["image"] if "image" in batch else batch["text"])
            texts.extend(batch.get("text") or [None] * num_rows)
            images.extend(batch.get("image") or [None] * num_rows)
        if prompt_type is not None and str(prompt_type.value) == "query":
            has_image, has_text = (any(item is not None for item in items) for items in (images, texts))
            return self.encoder.encode_queries(images if has_image else None, texts if has_text else None)
        return self.encoder.encode_passages(texts, images)

    def similarity(self, left: Any, right: Any) -> np.ndarray:
        """The inner products (n, m) of unit vectors (n, D) and (m, D), which are their cosines."""
        return np.asarray(left) @ np.asarray(right).T

    def similarity_pairwise(self, left: Any, right: Any) -> np.ndarray:
        """The inner products (n,) of unit vectors (n, D) row by row."""
        products: np.ndarray = np.einsum("nd,nd->n", np.asarray(left), np.asarray(right))
        return products


__all__ = ["MtebEncoder"]
