"""BM25: the passages that hold the words of a question, searched by bm25s.

For each token the index keeps its postings: the rows that hold it and how often. bm25s keeps weights only and cannot
take another passage; the counts kept here let an index grow. A query adds up the weights of its tokens. A posting is
weighted by the formula of Lucene (Kamphuis et al., "Which BM25 do you mean?", ECIR 2020):

    weight = log(1 + (N - df + 1/2) / (df + 1/2)) · tf / (tf + k1 · (1 - b + b · length / mean length))

with N the number of passages that have a text, df of those that hold the token, and tf the count of the posting.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidInputError
from .lexical_tokens import lexical_tokens


if TYPE_CHECKING:
    import pyarrow as pa


logger = logging.getLogger(__name__)

Tokenise = Callable[[str], list[str]]

# The defaults of bm25s and rank-bm25: how soon repeating a word stops counting, and how much long passages lose.
K1, B = 1.5, 0.75
# Compiling takes about 4.5 seconds per process and saves about 2 ns per passage and query (measured on 118,000
# passages: 7,000 queries a second instead of 3,000). A call with less work than this does not earn it back.
_WORK_WORTH_COMPILING = 2_000_000_000
# The compiled search breaks ties as it likes; looking this much further shows whether a tie crosses the k-th place.
_TIE_MARGIN = 16


class LexicalIndex:
    """The words of all passages, and in which passages they stand; make one with `build`.

    Args:
        vocabulary: The number of every token, `0..V-1`.
        indptr: Postings of token `t` are `rows[indptr[t]:indptr[t + 1]]`; shape (V+1,), int64.
        rows: The rows that hold a token, rising within each token; shape (P,), int32.
        counts: How often the token stands in the row; shape (P,), int32.
        lengths: The number of tokens of every passage, shape (N,), int32.
        tokenise: What made the tokens, for queries and added passages.

    >>> index = LexicalIndex.build(["a red kite", "a kite on a string", None, "红色的风筝"])
    >>> index
    LexicalIndex(4 passages, 14 tokens)
    >>> [rows.tolist() for scores, rows in index.search(["red kite", "风筝"], k=2)]
    [[0, 1], [3]]
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        indptr: np.ndarray,
        rows: np.ndarray,
        counts: np.ndarray,
        lengths: np.ndarray,
        tokenise: Tokenise = lexical_tokens,
    ) -> None:
        self.vocabulary = dict(vocabulary)
        self.indptr, self.rows, self.counts, self.lengths = indptr, rows, counts, lengths
        self.tokenise = tokenise
        self._compiled = False

    @classmethod
    def build(cls, texts: Sequence[str | None], tokenise: Tokenise = lexical_tokens) -> LexicalIndex:
        """Indexes one text per passage; `None` where it has none and is never found."""
        none = np.zeros(0, np.int32)
        return cls({}, np.zeros(1, np.int64), none, none, none, tokenise).add(texts)

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"LexicalIndex({len(self)} passages, {len(self.vocabulary)} tokens)"

    def add(self, texts: Sequence[str | None]) -> LexicalIndex:
        """Returns an index over the passages of this one and, after them, those of `texts`, as `build` would.

        Only the new texts are read, but all weights are computed anew: add many at a time.
        """
        vocabulary = dict(self.vocabulary)
        new_tokens, new_lengths = _numbered_tokens(texts, self.tokenise, vocabulary)
        old_tokens = np.repeat(np.arange(len(self.vocabulary)), np.diff(self.indptr))
        new_rows = np.repeat(np.arange(len(self), len(self) + len(texts)), new_lengths)
        num_rows = len(self) + len(texts)
        # One number per pair of token and row; sorted, they are the postings in order.
        new_keys, new_counts = np.unique(new_tokens * num_rows + new_rows, return_counts=True)
        keys = np.concatenate([old_tokens * num_rows + self.rows, new_keys])
        order = np.argsort(keys, kind="stable")
        tokens, rows = np.divmod(keys[order], max(num_rows, 1))
        return LexicalIndex(
            vocabulary,
            np.searchsorted(tokens, np.arange(len(vocabulary) + 1)),
            rows.astype(np.int32),
            np.concatenate([self.counts, new_counts.astype(np.int32)])[order],
            np.concatenate([self.lengths, new_lengths.astype(np.int32)]),
            self.tokenise,
        )

    def search(
        self, texts: Sequence[str | None], k: int, allowed: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the passages of every query that share a word with it, best first; equal scores in order of rows.

        Args:
            texts: The queries; `None` finds nothing.
            k: How many passages per query, at most.
            allowed: Which rows may be found, bool of shape (N,); `None` for all.

        Returns:
            A pair per query: scores in float32, all above 0, and rows in int64; both of one length, at most `k`.

        Raises:
            InvalidInputError: If `k < 1` or `allowed` has a wrong shape.
        """
        if k < 1:
            raise InvalidInputError(f"k={k}: expected at least 1 passage per query.")
        if allowed is not None and (allowed.shape != (len(self),) or allowed.dtype != np.bool_):
            raise InvalidInputError(
                f"`allowed` is {allowed.dtype} of shape {allowed.shape}. Expected bool of shape ({len(self)},)."
            )
        mask = None if allowed is None else allowed.astype(np.float32)
        found = [(np.zeros(0, np.float32), np.zeros(0, np.int64)) for _ in texts]
        tokenised = {place: self.tokenise(text) for place, text in enumerate(texts) if text}
        known = {place: [token for token in tokens if token in self.vocabulary] for place, tokens in tokenised.items()}
        tokens = {place: some for place, some in known.items() if some}
        if not tokens:
            return found
        if self._compiled or (len(tokens) * len(self) >= _WORK_WORTH_COMPILING and self.compile()):
            answers = self._search_compiled(list(tokens.values()), k, mask)
        else:
            answers = [self._search_exactly(query, k, mask) for query in tokens.values()]
        for place, answer in zip(tokens, answers, strict=True):
            found[place] = answer
        return found

    def compile(self) -> bool:
        """Compiles the search with numba, which large batches do by themselves; takes some seconds, once per process.

        Returns:
            `False` without numba, with one warning per process, or for an index without tokens.
        """
        if self._compiled or not self.vocabulary or not _has_numba():
            return self._compiled
        self._scorer.backend = "numba"
        self._scorer.compile()
        token = [next(iter(self.vocabulary))]
        for mask in (None, np.ones(len(self), np.float32)):
            self._search_compiled([token], 1, mask)
            self._scorer.get_scores(token, weight_mask=mask)
        self._compiled = True
        return True

    @cached_property
    def _scorer(self) -> Any:
        """A bm25s searcher over our postings; made when first used, as the weights take memory."""
        try:
            import bm25s
        except ImportError as error:
            raise ImportError('Keyword search (BM25) needs bm25s: pip install "hf_ravlm[hybrid]"') from error
        scorer = bm25s.BM25(method="lucene", k1=K1, b=B, backend="numpy")
        scorer.nonoccurrence_array = None
        scorer.vocab_dict = self.vocabulary
        postings = {"indices": self.rows, "indptr": self.indptr, "num_docs": len(self)}
        scorer.scores = {"data": self._weights(), **postings}
        return scorer

    def _weights(self) -> np.ndarray:
        frequencies = np.diff(self.indptr)  # (V,) how many passages hold each token
        num_texts = np.count_nonzero(self.lengths)  # passages without text make no word rarer
        rarity = np.log1p((num_texts - frequencies + 0.5) / (frequencies + 0.5))  # (V,)
        relative_length = self.lengths / max(self.lengths.sum() / max(num_texts, 1), 1e-9)  # (N,)
        saturation = K1 * (1 - B + B * relative_length)  # (N,)
        weights: np.ndarray = np.repeat(rarity, frequencies) * self.counts / (self.counts + saturation[self.rows])
        return weights.astype(np.float32)  # (P,)

    def _search_compiled(
        self, queries: list[list[str]], k: int, mask: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The best `k` rows of every query, by the compiled search where ties allow it."""
        k = min(k, len(self))
        wider = min(k + _TIE_MARGIN, len(self))
        rows, scores = self._scorer.retrieve(queries, k=wider, weight_mask=mask, show_progress=False)
        found = []
        for query, query_rows, query_scores in zip(queries, rows, scores, strict=True):
            if wider < len(self) and query_scores[-1] == query_scores[k - 1] > 0:
                found.append(self._search_exactly(query, k, mask))
            else:
                positive = query_scores > 0
                found.append(_best(query_scores[positive], query_rows[positive].astype(np.int64), k))
        return found

    def _search_exactly(self, query: list[str], k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        scores = self._scorer.get_scores(query, weight_mask=mask)  # (N,)
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:  # of those tied with the k-th place all are kept, for the row decides among them
            kth = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= kth]
        return _best(scores[rows], rows, k)


def searchable_texts(table: pa.Table) -> list[str | None]:
    """Returns what keyword search reads of every passage in a knowledge base's table: its title and its text."""
    titles, texts = table["title"].to_pylist(), table["text"].to_pylist()
    return ["\n".join(filter(None, pair)) or None for pair in zip(titles, texts, strict=True)]


def _best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


def _numbered_tokens(
    texts: Sequence[str | None], tokenise: Tokenise, vocabulary: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers of all texts in one run, (T,), and how many each text has, (n,); new tokens are numbered."""
    numbers = array("q")
    lengths = np.zeros(len(texts), np.int64)
    for place, text in enumerate(texts):
        tokens = tokenise(text) if text else []
        numbers.extend(vocabulary.setdefault(token, len(vocabulary)) for token in tokens)
        lengths[place] = len(tokens)
    return np.frombuffer(numbers, np.int64), lengths


@cache
def _has_numba() -> bool:
    """Whether queries can be compiled; says once that they cannot."""
    try:
        import numba  # noqa: F401
    except ImportError as error:  # not installed, or not for this NumPy
        hint = 'two to three times slower over large knowledge bases. pip install "hf_ravlm[hybrid]" brings it.'
        logger.warning("numba cannot be used (%s), so keyword search runs uncompiled, %s", error, hint)
        return False
    return True
