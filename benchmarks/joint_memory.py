"""Memory of a joint step, and of an attribution, over a large vocabulary: within the budget of tokens that is set.

    python benchmarks/joint_memory.py

Eight questions with four passages each, a vocabulary of 150,000. The step is that of `RavlmJointTrainer`: likelihoods
of the answers under each passage, loss and backward, adapters in the reader and in the towers. It is measured with all
prompts at once and part by part (`tokens_at_once`), and again with a small vocabulary: what is left between the two is
what logits cost beyond activations. Random weights: cost, no quality.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from peft import LoraConfig
from transformers import set_seed

from attribution import QUESTION_TOKENS, WIDTHS, make_inputs
from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration
from hf_ravlm.training.joint_model import JointReader
from hf_ravlm.training.lora import add_adapters
from measuring import Finding, markdown, write_json
from reader import IMAGE, IMAGE_TOKENS, MARK, PeakMemory, return_freed_memory


GOAL = 500  # MB beyond activations


def make_reader(vocabulary: int, marginalization: str) -> RavlmForConditionalGeneration:
    """A causal reader of the widths of `attribution.py`, with small towers."""
    set_seed(0)
    words = {"model_type": "llama", "vocab_size": vocabulary, "max_position_embeddings": 8192, "pad_token_id": 0}
    config = RavlmConfig(
        vision_config={"model_type": "vit", "image_size": 128, "patch_size": 16, **WIDTHS},
        text_config={"model_type": "bert", "vocab_size": 1000, **WIDTHS},
        generator_config={**words, **WIDTHS},
        num_image_tokens=IMAGE_TOKENS,
        marginalization=marginalization,
    )
    return RavlmForConditionalGeneration(config).eval()


def batch(number: int, passages: int, passage_tokens: int, answer_tokens: int) -> dict[str, torch.Tensor]:
    """Questions with a prompt for each passage: image, passage, question, answer."""
    draw = torch.Generator().manual_seed(0)
    rows = number * passages
    parts = [
        torch.full((rows, IMAGE_TOKENS), IMAGE),
        torch.randint(10, 900, (rows, passage_tokens), generator=draw),
        torch.full((rows, QUESTION_TOKENS), MARK),
        torch.randint(10, 900, (number, answer_tokens), generator=draw).repeat_interleave(passages, dim=0),
    ]
    ids = torch.cat(parts, dim=1)
    labels, owners = torch.full_like(ids, -100), torch.full_like(ids, -1)
    labels[:, -answer_tokens:] = ids[:, -answer_tokens:]
    owners[:, IMAGE_TOKENS : IMAGE_TOKENS + passage_tokens] = 0
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_passages": owners,
        "labels": labels,
        "pixel_values": torch.zeros(number, 3, 128, 128),
        "evidence_scores": torch.zeros(number, passages),
    }


def joint_step(options: argparse.Namespace, vocabulary: int, questions_at_once: int) -> float:
    """Peak memory of a step, in MB."""
    model = add_adapters(
        make_reader(vocabulary, "sequence"),
        LoraConfig(r=8, target_modules=["q_proj", "v_proj", "query", "value"], modules_to_save=[]),
        towers_learn=True,
    )
    reader = JointReader(model).train()
    sizes = (options.passages, options.passage_tokens, options.answer_tokens)
    number = questions_at_once
    whole = [batch(number, *sizes) for _ in range(options.questions // number)]
    asked: dict[str, Any] = {"parts": whole} if len(whole) > 1 else whole[0]
    query = {"pixel_values": torch.zeros(options.questions, 3, 128, 128)}
    vectors = torch.nn.functional.normalize(
        torch.randn(options.questions, options.passages, reader.reader.config.projection_dim), dim=-1
    )
    return_freed_memory()
    with PeakMemory() as peak:
        reader(query=query, passage_vectors=vectors, **asked).loss.backward()
    return peak.bytes / 1e6


@torch.inference_mode()
def attribution_step(options: argparse.Namespace) -> float:
    """Peak memory of the posterior of as many answers, in MB."""
    model = make_reader(options.vocabulary, "none")
    answer = torch.randint(10, 900, (options.answer_tokens,), generator=torch.Generator().manual_seed(1))
    one = make_inputs(options.passages, options.passage_tokens, answer)
    many = {name: tensor.repeat_interleave(options.questions, dim=0) for name, tensor in one.items()}
    return_freed_memory()
    with PeakMemory() as peak:
        model.attribute(**many)
    return peak.bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--passage_tokens", type=int, default=60)
    parser.add_argument("--answer_tokens", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=150000)
    parser.add_argument("--out", type=Path, help="write the findings here as JSON, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    findings = []
    shape = f"{options.questions} questions, K = {options.passages}, vocabulary of {options.vocabulary:,}"
    for name, at_once in (("all prompts at once", options.questions), ("one question at a time", 1)):
        large, small = (joint_step(options, size, at_once) for size in (options.vocabulary, 1000))
        beyond = large - small
        met = beyond <= GOAL if at_once == 1 else None
        seen = f"{beyond:.0f} MB (a step takes {large:.0f} MB, {small:.0f} MB with a vocabulary of 1,000)"
        goal = "" if met is None else f"<= {GOAL} MB beyond activations"
        findings.append(Finding("joint step", f"{shape}, {name}", goal, seen, met, {"megabytes": [large, small]}))
    peak = attribution_step(options)
    findings.append(
        Finding("attribution", shape, f"<= {GOAL} MB", f"{peak:.0f} MB", peak <= GOAL, {"megabytes": [peak]})
    )
    print(markdown(findings))
    if options.out:
        write_json(options.out, {"torch": torch.__version__, "widths": WIDTHS}, findings)


if __name__ == "__main__":
    main()
