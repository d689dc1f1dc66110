"""Ten minutes of an accelerator: what a 2B reader and a base encoder cost there, and whether they say what a CPU says.

    python benchmarks/accelerator.py --out accelerator.json       # needs a GPU; nothing is downloaded
    python benchmarks/accelerator.py --size tiny --device cpu     # the same steps in seconds, to see that they work

A reader of the shapes of Qwen3-VL-2B with an encoder of the shapes of SigLIP-base, random weights: cost, no quality.
Each step writes its line at once, so that what has been measured is kept where the time ends early:

1. *generate*: answers to questions about an image from K passages, tokens per second
2. *train*: loss and backward with LoRA in reader and towers, activations computed anew
3. *attribution*: the posterior of an answer beside the answer
4. *encoder*: images and texts per second, by each kind of attention that is installed
5. *equality*: the loss and the vectors in float32, there and on the CPU
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from peft import LoraConfig
from transformers.utils import is_flash_attn_2_available

from hf_ravlm import RavlmEncoder
from hf_ravlm.hub.lora_targets import LORA_TARGETS
from hf_ravlm.pipelines.answering import add_attributions, answer_questions
from hf_ravlm.retrieval import Evidence
from hf_ravlm.training.lora import add_adapters
from measuring import Finding, markdown, write_json
from random_readers import random_image, random_reader


EDGES = {"tiny": 16, "small": 128, "2b": 448}  # of images
LEAST, LIMIT = 1e-3, 1e-2  # of float32 on two devices: vectors; losses over many layers
QUESTION = "Which passage tells what stands in this image, and why?"


class Device:
    """Where is measured: waits for what was started, and counts the largest memory."""

    def __init__(self, name: str) -> None:
        self.name, self.is_cuda = name, name.startswith("cuda")

    def measured(self, call: Callable[[], Any], rounds: int) -> tuple[float, float]:
        """The least seconds of a call, and the peak of memory in GB (0 on a CPU)."""
        call()
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        best = float("inf")
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            best = min(best, time.perf_counter() - start)
        return best, torch.cuda.max_memory_allocated() / 1e9 if self.is_cuda else 0.0

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize()


def passages(number: int, length: int) -> list[Evidence]:
    """So many passages of so many bytes."""
    words = "The old harbour lies behind the market, and boats come in at dawn. " * (length // 60 + 1)
    return [Evidence(id=str(n), text=f"{n} {words}"[:length], score=1 - n / 10, rank=n + 1) for n in range(number)]


def generate(model: Any, processor: Any, options: argparse.Namespace, device: Device) -> Finding:
    """Answers of a fixed length."""
    model.generation_config.eos_token_id = None
    asked = {
        "images": [random_image(n, EDGES[options.size]) for n in range(options.batch)],
        "questions": [QUESTION] * options.batch,
        "evidence": [passages(options.passages, options.passage_bytes)] * options.batch,
        "max_new_tokens": options.new_tokens,
        "with_posterior": False,
    }
    seconds, memory = device.measured(lambda: answer_questions(model, processor, None, **asked), options.rounds)
    rate = options.batch * options.new_tokens / seconds
    seen = f"{rate:,.1f} tokens/s, {memory:.2f} GB"
    return Finding("generate", f"K = {options.passages}, batch of {options.batch}", "", seen, None, {"rate": rate})


def attribution(model: Any, processor: Any, options: argparse.Namespace, device: Device) -> Finding:
    """What the posterior costs beside the answer."""
    image, evidence = random_image(0, EDGES[options.size]), passages(options.passages, options.passage_bytes)
    asked = {"images": [image], "questions": [QUESTION], "evidence": [evidence], "max_new_tokens": options.new_tokens}
    ((answer,),) = answer_questions(model, processor, None, **asked, with_posterior=False)
    answer.text = answer.text or "the harbour"
    alone, _ = device.measured(
        lambda: answer_questions(model, processor, None, **asked, with_posterior=False), options.rounds
    )
    seconds, memory = device.measured(
        lambda: add_attributions(model, processor, [image], [QUESTION], [answer], with_leave_one_out=False),
        options.rounds,
    )
    ratio = seconds / alone
    seen = f"{ratio:.2f} of the answer, {memory:.2f} GB"
    return Finding("attribution", "posterior", "<= 1", seen, ratio <= 1 if device.is_cuda else None, {"ratio": ratio})


def train(model: Any, processor: Any, options: argparse.Namespace, device: Device) -> Finding:
    """A step with adapters in the reader and in its encoder."""
    targets = rf"{LORA_TARGETS}|model\..*\.(q_proj|v_proj)"
    adapted = add_adapters(model, LoraConfig(r=16, target_modules=targets), True, towers_learn=True).train()
    adapted.activation_checkpointing_enable()
    adapted.enable_input_require_grads()
    rows = range(options.batch)
    inputs = processor(
        images=[random_image(n, EDGES[options.size]) for n in rows],
        text=[QUESTION for _ in rows],
        evidence=[passages(options.passages, options.passage_bytes) for _ in rows],
        answers=["It is the second one, for there are boats." for _ in rows],
    ).to(device.name)
    query = processor.for_retrieval([random_image(0, EDGES[options.size])], [QUESTION]).to(device.name)

    def step() -> None:
        with torch.autocast(device.name.partition(":")[0], torch.bfloat16, enabled=device.is_cuda):
            loss = adapted(**inputs).loss + adapted.get_base_model().model.get_query_features(**query).sum()
        loss.backward()
        adapted.zero_grad()

    seconds, memory = device.measured(step, options.rounds)
    tokens = int(inputs["attention_mask"].sum())
    model.activation_checkpointing_disable()
    adapted.unload()
    seen = f"{tokens / seconds:,.0f} tokens/s, {seconds:.2f} s a step, {memory:.2f} GB"
    return Finding("train", f"LoRA, batch of {options.batch}, {tokens} tokens", "", seen, None, {"seconds": seconds})


def encoder(model: Any, processor: Any, options: argparse.Namespace, device: Device) -> list[Finding]:
    """Images and texts per second, by each kind of attention."""
    kinds = ["sdpa", *(["flash_attention_2"] if device.is_cuda and is_flash_attn_2_available() else [])]
    findings = [encoder_with(kind, model, processor, options, device) for kind in kinds]
    model.model.set_attn_implementation("sdpa")
    return findings


def encoder_with(kind: str, model: Any, processor: Any, options: argparse.Namespace, device: Device) -> Finding:
    """By one kind of attention: images ready for the tower, images as they come, texts."""
    model.model.set_attn_implementation(kind)
    images = [random_image(n, EDGES[options.size]) for n in range(options.encoded)]
    texts, encodes = [row.text for row in passages(options.encoded, 60)], RavlmEncoder(model.model, processor)
    pixels = processor.for_retrieval(images).to(device.name)
    pixels["pixel_values"] = pixels["pixel_values"].to(model.dtype)
    with torch.inference_mode():
        seconds, memory = device.measured(lambda: model.model.get_query_features(**pixels), options.rounds)
    whole, _ = device.measured(lambda: encodes.encode_passages([None] * len(images), images), 1)
    words, _ = device.measured(lambda: encodes.encode_passages(texts, None), options.rounds)
    rates = [len(images) / seconds, len(images) / whole, len(texts) / words]
    seen = f"{rates[0]:,.0f} images/s ({rates[1]:,.0f} with their processing), {rates[2]:,.0f} texts/s"
    return Finding("encoder", kind, "", f"{seen}, {memory:.2f} GB", None, {"rates": rates})


def equality(model: Any, processor: Any, options: argparse.Namespace, device: Device) -> list[Finding]:
    """The same weights in float32 on both devices; the reader in its first layers, as differences add up."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    image, found = random_image(0, EDGES[options.size]), {}
    inputs = processor(
        images=[image], text=[QUESTION], evidence=[passages(options.passages, 100)], answers=["the harbour"]
    )
    query = processor.for_retrieval([image], [QUESTION])
    here = copy.deepcopy(model).to("cpu", torch.float32).eval()
    with torch.inference_mode():
        for name, side in (("cpu", here), (device.name, None)):
            side = here.to(device.name) if side is None else side
            loss = side(**copy.copy(inputs).to(name)).loss.cpu()
            found[name] = loss, side.model.get_query_features(**copy.copy(query).to(name)).cpu()
    (loss, vectors), (loss_there, vectors_there) = found["cpu"], found[device.name]
    apart = {"loss": float((loss - loss_there).abs()), "vectors": float((vectors - vectors_there).abs().max())}
    limits = {"loss": LIMIT, "vectors": LEAST}
    return [
        Finding("equality", what, f"<= {limits[what]:g}", f"{value:.2g}", value <= limits[what], {"apart": value})
        for what, value in apart.items()
    ]


def main(given: list[str] | None = None) -> list[Finding]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(EDGES), default="2b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--passage_bytes", type=int, default=400)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--encoded", type=int, default=256, help="images and texts for the encoder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the findings here as JSON, too")
    options = parser.parse_args(given)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "There is no GPU here, so nothing was measured. --size tiny --device cpu shows that the steps work."
        )
    device = Device(options.device)
    model, processor = random_reader(options.size)
    model = model.to(device.name, torch.bfloat16 if device.is_cuda else torch.float32).eval()
    facts = {"torch": torch.__version__, "size": options.size, "device": options.device}
    facts["name"] = torch.cuda.get_device_name() if device.is_cuda else "cpu"
    findings: list[Finding] = []
    for step in (generate, train, attribution, encoder, equality):
        rows = step(model, processor, options, device)
        findings += rows if isinstance(rows, list) else [rows]
        print(markdown(findings).splitlines()[-1], flush=True)
        if options.out:
            write_json(options.out, facts, findings)
    print(markdown(findings))
    return findings


if __name__ == "__main__":
    main()
