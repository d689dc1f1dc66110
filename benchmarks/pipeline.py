"""What a pipeline costs beside `model.generate`: sixteen questions about pictures, answered with evidence.

Three sides take turns on one thread: `generate` on inputs that were made before; the same by hand from pictures and
questions (search, processor, `generate`, decoding); and the pipeline. What the pipeline adds to the hand-written path
is overhead; what the hand-written path adds to `generate` is work that somebody has to do: decoding pictures, encoding
the query, searching, tokenising. The pipeline that also attributes each answer to its passages is shown as well.

    python benchmarks/pipeline.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from transformers import pipeline
from transformers.utils import logging

import hf_ravlm  # noqa: F401, the tasks and Auto classes
from hf_ravlm.images import safe_image
from measuring import Finding, interleaved, markdown, write_json


SETTINGS = {
    "short answers": ("What is the capital of the country that uses this flag?", 32),
    "descriptions": ("Describe this flag: whose is it, what does it show and what does it mean?", 96),
}
GOAL = 1.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="examples/flags/checkpoint", help="folder with a knowledge base of pictures"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write the findings here as JSON, too")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    pipe = pipeline("image-to-text", model=options.model)
    pictures = [row.image_bytes for row in pipe.retriever.knowledge_base if row.image_bytes][:: 2168 // 200]
    pictures = [safe_image(picture) for picture in pictures[: options.batch]]
    findings = []
    for name, (question, tokens) in SETTINGS.items():
        findings += compare(pipe, pictures, question, tokens, name, options.rounds)
    print(markdown(findings))
    if options.out:
        write_json(options.out, {"batch": len(pictures), "torch": torch.__version__}, findings)


def compare(pipe, pictures, question: str, tokens: int, name: str, rounds: int) -> list[Finding]:
    """The sides for one question about every picture, with answers of at most `tokens` tokens."""
    model, processor, retriever = pipe.model, pipe.processor, pipe.retriever
    asked = [question] * len(pictures)
    k = model.config.num_passages
    options = {"max_new_tokens": tokens, "do_sample": False}

    def prepared():
        return processor(images=pictures, text=asked, evidence=retriever.retrieve(pictures, asked, k=k))

    @torch.inference_mode()
    def by_hand():
        inputs = prepared()
        sequences = model.generate(**inputs, **options)
        return processor.tokenizer.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    inputs = prepared()
    call = {"question": question, "batch_size": len(pictures), **options}
    sides = {
        "generate": torch.inference_mode()(lambda: model.generate(**inputs, **options)),
        "by hand": by_hand,
        "pipeline": lambda: pipe(pictures, **call, with_posterior=False),
        "with posterior": lambda: pipe(pictures, **call),
    }
    assert [row[0]["generated_text"] for row in sides["pipeline"]()] == [text.strip() for text in by_hand()]
    times = interleaved(sides, rounds)
    base, hand = times["generate"].cpu, times["by hand"].cpu
    seen = {side: f"{time.cpu:.3f} s CPU, {time.cpu / base:.3f} of generate" for side, time in times.items()}
    ratio, own = times["pipeline"].cpu / base, times["pipeline"].cpu / hand
    goal = f"<= {GOAL}"
    return [
        Finding(name, "pipeline beside generate", goal, seen["pipeline"], ratio <= GOAL, {"ratio": ratio}),
        Finding(name, "pipeline beside the same by hand", goal, f"{own:.3f}", own <= GOAL, {"ratio": own}),
        Finding(name, "search, processor and decoding by hand", "", seen["by hand"], None),
        Finding(name, "pipeline with attribution", "", seen["with posterior"], None),
    ]


if __name__ == "__main__":
    main()
