"""Features of passages and answers: the numbers that critic and confidence judge by, explained in `decision_heads`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ...errors import InvalidInputError
from .decision_heads import EVIDENCE_FEATURES, PASSAGE_FEATURES


RARE = 0.01  # words in no more than this share of all passages count in full, those in all passages not at all
CLOSE = 0.1  # of cosine; a passage so far below the best one has 1/e of its weight in what is agreed on


def word_shares(texts: Iterable[str], least_share: float = RARE) -> dict[str, float]:
    """The words that are in more than `least_share` of the texts, with that share: they tell passages least apart.

    Example:

    ```python
    >>> word_shares(["the capital of Chad", "the capital of Mali"], least_share=0.5)
    {'capital': 1.0, 'of': 1.0, 'the': 1.0}

    ```
    """
    from ...retrieval.indexes.lexical_tokens import lexical_tokens

    held = [set(lexical_tokens(text)) for text in texts]
    counts = Counter(word for words in held for word in words)
    return {word: count / len(held) for word, count in sorted(counts.items()) if count / len(held) > least_share}


def passage_agreement(texts: Sequence[str], scores: Sequence[float], shares: Mapping[str, float]) -> list[float]:
    """How many of the other passages share a rare word with each passage: 0 (none) to 1 (all).

    Over the words of a passage, the highest product of the word's rarity and the weighted share of the other passages
    that have it; passages far below the best weigh little. Passages found for one question mostly are about one
    thing, and name it; a passage about something else names that.

    Args:
        texts (`list[str]`), scores (`list[float]`): Of the passages that were found for one question.
        shares (`dict[str, float]`): Of `word_shares`, over many passages; a word that it lacks is rare.

    Example:

    ```python
    >>> found = ["Capital of Chad: N'Djamena.", "Language of Chad: Arabic.", "Capital of Mali: Bamako."]
    >>> passage_agreement(found, [0.9, 0.9, 0.9], {"of": 1.0, "capital": 0.1, "language": 0.1})
    [0.5, 0.5, 0.25]

    ```
    """
    from ...retrieval.indexes.lexical_tokens import lexical_tokens

    words_of = [set(lexical_tokens(text)) for text in texts]
    weights = [math.exp((score - max(scores)) / CLOSE) for score in scores]
    weight_with: dict[str, float] = {}  # of all passages that have a word
    for words, weight in zip(words_of, weights, strict=True):
        for word in words:
            weight_with[word] = weight_with.get(word, 0.0) + weight
    agreed = []
    for words, weight in zip(words_of, weights, strict=True):
        others = sum(weights) - weight
        most = max((_rarity(word, shares) * (weight_with[word] - weight) for word in words), default=0.0)
        agreed.append(most / others if others > 0 else 0.0)
    return agreed


def passage_features(passages: Sequence[Any], shares: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """`PASSAGE_FEATURES` of the passages found for one question, each `(K,)`.

    Raises:
        InvalidInputError: A passage has no score: it was not retrieved.
    """
    if unscored := [passage for passage in passages if not hasattr(passage, "score")]:
        raise InvalidInputError(
            f"A policy judges passages by their scores, and {unscored[0]!r:.80} has none. Pass pieces of `Evidence`, "
            "as `retriever.retrieve` returns them."
        )
    cosines = [float(passage.score) for passage in passages]
    if not cosines:
        return dict.fromkeys(PASSAGE_FEATURES, torch.zeros(0))
    scores = torch.tensor(cosines)  # (K,)
    agreement = torch.tensor(passage_agreement([passage.text or "" for passage in passages], cosines, shares))
    return {
        "score": scores,
        "below_best": scores.max() - scores,
        "above_last": scores - scores.min(),
        "agreement": agreement,
        "relative_agreement": agreement / agreement.max().clamp(min=1e-6),
    }


def evidence_features(
    features: Mapping[str, torch.Tensor], beliefs: Sequence[float], kept: Sequence[int]
) -> dict[str, float]:
    """`EVIDENCE_FEATURES` of one question.

    Args:
        features (`dict[str, torch.Tensor]`): Of `passage_features`.
        beliefs (`list[float]`): What the critic said of each passage, in 0..1.
        kept (`list[int]`): The places of those that are kept, the one to be read first at the head.
    """
    if not beliefs:
        return dict.fromkeys(EVIDENCE_FEATURES, 0.0)
    scores = features["score"]
    ranked = scores.sort(descending=True).values
    steps = ranked[:-1] - ranked[1:] if len(ranked) > 1 else torch.zeros(1)
    return {
        "best_score": float(ranked[0]),
        "first_critic": beliefs[kept[0]] if kept else 0.0,
        "best_critic": max(beliefs),
        "first_agreement": float(features["agreement"][kept[0]]) if kept else 0.0,
        "score_drop": float(ranked[0] - scores[-1]),
        "score_lead": float(steps[0]),
        "widest_step": float(steps.max()),
        "share_kept": len(kept) / len(beliefs),
    }


def quoting_features(answer: str, read: Sequence[Any], kept: Sequence[Any]) -> dict[str, float]:
    """Whether the answer stands in a passage that was read, and in how many of those that were kept.

    Example:

    ```python
    >>> from types import SimpleNamespace
    >>> chad, mali = SimpleNamespace(text="The capital of Chad: N'Djamena."), SimpleNamespace(text="Bamako")
    >>> quoting_features("n'djamena", [chad], [chad, mali])
    {'is_quoted': 1.0, 'share_quoting': 0.5}

    ```
    """
    said = answer.strip().casefold()

    def quotes(passage: Any) -> bool:
        return bool(said) and said in (passage.text or "").casefold()

    return {
        "is_quoted": float(any(map(quotes, read))),
        "share_quoting": sum(map(quotes, kept)) / len(kept) if kept else 0.0,
    }


def _rarity(word: str, shares: Mapping[str, float]) -> float:
    """1 up to a share of `RARE`, falling with the logarithm of the share to 0 for a word that all passages have."""
    return min(1.0, math.log(shares.get(word, RARE)) / math.log(RARE))
