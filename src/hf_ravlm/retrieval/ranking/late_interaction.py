"""Late interaction: MaxSim over one vector per token, token pooling, and a reranker that applies them to candidates.

The cosines of each query token with the passage token most like it add up (Khattab, Zaharia, "ColBERT", SIGIR 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...errors import InvalidInputError
from ..encoding.encoders import TokenEncoder, present
from ..passage import Passage
from ..unit_vectors import unit_or_zero
from .channels import Query


def maxsim(
    queries: torch.Tensor,
    documents: torch.Tensor,
    query_mask: torch.Tensor | None = None,
    document_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the sum, over the tokens of a query, of the largest inner product with any token of a document.

    Args:
        queries: Shape (n, Q, D).
        documents: The candidates of each query, shape (n, K, T, D).
        query_mask: Which query tokens count, bool (n, Q); `None` for all.
        document_mask: Which document tokens count, bool (n, K, T); `None` for all.

    Returns:
        Scores of shape (n, K); -inf for a document without tokens.

    Example: the first query token finds its like (1.0), the second its half (0.5).

    >>> queries = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> documents = torch.tensor([[[[1.0, 0.0], [0.0, 0.5], [0.0, 9.0]]]])
    >>> maxsim(queries, documents, document_mask=torch.tensor([[[True, True, False]]]))
    tensor([[1.5000]])
    """
    similarities = torch.einsum("nqd,nktd->nkqt", queries, documents)
    if document_mask is not None:
        similarities = similarities.masked_fill(~document_mask[:, :, None, :], -torch.inf)
    if similarities.shape[-1] == 0:
        return similarities.new_full(similarities.shape[:2], -torch.inf)
    best = similarities.amax(dim=-1)  # (n, K, Q)
    if query_mask is not None:
        best = best.masked_fill(~query_mask[:, None, :], 0.0)
    scores = best.sum(dim=-1)  # (n, K)
    return scores if document_mask is None else scores.masked_fill(~document_mask.any(dim=-1), -torch.inf)


