"""Rows of a data set become batches by the names of their columns; what is broken is reported or left out."""

from __future__ import annotations

import io

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Sequence, Value
from transformers import TrainingArguments

from hf_ravlm import InvalidInputError, RavlmModel, UnsafeInputError
from hf_ravlm.training import (
    AnswerCollator,
    ClassificationCollator,
    RavlmTrainer,
    RetrievalCollator,
    undecoded,
    with_lengths,
)
from hf_ravlm.training.batches.broken_images import blank_picture
from hf_ravlm.training.lengths import padding_share
from tiny import picture, tiny_config, tiny_model, tiny_processor


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
        "kind": [0, 1, 1],
        "key": ["x", "y", "z"],
    }
    features = Features(
        {
            "photo": Image(),
            "words": Value("string"),
            "hard": Sequence(Value("string")),
            "entity": Value("string"),
            "answers": Sequence(Value("string")),
            "kind": ClassLabel(names=["bird", "flag"]),
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
    with pytest.raises(InvalidInputError, match=r"on_broken='drop': expected one of \['raise', 'blank', 'skip'\]"):
        retrieval(on_broken="drop")


def test_a_broken_picture_is_reported_or_left_out(caplog):
    rows = list(undecoded(broken()))
    with pytest.raises(UnsafeInputError, match="row y: "):
        retrieval()(rows)
    batch = retrieval(on_broken="skip")(rows)
    assert batch["batch_ids"] == ["x", "z"]
    assert len(batch["passage_input_ids"]) == 2
    assert "left out 1 of 3 rows, first row y" in caplog.text
    with pytest.raises(InvalidInputError, match="none of the 1 rows .* row y"):
        retrieval(on_broken="skip")(rows[1:2])


def test_a_grey_picture_takes_the_place_of_a_broken_one_in_every_collator(caplog):
    rows = list(undecoded(broken()))
    grey = PROCESSOR.for_retrieval(images=[blank_picture()])["pixel_values"][0]
    names = {"processor": PROCESSOR, "image": "photo", "id": "key"}
    for collator in (
        retrieval(on_broken="blank"),
        AnswerCollator(answer="answers", on_broken="blank", **names),
        ClassificationCollator(label="kind", on_broken="blank", **names),
    ):
        pixels = collator(rows)["pixel_values"]
        assert len(pixels) == 3
        torch.testing.assert_close(pixels[1], grey)
        assert not torch.equal(pixels[0], grey)
    assert "a grey one takes its place" in caplog.text
    lacking = [rows[0], {**rows[1], "words": ""}]
    with pytest.raises(InvalidInputError, match="row y: no positive passage"):
        retrieval(on_broken="blank")(lacking)


@pytest.mark.parametrize("words", [None, "  "])
def test_a_row_without_a_positive_is_reported_or_left_out(words):
    rows = list(dataset(words=["red", words, "Oslo"]))
    with pytest.raises(InvalidInputError, match=r"row y: no positive passage: the columns \['words'\] are empty"):
        retrieval()(rows)
    assert retrieval(on_broken="skip")(rows)["batch_ids"] == ["x", "z"]


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


def test_classes_are_numbers_or_names():
    by_number = ClassificationCollator(processor=PROCESSOR, image="photo", label="kind")(list(dataset()))
    assert by_number["labels"].tolist() == [0, 1, 1]
    assert by_number["pixel_values"].shape == (3, 3, 16, 16)
    by_name = ClassificationCollator(processor=PROCESSOR, text="words", label="entity", names=["a", "b"])
    assert by_name(list(dataset()))["labels"].tolist() == [0, 1, 0]
    with pytest.raises(InvalidInputError, match="row 1: the class is 'b': expected a number or one of"):
        ClassificationCollator(processor=PROCESSOR, text="words", label="entity", names=["a"])(list(dataset()))


def test_the_trainer_keeps_the_columns_that_the_collator_reads(tmp_path):
    collator = AnswerCollator(processor=PROCESSOR, image="photo", question="words", answer="answers")
    settings = {"max_steps": 1, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), **settings)
    trainer = RavlmTrainer(model=tiny_model(), args=arguments, data_collator=collator, train_dataset=dataset())
    trainer.train()
    assert trainer.state.global_step == 1


def test_rows_of_like_length_share_a_batch(tmp_path):
    words = ["red white " * (1 + (7 * n) % 16) for n in range(1024)]
    data = Dataset.from_dict({"question": words, "answers": [["red", "Oslo"]] * 1024})
    data = with_lengths(data, PROCESSOR.tokenizer, ["question", "answers"])
    tokens = [len(PROCESSOR.tokenizer(text)["input_ids"]) for text in words]
    rest = len(PROCESSOR.tokenizer("red\nOslo")["input_ids"])
    assert data["length"][:] == [count + rest for count in tokens]
    collator = AnswerCollator(processor=PROCESSOR, question="question", answer="answers")
    shares = {}
    for strategy in ("random", "group_by_length"):
        settings = {"report_to": "none", "use_cpu": True, "remove_unused_columns": False}
        arguments = TrainingArguments(str(tmp_path), train_sampling_strategy=strategy, **settings)
        trainer = RavlmTrainer(model=tiny_model(), args=arguments, data_collator=collator, train_dataset=data)
        order = list(trainer._get_train_sampler())
        assert sorted(order) == list(range(1024))
        batches = [order[start : start + 8] for start in range(0, 1024, 8)]
        shares[strategy] = padding_share(data["length"][:], batches)
    assert shares["group_by_length"] < shares["random"] / 3
    with pytest.raises(InvalidInputError, match=r"no column 'text': the data set has \['question', 'answers'"):
        with_lengths(data, PROCESSOR.tokenizer, ["text"])
