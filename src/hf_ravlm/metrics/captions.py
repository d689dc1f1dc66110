"""How close captions are to those of people: BLEU, ROUGE-L and CIDEr-D, over tokens.

Definitions: Papineni et al. 2002 (https://aclanthology.org/P02-1040); Lin 2004 (https://aclanthology.org/W04-1013);
Vedantam et al. 2015 (https://huggingface.co/papers/1411.5726); in the details as `pycocoevalcap` computes them. METEOR
and SPICE need Java programs; https://github.com/salaniz/pycocoevalcap has them.

`candidates` are `Q` lists of tokens (of `caption_tokens`), `references` `Q` lists of one or more lists of tokens.
Anything else is an `InvalidInputError`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError


Tokens = Sequence[str]
References = Sequence[Sequence[Tokens]]
NGram = tuple[str, ...]

_BLEU_SMALL, _BLEU_TINY = 1e-9, 1e-15  # of the reference implementation: they keep empty counts from dividing by 0
_ROUGE_BETA = 1.2  # recall weighs more than precision
_CIDER_ORDERS, _CIDER_SIGMA, _CIDER_SCALE = 4, 6.0, 10.0


@dataclass(frozen=True)
class CaptionScore:
    """A metric over a corpus of captions.

    Attributes:
        corpus: The figure that papers report, as a fraction (CIDEr-D: 0..10). For BLEU it is *not* the mean of
            `per_image`.
        per_image: One value per image, of shape `(Q,)`.
    """

    corpus: float
    per_image: npt.NDArray[np.float64] = field(repr=False)


def bleu(candidates: Sequence[Tokens], references: References, order: int = 4) -> CaptionScore:
    """BLEU over the corpus, with the reference length that is closest to the candidate's (the shorter of two).

    `exp(min(0, 1 - r / c)) * (prod_n p_n) ** (1 / order)`, where `p_n` is the clipped precision of n-grams of up to
    `order` tokens summed over the corpus, `c` and `r` the summed lengths of candidates and closest references.

    Raises:
        InvalidInputError: `order` is below 1.

    Example: "the" occurs twice in the reference, so two of four count (Papineni et al.: clipping).

    >>> score = bleu([["the", "the", "the", "the"]], [[["the", "cat", "the", "mat"]]], order=1)
    >>> round(score.corpus, 6)
    0.5
    """
    _check(candidates, references)
    if order < 1:
        raise InvalidInputError(f"order must be at least 1; came: {order}.")
    counts = np.zeros((len(candidates), 2, order))  # right and guessed n-grams
    lengths = np.zeros((len(candidates), 2))  # of the candidate and of the closest reference
    for image, (candidate, accepted) in enumerate(zip(candidates, references, strict=True)):
        most: Counter[NGram] = Counter()
        for reference in accepted:
            most |= _ngrams(reference, order)
        for ngram, count in (_ngrams(candidate, order) & most).items():
            counts[image, 0, len(ngram) - 1] += count
        counts[image, 1] = [max(0, len(candidate) - n) for n in range(order)]
        closest = min((abs(len(reference) - len(candidate)), len(reference)) for reference in accepted)[1]
        lengths[image] = len(candidate), closest
    per_image = np.array([_bleu(*image) for image in zip(counts, lengths, strict=True)])
    return CaptionScore(_bleu(counts.sum(axis=0), lengths.sum(axis=0)), per_image)


def rouge_l(candidates: Sequence[Tokens], references: References, official_quirks: bool = True) -> CaptionScore:
    """ROUGE-L: the F-measure, with beta = 1.2, of the longest common subsequence, averaged over the images.

    Args:
        candidates, references: See above.
        official_quirks (`bool`): The COCO implementation takes the best precision and the best recall over the
            references apart, so that the two may come from different ones; and it splits an empty caption into one
            empty token. `False` takes the reference with the best F.

    Example: two of two words in two of four.

    >>> round(rouge_l([["a", "cat"]], [[["a", "cat", "sat", "down"]]]).corpus, 4)
    0.6289
    """
    _check(candidates, references)
    scores = []
    for candidate, accepted in zip(candidates, references, strict=True):
        pairs = [_common_shares(candidate, reference, official_quirks) for reference in accepted]
        if official_quirks:
            pairs = [(max(precision for precision, _ in pairs), max(recall for _, recall in pairs))]
        # Without a common token both shares are 0, and so is F.
        scores.append(max((1 + _ROUGE_BETA**2) * p * r / (r + _ROUGE_BETA**2 * p or 1) for p, r in pairs))
    return CaptionScore(float(np.mean(scores)), np.array(scores))


def cider_d(
    candidates: Sequence[Tokens],
    references: References,
    document_references: References | None = None,
    official_quirks: bool = True,
) -> CaptionScore:
    """CIDEr-D: cosines of tf-idf vectors of n-grams, clipped, with a penalty for another length, times 10.

    For n = 1..4, with `g(x)` the counts of n-grams times `log(N / max(1, df))`, the score of candidate `c` and
    reference `r` is `sum(min(g(c), g(r)) * g(r)) / (|g(c)| |g(r)|) * exp(-(l_c - l_r)^2 / (2 * 6^2))`; the mean over
    references and n is scaled by 10. `df` counts the images one of whose references has the n-gram, out of `N`.

    The score belongs to a corpus: a corpus of one image always gets 0, since then every idf is 0.

    Args:
        candidates, references: See above.
        document_references (like `references`, *optional*): Where document frequencies are counted, such as those of
            the whole data set when only a part of it is scored; `references` by default, as the official code does.
        official_quirks (`bool`): "Length" is the number of bigrams, so a caption of one word and an empty one are both
            0 long. `False` counts words.

    Example:

    >>> references = [[["a", "red", "flag"]], [["a", "blue", "flag"]]]
    >>> cider_d([["a", "red", "flag"], ["a", "red", "flag"]], references).per_image.round(3).tolist()
    [7.5, 0.0]
    """
    _check(candidates, references)
    documents = references if document_references is None else document_references
    frequencies: Counter[NGram] = Counter()
    for accepted in documents:
        frequencies.update({ngram for reference in accepted for ngram in _ngrams(reference, _CIDER_ORDERS)})
    log_documents = math.log(len(documents))

    def weighted(tokens: Tokens) -> _Weighted:
        weights: list[dict[NGram, float]] = [{} for _ in range(_CIDER_ORDERS)]
        for ngram, count in _ngrams(tokens, _CIDER_ORDERS).items():
            weights[len(ngram) - 1][ngram] = count * (log_documents - math.log(max(1, frequencies[ngram])))
        norms = [math.sqrt(sum(weight**2 for weight in of_order.values())) for of_order in weights]
        return _Weighted(weights, norms, max(0, len(tokens) - 1) if official_quirks else len(tokens))

    scores = []
    for candidate, accepted in zip(candidates, references, strict=True):
        vectors = weighted(candidate)
        similarities = [_similarity(vectors, weighted(reference)) for reference in accepted]
        scores.append(_CIDER_SCALE * float(np.mean(similarities)))
    return CaptionScore(float(np.mean(scores)), np.array(scores))


@dataclass(frozen=True)
class _Weighted:
    """A caption as CIDEr sees it: per n its n-grams with their weights, the norm of these, and its length."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    length: int


