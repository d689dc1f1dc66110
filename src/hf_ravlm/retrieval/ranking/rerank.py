"""Rerankers, which score the candidates of a search anew: an image-text-matching head, a reader, a cross-encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ...errors import InvalidInputError
from ...tokenization import tokenizer_lock
from ..passage import Passage
from .channels import Query


PairScorer = Callable[[list[Query], list[Passage]], Any]


class Reranker(Protocol):
    """Whatever scores candidates anew."""

    def score(self, queries: Sequence[Query], candidates: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        """Returns one score per candidate, an array per query, the higher the better; NaN where it cannot judge."""
        ...


class ItmReranker:
    """Scores by the probability that an image-text-matching head gives to a pair of query and passage.

    Args:
        match: Takes queries and passages, one of each per pair, and returns logits (B, 2) of "no match" and "match",
            as BLIP's `itm_score`, or scores (B,).
        batch_size: How many pairs go through the model at once.

    Example, with a head that counts common letters:

    >>> def match(queries, passages):
    ...     return [[0.0, len(set(query.text) & set(passage.text))] for query, passage in zip(queries, passages)]
    >>> ItmReranker(match).score([Query("owl")], [[Passage("1", "wolf"), Passage("2", "hen")]])[0].round(2)
    array([0.95, 0.5 ], dtype=float32)

    With BLIP of transformers:

    >>> def match(queries, passages):  # doctest: +SKIP
    ...     images, texts = [query.image for query in queries], [passage.text for passage in passages]
    ...     inputs = processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")
    ...     return blip(**inputs).itm_score
    """

    def __init__(self, match: PairScorer, batch_size: int = 32) -> None:
        self.match, self.batch_size = match, batch_size

    def score(self, queries: Sequence[Query], candidates: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        """See `Reranker`; probabilities where the head gives two logits."""
        return score_pairs(queries, candidates, self._score_batch, self.batch_size)

    def _score_batch(self, queries: list[Query], passages: list[Passage]) -> np.ndarray:
        scores = _as_array(self.match(queries, passages))
        return _sigmoid(_difference(scores)) if scores.ndim == 2 and scores.shape[1] == 2 else scores


class YesNoReranker:
    """Scores by how much a reader prefers "yes" to "no" when asked whether a passage helps: σ(logit yes - logit no).

    Args:
        next_token_logits: Takes queries and passages, one of each per pair, asks the reader, and returns its logits
            (B, V) for the first token of the answer. It writes the prompt, in which a passage must stay data.
        yes_ids: The tokens that say yes; several spellings count together. `answer_token_ids` finds them.
        no_ids: The tokens that say no.
        batch_size: How many pairs go through the model at once.

    Raises:
        InvalidInputError: If there are no tokens for yes or for no, or one is for both.

    Example, with a reader of three tokens (no, yes, other):

    >>> def logits(queries, passages):
    ...     return np.array([[0.0, 2.0 if "owl" in passage.text else -2.0, 5.0] for passage in passages])
    >>> reranker = YesNoReranker(logits, yes_ids=[1], no_ids=[0])
    >>> reranker.score([Query("Which?")], [[Passage("1", "an owl"), Passage("2", "a hen")]])[0].round(2)
    array([0.88, 0.12], dtype=float32)
    """

    def __init__(
        self, next_token_logits: PairScorer, yes_ids: Sequence[int], no_ids: Sequence[int], batch_size: int = 8
    ) -> None:
        if not yes_ids or not no_ids or set(yes_ids) & set(no_ids):
            raise InvalidInputError(f"yes_ids={yes_ids}, no_ids={no_ids}: expected tokens for each, none for both.")
        self.next_token_logits = next_token_logits
        self.yes_ids, self.no_ids, self.batch_size = list(yes_ids), list(no_ids), batch_size

    def score(self, queries: Sequence[Query], candidates: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        """See `Reranker`; probabilities."""
        return score_pairs(queries, candidates, self._score_batch, self.batch_size)

    def _score_batch(self, queries: list[Query], passages: list[Passage]) -> np.ndarray:
        logits = _as_array(self.next_token_logits(queries, passages))  # (B, V)
        yes, no = (np.logaddexp.reduce(logits[:, ids], axis=1) for ids in (self.yes_ids, self.no_ids))
        return _sigmoid(yes - no)


class CrossEncoderReranker:
    """Scores the text of a query and the text of a passage together, with a cross-encoder.

    Queries or passages without text cannot be judged and get NaN.

    Args:
        model: A `CrossEncoder` of sentence-transformers (it has `predict`), or a sequence classifier of transformers.
        tokenizer: The tokenizer of a sequence classifier; `None` for a model with `predict`.
        batch_size: How many pairs go through the model at once.
        max_length: Tokens of a pair, for a sequence classifier.

    Raises:
        InvalidInputError: If the model has no `predict` and there is no tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any = None, batch_size: int = 32, max_length: int = 512) -> None:
        if not callable(getattr(model, "predict", None)) and tokenizer is None:
            raise InvalidInputError(
                f"A {type(model).__name__} has no `predict` and came without a tokenizer. Pass a CrossEncoder of "
                "sentence-transformers, or a sequence classifier of transformers with its tokenizer."
            )
        self.model, self.tokenizer, self.batch_size, self.max_length = model, tokenizer, batch_size, max_length

    def score(self, queries: Sequence[Query], candidates: Sequence[Sequence[Passage]]) -> list[np.ndarray]:
        """See `Reranker`; the model's own scale: one logit, or the second of two minus the first."""
        return score_pairs(queries, candidates, self._score_batch, self.batch_size, needs_texts=True)

    def _score_batch(self, queries: list[Query], passages: list[Passage]) -> np.ndarray:
        pairs = [(query.text, passage.text) for query, passage in zip(queries, passages, strict=True)]
        if self.tokenizer is None:
            return _difference(_as_array(self.model.predict(pairs, show_progress_bar=False)))
        import torch

        texts, passage_texts = map(list, zip(*pairs, strict=True))
        cut = {"padding": True, "truncation": True, "max_length": self.max_length}
        with tokenizer_lock(self.tokenizer):
            inputs = self.tokenizer(texts, passage_texts, return_tensors="pt", **cut)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            logits = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits  # (B, 1 or 2)
        return _difference(_as_array(logits))


