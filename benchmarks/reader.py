"""What evidence costs the reader: time to the first token, time per further token and memory, for every fusion.

    python benchmarks/reader.py --output reader.json

A language model of the shape of SmolLM2-135M (or `--shape tiny`) with random weights: cost, not quality. Each way of
reading K passages runs in every round, so that a busy machine slows all of them alike; the least CPU time counts, and
ratios are against the same reader without passages (K = 0).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import threading
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM

from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration
from hf_ravlm.model.fusions.cross_attention import attach_cross_attention
from hf_ravlm.model.reader import reading


SHAPES = {
    "smollm2-135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "intermediate_size": 1536},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128},
}
IMAGE_TOKENS, QUESTION_TOKENS, VOCABULARY = 64, 32, 49152
IMAGE, EVIDENCE, MARK = 3, 4, 7  # token ids
WAYS = {  # name: (fusion, memory tokens per passage)
    "in_context": ("in_context", 0),
    "concat": ("concat", 0),
    "product": ("product", 1),
    "attention, M = 2": ("attention", 2),
    "attention, M = 8": ("attention", 8),
    "gated, M = 2": ("gated", 2),
    "gated, M = 8": ("gated", 8),
    "cross_attention": ("cross_attention", 0),
    "one prompt each, naive": ("in_context", 0),
    "one prompt each, shared prefix": ("in_context", 0),
}
GOALS = {  # way: (K, largest ratio, against what)
    "one prompt each, shared prefix": [(5, 0.65, "naive"), (10, 0.65, "naive"), (20, 0.65, "naive")],
    "product": [(10, 1.4, "K = 0"), (10, 0.2, "concat")],
    "attention, M = 2": [(10, 1.4, "K = 0"), (10, 0.2, "concat")],
    "gated, M = 2": [(10, 1.4, "K = 0"), (10, 0.2, "concat")],
    "cross_attention": [(10, 1.4, "K = 0"), (10, 0.2, "concat")],
}


def make_model(way: str, shape: dict, language_model, dtype: torch.dtype) -> RavlmForConditionalGeneration:
    """A reader that reads passages in one of `WAYS`; all share one language model."""
    each = way.startswith("one prompt each")
    config = RavlmConfig(
        vision_config={"model_type": "vit", "image_size": 128, "patch_size": 16, "num_hidden_layers": 2,
                       "hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 384},
        text_config={"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 6,
                     "intermediate_size": 384, "vocab_size": 1000},
        generator_config={"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 8,
                          **{k: v for k, v in shape.items() if k != "num_hidden_layers"}},
        num_image_tokens=IMAGE_TOKENS,
        num_memory_tokens=max(WAYS[way][1], 1),
        fusion=WAYS[way][0],
        marginalization="token" if each else "none",
    )  # fmt: skip
    config.generator_config.num_hidden_layers = shape["num_hidden_layers"]
    model = RavlmForConditionalGeneration(config)
    model.language_model = language_model
    config.generator_config = language_model.config
    if way == "cross_attention":
        attach_cross_attention(language_model)
    return model.to(dtype).eval()


def make_inputs(way: str, model, passages: int, passage_tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs as RavlmProcessor would give them; states of passages come ready, as from a knowledge base."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(10, 900, (passages * passage_tokens,), generator=generator).tolist()
    texts = [words[k * passage_tokens : (k + 1) * passage_tokens] for k in range(passages)]
    question = [MARK] * QUESTION_TOKENS
    image = [IMAGE] * IMAGE_TOKENS
    per_passage = passage_tokens if way == "concat" else WAYS[way][1]
    if way.startswith("one prompt each") and passages:
        rows = [(image + question + text, [-1] * len(image + question) + [0] * len(text)) for text in texts]
    elif way == "in_context" or way.startswith("one"):
        owners = [k for k in range(passages) for _ in range(passage_tokens)]
        rows = [(image + words + question, [-1] * len(image) + owners + [-1] * len(question))]
    else:
        owners = [k for k in range(passages) for _ in range(per_passage)]
        filled = [EVIDENCE] * len(owners)
        rows = [(image + filled + question, [-1] * len(image) + owners + [-1] * len(question))]
    inputs = {
        "input_ids": torch.tensor([ids for ids, _ in rows]),
        "token_passages": torch.tensor([owners for _, owners in rows]),
        "pixel_values": torch.zeros(1, 3, 128, 128, dtype=dtype),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if passages:
        inputs["evidence_scores"] = torch.zeros(1, passages)
        inputs["evidence_mask"] = torch.ones(1, passages, dtype=torch.bool)
    if passages and model.fusion.reads_evidence:
        inputs["evidence_states"] = torch.randn(1, passages, passage_tokens, 384, generator=generator).to(dtype)
        inputs["evidence_token_mask"] = torch.ones(1, passages, passage_tokens, dtype=torch.bool)
        inputs["evidence_token_ids"] = torch.randint(
            10, VOCABULARY, (1, passages, passage_tokens), generator=generator
        )
        inputs["evidence_alignment"] = torch.arange(passage_tokens).flip(0).repeat(1, passages, 1)
        inputs["question_input_ids"] = torch.ones(1, 12, dtype=torch.long)
        inputs["question_attention_mask"] = torch.ones(1, 12, dtype=torch.long)
    return inputs


class PeakMemory:
    """The largest resident size of this process above that at the start, in bytes, sampled every millisecond."""

    def __enter__(self):
        self.process, self.stop = psutil.Process(), threading.Event()
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self.sample, daemon=True)
        self.thread.start()
        return self

    def sample(self):
        while not self.stop.wait(0.001):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.bytes = self.peak - self.start


def return_freed_memory() -> None:
    """Gives what is freed back to the system (glibc), so that the resident size tells what a run needs."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: every tensor in pages of its own
        libc.malloc_trim(0)
    except OSError:
        pass


