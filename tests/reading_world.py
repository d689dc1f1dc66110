"""A world of colours for tests of readers: what has which colour stands in the passages, and only there."""

from __future__ import annotations

from transformers import TrainingArguments

from hf_ravlm import RavlmEncoder
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from tiny import picture


THINGS = ["kite", "owl", "wren", "robin", "swan", "crow"]
COLOURS = ["red", "white", "Oslo", "Chad", "is", "of"]


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
