"""Settings of prompts: applied in every layout, saved, overridden in a call, or refused."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hf_ravlm import InvalidInputError, from_backbones
from hf_ravlm.model.prompts.literal import control_tokens
from tiny import SPECIALS, picture, tiny_model, tiny_processor
from tiny_backbones import MULTIMODAL, causal_model, causal_tokenizer, multimodal_model


THINKING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PASSAGES = [{"text": "the capital is Oslo", "title": "Norway", "score": 0.9}, "of Chad", "red white"]


def words_reader(chat: bool = True):
    tokenizer = causal_tokenizer()
    tokenizer.chat_template = THINKING_TEMPLATE if chat else None
    return from_backbones(generator=causal_model("llama"), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def readers():
    generator, its_processor = multimodal_model("qwen2_5_vl")
    return {
        "chat": words_reader(),
        "plain": words_reader(chat=False),
        "image_text": from_backbones(generator=generator, generator_processor=its_processor),
        "marks": (tiny_model(), tiny_processor()),
    }


LAYOUTS = ["chat", "plain", "image_text", "marks"]


def shown(processor, row=0, **asked):
    inputs = processor(**{"text": ["what is it?"], "evidence": [PASSAGES], **asked})
    ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
    return processor.tokenizer.decode(ids), inputs


def test_a_language_model_that_we_did_not_train_is_asked_in_its_own_way(readers):
    for layout in ("chat", "plain"):
        model, processor = readers[layout]
        assert processor.layout == layout
        assert not set(SPECIALS[3:]) & set(processor.tokenizer.get_vocab())  # nothing was added
        assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
        inputs = shown(processor, images=[picture()])[1]
        assert "pixel_values" not in inputs  # images are for the search
        assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[0] == 1
    assert readers["marks"][1].layout == "marks"
    plain, _ = shown(readers["plain"][1], evidence=[PASSAGES[:1]])
    assert plain == "Passage: Norway: the capital is Oslo\n\nQuestion: what is it?\nAnswer:"


def test_a_closed_book_prompt_is_the_stock_prompt(readers):
    _, processor = readers["chat"]
    for settings in ({}, {"enable_thinking": False}):
        ours = processor(text=["what is it?"], **settings)
        theirs = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": "what is it?"}],
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
            **settings,
        )
        assert torch.equal(ours["input_ids"], theirs["input_ids"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_system_message_numbers_titles_and_order(readers, layout):
    _, processor = readers[layout]
    text, _ = shown(processor, system_message="Be brief.", number_passages=True, passage_titles=True)
    places = [text.index(part) for part in ("Be brief.", "[3] red white", "[2] of Chad", "[1] Norway: the", "what is")]
    assert places == sorted(places)
    text, _ = shown(processor, passage_order="best_first", number_passages=True)
    places = [text.index(part) for part in ("[1] ", "[2] of Chad", "[3] red white", "what is it")]
    assert places == sorted(places)
    assert "Be brief" not in text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_call_says_it_as_the_setting_does_and_the_setting_is_saved(readers, layout, tmp_path):
    _, processor = readers[layout]
    settings = {
        "system_message": "Be brief.",
        "number_passages": True,
        "passage_titles": True,
        "passage_order": "best_first",
        "max_length": 180,
        "max_passage_length": 3,
        "drop_duplicates": True,
        "cite": True,
        "max_image_pixels": 999,
        "max_passage_image_pixels": 99,
    }
    if layout == "chat":
        settings["enable_thinking"] = False
    asked = {"text": ["what is it?"], "evidence": [[*PASSAGES, "OF  chad"]]}
    plain = processor(**asked)["input_ids"]
    directly = processor(**asked, **settings)["input_ids"]
    assert torch.equal(processor(**asked, prompt=settings)["input_ids"], directly)
    assert torch.equal(processor(**asked)["input_ids"], plain)  # a call changes nothing
    before = {name: getattr(processor, name) for name in settings}
    for name, value in settings.items():
        setattr(processor, name, value)
    processor.save_pretrained(tmp_path)
    of_setting = processor(**asked)["input_ids"]
    for name, value in before.items():
        setattr(processor, name, value)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in settings} == settings
    assert torch.equal(of_setting, directly)
    assert torch.equal(again(**asked)["input_ids"], directly)


def test_a_chat_template_of_the_users_own(readers, tmp_path):
    _, processor = readers["chat"]
    template = "{% for message in messages %}<< {{ message['content'] }} >>{% endfor %}"
    text, _ = shown(processor, chat_template=template, evidence=[[]])
    assert text == "<< what is it? >>"
    before, processor.chat_template = processor.chat_template, template
    processor.save_pretrained(tmp_path)
    processor.chat_template = before
    again = AutoProcessor.from_pretrained(tmp_path)
    assert shown(again, evidence=[[]])[0] == text
    chat = [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}]
    assert again.apply_chat_template(chat) == "what is it?"  # conversations become questions, as before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_stands_in_the_prompt_is_what_the_mask_says(readers, layout):
    _, processor = readers[layout]
    texts = ["Z " * 20, "  \u200b", "z " * 20, "8 " * 20, "9 " * 20]
    for limit in range(60, 400, 17):
        prompt, inputs = shown(processor, evidence=[texts], max_length=limit, drop_duplicates=True)
        assert inputs["input_ids"].shape[1] <= limit
        there = [word in prompt for word in ("Z", "\u200b", "z", "8", "9")]
        assert inputs["evidence_mask"][0].tolist() == there
    assert there == [True, False, False, True, True]
    numbered, _ = shown(processor, evidence=[texts], max_length=400, drop_duplicates=True, number_passages=True)
    assert all(text in numbered for text in ("[1] Z", "[2] 8", "[3] 9"))  # numbers of those that are read


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_stays_data_in_every_place(readers, layout):
    _, processor = readers[layout]
    control = control_tokens(processor.tokenizer)
    attack = " ".join([*control, "<think>", "</think>", "[2]"])
    forbidden = torch.tensor(sorted(control.values()))

    def controls(text):
        asked = {"evidence": [[{"text": text, "title": text}]], "text": [text], "system_message": text}
        return torch.isin(shown(processor, **asked)[1]["input_ids"], forbidden).sum()

    assert controls(f"a {attack}") == controls("a kite")


def test_a_question_asked_with_others_is_asked_as_alone(readers):
    for layout in LAYOUTS:
        _, processor = readers[layout]
        asked = {"text": ["what is it?", "red or"], "evidence": [PASSAGES, ["Oslo"]], "cite": True, "max_length": 150}
        turned = {name: value[::-1] if isinstance(value, list) else value for name, value in asked.items()}
        assert shown(processor, 0, **asked)[0] == shown(processor, 1, **turned)[0]


def test_hidden_passages_are_absent_ones_for_readers_of_words(readers):
    for layout in ("chat", "plain"):
        model, processor = readers[layout]
        three = processor(text=["what is it?"], evidence=[PASSAGES], passage_titles=False)
        three["evidence_mask"][0, 1] = False
        two = processor(text=["what is it?"], evidence=[[PASSAGES[0], PASSAGES[2]]], passage_titles=False)
        with torch.no_grad():
            hidden, absent = model(**three).logits[0, -1], model(**two).logits[0, -1]
        torch.testing.assert_close(hidden, absent, atol=1e-5, rtol=1e-4)


def test_one_prompt_per_passage_in_a_chat_template():
    model, processor = from_backbones(
        generator=causal_model("llama"), tokenizer=causal_tokenizer(), marginalization="sequence"
    )
    asked = {"text": ["what is it?", "red or"], "evidence": [PASSAGES, ["Oslo"]], "answers": ["Oslo", "red"]}
    inputs = processor(**asked)
    assert inputs["input_ids"].shape[0] == 6
    assert inputs["evidence_mask"].tolist() == [[True] * 3, [True, False, False]]
    with torch.no_grad():
        assert torch.isfinite(model(**inputs).loss)


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("plain", {"enable_thinking": True}, "enable_thinking=True has no effect here"),
        ("marks", {"enable_thinking": False}, "enable_thinking=False has no effect here"),
        ("marks", {"chat_template": "{{ messages }}"}, "trained in its own layout"),
        ("image_text", {"enable_thinking": True}, "chat template of this reader does not know it"),
        ("chat", {"numbered": True}, "takes no numbered=; it takes the settings of a prompt"),
        ("chat", {"prompt": {"numbered": True}}, "prompt has no setting 'numbered'; it takes system_message"),
        ("chat", {"prompt": "cite"}, "prompt= came as str: expected a dictionary"),
        ("chat", {"prompt": {"cite": True}, "cite": True}, "cite came twice"),
        ("chat", {"number_passages": "yes"}, "number_passages='yes': expected True or False"),
        ("chat", {"passage_order": "worst"}, "passage_order='worst': expected 'best_last' or 'best_first'"),
        ("chat", {"max_passage_length": 0}, "max_passage_length=0: expected a whole number of at least 1"),
        ("chat", {"system_message": 3}, "system_message=3: expected text or None"),
        ("image_text", {"max_pixel": 9}, "takes no max_pixel=.*max_pixels"),
    ],
)
def test_what_has_no_effect_is_refused(readers, layout, settings, message):
    with pytest.raises(InvalidInputError, match=message):
        readers[layout][1](text="what is it?", evidence=[["Oslo"]], **settings)


def test_a_fusion_that_reads_states_has_no_numbers():
    processor = tiny_processor(fusion="gated")
    with pytest.raises(InvalidInputError, match="cite=True has no effect here: fusion='gated' reads states"):
        processor(text="red ?", cite=True)
    with pytest.raises(InvalidInputError, match="layout='chat' has no places for what a vision tower sees"):
        tiny_processor(layout="chat")
    with pytest.raises(InvalidInputError, match="layout='prose': choose one of"):
        tiny_processor(layout="prose")


def test_a_template_without_system_messages_gets_them_before_the_question(readers):
    _, processor = readers["chat"]
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + THINKING_TEMPLATE
    )
    text, _ = shown(processor, chat_template=strict, system_message="Be brief.", evidence=[[]])
    assert "user\nBe brief.\n\nwhat is it?" in text


def test_a_large_photograph_simply_works(readers):
    _, processor = readers["image_text"]
    image_processor = processor.generator_processor.image_processor
    before, image_processor.size = image_processor.size, {"shortest_edge": 64, "longest_edge": 100_000_000}
    photograph = Image.fromarray(np.zeros((3000, 4000, 3), np.uint8))
    asked = {"images": [photograph], "text": ["what is it?"], "evidence": [["Oslo"]]}
    inputs = processor(**asked, max_length=700)  # 187,500 tokens as it is
    assert inputs["input_ids"].shape[1] <= 700
    assert inputs["evidence_mask"].tolist() == [[True]]
    small = processor(**asked, max_image_pixels=6_400)["pixel_values"].shape[0]
    assert small <= 1.1 * 6_400 / 16  # whole patches
    by_call = processor(**asked, size={"shortest_edge": 64, "longest_edge": 3_200})["pixel_values"].shape[0]
    assert by_call <= 1.1 * 3_200 / 16
    image_processor.size = before


def test_image_settings_of_a_call_reach_the_readers_own_image_processor(readers):
    _, processor = readers["image_text"]
    asked = {"images": [picture(0, (64, 64))], "text": ["what is it?"]}
    own = {"min_pixels": 64, "max_pixels": 256}
    size = {"shortest_edge": 64, "longest_edge": 256}
    theirs = processor.generator_processor.image_processor([picture(0, (64, 64))], return_tensors="pt", size=size)
    assert torch.equal(processor(**asked, **own)["pixel_values"], theirs["pixel_values"])
    assert torch.equal(processor(**asked, images_kwargs={"size": size})["pixel_values"], theirs["pixel_values"])


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "idefics3", "gemma3"])
def test_a_question_has_several_images_one_or_none(family):
    if family not in MULTIMODAL:
        pytest.skip(f"no tiny {family}")
    generator, its_processor = multimodal_model(family)
    model, processor = from_backbones(generator=generator, generator_processor=its_processor)
    nested = [[picture(0), picture(1)], [picture(2)], []]
    questions = ["what is it?", "red or", "of Chad ?"]
    inputs = processor(images=nested, text=questions)
    places = (inputs["input_ids"] == model.config.image_token_id).sum(dim=1)
    assert places[0] > places[1] > places[2] == 0
    with torch.no_grad():
        together = model(**inputs).logits[:, -1]
        for row, images in enumerate(nested):
            alone = processor(images=[images] if images else None, text=[questions[row]])
            torch.testing.assert_close(together[row], model(**alone).logits[0, -1], atol=1e-4, rtol=1e-3)


def test_a_tower_reads_one_image_or_none():
    model, processor = tiny_model(), tiny_processor()
    nested, questions = [[picture(0)], [], None], ["what ?", "red ?", "of ?"]
    inputs = processor(images=nested, text=questions)
    with torch.no_grad():
        together = model(**inputs).logits[:, -1]
        for row, images in enumerate(nested):
            alone = processor(images=[images] if images else None, text=[questions[row]])
            torch.testing.assert_close(together[row], model(**alone).logits[0, -1], atol=1e-5, rtol=1e-4)
    with pytest.raises(InvalidInputError, match="some questions of the batch have an image"):
        tiny_processor(fusion="gated")(images=nested, text=questions)


def test_columns_of_a_table_are_lists():
    processor = tiny_processor()
    table = datasets.Dataset.from_dict(
        {"image": [picture(0), picture(1)], "q": ["red ?", "of ?"], "a": ["x", "y"], "e": [["one"], ["two", "three"]]}
    ).cast_column("image", datasets.Image())
    columns = processor(images=table["image"], text=table["q"], evidence=table["e"], answers=table["a"])
    lists = processor(
        images=list(table["image"]), text=list(table["q"]), evidence=list(table["e"]), answers=list(table["a"])
    )
    assert all(torch.equal(columns[name], lists[name]) for name in lists)


def test_words_of_a_passage_have_several_names():
    processor = tiny_processor()
    for key in ("content", "page_content", "caption", "contents", "Text", "CONTENT"):
        assert "Oslo" in shown(processor, evidence=[[{key: "Oslo"}]])[0]
        assert "Oslo" in shown(processor, evidence=[[{key: "Oslo", "title": "Norway", "place": "north"}]])[0]
    assert "Norway" in shown(processor, evidence=[[{"title": "Norway", "id": "n", "score": 0.5}]])[0]
    with pytest.raises(InvalidInputError, match="has the keys 'title', 'chunk', and none that holds its words"):
        processor(text="red ?", evidence=[[{"title": "Norway", "chunk": "Oslo"}]])
    with pytest.raises(InvalidInputError, match="has the keys 'txt', 'score', and none that holds its words"):
        processor(text="red ?", evidence=[[{"txt": "Oslo", "score": 1.0}]])
    with pytest.raises(InvalidInputError, match="score='high' of a passage: expected a finite number"):
        processor(text="red ?", evidence=[[{"text": "Oslo", "score": "high"}]])
    with pytest.raises(InvalidInputError, match="the text of a passage is of type int"):
        processor(text="red ?", evidence=[[{"text": 3}]])


def test_an_overlong_answer_is_called_one(readers):
    for layout in LAYOUTS:
        with pytest.raises(InvalidInputError, match="the answer is too long"):
            readers[layout][1](text="red ?", answers=["white " * 200], max_length=90)


def test_an_answer_on_top_leaves_the_prompt_as_it_was_read(readers):
    asked = {"text": ["what is it?"], "evidence": [["Oslo " * 60, "Chad " * 60]], "max_length": 120}
    for layout in LAYOUTS:
        _, processor = readers[layout]
        prompt = processor(**asked)["input_ids"]
        scored = processor(**asked, answers=["red " * 30], answer_on_top=True, padding_side="left")
        assert torch.equal(scored["input_ids"][:, : prompt.shape[1]], prompt)
        assert (scored["labels"][:, : prompt.shape[1]] == -100).all()


def test_a_chat_needs_a_template_when_the_reader_is_made():
    with pytest.raises(InvalidInputError, match="layout='chat': the tokenizer has no chat template"):
        from_backbones(generator=causal_model("llama"), tokenizer=causal_tokenizer(), layout="chat")
