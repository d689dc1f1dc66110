"""A small world of coloured birds, and a deterministic encoder that sees words and colours."""

from __future__ import annotations

import hashlib
import zlib

import numpy as np
from PIL import Image


COLOURS = {"robin": "orange", "wren": "brown", "swan": "white", "raven": "black", "kingfisher": "blue"}


class ToyEncoder:
    """Hashed bag of words plus colour histogram, projected at random to `dim` dimensions."""

    def __init__(self, seed: int = 0, dim: int = 64) -> None:
        self.name = f"ToyEncoder seed={seed}"
        self.fingerprint = hashlib.sha256(f"{seed}-{dim}".encode()).hexdigest()
        self.projection = np.random.default_rng(seed).normal(size=(256 + 12, dim))
        self.calls: list[tuple[str, int]] = []

    def encode_queries(self, images, texts):
        num_rows = len(images if images is not None else texts)
        self.calls.append(("queries", num_rows))
        return self._encode(texts or [None] * num_rows, images or [None] * num_rows)

    def encode_passages(self, texts, images):
        self.calls.append(("passages", len(texts)))
        return self._encode(texts, images)

    def _encode(self, texts, images):
        features = np.stack([self._features(text, image) for text, image in zip(texts, images, strict=True)])
        vectors = features @ self.projection
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    @staticmethod
    def _features(text, image):
        features = np.full(268, 0.01)
        for word in (text or "").lower().replace(".", "").split():
            features[zlib.crc32(word.encode()) % 256] += 1
        if image is not None:
            for channel, values in enumerate(np.asarray(image.resize((8, 8))).reshape(-1, 3).T):
                features[256 + 4 * channel : 260 + 4 * channel] += np.histogram(values, 4, (0, 256))[0] / 16
        return features


def bird_rows() -> list[dict]:
    rows = [
        {
            "id": name,
            "text": f"The {name} is {colour}.",
            "image": Image.new("RGB", (12, 8), colour),
            "licence": "CC0-1.0",
        }
        for name, colour in COLOURS.items()
    ]
    return [*rows, {"id": "text-only", "text": "Birds lay eggs."}, {"id": "image-only", "image": rows[0]["image"]}]
