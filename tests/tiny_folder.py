"""A whole folder as users have it: tiny reader, processor, and a knowledge base of three passages with pictures."""

from __future__ import annotations

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from tiny import picture, tiny_model, tiny_processor


PASSAGES = [
    {"id": f"{n}", "text": text, "image": picture(n), "source": "the almanac", "licence": "CC0-1.0"}
    for n, text in enumerate(["the capital of Norway is Oslo", "the capital of Chad is N'Djamena", "red white"])
]


def tiny_parts(seed: int = 0, passages=PASSAGES, **changes):
    """Model, processor and retriever that belong together."""
    model, processor = tiny_model(seed, **changes), tiny_processor(**changes)
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(passages), RavlmEncoder(model.model, processor))
    return model, processor, retriever


def save_everything(folder, **changes):
    """Saves `tiny_parts` to one folder and returns it."""
    for part in tiny_parts(**changes):
        part.save_pretrained(folder)
    return folder
