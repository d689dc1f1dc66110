"""Rows of a data set become batches by the names of their columns; what is broken is reported or left out."""

from __future__ import annotations

import io

import pytest
import torch
from datasets import Dataset, Features, Image, Sequence, Value
from transformers import TrainingArguments

from hf_ravlm import InvalidInputError, RavlmModel, UnsafeInputError, from_backbones
from hf_ravlm.model.modeling_ravlm import belong_together
from hf_ravlm.training import (
    AnswerCollator,
    RavlmPreTrainer,
    RavlmPreTrainingArguments,
    RavlmTrainer,
    RetrievalCollator,
    undecoded,
)
from hf_ravlm.training.batches.broken_images import blank_image
from hf_ravlm.training.batches.rows import TrainingRow, label_first
from tiny import picture, tiny_config, tiny_model, tiny_processor
from tiny_backbones import multimodal_model


PROCESSOR = tiny_processor()


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def dataset(**changes) -> Dataset:
    """Three rows with a picture, of which the last is broken if asked for."""
    columns = {
        "photo": [{"bytes": encoded(n), "path": None} for n in range(3)],
        "words": ["red", "white", "Oslo"],
        "hard": [["Chad", "red"], [], None],
        "entity": ["a", "b", "a"],
        "answers": [["Oslo", "oslo", "Oslo "], ["red"], ["white", "Chad"]],
        "key": ["x", "y", "z"],
    }
    features = Features(
        {
            "photo": Image(),
            "words": Value("string"),
            "hard": Sequence(Value("string")),
            "entity": Value("string"),
            "answers": Sequence(Value("string")),
            "key": Value("string"),
        }
    )
    return Dataset.from_dict({**columns, **changes}, features=features)


def broken() -> Dataset:
    photos = [{"bytes": data, "path": None} for data in (encoded(0), b"no picture", encoded(2))]
    return dataset(photo=photos)


def retrieval(**settings) -> RetrievalCollator:
    names = {"query_image": "photo", "passage_text": "words", "id": "key"}
    return RetrievalCollator(processor=PROCESSOR, **{**names, **settings})


def test_retrieval_pairs_are_what_the_processor_makes_of_them():
    batch = retrieval()(list(dataset()))
    expected = PROCESSOR.for_retrieval(images=[picture(n) for n in range(3)])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    texts = PROCESSOR.for_retrieval(texts=["red", "white", "Oslo"])
    assert torch.equal(batch["passage_input_ids"], texts["input_ids"])
    assert batch["query_labels"].unique().numel() == 3
    assert torch.equal(batch["query_labels"], batch["passage_labels"])
    assert batch["batch_ids"] == ["x", "y", "z"]
    inputs = {name: tensor for name, tensor in batch.items() if name != "batch_ids"}
    assert RavlmModel(tiny_config())(**inputs, return_loss=True).loss.isfinite()


def test_hard_negatives_stand_behind_the_positives_and_one_passage_has_one_label():
    batch = retrieval(negatives="hard")(list(dataset()))
    assert len(batch["query_labels"]) == 3
    assert len(batch["passage_input_ids"]) == 5
    labels = batch["passage_labels"].tolist()
    assert labels[4] == labels[0]  # "red" is the positive of the first row and also among its negatives
    assert len(set(labels)) == 4
    again = retrieval(negatives="hard")([dataset()[2], dataset()[0]])  # labels do not depend on the batch
    assert again["query_labels"].tolist() == [labels[2], labels[0]]


def test_a_label_column_says_which_passages_are_alike():
    labels = retrieval(label="entity", negatives="hard")(list(dataset()))["passage_labels"].tolist()
    assert labels[0] == labels[2] == labels[4]
    assert len({labels[0], labels[1], labels[3]}) == 3


def test_hard_negatives_may_be_pictures():
    rows = [{**row, "hard": [picture(7), {"text": "Chad", "image": picture(8)}]} for row in dataset()]
    batch = retrieval(negatives="hard", passage_image="photo")(rows)
    assert batch["passage_image_mask"].tolist() == [True] * 9
    assert batch["passage_text_mask"].tolist() == [True] * 3 + [False, True] * 3


def test_a_missing_column_is_named_beside_those_there_are():
    with pytest.raises(InvalidInputError, match=r"no column 'caption': the data has \['answers', 'entity'.*'words'\]"):
        retrieval(passage_text="caption")(list(dataset()))
    with pytest.raises(InvalidInputError, match="name the column of the passage"):
        retrieval(passage_text=None)
    with pytest.raises(InvalidInputError, match=r"on_error='drop': expected one of \['raise', 'blank', 'skip'\]"):
        retrieval(on_error="drop")


