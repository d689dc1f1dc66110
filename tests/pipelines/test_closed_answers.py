"""`pipeline("visual-question-answering", allowed_answers=...)`: chosen of a set, ranked, filtered, with evidence."""

from __future__ import annotations

import pytest
import torch
from transformers import pipeline

from hf_ravlm import InvalidInputError, RavlmForVisualQuestionAnswering
from tiny import picture
from tiny_folder import save_everything, tiny_parts


QUESTION = "what is the capital ?"
ANSWERS = ["Oslo", "N'Djamena", "red", "white"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_everything(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def ask(folder):
    return pipeline("visual-question-answering", model=folder)


def test_answers_are_ranked_and_bring_what_was_read(ask):
    found = ask(picture(1), QUESTION, allowed_answers=ANSWERS, top_k=3, k=2)
    assert len(found) == 3
    assert {row["answer"] for row in found} <= set(ANSWERS)
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert [passage["id"] for passage in found[0]["evidence"]][0] == "1"
    assert ask(picture(1), QUESTION, allowed_answers=ANSWERS, threshold=scores[1] + 1e-6, top_k=3, k=2) == found[:1]
    assert ask(picture(1), QUESTION, allowed_answers=ANSWERS, threshold=1.0) == []
    swapped = ask(picture(1), QUESTION, allowed_answers=ANSWERS[::-1], top_k=3, k=2)
    assert [row["answer"] for row in swapped] == [row["answer"] for row in found]
    halved = ask(picture(1), QUESTION, allowed_answers=ANSWERS, k=2, calibrator=lambda values: [v / 2 for v in values])
    assert halved[0]["score"] == pytest.approx(scores[0] / 2)


def test_batches_and_settings_of_the_pipeline_say_the_same(folder, ask):
    fixed = pipeline("visual-question-answering", model=folder, allowed_answers=ANSWERS)
    rows = [{"image": picture(n), "question": QUESTION} for n in range(3)]
    plain = lambda found: [(row["answer"], round(row["score"], 4)) for row in found]  # noqa: E731
    each = [plain(ask(row, allowed_answers=ANSWERS, top_k=2)) for row in rows]
    assert [plain(found) for found in fixed(rows, batch_size=2, top_k=2)] == each
    assert len(fixed(rows[0])) == 1
    written = ask(rows[0], max_new_tokens=2)[0]
    assert "score" not in written  # without a set it writes, as before
    assert len(ask(question=QUESTION, allowed_answers=ANSWERS)) == 1


class Biased:
    """Says of every answer what it holds of it anyway, and a little more of the one that is asked for."""

    habits = {"often": -0.5, "seldom": -4.0}

    def score(self, reader, processor, image, question, evidence, candidates, prompt=None):
        habits = [self.habits[answer] for answer in candidates.answers]
        asked = [1.0 if answer in question else 0.0 for answer in candidates.answers]
        sums = [(habit + more) for habit, more in zip(habits, asked, strict=True)]
        return torch.tensor(sums) * torch.tensor([len(ids) for ids in candidates.ids])


def test_an_answer_that_is_frequent_anyway_does_not_win(ask, monkeypatch):
    monkeypatch.setattr("hf_ravlm.pipelines.closed_answers.score_candidates", Biased().score)
    answers = {"allowed_answers": ["often", "seldom"]}
    best = lambda **options: ask(question="is it seldom ?", **answers, **options)[0]["answer"]  # noqa: E731
    assert best(content_free_weight=0.0) == "often"
    assert best(content_free_weight=1.0) == "seldom"
    monkeypatch.setattr(ask.model.config, "content_free_weight", 1.0)
    assert best() == "seldom"
    assert ask(question="is it often ?", **answers)[0]["answer"] == "often"
    both = ask(question="nothing", **answers, top_k=2)
    assert [row["score"] for row in both] == pytest.approx([0.5, 0.5])  # the question says nothing about them
    monkeypatch.setattr(Biased, "habits", {"often": -4.0, "seldom": -0.5})  # as if it had learned
    assert ask(question="is it often ?", **answers)[0]["answer"] == "often"


def test_a_reader_that_needs_an_image_is_shown_a_grey_one(ask, monkeypatch):
    seen = []

    def score(reader, processor, image, question, evidence, candidates, prompt=None):
        if image is None:
            raise InvalidInputError("does not take prompts with [0] images")
        seen.append(question)
        return torch.zeros(len(candidates))

    monkeypatch.setattr("hf_ravlm.pipelines.closed_answers.score_candidates", score)
    assert len(ask(picture(1), QUESTION, allowed_answers=ANSWERS, top_k=4)) == 4
    assert seen == [QUESTION, "N/A"]


def test_very_many_are_searched_for_a_shortlist_first(ask, monkeypatch):
    whole = ask(picture(1), QUESTION, allowed_answers=ANSWERS, top_k=2)
    monkeypatch.setattr("hf_ravlm.pipelines.closed_answers.SCORED_WHOLE", 2)
    short = ask(picture(1), QUESTION, allowed_answers=ANSWERS, top_k=2)
    assert [row["answer"] for row in short] == [row["answer"] for row in whole]
    assert [row["score"] for row in short] == pytest.approx([row["score"] for row in whole], abs=1e-4)


@pytest.mark.parametrize("head", [True, False])
def test_a_model_of_a_closed_set_opens_from_its_folder(head, tmp_path):
    reader, processor, retriever = tiny_parts()
    model = RavlmForVisualQuestionAnswering.from_reader(reader, ANSWERS, head=head).eval()
    first = pipeline("visual-question-answering", model=model, processor=processor, retriever=retriever)
    first.save_pretrained(tmp_path)
    again = pipeline("visual-question-answering", model=str(tmp_path), top_k=4)
    found = again(picture(0), QUESTION)
    assert {row["answer"] for row in found} == set(ANSWERS)
    assert found[0]["answer"] == first(picture(0), QUESTION)[0]["answer"]
    assert found[0]["evidence"]
    if head:
        assert sum(row["score"] for row in found) == pytest.approx(1, abs=1e-4)
        with pytest.raises(InvalidInputError, match="'Lima' is none of the 4 that the head was trained for"):
            again(picture(0), QUESTION, allowed_answers=["Oslo", "Lima"])
        with pytest.raises(InvalidInputError, match="this model has a head"):
            again(picture(0), QUESTION, content_free_weight=0.5)
    else:
        assert again(picture(0), QUESTION, allowed_answers=["Lima", "Oslo"])[0]["answer"] in ("Lima", "Oslo")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed_answers": []}, "the set of allowed answers is empty"),
        ({"allowed_answers": "Oslo"}, "allowed_answers came as str"),
        ({"allowed_answers": ANSWERS, "top_k": 0}, "top_k=0"),
        ({"allowed_answers": ANSWERS, "threshold": 2}, "threshold=2"),
        ({"allowed_answers": ANSWERS, "threshold": "0.3"}, "threshold='0.3': expected a number from 0 to 1"),
        (
            {"allowed_answers": ANSWERS, "content_free_weight": 2},
            "content_free_weight=2: expected a number from 0 to 1",
        ),
        ({"allowed_answers": ANSWERS, "max_new_tokens": 3}, "max_new_tokens= is of answers that are written"),
        ({"allowed_answers": ANSWERS, "with_posterior": True}, "with_posterior= is of answers that are written"),
        ({"threshold": 0.5}, "threshold= is of a closed set"),
    ],
)
def test_what_cannot_be_applied_is_refused(ask, options, message):
    with pytest.raises(InvalidInputError, match=message):
        ask(picture(1), QUESTION, **options)


def test_what_is_of_written_answers_is_refused_when_a_pipeline_of_a_closed_set_is_made(folder):
    with pytest.raises(InvalidInputError, match="max_new_tokens= is of answers that are written"):
        pipeline("visual-question-answering", model=folder, allowed_answers=ANSWERS, max_new_tokens=4)
