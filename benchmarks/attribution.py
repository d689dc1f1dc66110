"""What it costs to say which passage an answer rests on, beside the answer: time and memory.

A causal reader with random weights (cost, not quality) answers a question about an image from K passages. The sides
take turns on one thread: the answer alone, its posterior, and what is lost without each passage. Then the memory of a
posterior over a large vocabulary, and the time to the first token through our reader beside the language model alone.

    python benchmarks/attribution.py
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration
from measuring import Finding, interleaved, markdown, write_json
from reader import IMAGE, IMAGE_TOKENS, MARK, PeakMemory, return_freed_memory


WIDTHS = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 6}
QUESTION_TOKENS, CLOSING_TOKENS = 32, 4
PRICE, MEMORY, FIRST_TOKEN = 1.0, 500, 1.05  # goals: of the answer, MB, of the language model alone


def make_reader(vocabulary: int) -> RavlmForConditionalGeneration:
    """A reader of `WIDTHS` with small towers."""
    set_seed(0)
    language_model = {"model_type": "llama", "vocab_size": vocabulary, "max_position_embeddings": 8192, **WIDTHS}
    config = RavlmConfig(
        vision_config={"model_type": "vit", "image_size": 128, "patch_size": 16, **WIDTHS},
        text_config={"model_type": "bert", "vocab_size": 1000, **WIDTHS},
        generator_config={**language_model, "pad_token_id": 0},
        num_image_tokens=IMAGE_TOKENS,
    )
    return RavlmForConditionalGeneration(config).eval()


def make_inputs(passages: int, passage_tokens: int, answer: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Inputs as RavlmProcessor would give them: image, passages, question, and an answer `(T,)` if there is one."""
    words = torch.randint(10, 900, (passages * passage_tokens,), generator=torch.Generator().manual_seed(0))
    question = torch.full((QUESTION_TOKENS,), MARK)
    ids = torch.cat([torch.full((IMAGE_TOKENS,), IMAGE), words, question])
    owners = torch.full_like(ids, -1)
    owners[IMAGE_TOKENS : IMAGE_TOKENS + len(words)] = torch.arange(passages).repeat_interleave(passage_tokens)
    labels = torch.full_like(ids, -100)
    if answer is not None:
        ids, labels = torch.cat([ids, answer]), torch.cat([labels, answer])
        owners = torch.cat([owners, torch.full_like(answer, -1)])
    inputs = {"input_ids": ids, "token_passages": owners, "attention_mask": torch.ones_like(ids)}
    inputs = {name: tensor.unsqueeze(0) for name, tensor in inputs.items()}
    inputs |= {"pixel_values": torch.zeros(1, 3, 128, 128), "evidence_scores": torch.zeros(1, passages)}
    return inputs if answer is None else {**inputs, "labels": labels.unsqueeze(0)}


@torch.inference_mode()
def price(options: argparse.Namespace, passage_tokens: int) -> list[Finding]:
    """Attribution beside the answer that it is about."""
    model = make_reader(options.vocabulary)
    asked = make_inputs(options.passages, passage_tokens)
    writing = {"min_new_tokens": options.new_tokens, "max_new_tokens": options.new_tokens, "do_sample": False}
    answer = model.generate(**asked, **writing)[0, -options.new_tokens :]
    told = make_inputs(options.passages, passage_tokens, answer)
    sides = {
        "answer": lambda: model.generate(**asked, **writing),
        "posterior": lambda: model.attribute(**told, with_leave_one_out=False),
        "posterior and leave_one_out": lambda: model.attribute(**told),
    }
    times = interleaved(sides, options.rounds)
    findings = []
    for side in ("posterior", "posterior and leave_one_out"):
        ratio, met = times[side].cpu / times["answer"].cpu, None
        if side == "posterior":
            met = ratio <= PRICE
        seen = f"{ratio:.2f} ({times[side].cpu:.2f} s of {times['answer'].cpu:.2f} s CPU)"
        goal = "" if met is None else f"<= {PRICE}"
        what = f"{side}, passages of {passage_tokens} tokens"
        findings.append(Finding(f"K = {options.passages}", what, goal, seen, met, {"ratio": ratio}))
    return findings


@torch.inference_mode()
def memory(options: argparse.Namespace) -> Finding:
    """Peak memory of a posterior over a large vocabulary, and of an answer that is long as well."""
    model, peaks = make_reader(options.large_vocabulary), []
    for length in (options.new_tokens, 512):
        answer = torch.randint(10, 900, (length,), generator=torch.Generator().manual_seed(1))
        return_freed_memory()
        with PeakMemory() as peak:
            model.attribute(**make_inputs(options.passages, 100, answer))
        peaks.append(peak.bytes / 1e6)
    seen = f"{peaks[0]:.0f} MB, answers of 512 tokens {peaks[1]:.0f} MB"
    what = f"vocabulary of {options.large_vocabulary}, with leave_one_out"
    return Finding("memory", what, f"<= {MEMORY} MB", seen, max(peaks) <= MEMORY, {"megabytes": peaks})


@torch.inference_mode()
def first_token(options: argparse.Namespace) -> Finding:
    """Time to the first token through our reader beside the language model alone, at the same prompt of words."""
    settings = {"vocab_size": options.vocabulary, "max_position_embeddings": 8192, "pad_token_id": 0, **WIDTHS}
    model = make_reader(options.vocabulary)
    alone = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings)).eval()
    alone.load_state_dict(model.language_model.state_dict())
    inputs = make_inputs(options.passages, 100)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_passages", "evidence_scores")}
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, MARK)
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    one = {"max_new_tokens": 1, "do_sample": False}
    sides = {"alone": lambda: alone.generate(**plain, **one), "reader": lambda: model.generate(**inputs, **one)}
    times = interleaved(sides, 3 * options.rounds)
    ratio = times["reader"].cpu / times["alone"].cpu
    what = "reader beside the bare language model"
    return Finding("first token", what, f"<= {FIRST_TOKEN}", f"{ratio:.3f}", ratio <= FIRST_TOKEN, {"ratio": ratio})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--passage_tokens", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--new_tokens", type=int, default=40)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--large_vocabulary", type=int, default=150000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the findings here as JSON, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    findings = [finding for tokens in options.passage_tokens for finding in price(options, tokens)]
    findings += [memory(options), first_token(options)]
    print(markdown(findings))
    if options.out:
        write_json(options.out, {"torch": torch.__version__, "widths": WIDTHS}, findings)


if __name__ == "__main__":
    main()
