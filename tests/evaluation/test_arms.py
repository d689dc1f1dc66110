"""Arms of a tiny model: what evidence each of them reads, and a whole evaluation from a saved folder."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import datasets
import pytest
import torch

from hash_encoder import HashEncoder
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.evaluation import Evaluator, Question, evaluate_model, growing_arm, model_arms, questions_from
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.pipelines.policy.decision_heads import UncertaintyRule
from tiny import picture, tiny_model, tiny_processor


WORDS = ["red", "white", "Oslo", "Norway", "Chad", "capital"]
QUESTIONS = [
    Question(str(n), f"what is {word} ?", (word,), picture(n), (f"p{n}",), "odd" if n % 2 else "even")
    for n, word in enumerate(WORDS)
]


@pytest.fixture(scope="module")
def retriever():
    passages = KnowledgeBase.from_dicts([{"id": f"p{n}", "text": f"the {word}"} for n, word in enumerate(WORDS)])
    return RavlmRetriever.build(passages, HashEncoder())


@pytest.fixture(scope="module")
def system():
    return tiny_model(fusion="in_context"), tiny_processor()


def test_arms_read_what_their_names_say(system, retriever):
    arms = model_arms(
        *system,
        retriever,
        ["closed_book", "retrieved", "gold", "gold_and_distractors", "distractors_only"],
        k=3,
        max_new_tokens=3,
    )
    replies = {name: arm(QUESTIONS) for name, arm in arms.items()}
    for n, question in enumerate(QUESTIONS):
        found = retriever.retrieve([question.image], [question.question], k=3)[0]
        assert replies["closed_book"][n].evidence_ids == ()
        assert replies["retrieved"][n].evidence_ids == tuple(passage.id for passage in found)
        assert replies["gold"][n].evidence_ids == (f"p{n}",)
        mixed = replies["gold_and_distractors"][n].evidence_ids
        assert len(mixed) == len(set(mixed)) == 3
        assert f"p{n}" in mixed
        assert f"p{n}" not in replies["distractors_only"][n].evidence_ids
        assert len(replies["distractors_only"][n].evidence_ids) == 3
    places = {reply.evidence_ids.index(f"p{n}") for n, reply in enumerate(replies["gold_and_distractors"])}
    assert len(places) > 1  # a reader cannot rely on the place
    assert replies["retrieved"][0].num_retrievals == 1
    assert replies["closed_book"][0].num_tokens < replies["gold"][0].num_tokens < replies["retrieved"][0].num_tokens


def test_confidence_is_the_mean_probability_of_the_tokens(system):
    model, processor = system
    reply = model_arms(model, processor, arms=["closed_book"], max_new_tokens=4)["closed_book"](QUESTIONS[:1])[0]
    inputs = processor(images=[QUESTIONS[0].image], text=[QUESTIONS[0].question], evidence=[[]])
    out = model.generate(**inputs, do_sample=False, max_new_tokens=4, return_dict_in_generate=True, output_scores=True)
    log_probabilities = torch.stack([scores[0].log_softmax(-1).max() for scores in out.scores])
    assert reply.confidence == pytest.approx(log_probabilities.mean().exp().item(), rel=1e-5)
    sampled = model_arms(model, processor, arms=["closed_book"], max_new_tokens=4, do_sample=True)
    assert sampled["closed_book"](QUESTIONS[:2])[0].confidence is None


def test_confidence_does_not_depend_on_the_batch(system):
    arm = model_arms(*system, arms=["closed_book"], max_new_tokens=6)["closed_book"]
    together = [reply.confidence for reply in arm(QUESTIONS)]
    alone = [arm([question])[0].confidence for question in QUESTIONS]
    assert together == pytest.approx(alone, rel=1e-4)


def test_the_guarded_arm_follows_its_policy(system, retriever):
    def reply(policy):
        return model_arms(*system, retriever, ["guarded"], k=2, max_new_tokens=3, policy=policy)["guarded"](QUESTIONS)

    plain = model_arms(*system, retriever, ["retrieved"], k=2, max_new_tokens=3)["retrieved"](QUESTIONS)
    assert reply(AnswerPolicy()) == plain
    silent = reply(AnswerPolicy(answer_threshold=1.1))
    assert [answer.withheld for answer in silent] == [answer.text for answer in plain]
    gated = reply(AnswerPolicy(gate=UncertaintyRule(), gate_threshold=1.1))
    assert {(answer.num_retrievals, answer.evidence_ids) for answer in gated} == {(0, ())}
    assert all(answer.need is not None for answer in gated)


def test_a_broken_image_is_named_or_counts_as_wrong(system, retriever, tmp_path):
    missing = tmp_path / "missing.png"
    asked = [QUESTIONS[0], replace(QUESTIONS[1], image=str(missing)), QUESTIONS[2]]
    arms = model_arms(*system, retriever, ["closed_book", "retrieved"], k=2, max_new_tokens=3)
    with pytest.raises(UnsafeInputError, match="the image of question '1'.*missing.png"):
        Evaluator(arms).run(asked, tmp_path / "replies")
    arms = model_arms(*system, retriever, ["closed_book", "retrieved"], k=2, max_new_tokens=3, on_error="skip")
    report = Evaluator(arms).run(asked, tmp_path / "replies")
    assert {name: arm.num_broken for name, arm in report.arms.items()} == {"closed_book": 1, "retrieved": 1}
    assert "1 of the questions could not be asked" in report.to_markdown()
    assert all(arm.calibration is not None for arm in report.arms.values())
    alone = arms["retrieved"]([QUESTIONS[2]])[0]
    assert arms["retrieved"](asked)[2].text == alone.text
    with pytest.raises(InvalidInputError, match="expected one of"):
        model_arms(*system, retriever, on_error="blank")


def test_a_broken_image_of_a_data_set_is_no_end(system):
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("question", "answer")} | {"image": datasets.Image()}
    )
    images = [{"bytes": b"no image", "path": None}, picture(1)]
    rows = {"question": ["red ?", "white ?"], "answer": ["a", "b"], "image": images}
    questions = questions_from(datasets.Dataset.from_dict(rows, features=features))
    arms = model_arms(*system, arms=["closed_book"], max_new_tokens=2, on_error="skip")
    assert Evaluator(arms, batch_size=1).run(questions).arms["closed_book"].num_broken == 1
    assert questions[1].image.size == picture(1).size
    assert questions[0].digest() != replace(questions[0], image=None).digest()


def test_knowledge_grows_beside_the_retriever(system, retriever):
    distractors = ({"id": str(n), "text": f"gloss {n}"} for n in range(20))
    arm_among = growing_arm(*system, retriever, distractors, k=26, max_new_tokens=1)
    sizes = [len(arm_among(count)(QUESTIONS[:1])[0].evidence_ids) for count in (0, 6, 20)]
    assert sizes == [6, 12, 26]
    assert all(smaller < larger for smaller, larger in pairwise(sizes))
    assert len(retriever) == 6
    with pytest.raises(InvalidInputError, match="21 distractors are needed, and there are 20"):
        arm_among(21)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda system, retriever: model_arms(*system, retriever, ["open_book"]), "no arm open_book. Choose of"),
        (lambda system, retriever: model_arms(*system, None, ["gold"]), "need a retriever"),
        (lambda system, retriever: model_arms(*system, retriever, ["guarded"]), "guarded needs a policy"),
        (
            lambda system, retriever: model_arms(*system, retriever, ["gold"])["gold"]([Question("1", "a?", ("b",))]),
            "Question '1' has no gold_ids",
        ),
        (
            lambda system, retriever: model_arms(*system, retriever, ["gold"])["gold"](
                [Question("1", "a?", ("b",), gold_ids=("x",))]
            ),
            "wants the passage 'x', which the knowledge base does not have",
        ),
    ],
)
def test_errors_say_what_came(system, retriever, call, message):
    with pytest.raises(InvalidInputError, match=message):
        call(system, retriever)


def test_from_a_folder_to_reports(tmp_path):
    model, processor = tiny_model(fusion="in_context"), tiny_processor()
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    passages = KnowledgeBase.from_dicts([{"id": f"p{n}", "text": f"the {word}"} for n, word in enumerate(WORDS)])
    RavlmRetriever.build(passages, RavlmEncoder(model.model, processor)).save_pretrained(folder)
    with open(tmp_path / "questions.jsonl", "w") as lines:
        for question in QUESTIONS:
            question.image.save(tmp_path / f"{question.id}.png")
            row = {"id": question.id, "question": question.question, "answers": list(question.answers)}
            lines.write(json.dumps({**row, "gold_ids": list(question.gold_ids), "image": f"{question.id}.png"}) + "\n")
    distractors = [{"id": n, "text": f"gloss {n}"} for n in range(30)]
    options = {"limit": 4, "k": 2, "max_new_tokens": 2, "distractors": distractors, "factors": (1, 3)}
    found = evaluate_model(folder, tmp_path / "questions.jsonl", tmp_path / "out", **options)
    assert list(found.report.arms) == ["closed_book", "retrieved", "gold"]
    assert found.report.num_questions == 4
    assert [point.num_passages for point in found.growth.points] == [6, 18]
    assert all(path.is_file() for path in found.files)
    again = evaluate_model(folder, tmp_path / "questions.jsonl", tmp_path / "out", **options)
    assert again.report == found.report  # the seconds too: nothing was asked again
    AnswerPolicy(answer_threshold=1.1).save_pretrained(folder)
    guarded = evaluate_model(folder, tmp_path / "questions.jsonl", tmp_path / "more", limit=2, max_new_tokens=2)
    assert guarded.report.arms["guarded"].policy.abstention.coverage == 0


def test_questions_with_and_without_an_image_are_asked_together(system, retriever):
    mixed = [
        replace(question, image=question.image if place % 2 else None) for place, question in enumerate(QUESTIONS)
    ]
    arms = model_arms(*system, retriever, ["closed_book", "retrieved"], k=2, max_new_tokens=2)
    for arm in arms.values():
        replies, alone = arm(mixed), [arm([question])[0] for question in mixed]
        assert [reply.evidence_ids for reply in replies] == [reply.evidence_ids for reply in alone]
        assert [reply.text for reply in replies] == [reply.text for reply in alone]


def test_several_images_of_a_question_come_from_files_and_are_part_of_it(tmp_path):
    for n in range(2):
        picture(n).save(tmp_path / f"{n}.png")
    file = tmp_path / "questions.jsonl"
    rows = [
        {"question": "What changed?", "answer": "x", "images": names} for names in (["0.png", "1.png"], ["0.png"], [])
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    both, one, none = questions_from(file)
    assert both.image == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert none.image is None
    assert len({question.digest() for question in (both, one, none)}) == 3
    arm = model_arms(tiny_model(fusion="in_context"), tiny_processor(), arms=["closed_book"])["closed_book"]
    with pytest.raises(InvalidInputError, match="2 images for one question"):
        arm([both])
