"""Which tokens and image cells of a query match which of a passage, as a table of numbers that add up to the score.

Late interaction (MaxSim) adds up, over the query's tokens, the best cosine with any token of the passage. In our dual
encoder pooling and projection are linear, so a vector is the sum of one part per token and per cell of the image, and
the cosine is the sum of all their inner products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..errors import InvalidInputError
from .gradcam import evaluation_mode


@dataclass
class TokenMatch:
    """How the parts of a query match the parts of a passage.

    Args:
        query_parts, passage_parts (`list[str]`): `Q` and `T` labels: tokens, and cells of images as `[row,column]`.
        matches (`np.ndarray` of shape `(Q, T)`): cosines for `"maxsim"`, contributions to the score for `"cosine"`.
        score (`float`): the sum of all matches (`"cosine"`), or of the largest of every row (`"maxsim"`).
        kind (`str`): `"maxsim"` or `"cosine"`.
        query_cells, passage_cells (`int`): how many of the parts, the first ones, are cells of an image.
    """

    query_parts: list[str]
    passage_parts: list[str]
    matches: np.ndarray
    score: float
    kind: Literal["maxsim", "cosine"]
    query_cells: int = 0
    passage_cells: int = 0

    @property
    def best(self) -> np.ndarray:
        """For each part of the query the part of the passage that matches it best, `(Q,)`."""
        return self.matches.argmax(axis=1)

    @property
    def shares(self) -> dict[str, float]:
        """What images and words of the query (before `/`) and of the passage add to a cosine; sums to `score`."""
        rows, columns = (
            {"image": slice(0, cells), "words": slice(cells, None)} for cells in (self.query_cells, self.passage_cells)
        )
        parts = {f"{row}/{column}": self.matches[rows[row], columns[column]] for row in rows for column in columns}
        return {name: float(part.sum()) for name, part in parts.items() if part.size}


def maxsim_match(
    query_tokens: np.ndarray,
    passage_tokens: np.ndarray,
    query_parts: Sequence[str] | None = None,
    passage_parts: Sequence[str] | None = None,
) -> TokenMatch:
    """The MaxSim map of one query and one passage, of which an encoder gave one unit vector per token.

    Args:
        query_tokens (`np.ndarray` of shape `(Q, D)`), passage_tokens (`(T, D)`): as `encode_queries_tokens` and
            `encode_passages_tokens` return them, without padding.
        query_parts, passage_parts (`Sequence[str]`, *optional*): what the tokens are called; numbers by default.

    Raises:
        `InvalidInputError`: if widths differ, a side is empty, or there is not one label per token.

    Example: the first token finds its like, the second its half.

    >>> found = maxsim_match(np.eye(2), np.array([[1.0, 0.0], [0.0, 0.5]]), ["a", "kite"], ["a", "bird"])
    >>> found.score, found.passage_parts[found.best[1]]
    (1.5, 'bird')
    """
    query_tokens, passage_tokens = np.asarray(query_tokens, np.float32), np.asarray(passage_tokens, np.float32)
    shapes = query_tokens.shape, passage_tokens.shape
    if any(len(shape) != 2 or not shape[0] for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise InvalidInputError(f"token vectors came as {shapes[0]} and {shapes[1]}; expected (Q, D) and (T, D)")
    labels = []
    for given, vectors in ((query_parts, query_tokens), (passage_parts, passage_tokens)):
        labels.append([str(place) for place in range(1, len(vectors) + 1)] if given is None else list(given))
        if len(labels[-1]) != len(vectors):
            raise InvalidInputError(f"{len(labels[-1])} labels came for {len(vectors)} tokens; give one each, or none")
    matches = query_tokens @ passage_tokens.T  # (Q, T)
    return TokenMatch(labels[0], labels[1], matches, float(matches.max(axis=1).sum()), "maxsim")


def cosine_match(
    model: Any,
    processor: Any,
    image: Any = None,
    text: str | None = None,
    passage_text: str | None = None,
    passage_image: Any = None,
) -> TokenMatch:
    """The retrieval score of a [`RavlmModel`], taken apart: which part of the query and which of the passage make it.

    Exact, without gradients: with `v = sum_i v_i` and `p = sum_j p_j`, `cosine = sum_ij v_i . p_j`.

    Args:
        model, processor: the dual encoder (of a reader, `reader.model`) and its processor.
        image, text, passage_text, passage_image: the query and the passage; each has at least one of the two.

    Returns:
        [`TokenMatch`] whose `score` is the cosine that the retriever reports.
    """
    if model.config.encoder_config is not None:
        raise InvalidInputError(
            "this dual encoder was kept whole, and its own pooling does not make a vector that is a sum of parts; "
            "see where a score comes from with `retrieval_grad_cam`"
        )
    with evaluation_mode(model), torch.no_grad():
        sides = [_parts(model, processor, *side) for side in ((image, text), (passage_image, passage_text))]
    (query_parts, query), (passage_parts, passage) = sides
    matches = (query @ passage.mT).cpu().numpy()
    cells = [model.config.pooling_grid**2 if image is not None else 0 for image in (image, passage_image)]
    return TokenMatch(query_parts, passage_parts, matches, float(matches.sum()), "cosine", *cells)


def _parts(model: Any, processor: Any, image: Any, text: str | None) -> tuple[list[str], torch.Tensor]:
    """Labels and vectors `(number of parts, D)` that add up to the unit vector of a query or passage."""
    given = {"images": None if image is None else [image], "texts": [text] if text else None}
    inputs = processor.for_retrieval(**given).to(model.device)
    image_weight, text_weight = model.modality_log_weight.float().exp()
    labels: list[str] = []
    vectors: list[torch.Tensor] = []
    if "pixel_values" in inputs:
        grid = model.config.pooling_grid
        patches = model.get_image_patches(inputs["pixel_values"], grid)[0]  # (cells, C)
        weight = model.image_projection.weight.unflatten(1, (grid * grid, -1))  # (D, cells, C)
        parts = torch.einsum("dnc,nc->nd", weight, patches) + model.image_projection.bias / grid**2
        vectors.append(image_weight * _to_unit_sum(parts))
        labels += [f"[{cell // grid + 1},{cell % grid + 1}]" for cell in range(grid * grid)]
    if "input_ids" in inputs:
        states = model.get_text_states(inputs["input_ids"], inputs["attention_mask"])[0]  # (L, C)
        kept = inputs["attention_mask"][0].bool()
        vectors.append(text_weight * _to_unit_sum(model.text_projection(states[kept])))
        tokens = inputs["input_ids"][0][kept].tolist()
        labels += [processor.text_tokenizer.decode([token]).strip() for token in tokens]
    return labels, _to_unit_sum(torch.cat(vectors))


def _to_unit_sum(parts: torch.Tensor) -> torch.Tensor:
    """Parts `(N, D)`, scaled alike so that their sum has the length 1."""
    parts = parts.float()
    return parts / parts.sum(dim=0).norm().clamp(min=1e-12)