class Clock:
    """A streamer of `generate` that notes the CPU and wall time at which the prompt and each token come."""

    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append((time.process_time(), time.perf_counter()))

    def end(self):
        pass


def run(model, inputs: dict, new_tokens: int) -> tuple[float, float, float]:
    """CPU and wall seconds to the first token of one `generate`, and CPU seconds per token after it."""
    clock = Clock()
    start = time.process_time(), time.perf_counter()
    options = {"min_new_tokens": 1 + new_tokens, "max_new_tokens": 1 + new_tokens, "do_sample": False}
    with torch.inference_mode():
        model.generate(**inputs, **options, streamer=clock)
    first, last = clock.times[1], clock.times[-1]  # the prompt came before
    return first[0] - start[0], first[1] - start[1], (last[0] - first[0]) / new_tokens


def measure(arguments: argparse.Namespace) -> list[dict]:
    """One record per way and K."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype, shape = getattr(torch, arguments.dtype), SHAPES[arguments.shape]
    config = RavlmConfig(
        generator_config={"model_type": "llama", "vocab_size": VOCABULARY, "max_position_embeddings": 8192,
                          "num_key_value_heads": 3 if arguments.shape != "tiny" else 2, **shape}
    ).generator_config  # fmt: skip
    language_model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    models = {way: make_model(way, shape, language_model, dtype) for way in WAYS}
    jobs = {(way, k): None for k in arguments.passages for way in WAYS if k or way == "in_context"}
    share = reading.grouped_prefix
    for _ in range(arguments.rounds):
        for way, k in jobs:
            inputs = make_inputs(way, models[way], k, arguments.passage_tokens, dtype)
            reading.grouped_prefix = (lambda *_: None) if way.endswith("naive") else share
            return_freed_memory()
            with PeakMemory() as memory:
                seen = run(models[way], inputs, arguments.new_tokens)
            seen = (*seen, memory.bytes)
            best = jobs[way, k]
            jobs[way, k] = seen if best is None else (*map(min, best[:3], seen[:3]), max(best[3], seen[3]))
    reading.grouped_prefix = share
    names = ("first_token_cpu_s", "first_token_wall_s", "next_token_cpu_s", "peak_bytes")
    return [{"way": way, "passages": k, **dict(zip(names, seen, strict=True))} for (way, k), seen in jobs.items()]


def compare(records: list[dict]) -> tuple[str, list[dict]]:
    """The table, and what became of every goal."""
    first = {(record["way"], record["passages"]): record["first_token_cpu_s"] for record in records}
    bare = first["in_context", 0]
    lines = [
        "| way | K | first token, CPU ms | x K = 0 | next token, CPU ms | peak, MB |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        cells = (
            record["way"], record["passages"], f"{1e3 * record['first_token_cpu_s']:.0f}",
            f"{record['first_token_cpu_s'] / bare:.2f}", f"{1e3 * record['next_token_cpu_s']:.1f}",
            f"{record['peak_bytes'] / 1e6:.0f}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    goals = []
    for way, wanted in GOALS.items():
        for k, limit, against in wanted:
            peer = {"K = 0": ("in_context", 0), "concat": ("concat", k)}.get(against, ("one prompt each, naive", k))
            if (way, k) in first and peer in first:
                ratio = first[way, k] / first[peer]
                goals.append({"way": way, "passages": k, "against": against, "goal": limit, "seen": round(ratio, 3)})
    return "\n".join(lines), goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m", help="shape of the language model")
    parser.add_argument("--passages", type=int, nargs="+", default=[0, 1, 5, 10, 20], help="values of K; 0 is needed")
    parser.add_argument("--passage_tokens", type=int, default=100, help="tokens per passage")
    parser.add_argument("--new_tokens", type=int, default=8, help="tokens to time after the first")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything runs; the least time counts")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="write figures as JSON")
    arguments = parser.parse_args()
    records = measure(arguments)
    table, goals = compare(records)
    print(table, "\n")
    for goal in goals:
        kept = "kept" if goal["seen"] <= goal["goal"] else "missed"
        share = f"{goal['seen']:.2f} of {goal['against']}"
        print(f"{goal['way']}, K = {goal['passages']}: {share} (goal {goal['goal']}: {kept})")
    if arguments.output:
        arguments.output.write_text(json.dumps({"records": records, "goals": goals}, indent=2) + "\n")


if __name__ == "__main__":
    main()
