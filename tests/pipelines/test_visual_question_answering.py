"""`pipeline("visual-question-answering")`, which transformers 5 removed, answers by our models with evidence."""

from __future__ import annotations

import datasets
import pytest
import torch
import transformers.pipelines as transformers_pipelines
from transformers import BlipConfig, BlipForConditionalGeneration, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_ravlm import InvalidInputError
from hf_ravlm.pipelines import AnswerPolicy, RavlmVisualQuestionAnsweringPipeline, answer_questions
from tiny import picture
from tiny_folder import save_everything


QUESTION = "what is the capital ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_everything(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def ask(folder):
    return pipeline("visual-question-answering", model=str(folder), max_new_tokens=4)


def test_an_answer_comes_with_evidence_posterior_and_scores(folder, ask):
    assert type(ask) is RavlmVisualQuestionAnsweringPipeline
    (answer,) = ask(image=picture(1), question=QUESTION)
    described = pipeline("image-to-text", model=str(folder), max_new_tokens=4)(picture(1), question=QUESTION)[0]
    assert answer["answer"] == described["generated_text"]
    assert answer["evidence"][0]["id"] == "1"
    assert answer["scores"] == [item["score"] for item in answer["evidence"]] == described["scores"]
    assert answer["posterior"] == pytest.approx(described["posterior"])
    assert sum(answer["posterior"]) == pytest.approx(1.0, abs=1e-5)
    assert ask(image=picture(1), question=QUESTION, k=0)[0]["scores"] == []


def test_every_way_of_asking_gives_the_same(ask):
    pictures = [picture(n) for n in range(3)]
    expected = [ask(image=image, question=QUESTION)[0]["answer"] for image in pictures]
    rows = [{"image": image, "question": QUESTION} for image in pictures]
    data = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))
    ways = {
        "one question, a list": ask(image=pictures, question=QUESTION),
        "dictionaries": ask(rows, batch_size=2),
        "generator of dictionaries": list(ask((row for row in rows), batch_size=2)),
        "one question, a generator": list(ask((image for image in pictures), QUESTION)),
        "one question, a data set": list(ask(KeyDataset(data, "image"), QUESTION, batch_size=3)),
    }
    for name, got in ways.items():
        assert [answer[0]["answer"] for answer in got] == expected, name
    several = ask(image=pictures[0], question=[QUESTION, "red ?"])
    assert [row[0]["answer"] for row in several] == [expected[0], ask(pictures[0], "red ?")[0]["answer"]]


def test_device_and_dtype_reach_the_model(folder):
    pipe = pipeline("vqa", model=str(folder), device="cpu", dtype=torch.bfloat16, max_new_tokens=2)
    assert pipe.task == "visual-question-answering"
    assert (pipe.model.dtype, pipe.device.type) == (torch.bfloat16, "cpu")
    assert pipe(picture(1), QUESTION)[0]["evidence"][0]["id"] == "1"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no image given"),
        ({"image": picture(0)}, "an image came without a question"),
        ({"image": {"image": picture(0), "question": None}}, "an image came without a question"),
        ({"image": picture(0), "question": 5}, "question= came as int"),
        ({"image": picture(0), "question": QUESTION, "retriever": "folder"}, "retriever= came as str"),
        ({"image": [picture(0), picture(1)], "question": [QUESTION, "red ?"]}, "which belongs to which"),
    ],
)
def test_what_cannot_be_asked_is_explained(ask, given, message):
    with pytest.raises(InvalidInputError, match=message):
        ask(**given)


def test_nothing_asked_is_nothing_answered(ask):
    assert ask([], QUESTION) == ask([]) == []
    assert answer_questions(ask.model, ask.processor, ask.retriever, [], [], policy=AnswerPolicy()) == []


def test_models_of_others_are_sent_to_the_task_that_serves_them():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BlipConfig(text_config={"vocab_size": 30, **sizes}, vision_config={"image_size": 16, **sizes})
    with pytest.raises(InvalidInputError, match="image-text-to-text"):
        pipeline("visual-question-answering", model=BlipForConditionalGeneration(config))
    with pytest.raises(KeyError, match="removed from transformers"):
        transformers_pipelines.pipeline("question-answering")


def test_saving_the_pipeline_copies_none_of_our_modules(ask, tmp_path):
    ask.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.py")) == ["ravlm_hub.py"]
    again = pipeline("visual-question-answering", model=str(tmp_path), max_new_tokens=4)
    assert again(picture(2), QUESTION)[0]["answer"] == ask(picture(2), QUESTION)[0]["answer"]
