"""A world of numbered passages for tests of large and changing knowledge bases, and an encoder that costs nothing."""

from __future__ import annotations

import zlib

import numpy as np

from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever


class HashEncoder:
    """Every text has a random direction of its own; passages of one topic (the first word) are near each other."""

    name, fingerprint = "HashEncoder", "a" * 64

    def __init__(self) -> None:
        self.num_encoded = 0

    def encode_queries(self, images, texts):
        return np.stack([self._vector(text) for text in texts])

    def encode_passages(self, texts, images):
        self.num_encoded += len(texts)
        return self.encode_queries(images, texts)

    @staticmethod
    def _vector(text):
        topic, own = (np.random.default_rng(zlib.crc32(part.encode())) for part in (text.split()[0], text))
        vector = topic.normal(size=32) + 0.7 * own.normal(size=32)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def numbered(numbers, tag: str = "first") -> list[dict]:
    return [{"id": str(n), "text": f"topic{n % 7} number {n} {tag}", "source": f"s{n % 3}"} for n in numbers]


def built(rows, encoder, **options) -> RavlmRetriever:
    return RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder, **options)