def test_a_broken_picture_is_reported_or_left_out(caplog):
    rows = list(undecoded(broken()))
    with pytest.raises(UnsafeInputError, match="row y: "):
        retrieval()(rows)
    batch = retrieval(on_error="skip")(rows)
    assert batch["batch_ids"] == ["x", "z"]
    assert len(batch["passage_input_ids"]) == 2
    assert "left out 1 of 3 rows, first row y" in caplog.text
    with pytest.raises(InvalidInputError, match="none of the 1 rows .* row y"):
        retrieval(on_error="skip")(rows[1:2])


def test_a_grey_picture_takes_the_place_of_a_broken_one_in_every_collator(caplog):
    rows = list(undecoded(broken()))
    grey = PROCESSOR.for_retrieval(images=[blank_image()])["pixel_values"][0]
    names = {"processor": PROCESSOR, "image": "photo", "id": "key"}
    for collator in (retrieval(on_error="blank"), AnswerCollator(answer="answers", on_error="blank", **names)):
        pixels = collator(rows)["pixel_values"]
        assert len(pixels) == 3
        torch.testing.assert_close(pixels[1], grey)
        assert not torch.equal(pixels[0], grey)
    assert "a grey one takes its place" in caplog.text
    lacking = [rows[0], {**rows[1], "words": ""}]
    with pytest.raises(InvalidInputError, match="row y: no positive passage"):
        retrieval(on_error="blank")(lacking)


@pytest.mark.parametrize("words", [None, "  "])
def test_a_row_without_a_positive_is_reported_or_left_out(words):
    rows = list(dataset(words=["red", words, "Oslo"]))
    with pytest.raises(InvalidInputError, match=r"row y: no positive passage: the columns \['words'\] are empty"):
        retrieval()(rows)
    assert retrieval(on_error="skip")(rows)["batch_ids"] == ["x", "z"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["red", "scarlet", "scarlet "], ["scarlet", "red"]),  # the most frequent, whatever the spaces around it
        (["Oslo", "Kristiania"], ["Oslo", "Kristiania"]),  # of equals the first
        (["", None, "b"], ["b"]),
        ("Oslo", ["Oslo"]),
        (None, []),
    ],
)
def test_one_rule_says_which_answer_is_the_label(answers, expected):
    assert label_first(answers) == expected
    assert list(TrainingRow.parse({"question": "what ?", "answers": answers}).answers) == expected
    given = TrainingRow.parse({"question": "what ?", "answer": "x", "answers": answers})
    assert (given.label, list(given.answers[1:])) == ("x", expected)
    if expected:
        collator = AnswerCollator(processor=PROCESSOR, question="words", answer="answers")
        labels = collator([{"words": "red", "answers": answers}])["labels"]
        assert PROCESSOR.tokenizer.decode(labels[labels != -100], skip_special_tokens=True).strip() == expected[0]


def test_an_answer_that_is_no_text_is_refused_with_its_row():
    with pytest.raises(InvalidInputError, match=r"'q1': expected a text, got int: '7'"):
        TrainingRow.parse({"id": "q1", "question": "what ?", "answers": ["a", 7]})


def test_answers_are_learned_the_most_frequent_first():
    rows = list(dataset())
    answers = AnswerCollator(processor=PROCESSOR, image="photo", question="words", answer="answers")
    expected = PROCESSOR(
        images=[picture(n) for n in range(3)], text=["red", "white", "Oslo"], answers=["Oslo", "red", "white"]
    )
    batch = answers(rows)
    assert set(batch) == set(expected)
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    captions = AnswerCollator(processor=PROCESSOR, image="photo", answer="words", prompt="what is this ?")
    expected = PROCESSOR(
        images=[picture(n) for n in range(3)], text=["what is this ?"] * 3, answers=["red", "white", "Oslo"]
    )
    assert torch.equal(captions(rows)["labels"], expected["labels"])
    with_evidence = AnswerCollator(processor=PROCESSOR, question="words", answer="answers", evidence="hard")
    assert with_evidence(rows)["evidence_mask"].tolist() == [[True, True], [False, False], [False, False]]
    with pytest.raises(InvalidInputError, match="row 1: no answer: the column 'answers' is empty"):
        answers(list(dataset(answers=[["red"], [], ["Oslo"]])))


