"""From questions and passages to attributed answers, for every way of reading the passages."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm.pipelines.answer import Answer
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.retrieval import Evidence
from tiny import FUSIONS, picture, tiny_model, tiny_processor


EVIDENCE = [
    [
        Evidence(id="no", text="the capital of Norway is Oslo", score=0.9, rank=1),
        Evidence(id="w", text="white", rank=2),
    ],
    [],
    [Evidence(id="td", text="of Chad", score=0.4, rank=1)],
]
ASKED = {"images": [picture(n) for n in range(3)], "questions": ["what is the capital ?", "red ?", "of ?"]}


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("marginalization", ["none", "sequence", "token"])
def test_answers_come_with_what_they_rest_on(fusion, marginalization):
    model = tiny_model(fusion=fusion, marginalization=marginalization)
    processor = tiny_processor(fusion=fusion, passage_prompts=marginalization != "none", question_first=True)
    rows = answer_questions(
        model, processor, None, **ASKED, evidence=EVIDENCE, max_new_tokens=3, with_leave_one_out=True
    )
    for row, passages in zip(rows, EVIDENCE):
        (answer,) = row
        assert len(answer.posterior) == len(answer.leave_one_out) == len(passages)
        assert not passages or sum(answer.posterior) == pytest.approx(1.0, abs=1e-5)
    by_hand = processor(
        images=ASKED["images"][:1], text=ASKED["questions"][:1], evidence=EVIDENCE[:1], answers=[rows[0][0].text]
    )
    told = model.attribute(**by_hand)
    torch.testing.assert_close(told.posterior[0], torch.tensor(rows[0][0].posterior), atol=1e-4, rtol=0)
    torch.testing.assert_close(told.leave_one_out[0], torch.tensor(rows[0][0].leave_one_out), atol=1e-4, rtol=0)
    assert rows[0][0].to_record()["leave_one_out"] == rows[0][0].leave_one_out


def test_a_record_says_where_each_passage_comes_from():
    origin = {
        "source": "Wikipedia",
        "licence": "CC-BY-SA-4.0",
        "url": "https://en.wikipedia.org/wiki/Wren",
        "revision": "1234",
        "title": "Wren",
        "metadata": {"section": "Song"},
    }
    passage = Evidence(id="wren", text="Loud.", score=0.5, rank=1, **origin)
    (record,) = Answer("Loud.", [passage]).to_record()["evidence"]
    assert record == {"id": "wren", "text": "Loud.", "image": None, "score": 0.5, "rank": 1, **origin}


def test_a_part_of_the_image_is_searched_with_and_the_whole_is_read():
    asked = []

    class Finder:
        def retrieve(self, images, texts, **options):
            asked.append((images, options))
            return EVIDENCE

    answer_questions(
        tiny_model(), tiny_processor(), Finder(), **ASKED, k=2, region=(0, 0, 0.5, 1), crops=2, max_new_tokens=1
    )
    answer_questions(tiny_model(), tiny_processor(), Finder(), **ASKED, k=2, max_new_tokens=1)
    assert [options for _, options in asked] == [{"k": 2, "region": (0, 0, 0.5, 1), "crops": 2}, {"k": 2}]
    assert asked[0][0] == ASKED["images"]
