"""From query vectors to passages that a model can read: `PassageTokens` against `RagRetriever` of transformers.

Both sides search one FAISS index (HNSW32,SQ8) of the same `datasets.Dataset` and return the ids of passage and
question, side by side in rounds, on one thread. `RagRetriever` does it as it is: it fetches title and text, joins them
with the question, tokenises every pair and pads to `max_combined_length`. Ours copies ids that were made once.

    python benchmarks/passage_tokens.py --passages 50000

The corpus is made: words of a Zipf-like vocabulary, lengths as of WordNet glosses, clustered vectors.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import faiss
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, RagConfig, RagRetriever
from transformers.models.rag.retrieval_rag import CustomHFIndex
from transformers.utils import logging

from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.passages.passage_tokens import PassageTokens


DIM = 384
SETTINGS = [(1, 5), (1, 10), (32, 5), (32, 10)]
QUESTION_TOKENS = 12


class Times(NamedTuple):
    """CPU and wall time of one call, in milliseconds."""

    cpu: float
    wall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mean-words", type=int, default=16, help="mean length of a passage")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)

    rng = np.random.default_rng(0)
    vectors, queries = make_vectors(arguments.passages, rng)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "ei", "o", "u", "an") for c in SYLLABLES]
    texts = make_texts(arguments.passages, arguments.mean_words, words, rng)
    titles = [" ".join(text.split()[:2]) for text in texts]
    tokenizer = make_tokenizer(texts)
    dataset = Dataset.from_dict({"title": titles, "text": texts, "embeddings": vectors})
    dataset.add_faiss_index(
        "embeddings", string_factory="HNSW32,SQ8", metric_type=faiss.METRIC_INNER_PRODUCT, train_size=10_000
    )
    index = dataset.get_index("embeddings").faiss_index
    index.hnsw.efSearch = 64
    rag = RagRetriever(
        RagConfig(vocab_size=len(tokenizer), index_name="custom", n_docs=5, retrieval_vector_size=DIM, **TINY_PARTS),
        question_encoder_tokenizer=tokenizer,
        generator_tokenizer=tokenizer,
        index=CustomHFIndex(DIM, dataset),
    )
    with tempfile.TemporaryDirectory() as folder:
        tokens = make_tokens(Path(folder) / "tokens.safetensors", titles, texts, tokenizer)
        print(f"{arguments.passages:,} passages of {len(tokens.ids.values) / len(tokens):.1f} tokens, {DIM}-d\n")
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
        for batch, k in SETTINGS:
            asked = [" ".join(rng.choice(words[:500], QUESTION_TOKENS)) for _ in range(batch)]
            questions = np.array([ids[:QUESTION_TOKENS] for ids in tokenizer(asked)["input_ids"]])
            picked = queries[rng.choice(len(queries), batch, replace=False)]
            sides = three_sides(rag, index, tokens, picked, questions, k)
            check_same(sides["rag"](), sides["ours"](), tokenizer)
            print(row_of_table(sides, f"{batch}, {k}", arguments.rounds, repeats=50 if batch == 1 else 5), flush=True)
    print("\nCPU ms per batch (wall where it says so), the least of the rounds; `kept`: share that is no padding.")


COLUMNS = [
    "batch, k",
    "FAISS alone",
    "RagRetriever",
    "ours",
    "times faster",
    "ours / FAISS",
    "RagRetriever wall",
    "ours wall",
    "length: RagRetriever (kept)",
    "length: ours (kept)",
]
SYLLABLES = [f"{c}{v}{e}" for c in "bdklmnrst" for v in "aeiou" for e in ("", "n", "s", "l")]
TINY_PARTS: dict[str, Any] = {
    "question_encoder": {"model_type": "dpr"},
    "generator": {"model_type": "bart"},
    "retrieval_batch_size": 32,
}


def make_vectors(num_passages: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Clustered unit vectors of passages, and 1,000 queries from the same clusters."""
    centres = rng.standard_normal((max(num_passages // 50, 1), DIM), np.float32)

    def around(count: int) -> np.ndarray:
        made = centres[rng.integers(0, len(centres), count)] + rng.standard_normal((count, DIM), np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    return around(num_passages), around(1_000)


def make_texts(num_passages: int, mean_words: int, words: list[str], rng: np.random.Generator) -> list[str]:
    chances = 1 / np.arange(1, len(words) + 1)
    lengths = np.clip(rng.lognormal(np.log(mean_words) - 0.125, 0.5, num_passages).astype(int), 3, 180)
    chosen = rng.choice(len(words), lengths.sum(), p=chances / chances.sum())
    ends = np.cumsum(lengths)
    return [" ".join(words[word] for word in chosen[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of 4,000 pieces, trained on some of the texts."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<unk>"]
    tokenizer.train_from_iterator(texts[:5_000], trainers.BpeTrainer(vocab_size=4_000, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


def make_tokens(path: Path, titles: list[str], texts: list[str], tokenizer: PreTrainedTokenizerFast) -> PassageTokens:
    """Title and text of every passage as `RagRetriever` joins them, tokenised into a file and mapped."""
    joined = (f"{title} / {text} //" for title, text in zip(titles, texts, strict=True))
    knowledge_base = KnowledgeBase.from_dicts({"id": row, "text": text} for row, text in enumerate(joined))
    started = time.process_time()
    tokens = PassageTokens.build(knowledge_base, lambda batch: tokenizer(batch)["input_ids"], "benchmark", path=path)
    print(f"Tokenising: {time.process_time() - started:.1f} CPU s, {path.stat().st_size / 1e6:.1f} MB")
    return tokens


def with_questions(
    passages: tuple[np.ndarray, np.ndarray], questions: np.ndarray, pad_token_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Appends the tokens of a question, (n, Q), to each of its passages, ids and mask (n, k, L), as `RagRetriever`."""
    ids, mask = passages
    lengths = mask.sum(-1)[..., None]  # (n, k, 1)
    num_tokens = questions.shape[1]
    steps = np.arange(ids.shape[2] + num_tokens)
    kept = steps < lengths + num_tokens
    joined = np.full(kept.shape, pad_token_id, np.int64)
    joined[..., : ids.shape[2]] = ids
    joined[kept & (steps >= lengths)] = np.repeat(questions, ids.shape[1], axis=0).ravel()
    return torch.from_numpy(joined).flatten(0, 1), torch.from_numpy(kept).flatten(0, 1)


def three_sides(
    rag: RagRetriever, index: Any, tokens: PassageTokens, vectors: np.ndarray, questions: np.ndarray, k: int
) -> dict[str, Callable[[], Any]]:
    """What is timed: the search alone, theirs and ours."""
    return {
        "faiss": lambda: index.search(vectors, k),
        "rag": lambda: rag(questions.tolist(), vectors, n_docs=k, return_tensors="pt"),
        "ours": lambda: with_questions(tokens.gather(index.search(vectors, k)[1]), questions),
    }


def row_of_table(sides: dict[str, Callable[[], Any]], label: str, num_rounds: int, repeats: int) -> str:
    best = measure(sides, num_rounds, repeats)
    theirs, ours = sides["rag"]()["context_attention_mask"], sides["ours"]()[1]
    cells = [
        label,
        *(f"{best[name].cpu:.2f}" for name in ("faiss", "rag", "ours")),
        f"**{best['rag'].cpu / best['ours'].cpu:.1f}**",
        f"{best['ours'].cpu / best['faiss'].cpu:.2f}",
        f"{best['rag'].wall:.2f}",
        f"{best['ours'].wall:.2f}",
        *(f"{mask.shape[1]} ({mask.float().mean():.0%})" for mask in (theirs, ours)),
    ]
    return f"| {' | '.join(cells)} |"


def check_same(theirs: Any, ours: tuple[torch.Tensor, torch.Tensor], tokenizer: PreTrainedTokenizerFast) -> None:
    """Both sides must have found and written the same passages."""
    for row in range(len(ours[0])):
        their_ids = theirs["context_input_ids"][row][theirs["context_attention_mask"][row].bool()]
        assert tokenizer.decode(their_ids) == tokenizer.decode(ours[0][row][ours[1][row]])


def measure(sides: dict[str, Callable[[], Any]], num_rounds: int, repeats: int) -> dict[str, Times]:
    """The least time of every side over interleaved rounds; `repeats` calls are timed as one."""
    times: dict[str, list[Times]] = {name: [] for name in sides}
    for _ in range(num_rounds):
        for name, run in sides.items():
            run()  # finds the processor's caches full of what the side before it used
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(repeats):
                run()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            times[name].append(Times(1e3 * cpu / repeats, 1e3 * wall / repeats))
    return {name: Times(min(t.cpu for t in seen), min(t.wall for t in seen)) for name, seen in times.items()}


if __name__ == "__main__":
    main()