def test_the_trainer_keeps_the_columns_that_the_collator_reads(tmp_path):
    collator = AnswerCollator(processor=PROCESSOR, image="photo", question="words", answer="answers")
    settings = {"max_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), **settings)
    trainer = RavlmTrainer(model=tiny_model(), args=arguments, data_collator=collator, train_dataset=dataset())
    trainer.train()
    assert trainer.state.global_step == 1


def test_the_same_words_are_no_negatives_under_any_label(tmp_path):
    """Two entities may share a caption; each is then a positive of the other, and of all that belongs to it."""
    rows = list(dataset(words=["red", "red", "white"], entity=["a", "b", "b"]))
    batch = retrieval(label="entity")(rows)
    assert len(set(batch["passage_labels"].tolist())) == 1
    marks = batch["passage_marks"]
    assert belong_together(marks, marks).int().tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    arguments = RavlmPreTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = RavlmPreTrainer(RavlmModel(tiny_config()), arguments, data_collator=retrieval(label="entity"))
    metrics = trainer.evaluate(dataset(words=["red", "red", "white"], entity=["a", "b", "c"]))
    assert metrics["eval_num_passages"] == 3
    unlike = retrieval(label="entity")(list(dataset()))
    assert len(set(unlike["passage_labels"].tolist())) == 2


def test_a_row_without_image_and_text_is_no_vector():
    model = tiny_model().model
    none, some = torch.tensor([False, True]), torch.tensor([True, True])
    images, ids = torch.zeros(2, 3, 16, 16), torch.full((2, 3), 9)
    with pytest.raises(ValueError, match=r"nothing to embed in 1 of 2 rows \(\[0\]\)"):
        model.get_query_features(pixel_values=images, image_mask=none, input_ids=ids, text_mask=none)
    with pytest.raises(ValueError, match="nothing to embed"):
        model.get_query_features(input_ids=ids, text_mask=none)
    assert (
        model.get_query_features(pixel_values=images, image_mask=none, input_ids=ids, text_mask=some).isfinite().all()
    )


def test_what_stands_for_no_image_may_be_no_number():
    model = tiny_model().model
    images = torch.zeros(2, 3, 16, 16)
    images[0] = float("nan")
    given = {"image_mask": torch.tensor([False, True]), "input_ids": torch.full((2, 3), 9)}
    vectors = model.get_query_features(pixel_values=images, **given)
    torch.testing.assert_close(vectors, model.get_query_features(pixel_values=images.nan_to_num(7.0), **given))
    vectors.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_questions_with_several_images_one_or_none_are_read_in_one_batch():
    reader, its_processor = multimodal_model("qwen3_vl")
    processor = from_backbones(generator=reader, generator_processor=its_processor)[1]
    rows = [
        {"image": [encoded(0), encoded(1)], "question": "what ?", "answer": "Oslo"},
        {"image": encoded(2), "question": "what ?", "answer": "Oslo"},
        {"image": None, "question": "what ?", "answer": "Oslo"},
        {"image": [], "question": "what ?", "answer": "Oslo"},
    ]
    collator = AnswerCollator(processor=processor, image="image", question="question", answer="answer")
    batch = collator(rows)
    assert len(batch["image_grid_thw"]) == 3
    assert batch["input_ids"].shape[0] == 4
    shown = processor(images=[rows[0]["image"], [encoded(2)], [], []], text=["what ?"] * 4, answers=["Oslo"] * 4)
    assert torch.equal(batch["input_ids"], shown["input_ids"])
    alone = AnswerCollator(processor=processor, image="image", answer="answer")
    with pytest.raises(InvalidInputError, match="row 2: no image"):
        alone(rows)


def test_a_reader_of_words_and_one_image_reads_mixed_rows_and_refuses_several():
    rows = [{"image": encoded(0), "question": "what ?", "answer": "Oslo"}, {"question": "what ?", "answer": "Chad"}]
    rows[1]["image"] = None
    collator = AnswerCollator(processor=tiny_processor(), image="image", question="question", answer="answer")
    batch = collator(rows)
    assert batch["pixel_values"].shape[0] == 2
    assert not batch["pixel_values"][1].any()
    with pytest.raises(InvalidInputError, match="2 images for one question"):
        collator([{**rows[0], "image": [encoded(0), encoded(1)]}])
