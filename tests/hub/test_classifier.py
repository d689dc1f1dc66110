"""A classifier over an encoder by its name: published in one commit, opened again by name, without weights twice."""

from __future__ import annotations

import json

from tiny_encoders import FAMILIES, save


PROGRAM = """
import torch
from transformers import AutoModelForImageClassification, pipeline
import hf_ravlm
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmForImageClassification, RavlmRetriever, from_encoder
from labelled_world import KNOWN, coloured, entries
dual, processor = from_encoder("org/clip")
model = RavlmForImageClassification.from_dual_encoder(dual, KNOWN, processor)
model.neighbors.set(50.0, 50.0)
retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries()), RavlmEncoder(dual, processor))
classify = pipeline("image-classification", model=model, processor=processor, retriever=retriever)
classify.push_to_hub("me/colours")
again = pipeline("image-classification", model="me/colours")
def told(one):
    return [[entry["label"], [e["id"] for e in entry["evidence"]]] for entry in one(coloured("green", 99))]
loaded = AutoModelForImageClassification.from_pretrained("me/colours")
same = all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
result = [told(classify), told(again), type(loaded).__name__, same]
"""


def test_published_and_opened_by_name_it_says_the_same(hub, client, tmp_path):
    save(FAMILIES["CLIP"], tmp_path / "clip")
    hub.put("org/clip", tmp_path / "clip")
    first, second, kind, same = client.do(PROGRAM)
    assert first == second
    assert first[0][0] == "green"
    assert first[0][1]
    assert (kind, same) == ("RavlmForImageClassification", True)
    files = hub.repository("me/colours", "model").files()
    assert json.loads(files["config.json"])["references"]["encoder"]["name"] == "org/clip"
    assert len(files["model.safetensors"]) < 5000
    assert "pipeline_tag: image-classification" in files["README.md"].decode()
    assert files["ravlm_hub.py"].decode().count("RavlmForImageClassification") == 1
