"""The kinds of approximate index: how FAISS calls them, what they need, and the one setting that steers them.

They give candidates only, whose scores are computed from the vectors, so a byte or a bit per number may do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

import numpy as np

from ...errors import InvalidInputError
from .faiss_settings import import_faiss


_LINKS = 32
# 64 links of 4 bytes on the ground level, the levels above, and where each vector's links begin and end.
_LINK_BYTES = 2 * _LINKS * 4 + 16
_ID_BYTES = 8
# k-means gains little from more than 40 points per centroid and 8 rounds, and costs in proportion.
POINTS_PER_LIST = 40
_KMEANS_ROUNDS = 8
_OPQ_ROUNDS, _OPQ_POINTS = 8, 8_192
_CANDIDATES = (5, 7, 10, 14, 20, 40)
_CANDIDATES_OF_BITS = (4, 6, 10, 16, 25, 40, 65, 100)


@dataclass(frozen=True)
class IndexType:
    """One kind of approximate index.

    Attributes:
        factory: The description for `faiss.index_factory`; `{lists}` and `{parts}` depend on the vectors.
        effort: The setting that trades time for recall; `"candidates"` where there is none beside their number.
        bytes_per_vector: What the index keeps per vector, given the width.
        candidates: How many times `k` candidates may be fetched before exact scores decide; tuning chooses.
        classes: What FAISS may find in a file of this kind, from the outermost index inwards.
    """

    factory: str
    effort: Literal["efSearch", "nprobe", "candidates"]
    bytes_per_vector: Callable[[int], float]
    candidates: tuple[int, ...]
    classes: tuple[str, ...]


def _code_bytes(dim: int) -> float:
    return num_parts(dim) / 2 + _ID_BYTES


# "fs", fast scan: 32 codes are compared at once, in registers.
INDEX_TYPES: dict[str, IndexType] = {
    "hnsw": IndexType("HNSW32,Flat", "efSearch", lambda dim: 4 * dim + _LINK_BYTES, (1,), ("IndexHNSWFlat",)),
    "hnsw_sq8": IndexType("HNSW32,SQ8", "efSearch", lambda dim: dim + _LINK_BYTES, (2,), ("IndexHNSWSQ",)),
    "ivf_flat": IndexType("IVF{lists},Flat", "nprobe", lambda dim: 4 * dim + _ID_BYTES, (1,), ("IndexIVFFlat",)),
    "ivf_sq8": IndexType("IVF{lists},SQ8", "nprobe", lambda dim: dim + _ID_BYTES, (2,), ("IndexIVFScalarQuantizer",)),
    "ivf_pq": IndexType("IVF{lists},PQ{parts}x4fs", "nprobe", _code_bytes, _CANDIDATES, ("IndexIVFPQFastScan",)),
    "ivf_opq_pq": IndexType(
        "OPQ{parts},IVF{lists},PQ{parts}x4fs",
        "nprobe",
        _code_bytes,
        _CANDIDATES,
        ("IndexPreTransform", "IndexIVFPQFastScan"),
    ),
    "ivf_rabitq": IndexType(
        "IVF{lists},RaBitQfs", "nprobe", lambda dim: dim / 8 + 8 + _ID_BYTES, _CANDIDATES, ("IndexIVFRaBitQFastScan",)
    ),
    # One bit per number: on which side of the middle it lies, after a rotation. All are compared, 64 bits at once.
    "binary": IndexType("LSHrt", "candidates", lambda dim: dim / 8, _CANDIDATES_OF_BITS, ("IndexLSH",)),
}
MILVUS = (  # how what FAISS is not for is done
    "Passages in Milvus: hf_ravlm.integrations.milvus.MilvusRetriever.build(knowledge_base, encoder, uri=..., "
    "collection=...), or .open(uri, collection), given to pipelines as retriever=."
)
INDEX_KINDS = ("flat", *INDEX_TYPES, "auto")


def index_type(kind: str) -> IndexType:
    """Returns the description of an approximate kind.

    Raises:
        InvalidInputError: If there is no such kind.
    """
    if kind not in INDEX_TYPES:
        raise unknown_kind(kind)
    return INDEX_TYPES[kind]


def unknown_kind(kind: Any) -> InvalidInputError:
    """What is said of a kind that there is not."""
    hint = f" {MILVUS}" if "milvus" in str(kind).lower() else ""
    return InvalidInputError(f"The index kind {kind!r} is not known. Choose one of {', '.join(INDEX_KINDS)}.{hint}")


def num_lists(num_vectors: int) -> int:
    """Returns how many inverted lists: the power of two nearest to 4 sqrt(N) that leaves 40 vectors for each list."""
    wanted = 2 ** round(np.log2(4 * max(num_vectors, 1) ** 0.5))
    return int(max(min(wanted, num_vectors // POINTS_PER_LIST), 1))


def num_parts(dim: int) -> int:
    """Into how many parts a product quantizer cuts vectors: the largest divisor that leaves 4 numbers or more."""
    return next(parts for parts in range(max(dim // 4, 1), 0, -1) if dim % parts == 0)


def factory_string(kind: str, num_vectors: int, dim: int) -> str:
    """Returns the description of an index for `faiss.index_factory`.

    >>> factory_string("ivf_sq8", 1_000_000, 384)
    'IVF4096,SQ8'
    """
    return index_type(kind).factory.format(lists=num_lists(num_vectors), parts=num_parts(dim))


def metric_of(kind: str) -> int:
    """How FAISS names what an index of this kind compares by: inner products, or the bits that differ."""
    faiss = import_faiss()
    return int(faiss.METRIC_L2 if kind == "binary" else faiss.METRIC_INNER_PRODUCT)


@cache
def is_available(kind: str) -> bool:
    """Whether the installed FAISS has this kind of index with the inner product."""
    faiss = import_faiss()
    if kind in ("flat", "auto"):
        return True
    try:
        faiss.index_factory(32, index_type(kind).factory.format(lists=1, parts=8), metric_of(kind))
    except RuntimeError:
        return False
    return True


def empty_index(kind: str, num_vectors: int, dim: int, seed: int) -> Any:
    """Returns an untrained FAISS index, set for quick and repeatable training.

    Raises:
        InvalidInputError: If the installed FAISS has no such index.
    """
    faiss = import_faiss()
    if not is_available(kind):
        choices = ", ".join(other for other in INDEX_KINDS if is_available(other))
        raise InvalidInputError(f"FAISS {faiss.__version__} has no {kind!r} index. Upgrade it, or choose: {choices}.")
    index = faiss.index_factory(dim, factory_string(kind, num_vectors, dim), metric_of(kind))
    lists = inverted_lists(index)
    if lists is not None:
        lists.cp.niter, lists.cp.seed = _KMEANS_ROUNDS, seed
        lists.cp.max_points_per_centroid, lists.cp.min_points_per_centroid = POINTS_PER_LIST, 1
    if hasattr(index, "chain"):
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.niter, rotation.niter_pq, rotation.max_train_points = _OPQ_ROUNDS, 1, _OPQ_POINTS
        # Four bits as in the index behind it: the default of eight costs sixteen times as much and fits less well.
        quantizer = faiss.ProductQuantizer(dim, num_parts(dim), 4)
        rotation.pq = quantizer
        quantizer.this.disown()
    return index


def inverted_lists(index: Any) -> Any | None:
    """Returns the part of an index with inverted lists (`faiss.IndexIVF`), or `None` where there is none."""
    inner = import_faiss().downcast_index(index.index) if hasattr(index, "chain") else index
    return inner if hasattr(inner, "nprobe") else None


def search_parameters(kind: str, effort: int, selector: Any | None) -> Any:
    """Returns the settings of one search; they belong to the call, so that threads cannot disturb each other."""
    if index_type(kind).effort == "candidates":
        return None
    # FAISS takes as long to make them as to look into a few lists, so those without a filter are kept.
    return _parameters(kind, effort) if selector is None else _parameters.__wrapped__(kind, effort, selector)


@lru_cache(maxsize=64)
def _parameters(kind: str, effort: int, selector: Any | None = None) -> Any:
    faiss = import_faiss()
    if index_type(kind).effort == "efSearch":
        parameters = faiss.SearchParametersHNSW(efSearch=effort)
    else:
        parameters = faiss.SearchParametersIVF(nprobe=effort)
    if selector is not None:
        parameters.sel = selector
    return faiss.SearchParametersPreTransform(index_params=parameters) if kind == "ivf_opq_pq" else parameters
