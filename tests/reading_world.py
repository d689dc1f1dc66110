"""A world of colours for tests of readers: what has which colour stands in the passages, and only there."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from hf_ravlm import RavlmEncoder
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from tiny import picture


THINGS = ["kite", "owl", "wren", "robin", "swan", "crow"]
COLOURS = ["red", "white", "Oslo", "Chad", "is", "of"]


# Adam divides a gradient by its own size: where that is nothing but rounding, so would be the step. With this epsilon
# a step is as exact as its gradient, and the weights of two runs can be compared.
STEADY = {"adam_epsilon": 1e-3}


def assert_same_weights(found: dict, expected: dict, atol: float = 1e-4) -> None:
    """Weights of two runs are those of one up to rounding.

    Both compute the same sums, but on some processors MKL chooses its kernels by where a tensor lies in memory. A run
    that loses the state of its optimizer, or draws other random numbers, ends 2e-3 to 8e-2 apart.
    """
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=atol, rtol=0, msg=f"{name}: {{}}".format)


def passages() -> list[dict]:
    return [
        {"id": thing, "text": f"{thing} : {colour}", "title": thing}
        for thing, colour in zip(THINGS, COLOURS, strict=True)
    ]


def rows(number: int = 12, images: bool = True) -> list[dict]:
    asked = []
    for n in range(number):
        place = n % len(THINGS)
        row = {"question": f"{THINGS[place]} ?", "answer": COLOURS[place], "gold_ids": [THINGS[place]], "id": f"q{n}"}
        asked.append({**row, "image": picture(n)} if images else row)
    return asked


def colour_retriever(model, processor) -> RavlmRetriever:
    return RavlmRetriever.build(KnowledgeBase.from_dicts(passages()), RavlmEncoder(model.model, processor))


def arguments(folder, **changes) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        **changes,
    }
    return TrainingArguments(str(folder), **settings)
