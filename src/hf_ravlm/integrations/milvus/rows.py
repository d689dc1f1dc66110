"""Passages as rows of a Milvus collection.

Milvus has no type for bytes: an image is kept as an array of base64 strings of at most 65,535 characters. Images are
limited, because a row must pass the message queue of a cluster, which takes a few megabytes. A field holds the tokens
of title and text with spaces between, so that BM25 counts the same words as in a local knowledge base.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np

from ...errors import InvalidInputError, KnowledgeBaseCorruptError
from ...retrieval.indexes.lexical_index import K1, B
from ...retrieval.indexes.lexical_tokens import lexical_tokens
from ...retrieval.passage import TEXT_COLUMNS, Passage


# Bytes, as Milvus counts the length of a VARCHAR.
MAX_ID_BYTES = 1_024
MAX_COLUMN_BYTES = 8_192
MAX_TEXT_BYTES = 65_535
MAX_METADATA_BYTES = 65_536
MAX_IMAGE_BYTES = 1_500_000

_CHARACTERS_PER_PART = 65_532  # a multiple of 4: each part is base64 of its own
_MAX_PARTS = 64

# What a search returns; images are fetched apart, and only for passages that have one.
OUTPUT_FIELDS = ["id", "text", *TEXT_COLUMNS, "metadata", "has_image"]


def collection_schema(client: Any, dim: int, index_type: str) -> tuple[Any, Any]:
    """Returns schema and index parameters of a collection for passages with vectors of width `dim`."""
    from pymilvus import DataType, Function, FunctionType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_BYTES)
    schema.add_field("text", DataType.VARCHAR, max_length=MAX_TEXT_BYTES, nullable=True)
    for name in TEXT_COLUMNS:
        schema.add_field(name, DataType.VARCHAR, max_length=MAX_COLUMN_BYTES, nullable=True)
    schema.add_field("metadata", DataType.JSON)
    schema.add_field("has_image", DataType.BOOL)
    parts = {"element_type": DataType.VARCHAR, "max_capacity": _MAX_PARTS, "max_length": _CHARACTERS_PER_PART}
    schema.add_field("image", DataType.ARRAY, **parts)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    # The tokenizer only has to cut at spaces; it is the one that both a cluster and milvus-lite have.
    tokens = {"enable_analyzer": True, "analyzer_params": {"tokenizer": "standard"}}
    schema.add_field("words", DataType.VARCHAR, max_length=MAX_TEXT_BYTES, **tokens)
    schema.add_field("word_weights", DataType.SPARSE_FLOAT_VECTOR)
    schema.add_function(Function("bm25", FunctionType.BM25, ["words"], ["word_weights"]))
    indexes = client.prepare_index_params()
    indexes.add_index("vector", index_type=index_type, metric_type="IP")
    bm25 = {"metric_type": "BM25", "params": {"bm25_k1": K1, "bm25_b": B}}
    indexes.add_index("word_weights", index_type="SPARSE_INVERTED_INDEX", **bm25)
    return schema, indexes


def words_of(text: str) -> str:
    """The tokens of a text with spaces between, as many as a field holds."""
    words = " ".join(lexical_tokens(text)).encode()
    if len(words) > MAX_TEXT_BYTES:
        words = words[:MAX_TEXT_BYTES].rpartition(b" ")[0]
    return words.decode()


def row_of(passage: Passage, vector: np.ndarray) -> dict[str, Any]:
    """Returns a passage with its vector (D,) as Milvus takes it.

    Raises:
        InvalidInputError: If something is too long, with its id and the limit.
    """
    columns = {name: getattr(passage, name) for name in TEXT_COLUMNS}
    image = passage.image_bytes or b""
    sizes: dict[str, tuple[str | bytes | None, int]] = {
        "id": (passage.id, MAX_ID_BYTES),
        "text": (passage.text, MAX_TEXT_BYTES),
        "metadata": (json.dumps(passage.metadata, ensure_ascii=False), MAX_METADATA_BYTES),
        **{name: (value, MAX_COLUMN_BYTES) for name, value in columns.items()},
        "image": (image, MAX_IMAGE_BYTES),
    }
    for name, (value, limit) in sizes.items():
        num_bytes = len(value) if isinstance(value, bytes) else len((value or "").encode())
        if num_bytes > limit:
            hint = "Scale the image down" if name == "image" else "Shorten it, or split the passage"
            raise InvalidInputError(
                f"Passage {passage.id[:100]!r}: its {name} has {num_bytes:,} bytes, and a Milvus collection holds "
                f"{limit:,}. {hint}; a local knowledge base has no such limit."
            )
    encoded = base64.b64encode(image).decode()
    starts = range(0, len(encoded), _CHARACTERS_PER_PART)
    return {
        "id": passage.id,
        "text": passage.text,
        **columns,
        "metadata": passage.metadata,
        "words": words_of("\n".join(filter(None, (passage.title, passage.text)))),
        "image": [encoded[start : start + _CHARACTERS_PER_PART] for start in starts],
        "has_image": bool(image),
        "vector": vector,
    }


def size_of(row: dict[str, Any]) -> int:
    """About how many bytes a row is in a message."""
    texts = (row["words"], row["text"] or "", *(row[name] or "" for name in TEXT_COLUMNS), *row["image"])
    return 4 * len(row["vector"]) + sum(map(len, texts)) + 1_000


def passage_of(row: dict[str, Any], image_parts: list[str] | None) -> Passage:
    """Returns the passage of a row of `OUTPUT_FIELDS`, with its field `image`, fetched apart, if it has one.

    Raises:
        KnowledgeBaseCorruptError: If an image is not what `row_of` wrote.
    """
    try:
        image = None if image_parts is None else base64.b64decode("".join(image_parts), validate=True)
    except (binascii.Error, TypeError) as error:
        raise KnowledgeBaseCorruptError(
            f"The image of passage {row['id']!r} in the collection is not base64: {error}. Update the passage."
        ) from error
    return Passage(
        id=row["id"],
        text=row["text"],
        image_bytes=image,
        metadata=dict(row["metadata"] or {}),
        **{name: row[name] for name in TEXT_COLUMNS},
    )
