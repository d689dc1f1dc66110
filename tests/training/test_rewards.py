"""Rewards in trl's signature: what each counts, over texts and conversations, and what is refused."""

from __future__ import annotations

import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.training.rewards import (
    AbstentionReward,
    FormatReward,
    SearchCost,
    answer_in,
    citation_reward,
    exact_match_reward,
    text_of,
    vqa_accuracy_reward,
)


SAID = "<think>Bergen?</think> <search>capital</search> Oslo."


def chat(text: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


@pytest.mark.parametrize("shape", [str, chat, lambda text: [{"role": "assistant", "content": text}]])
def test_texts_and_conversations_are_judged_alike(shape):
    said = [shape(SAID), shape("Bergen"), shape("")]
    answers = [["Oslo", "Christiania"], "Oslo", ["Oslo"]]
    columns = {"prompts": ["?"] * 3, "completion_ids": [[1]] * 3, "trainer_state": None}
    assert exact_match_reward(completions=said, answers=answers, **columns) == [1.0, 0.0, 0.0]
    assert AbstentionReward(0.25, 0.5)(completions=said, answers=answers, **columns) == [1.0, -0.5, 0.25]
    assert SearchCost(0.5)(completions=said, **columns) == [-0.5, 0.0, 0.0]
    assert FormatReward()(completions=said, **columns) == [1.0, 1.0, 0.0]
    assert vqa_accuracy_reward(completions=said, answers=[["Oslo"] * 10] * 3, **columns) == [1.0, 0.0, 0.0]


def test_citations_are_those_that_hold():
    known = [{"id": "no", "text": "The capital of Norway is Oslo."}, "Chad lies in Africa."]
    said = ["Oslo is the capital [1].", "Oslo is the capital [1]. It lies in Asia [2].", "Oslo", "Oslo [9]."]
    assert citation_reward(said, [known] * 4, question=["What?"] * 4) == [1.0, 0.5, 0.0, 0.0]


def test_a_search_that_is_cut_off_is_no_answer():
    assert answer_in("<search>the capital of") == ""
    assert text_of("<search>the capital of") == "<search>the capital of"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: exact_match_reward(["a"], []), "answers has 0 entries and there are 1"),
        (lambda: exact_match_reward(["a"], [[]]), "completion 0 has no accepted answer"),
        (lambda: exact_match_reward([3], ["a"]), "a completion came as int"),
        (lambda: exact_match_reward([[]], ["a"]), "a completion came as list"),
        (lambda: SearchCost(-1), "cost=-1"),
        (lambda: SearchCost(1)(["a"], num_searches=[]), "num_searches has 0"),
        (lambda: SearchCost(1, "("), "regular expression"),
        (lambda: FormatReward("("), "regular expression"),
        (lambda: AbstentionReward(2.0), "silence=2.0"),
        (lambda: AbstentionReward(no_answers="unknown"), "a list of texts"),
        (lambda: citation_reward(["a"], []), "evidence has 0"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, said):
    with pytest.raises(InvalidInputError, match=said):
        wrong()
