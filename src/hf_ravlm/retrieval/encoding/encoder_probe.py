"""Probes of an encoder: eight texts and four images, encoded when knowledge is stored and again when it is opened.

A fingerprint does not suffice: a model cast to bfloat16 has another one and is as good as before; a model whose
adapter was switched off may have the same one and finds nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ...errors import InvalidInputError, KnowledgeBaseMismatchError
from ..unit_vectors import unit_vectors
from .reference import describe_reference


if TYPE_CHECKING:
    from .encoders import Encoder


logger = logging.getLogger(__name__)


class EncoderRecord(NamedTuple):
    """Which encoder made the vectors: its name for messages, its fingerprint, what it made of the probes, and how it
    is loaded again, see `reference`; `None` where that is not known."""

    name: str
    fingerprint: str
    probe: Mapping[str, np.ndarray] = {}
    reference: Mapping[str, Any] | None = None

    def describe(self) -> str:
        """Returns the encoder by the name that loads it again, else by its description."""
        return self.name if self.reference is None else describe_reference(self.reference)


# Cosines of one model in other number types or on other devices differ by less, those of other models by far more.
TOLERANCE = 2e-3

PROBE_KINDS = ("query_texts", "query_images", "passage_texts", "passage_images")

# Short and long, of several scripts, in upper and lower case.
PROBE_TEXTS = (
    "a",
    "What is shown in this picture?",
    "The European robin (Erithacus rubecula) has an orange breast.",
    "UPPER CASE, lower case, MiXeD: 3.14159 - 2,024 %",
    "Äußerst seltene Vögel – 鳥はどこですか？ Где птица?",
    "left of, right of, above, below, inside",
    "no bird, not a bird, never any bird",
    " ".join(f"Sentence {n} of a long passage says that bird {n} has {n % 7} feathers." for n in range(40)),
)


def probe_images() -> list[Image.Image]:
    """Returns the images: plain colour, a ramp, fine stripes and noise, none of them square."""
    height, width = 90, 120
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (height, width, 3))
    pixels = [
        np.broadcast_to(np.array([200, 40, 90]), (height, width, 3)),
        np.stack([x * 2, y * 2, 255 - x - y], axis=-1),
        np.stack([(x // 3 % 2) * 255, (y // 5 % 2) * 255, ((x + y) // 9 % 2) * 255], axis=-1),
        noise,
    ]
    return [Image.fromarray(np.ascontiguousarray(values, dtype=np.uint8)) for values in pixels]


@lru_cache(maxsize=1)
def inputs_digest() -> str:
    """Returns the SHA-256 of all probes: vectors of other probes cannot be compared."""
    digest = hashlib.sha256("\0".join(PROBE_TEXTS).encode())
    for image in probe_images():
        digest.update(image.tobytes())
    return digest.hexdigest()


def encode_probes(encoder: Encoder, kinds: Sequence[str] = PROBE_KINDS) -> dict[str, np.ndarray]:
    """Returns the unit vectors of the probes by kind, (8, D) for texts and (4, D) for images.

    What the encoder cannot take, such as images if it is one of texts, is left out.
    """
    texts, images = list(PROBE_TEXTS), probe_images()
    ways = {
        "query_texts": lambda: encoder.encode_queries(None, texts),
        "query_images": lambda: encoder.encode_queries(images, None),
        "passage_texts": lambda: encoder.encode_passages(texts, [None] * len(texts)),
        "passage_images": lambda: encoder.encode_passages([None] * len(images), images),
    }
    vectors = {}
    for name in set(ways).intersection(kinds):
        try:
            vectors[name] = unit_vectors(ways[name](), name)
        except Exception as error:  # whatever an encoder of somebody else raises
            logger.debug("The encoder %s takes no %s: %s", encoder.name, name, error)
    return vectors


def probe_distance(stored: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """Returns 1 minus the smallest cosine between two encodings of the same probes; 2 if they cannot be compared.

    Args:
        stored: What `encode_probes` returned once.
        found: What it returns now; may have more kinds.

    Raises:
        InvalidInputError: If nothing was stored.

    >>> stored = {"query_texts": np.eye(2)}
    >>> float(probe_distance(stored, stored)), float(probe_distance(stored, {"query_texts": np.eye(2)[::-1]}))
    (0.0, 1.0)
    """
    if not stored:
        raise InvalidInputError("There are no stored probes to compare with.")
    worst = 0.0
    for name, vectors in stored.items():
        others = found.get(name)
        if others is None or others.shape != vectors.shape or not np.isfinite(vectors).all():
            return 2.0
        cosines = np.einsum("nd,nd->n", vectors.astype(np.float64), others.astype(np.float64))
        worst = max(worst, float(1 - cosines.min()))
    return worst


def check_encoder(encoder: Encoder, record: EncoderRecord, where: Path) -> None:
    """Refuses an encoder whose vectors cannot be compared with stored ones.

    Args:
        encoder: The encoder of queries.
        record: The encoder of the stored vectors.
        where: The knowledge base, for messages.

    Raises:
        KnowledgeBaseMismatchError: If the probes come out differently; without any, if the fingerprints differ.
    """
    fingerprint, probe = record.fingerprint, record.probe
    name = record.describe()
    found, described = encoder.fingerprint, describe_encoder(encoder)
    if not probe and found == fingerprint:
        return
    distance = probe_distance(probe, encode_probes(encoder, tuple(probe))) if probe else 2.0
    if distance <= TOLERANCE:
        if found != fingerprint:
            logger.warning(
                f"{where}: the encoder {described!r} is not bit for bit the one that built the knowledge base "
                f"({name!r}), as after a cast to another number type. Its vectors of {sum(map(len, probe.values()))} "
                f"stored probes differ by at most {distance:.1g} (1 - cosine; up to {TOLERANCE:g} is accepted)."
            )
        return
    if found == fingerprint:
        reason = (
            f"but now gives other vectors (1 - cosine of a stored probe: {distance:.2g}, accepted: {TOLERANCE:g}). Is "
            "an adapter switched off, or the model changed by a hook or another version of a library?"
        )
    else:
        reason = (
            f"(fingerprint {fingerprint[:12]}), but the encoder is {described!r} (fingerprint {found[:12]}). Their "
            "vectors cannot be compared."
        )
    raise KnowledgeBaseMismatchError(
        f"{where}: the knowledge base was built by {name!r} {reason} Pass the encoder that built it, with the same "
        "adapters and preprocessing, or build anew: `RavlmRetriever.build(KnowledgeBase.load(folder), "
        "encoder).save_pretrained(folder)`."
    )


def describe_encoder(encoder: Encoder) -> str:
    """Returns the name of an encoder, with the PEFT adapters that are active in its model and the folder it is of."""
    model = getattr(encoder, "model", None)
    adapters = getattr(model, "active_adapters", None)
    try:
        adapters = adapters() if callable(adapters) else adapters
    except (ValueError, ImportError):  # transformers: no adapter was loaded, or PEFT is not installed
        adapters = None
    name = f"{encoder.name} adapters={','.join(map(str, adapters))}" if adapters else encoder.name
    folder = getattr(encoder, "folder_name", None)
    return f"{name} (of the folder {folder})" if folder else name


def reference_of(encoder: Encoder) -> Mapping[str, Any] | None:
    """Returns how an encoder is loaded again, unless adapters have been put into its model since."""
    has_adapters = " adapters=" in describe_encoder(encoder)
    return None if has_adapters else getattr(encoder, "reference", None)
