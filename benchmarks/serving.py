"""The chat server under load: 32 clients at once against one after another, and what a reader behind a server costs.

    python benchmarks/serving.py

A tiny reader with random weights and a knowledge base of a thousand passages, served on loopback in a process of its
own; clients are threads that stream. Throughput counts answers, the first token is the time until the first words
come. The remote reader asks the same server with the same messages as a client that posts by hand.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path


os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import httpx

from measuring import Finding, markdown, write_json


CLIENTS, TOKENS = 32, 32
WORDS = (
    "the capital of this country is a red kite over water where birds sing and people speak of what they saw".split()
)


def build(folder: str) -> None:
    """A reader of words alone, and what it reads."""
    import numpy as np
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from hf_ravlm import KnowledgeBase, from_backbones
    from hf_ravlm.pipelines import RavlmImageToTextPipeline

    names = ["<pad>", "<bos>", "<eos>", "<unk>", *"?.:[]0123456789", "\n", "Passage", "Question", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(names), **shape, **ids))
    parts = from_backbones(generator=model, tokenizer=fast)
    parts[0].generation_config.eos_token_id = None  # every answer has the same length
    random = np.random.default_rng(0)
    rows = [{"id": str(n), "text": " ".join(random.choice(WORDS, 12))} for n in range(1000)]
    pipe = RavlmImageToTextPipeline(*parts, knowledge=KnowledgeBase.from_dicts(rows), encoder=LetterEncoder())
    pipe.model.save_pretrained(folder)
    pipe.processor.save_pretrained(folder)
    pipe.retriever.save_pretrained(folder)


class LetterEncoder:
    """Counts letters: searching costs next to nothing here."""

    name, fingerprint = "letters", "b" * 64

    def encode_queries(self, images, texts):
        import numpy as np

        counts = np.array([[text.count(chr(97 + n)) + 0.01 for n in range(26)] for text in texts], dtype=np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    def encode_passages(self, texts, images):
        return self.encode_queries(images, texts)


def run_server(folder: str, port: int, max_batch: int) -> None:
    """In a process of its own."""
    import torch

    from hf_ravlm import RavlmRetriever
    from hf_ravlm.integrations.transformers_serve import serve

    torch.set_num_threads(1)
    retriever = RavlmRetriever.from_pretrained(folder, encoder=LetterEncoder())
    serve(folder, k=2, knowledge=retriever, host="127.0.0.1", port=port, device="cpu", max_batch=max_batch)


def body(n: int) -> dict:
    question = f"what is the capital of this country {n % 10} {n // 10 % 10} ?"
    return {"messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "stream": True}


def ask(client: httpx.Client, address: str, n: int) -> tuple[float, float]:
    """Seconds until the first words, and until the end."""
    start, first = time.perf_counter(), None
    with client.stream("POST", f"{address}/chat/completions", json=body(n), timeout=120) as reply:
        for line in reply.iter_lines():
            if (
                first is None
                and line.startswith("data: {")
                and json.loads(line[6:])["choices"][0]["delta"].get("content")
            ):
                first = time.perf_counter() - start
    return first or 0.0, time.perf_counter() - start


def load(address: str, clients: int, answers: int) -> dict[str, float]:
    """So many clients, each asking again when it is answered."""
    numbers, times, lock = iter(range(answers)), [], threading.Lock()

    def work():
        with httpx.Client(trust_env=False) as client:
            while True:
                with lock:
                    n = next(numbers, None)
                if n is None:
                    return
                found = ask(client, address, n)
                with lock:
                    times.append(found)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    firsts = sorted(first for first, _ in times)
    return {
        "per_second": answers / wall,
        "first_p50": statistics.median(firsts),
        "first_p95": firsts[int(0.95 * (len(firsts) - 1))],
        "whole_p50": statistics.median(whole for _, whole in times),
    }


def started(folder: str, port: int, max_batch: int):
    process = multiprocessing.get_context("spawn").Process(
        target=run_server, args=(folder, port, max_batch), daemon=True
    )
    process.start()
    address = f"http://127.0.0.1:{port}/v1"
    with httpx.Client(trust_env=False) as client:
        while True:
            try:
                client.get(f"{address}/models", timeout=5)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        for n in range(4):
            ask(client, address, n)
    return process, address


def remote_against_by_hand(address: str, folder: str, rounds: int) -> Finding:
    """The median time of the same questions, in turns."""
    from hf_ravlm import RemoteReader
    from hf_ravlm.pipelines.answering import answer_questions
    from hf_ravlm.pipelines.remote.messages import RemotePrompts

    reader, times, texts = RemoteReader(address, folder), {"remote": [], "by hand": []}, {"remote": [], "by hand": []}
    with httpx.Client(trust_env=False) as client:
        for n in range(rounds):
            messages = body(n)["messages"]
            start = time.perf_counter()
            sent = {"messages": messages, "max_tokens": TOKENS, "temperature": 0}
            reply = client.post(f"{address}/chat/completions", json=sent, timeout=120).json()
            times["by hand"].append(time.perf_counter() - start)
            texts["by hand"].append(reply["choices"][0]["message"]["content"].strip())
            start = time.perf_counter()
            asked = {"questions": [messages[0]["content"]], "images": None, "max_new_tokens": TOKENS}
            ((answer,),) = answer_questions(reader, RemotePrompts(), None, **asked)
            times["remote"].append(time.perf_counter() - start)
            texts["remote"].append(answer.text)
    ratio = statistics.median(times["remote"]) / statistics.median(times["by hand"])
    same = texts["remote"] == texts["by hand"]
    seen = f"{ratio:.3f}, {'the same text' if same else 'other text'}"
    goal = "<= 1.05, the same text"
    return Finding(
        "remote reader", "beside calling the server by hand", goal, seen, same and ratio <= 1.05, {"ratio": ratio}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--out", type=Path, help="write the findings here as JSON, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(folder)
        process, address = started(folder, options.port, 1)
        single = load(address, 1, options.answers // 4)
        queued = load(address, CLIENTS, options.answers // 4)
        process.terminate()
        process.join()
        process, address = started(folder, options.port + 1, CLIENTS)
        batched = load(address, CLIENTS, options.answers)
        remote = remote_against_by_hand(address, folder, options.rounds)
        process.terminate()
        process.join()
    ratio = batched["per_second"] / single["per_second"]
    first, alone = batched["first_p95"] / queued["first_p95"], batched["first_p95"] / single["first_p95"]
    findings = [
        Finding(
            "serve", f"{CLIENTS} clients, throughput beside one after another", ">= 4", f"{ratio:.2f}", ratio >= 4
        ),
        Finding("serve", "p95 of the first token, beside answers one at a time", "<= 2", f"{first:.2f}", first <= 2),
        Finding("serve", "p95 of the first token, beside a lone client", "", f"{alone:.2f}", None),
        remote,
    ]
    for name, found in (("a lone client", single), ("one at a time", queued), ("together", batched)):
        seen = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
        findings.append(Finding("serve", f"as it was seen: {name}", "", seen, None))
    print(markdown(findings))
    if options.out:
        write_json(options.out, {"clients": CLIENTS, "tokens": TOKENS}, findings)


if __name__ == "__main__":
    main()