def pool_tokens(vectors: np.ndarray, factor: int) -> np.ndarray:
    """Merges similar tokens of one passage, so that fewer vectors need to be kept.

    Ward's criterion merges the two clusters whose union adds least to the squared distances from their mean, until
    `T // factor` clusters are left (at least 1). Each becomes its mean, as a unit vector. Clavié, Chaffin, Adams,
    "Reducing the footprint of multi-vector retrieval with minimal performance impact via token pooling" (2024), keep
    about 98 percent of the quality with a factor of 3.

    Args:
        vectors: Unit vectors, shape (T, D).
        factor: How many tokens share a vector on average; 1 changes nothing.

    Returns:
        Unit vectors in float32, in the order of the first token of each cluster, shape (max(T // factor, 1), D).

    Raises:
        InvalidInputError: If `factor < 1`.

    >>> pool_tokens(np.array([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [0.0, 1.0]]), factor=2).round(2)
    array([[0.95, 0.32],
           [0.  , 1.  ]], dtype=float32)
    """
    if factor < 1:
        raise InvalidInputError(f"factor={factor}: expected at least 1.")
    num_tokens = len(vectors)
    if factor == 1 or num_tokens < 2:
        return np.asarray(vectors, np.float32)
    _, clusters = np.unique(ward_clusters(vectors, max(num_tokens // factor, 1)), return_inverse=True)
    sums = np.zeros((clusters.max() + 1, vectors.shape[1]))
    np.add.at(sums, clusters, vectors)
    return unit_or_zero(sums)


def ward_clusters(vectors: np.ndarray, num_clusters: int) -> np.ndarray:
    """Returns for every token (T, D) the first of its cluster, (T,), by Ward's criterion; exact, in O(T³)."""
    points = np.asarray(vectors, np.float64)
    squares = np.square(points).sum(axis=1)
    costs = squares[:, None] + squares[None, :] - 2 * points @ points.T  # (T, T)
    np.fill_diagonal(costs, np.inf)
    sizes = np.ones(len(points))
    clusters = np.arange(len(points))
    for _ in range(len(points) - num_clusters):
        first, second = sorted(divmod(int(costs.argmin()), len(points)))
        # Lance and Williams: the cost of merging any cluster with the union, from the costs with its parts.
        merged = (
            (sizes[first] + sizes) * costs[first]
            + (sizes[second] + sizes) * costs[second]
            - sizes * costs[first, second]
        ) / (sizes[first] + sizes[second] + sizes)
        merged[[first, second]] = np.inf
        costs[first], costs[:, first] = merged, merged
        costs[second], costs[:, second] = np.inf, np.inf
        sizes[first] += sizes[second]
        clusters[clusters == second] = first
    return clusters


class LateInteractionReranker:
    """Scores candidates by MaxSim over token vectors.

    Args:
        encoder: Has the methods of `TokenEncoder`.
        stored: Token vectors of all passages: `gather(rows)` of shape (n, K) returns floats of shape (n, K, T, D) and
            a mask (n, K, T), as `PassageStates` does. `None` encodes candidates anew.
        rows_of: Finds the rows of passages by their ids; needed with `stored`.
        pooling: The factor of `pool_tokens` for candidates encoded here.

    Raises:
        InvalidInputError: If the encoder has no such methods, or `stored` comes without `rows_of`.
    """

    def __init__(
        self,
        encoder: Any,
        stored: Any = None,
        rows_of: Callable[[list[str]], np.ndarray] | None = None,
        pooling: int = 1,
    ) -> None:
        if not isinstance(encoder, TokenEncoder):
            raise InvalidInputError(
                f"The encoder is a {type(encoder).__name__} without `encode_queries_tokens` and "
                "`encode_passages_tokens`. Late interaction needs one vector per token."
            )
        if stored is not None and rows_of is None:
            raise InvalidInputError("`stored` token vectors need `rows_of`, which finds the rows of passages by id.")
        self.encoder, self.stored, self.rows_of, self.pooling = encoder, stored, rows_of, pooling

    def score(self, queries: Sequence[Query], candidates: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        """See `Reranker`; sums of cosines, at most the number of query tokens."""
        query_tokens = self.encoder.encode_queries_tokens(
            present([query.image for query in queries]), present([query.text for query in queries])
        )
        documents = self._documents(candidates)
        scores = [np.zeros(0, np.float32)] * len(candidates)
        for place, (tokens, found) in enumerate(zip(query_tokens, candidates, strict=True)):
            if found:
                vectors, mask = documents(found)
                similarity = maxsim(torch.from_numpy(np.asarray(tokens, np.float32))[None], vectors, None, mask)
                scores[place] = similarity[0].masked_fill(~mask[0].any(dim=-1), torch.nan).numpy()
        return scores

    def _documents(
        self, candidates: Sequence[Sequence[Passage]]
    ) -> Callable[[Sequence[Passage]], tuple[torch.Tensor, torch.Tensor]]:
        """A function from passages to their padded token vectors (1, K, T, D) and mask (1, K, T)."""
        if self.stored is not None:
            return self._gathered
        # A passage that several queries found is encoded once.
        unique = {passage.id: passage for found in candidates for passage in found}
        encoded = self.encoder.encode_passages_tokens(
            [passage.text for passage in unique.values()], [passage.image for passage in unique.values()]
        )
        tokens = {name: pool_tokens(vectors, self.pooling) for name, vectors in zip(unique, encoded, strict=True)}
        return lambda found: _padded([tokens[passage.id] for passage in found])

    def _gathered(self, found: Sequence[Passage]) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.rows_of is not None
        vectors, mask = self.stored.gather(np.asarray(self.rows_of([passage.id for passage in found]))[None])
        return torch.as_tensor(vectors).float(), torch.as_tensor(mask)


def _padded(token_vectors: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = np.array([len(vectors) for vectors in token_vectors])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]  # (K, T)
    padded = np.zeros((*mask.shape, token_vectors[0].shape[1]), np.float32)
    padded[mask] = np.concatenate(token_vectors)
    return torch.from_numpy(padded)[None], torch.from_numpy(mask)[None]