def score_pairs(
    queries: Sequence[Query],
    candidates: Sequence[Sequence[Passage]],
    score_batch: PairScorer,
    batch_size: int,
    needs_texts: bool = False,
) -> list[np.ndarray]:
    """Scores every candidate of every query in batches of pairs, for rerankers of your own.

    Args:
        queries: The queries.
        candidates: The passages found for each.
        score_batch: Takes queries and passages, at most `batch_size` of each, and returns scores (B,).
        batch_size: How many pairs go to `score_batch` at once.
        needs_texts: Whether pairs without both texts get NaN unseen.

    Returns:
        Scores in float32, an array per query.

    Raises:
        InvalidInputError: If `batch_size < 1`, or `score_batch` returns a wrong number of scores.
    """
    if batch_size < 1:
        raise InvalidInputError(f"batch_size={batch_size}: expected at least 1.")
    pairs = [(query, passage) for query, found in zip(queries, candidates, strict=True) for passage in found]
    scores = np.full(len(pairs), np.nan, np.float32)
    judged = [place for place, pair in enumerate(pairs) if not needs_texts or all(part.text for part in pair)]
    for start in range(0, len(judged), batch_size):
        places = judged[start : start + batch_size]
        batch = _as_array(score_batch(*map(list, zip(*(pairs[place] for place in places), strict=True))))
        if batch.shape != (len(places),):
            raise InvalidInputError(
                f"The reranker returned scores of shape {batch.shape} for {len(places)} pairs. Expected one per pair."
            )
        scores[places] = batch
    return np.split(scores, np.cumsum([len(found) for found in candidates])[:-1]) if candidates else []


def answer_token_ids(tokenizer: Any, word: str) -> list[int]:
    """Returns the single tokens with which an answer may begin that says `word`: plain, after a space, capitalised.

    Raises:
        InvalidInputError: If the tokenizer splits all spellings.
    """
    spellings = [space + form for form in (word, word.capitalize()) for space in ("", " ")]
    encoded = [tokenizer(spelling, add_special_tokens=False)["input_ids"] for spelling in spellings]
    ids = sorted({int(tokens[0]) for tokens in encoded if len(tokens) == 1})
    if not ids:
        raise InvalidInputError(f"The tokenizer has no single token for {word!r}, however spelt. Choose another word.")
    return ids


def _difference(scores: np.ndarray) -> np.ndarray:
    """Of two logits (B, 2) the second minus the first; one logit (B, 1) or score (B,) as it is."""
    if scores.ndim == 2 and scores.shape[1] in (1, 2):
        scores = scores[:, -1] - (scores[:, 0] if scores.shape[1] == 2 else 0)
    return np.asarray(scores)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    # Through tanh, which never overflows.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a torch tensor, perhaps in bfloat16 or on another device
        values = values.detach().float().cpu().numpy()
    return np.asarray(values, np.float32)
