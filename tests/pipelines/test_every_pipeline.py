"""What a call may say, it may say to each of the three pipelines: how many passages, which ones, of what."""

from __future__ import annotations

import datasets
import pytest
from PIL import Image
from transformers import pipeline

from bird_world import ToyEncoder
from hf_ravlm import InvalidInputError, KnowledgeBase, RavlmRetriever, from_backbones
from hf_ravlm.model.processing_ravlm import RavlmProcessor
from hf_ravlm.pipelines.searching import find_evidence
from hf_ravlm.retrieval import Evidence
from tiny import tiny_model, tiny_processor
from tiny_backbones import multimodal_model


COLOURS = {"robin": "orange", "wren": "brown", "swan": "white", "raven": "black"}
TASKS = ["image-to-text", "visual-question-answering", "image-text-to-text"]


def shown(name: str) -> Image.Image:
    return Image.new("RGB", (64, 64), COLOURS[name])


def chat(images, question, system=None):
    parts = [{"type": "image", "image": image} for image in images or []]
    told = [] if system is None else [{"role": "system", "content": system}]
    return [*told, {"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


@pytest.fixture(scope="module")
def parts():
    """A reader that sees several images, and a knowledge base of four birds: images without words, but one."""
    generator, own = multimodal_model("qwen2_5_vl")
    model, processor = from_backbones(generator=generator, generator_processor=own)
    rows = [{"id": name, "image": shown(name), "source": f"{name}s", "year": n} for n, name in enumerate(COLOURS)]
    rows.append({"id": "words", "text": "the capital of Norway is Oslo", "source": "words", "year": 9})
    return model, processor, RavlmRetriever.build(KnowledgeBase.from_dicts(rows), ToyEncoder())


@pytest.fixture(scope="module", params=TASKS)
def ask(request, parts):
    model, processor, retriever = parts
    given = {"processor": processor, "retriever": retriever, "max_new_tokens": 2, "with_posterior": False}
    pipe = pipeline(request.param, model=model, **given)

    def ask(images, question="what ?", **options):
        if request.param == "image-text-to-text":
            return pipe(text=chat(images, question), **options)[0]
        return pipe({"image": images, "question": question}, **options)[0]

    ask.pipe = pipe
    return ask


@pytest.fixture
def prompts(monkeypatch):
    """Of each prompt that is written its words and the number of its images."""
    written, plain = [], RavlmProcessor.__call__

    def call(self, images=None, text=None, **kwargs):
        inputs = plain(self, images=images, text=text, **kwargs)
        words = self.tokenizer.batch_decode(inputs["input_ids"])
        written.append((words, len(inputs.get("image_grid_thw", []))))
        return inputs

    monkeypatch.setattr(RavlmProcessor, "__call__", call)
    return written


def found(answer) -> list[str]:
    return [passage["id"] for passage in answer["evidence"] + answer["unread"]]


def test_how_many_passages(ask):
    assert [len(found(ask([shown("wren")], k=k))) for k in (0, 1, 3)] == [0, 1, 3]


@pytest.mark.parametrize("k", ["3", -1, 2.5, True])
def test_a_number_of_passages_that_is_none_is_told(ask, k):
    with pytest.raises(InvalidInputError, match=f"^k={k!r}: expected a whole number of at least 0 passages"):
        ask([shown("wren")], k=k)


def test_which_passages(ask):
    assert found(ask([shown("wren")], where={"source": ["robins", "swans"]}, k=4)) == ["robin", "swan"]
    assert found(ask([shown("wren")], where={"year": {"min": 3, "max": 3}})) == ["raven"]


def test_by_which_channels_and_words(ask):
    pytest.importorskip("bm25s")
    assert found(ask([shown("wren")], "capital of Norway ?", channels=["bm25"])) == ["words"]
    assert found(ask([shown("wren")], "capital of Norway ?", k=1, query="")) == ["wren"]
    assert found(ask(None, "what ?", k=1, query="capital of Norway")) == ["words"]


def test_what_each_channel_counts(ask):
    images = {"channels": ["dense_image", "dense_text"], "weights": {"dense_image": 1.0, "dense_text": 0.0}}
    words = {**images, "weights": {"dense_image": 0.0, "dense_text": 1.0}}
    best = [found(ask([shown("wren")], "capital of Norway ?", k=1, **weighed)) for weighed in (images, words)]
    assert best == [["wren"], ["words"]]


def test_every_image_reaches_the_search_and_the_reader(ask, prompts):
    assert found(ask([shown("wren")], k=1)) == ["wren"]
    assert set(found(ask([shown("wren"), shown("swan")], k=2, query=""))) == {"wren", "swan"}
    assert found(ask(None, "capital of Norway ?", k=1)) == ["words"]
    assert [number for _, number in prompts] == [1, 2, 0]


def test_what_the_reader_is_told_first(ask, prompts):
    ask([shown("wren")], system_message="be quick")
    assert "be quick" in prompts[0][0][0]


def test_nothing_is_left_out_silently(ask):
    with pytest.raises((InvalidInputError, ValueError), match="smell"):
        ask([shown("wren")], smell=3)
    with pytest.raises(InvalidInputError, match="query= came as int"):
        ask([shown("wren")], query=3)


def test_parts_of_another_kind_are_refused(ask, parts):
    for name in ("policy", "retriever", "encoded_knowledge"):
        with pytest.raises(InvalidInputError, match=f"{name}= came as str: expected an? "):
            ask([shown("wren")], **{name: "my_folder"})
    with pytest.raises(InvalidInputError, match="policy= came as str"):
        pipeline(ask.pipe.task, model=parts[0], processor=parts[1], retriever=parts[2], policy="my_folder")


def test_settings_of_generation_are_applied_directly(ask):
    words = [ask([shown("wren")], do_sample=False, **{"max_new_tokens": number}) for number in (1, 6)]
    texts = [answer.get("generated_text", answer.get("answer")) for answer in words]
    assert texts[0] != texts[1]


@pytest.fixture(scope="module")
def talk(parts):
    model, processor, retriever = parts
    given = {"processor": processor, "retriever": retriever, "max_new_tokens": 2, "with_posterior": False}
    return pipeline("image-text-to-text", model=model, **given)


def test_system_messages_of_a_chat_are_told_each_to_its_own_question(talk, prompts):
    chats = [chat([shown("wren")], "what ?", system) for system in ("be quick", None, "be slow", "be quick")]
    answers = talk(text=chats, batch_size=4, k=1)
    assert [found(answer) for (answer,) in answers] == [["wren"]] * 4
    told = [["be quick" in text, "be slow" in text] for words, _ in prompts for text in words]
    assert sorted(told) == [[False, False], [False, True], [True, False], [True, False]]
    prompts.clear()
    talk(text=chats[0], system_message="answer in Norwegian")
    (words,), _ = prompts[0]
    assert words.index("answer in Norwegian") < words.index("be quick")


def test_texts_and_images_without_a_chat(talk, prompts):
    both = talk(images=[shown("wren"), shown("swan")], text="what ?", query="", k=2)
    assert (set(found(both[0])), prompts[0][1]) == ({"wren", "swan"}, 2)
    each = talk(images=[[shown("wren")], [shown("swan"), shown("raven")]], text=["what ?", "who ?"], query="", k=1)
    assert [found(answer) for answer in each][0] == ["wren"]
    mixed = talk(images=[shown("robin"), None], text=["what ?", "capital of Norway ?"], k=1)
    assert [found(answer) for answer in mixed] == [["robin"], ["words"]]
    with pytest.raises(InvalidInputError, match="3 images came with 2 texts"):
        talk(images=[shown("wren")] * 3, text=["what ?", "who ?"])


@pytest.mark.parametrize(
    "option",
    [{"continue_final_message": True}, {"tools": [1]}, {"return_tensors": True}, {"processor_kwargs": {"a": 1}}],
)
def test_what_the_chat_pipeline_does_not_apply_is_refused(talk, option):
    with pytest.raises(InvalidInputError, match=f"{next(iter(option))}= is not applied"):
        talk(text=chat(None, "what ?"), **option)


def test_the_answer_of_a_chat_ends_at_a_word(talk):
    long = talk(text=chat(None, "what ?"), max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    assert len(long) > 2
    short = talk(text=chat(None, "what ?"), max_new_tokens=8, return_full_text=False, stop_sequence=long[:2])[0]
    assert len(short["generated_text"]) < len(long)


def test_columns_of_tables_are_lists(ask):
    table = datasets.Dataset.from_dict({"q": ["what ?", "who ?"]})
    if ask.pipe.task == "image-text-to-text":
        answers = ask.pipe(images=[shown("wren"), shown("swan")], text=table["q"], k=1, query="")
        assert [found(answer) for answer in answers] == [["wren"], ["swan"]]
    images = datasets.Dataset.from_dict(
        {"i": [shown("wren"), shown("swan")]}, features=datasets.Features({"i": datasets.Image()})
    )["i"]
    assert set(found(ask(images, k=2, query=""))) == {"wren", "swan"}
    if ask.pipe.task == "image-to-text":  # a column is many rows, not many images of one question
        assert [found(answer[0]) for answer in ask.pipe(images, k=1)] == [["wren"], ["swan"]]


def test_a_reader_with_one_place_for_images_says_so(parts):
    pipe = pipeline("image-text-to-text", model=tiny_model(), processor=tiny_processor(), max_new_tokens=2)
    with pytest.raises(InvalidInputError, match="got 2 images for one question"):
        pipe(text=chat([shown("wren"), shown("swan")], "what ?"))


def test_questions_with_and_without_an_image_go_in_one_batch_to_every_fusion():
    pipe = pipeline("image-to-text", model=tiny_model(fusion="gated"), processor=tiny_processor(fusion="gated"))
    rows = [{"image": shown("wren"), "question": "what ?"}, {"question": "who ?"}]
    together = pipe(rows, batch_size=2, max_new_tokens=3)
    assert together == [pipe(row, max_new_tokens=3) for row in rows]


def test_passages_that_several_images_find_count_once_by_their_best_score():
    class Retriever:
        def retrieve(self, images, texts, k, **options):
            rows = {"a": [("x", 0.9), ("y", 0.5)], "b": [("y", 0.8), ("z", 0.7)], None: [("w", 0.1)]}
            return [
                [
                    Evidence(id=name, text=name, score=s, ranking_score=s, rank=n)
                    for n, (name, s) in enumerate(rows[i], 1)
                ]
                for i in images
            ]

    found = find_evidence(Retriever(), [["a", "b"], None, "b"], ["?", "?", "?"], 2)
    assert [[(one.id, one.score, one.rank) for one in row] for row in found] == [
        [("x", 0.9, 1), ("y", 0.8, 2)],
        [("w", 0.1, 1)],
        [("y", 0.8, 1), ("z", 0.7, 2)],
    ]