def _similarity(candidate: _Weighted, reference: _Weighted) -> float:
    total = 0.0
    for ours, theirs, our_norm, their_norm in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        product = sum(min(weight, theirs.get(ngram, 0.0)) * theirs.get(ngram, 0.0) for ngram, weight in ours.items())
        total += product / (our_norm * their_norm) if our_norm and their_norm else product
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * _CIDER_SIGMA**2))
    return penalty * total / _CIDER_ORDERS


def _bleu(counts: npt.NDArray[np.float64], lengths: npt.NDArray[np.float64]) -> float:
    """`counts (2, order)`: right and guessed; `lengths (2,)`: of the candidate and the closest reference."""
    precisions = (counts[0] + _BLEU_TINY) / (counts[1] + _BLEU_SMALL)
    ratio = (lengths[0] + _BLEU_TINY) / (lengths[1] + _BLEU_SMALL)
    return float(np.prod(precisions) ** (1 / len(precisions)) * math.exp(min(0.0, 1 - 1 / ratio)))


def _common_shares(candidate: Tokens, reference: Tokens, official_quirks: bool) -> tuple[float, float]:
    """The longest common subsequence as a share of the candidate and of the reference."""
    if official_quirks:
        candidate, reference = candidate or [""], reference or [""]
    if not candidate or not reference:
        return 0.0, 0.0
    lengths = [0] * (len(reference) + 1)  # of the common subsequence with each beginning of the reference
    for token in candidate:
        diagonal = 0
        for place, other in enumerate(reference, start=1):
            longest = diagonal + 1 if token == other else max(lengths[place], lengths[place - 1])
            diagonal, lengths[place] = lengths[place], longest
    return lengths[-1] / len(candidate), lengths[-1] / len(reference)


def _ngrams(tokens: Tokens, order: int) -> Counter[NGram]:
    """All n-grams of 1 to `order` tokens."""
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, order + 1) for start in range(len(tokens) - n + 1)
    )


def _check(candidates: Sequence[Tokens], references: References) -> None:
    if len(candidates) != len(references):
        raise InvalidInputError(
            f"{len(candidates)} candidates came with the references of {len(references)} images. Pass one candidate "
            "per image; an image without a prediction gets an empty list."
        )
    if not candidates:
        raise InvalidInputError("There are no captions to score.")
    for image, accepted in enumerate(references):
        if isinstance(accepted, str) or not accepted:
            raise InvalidInputError(f"Image {image} needs a list of one or more references; came: {accepted!r}.")
    for tokens in chain(candidates, *references):
        if isinstance(tokens, str):
            raise InvalidInputError(
                f"A caption must be a list of tokens; came: {tokens!r}. Call `caption_tokens` first."
            )
