"""Passages that were read once give the answers that passages read anew give."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm import InvalidInputError, KnowledgeBase, KnowledgeBaseMismatchError
from hf_ravlm.pipelines import EncodedKnowledge, answer_questions
from hf_ravlm.retrieval import Evidence
from tiny import FUSIONS, picture, tiny_model, tiny_processor


ROWS = [
    {"id": "no", "text": "the capital of Norway is Oslo", "image": picture(3)},
    {"id": "td", "text": "of Chad"},
    {"id": "w", "text": "white or red", "image": picture(4)},
]
ASKED = {"images": [picture(0), picture(1)], "questions": ["what is the capital ?", "red ?"]}


def evidence_of(knowledge_base, *ids):
    fields = ("id", "text", "image_bytes")
    return [Evidence(**{name: getattr(knowledge_base[i], name) for name in fields}, score=0.5) for i in ids]


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "in_context"])
@pytest.mark.parametrize("passage_images", [False, True])
def test_answers_are_those_of_passages_read_anew(fusion, passage_images, tmp_path):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion, passage_images=passage_images)
    knowledge_base = KnowledgeBase.from_dicts(ROWS)
    EncodedKnowledge.build(model, processor, knowledge_base, tmp_path / "states.safetensors", batch_size=2)
    encoded = EncodedKnowledge.open(model, processor, knowledge_base, tmp_path / "states.safetensors")
    evidence = [evidence_of(knowledge_base, "w", "no"), evidence_of(knowledge_base, "td")]
    inputs = processor(images=ASKED["images"], text=ASKED["questions"], evidence=evidence)
    with torch.no_grad():
        anew = model(**inputs).logits[:, -1]
        encoded.replace_inputs(inputs, evidence)
        assert "evidence_input_ids" not in inputs
        kept = model(**inputs).logits[:, -1]
    torch.testing.assert_close(kept, anew, atol=2e-2, rtol=0)  # kept in bfloat16
    options = {"evidence": evidence, "max_new_tokens": 2, "do_sample": False}
    calls = []
    model.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    answers = answer_questions(model, processor, None, **ASKED, encoded_knowledge=encoded, **options)
    assert len(answers) == 2
    assert len(calls) == (2 if fusion in ("attention", "gated") else 0)  # questions, to answer and attribute


def test_another_reader_and_other_passages_are_refused(tmp_path):
    model, processor = tiny_model(fusion="product"), tiny_processor(fusion="product")
    knowledge_base = KnowledgeBase.from_dicts(ROWS)
    encoded = EncodedKnowledge.build(model, processor, knowledge_base, tmp_path / "states.safetensors")
    other = tiny_model(seed=1, fusion="product")
    with pytest.raises(KnowledgeBaseMismatchError, match="made by another encoder"):
        EncodedKnowledge.open(other, processor, knowledge_base, tmp_path / "states.safetensors")
    for rows in (ROWS[::-1], [{**row, "text": "red"} for row in ROWS]):
        with pytest.raises(KnowledgeBaseMismatchError):
            EncodedKnowledge.open(model, processor, KnowledgeBase.from_dicts(rows), tmp_path / "states.safetensors")
    with pytest.raises(InvalidInputError, match="states of 3 passages came with a knowledge base of 1"):
        EncodedKnowledge(KnowledgeBase.from_dicts(ROWS[:1]), encoded.states)
    with pytest.raises(InvalidInputError, match="reads the words of passages"):
        EncodedKnowledge.build(tiny_model(), tiny_processor(), knowledge_base)
    strange = [[Evidence(id="x", text="red")]]
    inputs = processor(text=["red ?"], evidence=strange)
    with pytest.raises(InvalidInputError, match="'x' has no stored states"):
        encoded.replace_inputs(inputs, strange)
