"""Decoding that leans on the evidence, against two full readings per step."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor

from hf_ravlm.model.reader.conflict_aware import ConflictAwareLogitsProcessor, lean_on_evidence
from tiny import picture, tiny_model, tiny_processor
from tiny_backbones import multimodal_model, with_towers


QUESTIONS = ["what is the capital ?", "red or white of this country ?"]
EVIDENCE = [[{"text": "the capital of Norway is Oslo", "score": 0.9}, "of Chad"], ["red white", "Oslo is"]]


class TwoReadings(LogitsProcessor):
    """The same by definition: no cache, no order of beams, every row read from the start."""

    def __init__(self, model, closed_book, beta, plausibility):
        self.model, self.closed_book, self.settings = model, closed_book, (beta, plausibility)
        self.prompt_length = None

    def __call__(self, input_ids, scores):
        self.prompt_length = self.prompt_length or input_ids.shape[1]
        times = len(input_ids) // len(self.closed_book["input_ids"])
        inputs = {name: value.repeat_interleave(times, dim=0) for name, value in self.closed_book.items()}
        answer = input_ids[:, self.prompt_length :]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
        with torch.no_grad():
            closed = self.model(**inputs, use_cache=False).logits[:, -1]
        return lean_on_evidence(scores, closed, *self.settings)


def prepared(fusion, marginalization):
    model = tiny_model(fusion=fusion, marginalization=marginalization)
    processor = tiny_processor(fusion=fusion, passage_prompts=marginalization != "none")
    asked = {"images": [picture(0), picture(1)], "text": QUESTIONS}
    return model, processor(**asked, evidence=EVIDENCE), processor(**asked)


@pytest.mark.parametrize(
    ("fusion", "marginalization"), [("in_context", "none"), ("gated", "none"), ("gated", "token")]
)
@pytest.mark.parametrize("beams", [1, 3])
def test_it_is_two_readings_at_every_step(fusion, marginalization, beams):
    model, inputs, closed_book = prepared(fusion, marginalization)
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "num_return_sequences": beams}
    leaning, expected = (
        model.generate(**inputs, **settings, logits_processor=[kind(model, closed_book, 1.5, 0.01)])
        for kind in (ConflictAwareLogitsProcessor, TwoReadings)
    )
    assert leaning.tolist() == expected.tolist()
    assert leaning.tolist() != model.generate(**inputs, **settings).tolist()


def test_without_leaning_it_is_plain_decoding_and_one_processor_serves_several_calls():
    model, inputs, closed_book = prepared("in_context", "none")
    settings = {"max_new_tokens": 5, "do_sample": False}
    plain = model.generate(**inputs, **settings)
    leaning = ConflictAwareLogitsProcessor(model, closed_book, beta=0.0, plausibility=0.0)
    for _ in range(2):
        assert model.generate(**inputs, **settings, logits_processor=[leaning]).tolist() == plain.tolist()


def test_rag_sequence_lets_every_passage_propose_so():
    model, inputs, closed_book = prepared("in_context", "sequence")
    leaning = [ConflictAwareLogitsProcessor(model, closed_book, beta=2.0, plausibility=0.01)]
    assert model.generate(**inputs, max_new_tokens=4, logits_processor=leaning).shape[0] == len(QUESTIONS)


def test_implausible_tokens_stay_out_however_much_likelier_the_evidence_makes_them():
    told, believed = torch.tensor([[0.6, 0.39, 0.01]]).log(), torch.tensor([[0.6, 0.4 - 1e-6, 1e-6]]).log()
    assert lean_on_evidence(told, believed, beta=5.0).argmax().item() == 2
    kept = lean_on_evidence(told, believed, beta=5.0, plausibility=0.1)
    assert torch.isfinite(kept).tolist() == [[True, True, False]]


def test_wrong_settings_are_refused():
    model, inputs, closed_book = prepared("in_context", "none")
    for settings in ({"beta": -1.0}, {"plausibility": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            ConflictAwareLogitsProcessor(model, closed_book, **settings)
    three = {name: value[[0, 1, 1]] for name, value in closed_book.items()}
    with pytest.raises(ValueError, match="3 rows"):
        model.generate(**inputs, max_new_tokens=2, logits_processor=[ConflictAwareLogitsProcessor(model, three)])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_readers_of_images_and_texts_go_on_with_their_own_positions(family):
    reader, processor = with_towers(*multimodal_model(family), projection_dim=16)
    asked = {"images": [picture(0)], "text": QUESTIONS[:1]}
    inputs, closed_book = processor(**asked, evidence=[["the capital is Oslo", "red"]]), processor(**asked)
    settings = {"max_new_tokens": 4, "do_sample": False}
    nothing = ConflictAwareLogitsProcessor(reader, closed_book, beta=0.0, plausibility=0.0)
    assert reader.generate(**inputs, **settings, logits_processor=[nothing]).tolist() == (
        reader.generate(**inputs, **settings).tolist()
    )
    leaning = ConflictAwareLogitsProcessor(reader, closed_book, beta=2.0, plausibility=0.0)
    start = inputs["input_ids"].shape[1]
    answer = reader.generate(**inputs, **settings, logits_processor=[leaning])[:, start:]
    for step in range(answer.shape[1]):  # both readings whole, without a cache
        both = []
        for prompt in (inputs, closed_book):
            whole = {name: value for name, value in prompt.items() if torch.is_tensor(value)}
            added = answer[:, :step]
            whole["input_ids"] = torch.cat([whole["input_ids"], added], dim=1)
            whole["attention_mask"] = torch.cat([whole["attention_mask"], torch.ones_like(added)], dim=1)
            for name in ("mm_token_type_ids", "token_type_ids"):
                if name in whole:
                    whole[name] = torch.nn.functional.pad(whole[name], (0, step))
            with torch.no_grad():
                both.append(reader(**whole, use_cache=False).logits[:, -1])
        assert lean_on_evidence(*both, 2.0).argmax(-1).item() == answer[0, step].item()


@pytest.mark.parametrize("fusion", ["in_context", "gated"])
def test_with_candidates_that_are_taken_back_it_is_greedy_decoding(fusion):
    """Assisted decoding asks for the same place again, after candidates that were refused."""
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion)
    asked = {"images": [picture(0)], "text": QUESTIONS[:1]}
    inputs, closed_book = processor(**asked, evidence=EVIDENCE[:1]), processor(**asked)
    settings = {"max_new_tokens": 12, "do_sample": False}

    def answer(**more):
        leaning = ConflictAwareLogitsProcessor(model, closed_book, 1.5, 0.01)
        return model.generate(**inputs, **settings, **more, logits_processor=[leaning]).tolist()

    assert answer(prompt_lookup_num_tokens=3) == answer()


def test_one_processor_serves_prompts_of_any_length_one_after_the_other():
    """The next prompt may be longer by one token, as if it went on from the last step."""
    model, _, closed_book = prepared("in_context", "none")
    processor, settings = tiny_processor(), {"max_new_tokens": 2, "do_sample": False, "min_new_tokens": 2}
    shared = ConflictAwareLogitsProcessor(model, closed_book, 1.5, 0.01)
    passages = ["red", "red red", "red red red", "red red red red", "red red red red red"]
    for passage in passages:
        inputs = processor(images=[picture(0), picture(1)], text=QUESTIONS, evidence=[[passage]] * 2)
        fresh = ConflictAwareLogitsProcessor(model, closed_book, 1.5, 0.01)
        found, expected = (
            model.generate(**inputs, **settings, logits_processor=[leaning]).tolist() for leaning in (shared, fresh)
        )
        assert found == expected
