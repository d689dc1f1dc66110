"""Closed sets of answers: what the reader holds of each is what it holds of it alone, however prompts are read."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm import InvalidInputError, from_backbones
from hf_ravlm.model.reader.candidates import AnswerSet, likeliest_candidates, score_candidates, shortlist
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


def alone(model, processor, answer, evidence, length):
    """`log p` of the first `length` tokens of an answer by a plain pass over its own prompt."""
    asked = {"images": [picture(1)], "text": [QUESTION], "evidence": [evidence], "answers": [answer]}
    inputs = processor(**asked, padding_side="left", answer_on_top=True)
    with torch.no_grad():
        logits = model(**inputs).logits[0, :-1].float().log_softmax(dim=-1)
    labels = inputs["labels"][0, 1:]
    kept = (labels != -100).nonzero().flatten()[:length]
    return float(logits[kept, labels[kept]].sum())


def test_every_candidate_is_worth_what_it_is_alone(reader):
    model, processor = reader
    candidates = AnswerSet.of(processor, ANSWERS)
    labels = processor(text=[QUESTION] * 5, answers=ANSWERS)["labels"]
    for row, ids in zip(labels, candidates.ids, strict=True):
        written = row[row != -100].tolist()
        assert written[: len(ids)] == ids
        assert (len(written) == len(ids)) == (processor.layout == "marks")  # others need not stop there
    for evidence in (EVIDENCE, []):
        found = score_candidates(model, processor, picture(1), QUESTION, evidence, candidates)
        asked = zip(ANSWERS, candidates.ids, strict=True)
        expected = [alone(model, processor, answer, evidence, len(ids)) for answer, ids in asked]
        torch.testing.assert_close(found, torch.tensor(expected), atol=2e-3, rtol=1e-3)


WORDS = ["Oslo", "red", "white", "Chad", "Norway", "the", "of", "is"]


@pytest.mark.parametrize("kind", [kind for kind in READERS if "gpt_neo" not in kind])
def test_the_likeliest_of_many_are_those_of_all(kind):
    model, processor = READERS[kind]()
    many = AnswerSet.of(processor, [*WORDS, *(f"{one} {other}" for one in WORDS for other in WORDS)])
    found = likeliest_candidates(model, processor, picture(1), QUESTION, EVIDENCE, many, num_beams=16)
    if kind == "cross_attention":  # what its layers read stands beside the prompt
        assert found is None
        inputs = processor(images=[picture(1)], text=[QUESTION], evidence=[EVIDENCE])
        (places,) = shortlist(model, inputs, many, num_beams=16)
        assert len(set(places)) == len(places) >= 8
    else:
        scores = score_candidates(model, processor, picture(1), QUESTION, EVIDENCE, many)
        assert len(found) >= 16
        assert int(scores.argmax()) == next(iter(found))
        torch.testing.assert_close(torch.tensor(list(found.values())), scores[list(found)].cpu(), atol=2e-3, rtol=1e-3)


def test_an_answer_that_another_begins_with_is_found_too():
    model, processor = READERS["without towers"]()
    ids = [[5, 6], [5, 6, 7], [8]]
    found = likeliest_candidates(model, processor, None, QUESTION, [], AnswerSet(["a", "a b", "c"], ids))
    assert set(found) == {0, 1, 2}
    assert found[1] < found[0]


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
