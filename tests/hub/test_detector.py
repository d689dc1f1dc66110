"""A detector and an encoder by their names: published in one commit, opened again by name, without weights twice."""

from __future__ import annotations

import json

from tiny_detectors import tiny_detector
from tiny_encoders import FAMILIES, save


PROGRAM = """
def trial():  # whose names are not those of the tests that follow in this process
    import torch
    from transformers import AutoModelForObjectDetection, pipeline
    import hf_ravlm
    from hf_ravlm import KnowledgeBase, RavlmRetriever, load_encoder
    from labelled_world import entries
    from tiny_detectors import scene
    encoder = load_encoder("org/clip")
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries(["red", "white"])), encoder)
    detect = pipeline("object-detection", model="org/detector", retriever=retriever)
    detect.model.neighbors.set(50.0, 50.0)
    detect.push_to_hub("me/colours")
    again = pipeline("object-detection", model="me/colours")
    def told(one):
        found = one(scene("white", "red"), threshold=0.05)
        return [[d["label"], d["box"], [e["id"] for e in d["evidence"]]] for d in found]
    loaded = AutoModelForObjectDetection.from_pretrained("me/colours")
    same = all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), detect.model.state_dict().values()))
    return [told(detect), told(again), type(loaded).__name__, same]

result = trial()
"""


def test_published_and_opened_by_name_it_says_the_same(hub, client, tmp_path):
    save(FAMILIES["CLIP"], tmp_path / "clip")
    hub.put("org/clip", tmp_path / "clip")
    detector, processor = tiny_detector("yolos")
    for part in (detector, processor):
        part.save_pretrained(tmp_path / "detector")
    hub.put("org/detector", tmp_path / "detector")
    first, second, kind, same = client.do(PROGRAM)
    assert first == second
    assert any(evidence for _, _, evidence in first)
    assert (kind, same) == ("RavlmForObjectDetection", True)
    files = hub.repository("me/colours", "model").files()
    assert json.loads(files["config.json"])["references"]["detector"]["name"] == "org/detector"
    assert len(files["model.safetensors"]) < 5000
    assert "pipeline_tag: object-detection" in files["README.md"].decode()
