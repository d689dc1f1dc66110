"""The channels that a retriever offers, each of which follows the knowledge base as it grows.

| name | finds | by |
|---|---|---|
| `"dense"` | passages | the vectors that the retriever keeps, of text and image together |
| `"bm25"` | passages with a title or text | the words of the question |
| `"dense_text"` | passages with a text | vectors of texts alone, for the text of the question |
| `"dense_image"` | passages with an image | vectors of images alone, for the image of the question |

All but the first are made when first used; the last two encode the knowledge base once more. They grow with it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import InvalidInputError
from .encoding.encoders import Encoder, encode_passages
from .indexes.lexical_index import LexicalIndex, searchable_texts
from .indexes.vector_index import FlatIndex
from .ranking.channels import Channel, DenseChannel, LexicalChannel, Query
from .ranking.fusion import Normalisation, learn_weights


if TYPE_CHECKING:
    from .store.state import KnowledgeState


logger = logging.getLogger(__name__)

CHANNEL_NAMES = ("dense", "bm25", "dense_text", "dense_image")

_PASSAGES_PER_CHUNK = 1_024


class KnowledgeChannels:
    """Makes channels over the states of a knowledge base with an encoder, and keeps them for the next state."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self._made: dict[str, tuple[KnowledgeState, Channel]] = {}

    def of(self, knowledge: KnowledgeState, names: Sequence[str]) -> dict[str, Channel]:
        """Returns channels over the rows of a state, by name.

        Raises:
            InvalidInputError: If there is no such channel.
        """
        unknown = [name for name in names if name not in CHANNEL_NAMES]
        if unknown:
            raise InvalidInputError(f"There is no channel {unknown}. Choose among {list(CHANNEL_NAMES)}.")
        return {name: self._channel(knowledge, name) for name in names}

    def learn_weights(
        self,
        knowledge: KnowledgeState,
        queries: Sequence[Query],
        gold_ids: Sequence[Collection[str]],
        names: Sequence[str],
        num_candidates: int,
        normalise: Normalisation,
    ) -> dict[str, Any]:
        """Learns weights on queries whose passages are known, see `fusion.learn_weights`.

        Raises:
            InvalidInputError: If there is no passage with one of the ids, or no such channel.
        """
        if any(isinstance(wanted, str) for wanted in gold_ids):
            raise InvalidInputError("gold_ids holds a string; each query needs a collection of ids.")
        asked = sorted({passage_id for wanted in gold_ids for passage_id in wanted})
        row_of = dict(zip(asked, knowledge.rows_of(asked).tolist(), strict=True))
        missing = [passage_id for passage_id, row in row_of.items() if row < 0]
        if missing:
            raise InvalidInputError(f"{len(missing)} gold ids are not in the knowledge base: {missing[:5]}.")
        allowed = None if knowledge.all_alive else knowledge.alive
        channels = self.of(knowledge, names)
        found = {name: channel.search(queries, num_candidates, allowed) for name, channel in channels.items()}
        gold = [{row_of[passage_id] for passage_id in wanted} for wanted in gold_ids]
        return learn_weights(found, gold, normalise=normalise)

    def _channel(self, knowledge: KnowledgeState, name: str) -> Channel:
        if name == "dense":
            return DenseChannel(self.encoder, knowledge.index)
        earlier, channel = self._made.get(name, (None, None))
        if earlier is None or not knowledge.continues(earlier):
            earlier, channel = None, None
        num_known = 0 if earlier is None else len(earlier.table)
        if channel is None or num_known < len(knowledge.table):
            if name == "bm25":
                texts = searchable_texts(knowledge.table.slice(num_known))
                known = channel.index.add(texts) if isinstance(channel, LexicalChannel) else LexicalIndex.build(texts)
                channel = LexicalChannel(known)
            else:
                part: Literal["text", "image"] = "text" if name == "dense_text" else "image"
                channel = _part_channel(self.encoder, knowledge, num_known, channel, part)
            self._made[name] = (knowledge, channel)
        return channel


def _part_channel(
    encoder: Encoder,
    knowledge: KnowledgeState,
    num_known: int,
    earlier: Channel | None,
    part: Literal["text", "image"],
) -> Channel:
    """Vectors of the texts or of the images alone, of the rows that have one."""
    present = knowledge.table[part].slice(num_known).is_valid().to_numpy()
    rows = num_known + np.flatnonzero(present)
    if len(rows):
        logger.info('Encoding %d passages by their %s alone, for the channel "dense_%s".', len(rows), part, part)
    starts = range(0, len(rows), _PASSAGES_PER_CHUNK)
    chunks = (knowledge.passages(rows[start : start + _PASSAGES_PER_CHUNK].tolist()) for start in starts)
    encoded = [encode_passages(encoder, passages, f"{part} vectors", part=part) for passages in chunks]
    if isinstance(earlier, DenseChannel) and earlier.rows is not None and len(earlier.index):
        encoded.insert(0, earlier.index.vectors)
        rows = np.concatenate([earlier.rows, rows])
    vectors = np.concatenate(encoded) if encoded else np.zeros((0, 0), np.float32)
    return DenseChannel(encoder, FlatIndex(vectors), rows, f"dense_{part}", part)
