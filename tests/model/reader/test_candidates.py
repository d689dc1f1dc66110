"""Closed sets of answers: what the reader holds of each is what it holds of it alone, however prompts are read."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm import InvalidInputError, from_backbones
from hf_ravlm.model.reader.candidates import AnswerSet, score_candidates, shortlist
from tiny import picture, tiny_model, tiny_processor
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model


ANSWERS = ["Oslo", "Oslo Norway", "red", "the capital of Chad", "white red white"]
EVIDENCE = [{"text": "the capital of Norway is Oslo", "score": 0.4}, {"text": "red white", "score": 0.1}]
QUESTION = "what is the capital of this country ?"


def ours(fusion):
    return tiny_model(fusion=fusion), tiny_processor(fusion=fusion)


def beside(generator, **parts):
    return from_backbones(generator=generator, **parts)


READERS = {
    "in_context": lambda: ours("in_context"),
    "gated": lambda: ours("gated"),
    "concat": lambda: ours("concat"),
    "cross_attention": lambda: ours("cross_attention"),
    "without towers": lambda: beside(causal_model("llama"), tokenizer=causal_tokenizer()),
    "gpt_neo, read whole": lambda: beside(causal_model("gpt_neo"), tokenizer=causal_tokenizer()),
    **{
        family: lambda family=family: beside(
            **dict(zip(("generator", "generator_processor"), multimodal_model(family), strict=True))
        )
        for family in ("qwen2_5_vl", "llava", "gemma3")
    },
}


@pytest.fixture(scope="module", params=list(READERS))
def reader(request):
    try:
        return READERS[request.param]()
    except KeyError:
        pytest.skip("no such family among the tiny ones")


def alone(model, processor, answer, evidence):
    """`log p(answer)` by a plain pass over its own prompt."""
    asked = {"images": [picture(1)], "text": [QUESTION], "evidence": [evidence], "answers": [answer]}
    inputs = processor(**asked, padding_side="left", answer_on_top=True)
    with torch.no_grad():
        logits = model(**inputs).logits[0, :-1].float().log_softmax(dim=-1)
    labels = inputs["labels"][0, 1:]
    kept = (labels != -100).nonzero().flatten()
    return float(logits[kept, labels[kept]].sum())


def test_every_candidate_is_worth_what_it_is_alone(reader):
    model, processor = reader
    candidates = AnswerSet.of(processor, ANSWERS)
    labels = processor(text=[QUESTION] * 5, answers=ANSWERS)["labels"]
    assert [row[row != -100].tolist() for row in labels] == candidates.ids
    for evidence in (EVIDENCE, []):
        found = score_candidates(model, processor, picture(1), QUESTION, evidence, candidates)
        expected = [alone(model, processor, answer, evidence) for answer in ANSWERS]
        torch.testing.assert_close(found, torch.tensor(expected), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["in_context", "without towers", "qwen2_5_vl"])
def test_a_shortlist_of_many_holds_the_best(kind):
    model, processor = READERS[kind]()
    words = ["Oslo", "red", "white", "Chad", "Norway", "the", "of", "is"]
    many = AnswerSet.of(processor, [f"{one} {other}" for one in words for other in words])
    scores = score_candidates(model, processor, picture(1), QUESTION, EVIDENCE, many)
    inputs = processor(images=[picture(1)], text=[QUESTION], evidence=[EVIDENCE])
    (found,) = shortlist(model, inputs, many, num_beams=16)
    assert 8 <= len(found) <= 16
    assert int(scores.argmax()) in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([], "the set of allowed answers is empty"),
        (["Oslo", "Oslo"], "'Oslo' occurs twice"),
        (["Oslo", "Oslo\u200b"], "is the same to the reader as 'Oslo'"),
        (["Oslo", 3], "the allowed answer 3 is no text"),
        (["Oslo", "  "], "is no text"),
    ],
)
def test_sets_that_say_nothing_are_refused(answers, message):
    with pytest.raises(InvalidInputError, match=message):
        AnswerSet.of(tiny_processor(), answers)


def test_a_prompt_for_each_passage_is_refused():
    model, processor = tiny_model(marginalization="sequence"), tiny_processor(passage_prompts=True)
    with pytest.raises(InvalidInputError, match="choose a reader with marginalization='none'"):
        score_candidates(model, processor, picture(1), QUESTION, EVIDENCE, AnswerSet.of(processor, ANSWERS))
