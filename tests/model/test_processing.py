"""The processor: what stands in the prompt, what never can, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor

from hf_ravlm import InvalidInputError, UnsafeInputError
from tiny import SPECIALS, picture, tiny_processor


def decoded(processor, inputs, row=0):
    return processor.tokenizer.decode(inputs["input_ids"][row])


def test_the_prompt_reads_as_documented():
    processor = tiny_processor()
    inputs = processor(images=picture(), text="red ?", evidence=[["white", "of Chad"]])
    assert (
        decoded(processor, inputs) == "<bos>" + "<image>" * 4 + "<passage>of Chad<passage>white<question>red ?<answer>"
    )


@pytest.mark.parametrize("field", ["question", "passage", "answer"])
@pytest.mark.parametrize("token", [*SPECIALS, "<|im_start|>"])
def test_control_tokens_in_text_stay_literal(field, token):
    processor = tiny_processor()
    text = f"red {token} white{token}"
    given = {"question": "red ?", "passage": "white", "answer": "red"} | {field: text}
    inputs = processor(
        images=picture(), text=given["question"], evidence=[[given["passage"]]], answers=[given["answer"]]
    )
    counts = {
        name: int((inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(name)).sum()) for name in SPECIALS
    }
    expected = {"<bos>": 1, "<eos>": 1, "<image>": 4, "<passage>": 1, "<question>": 1, "<answer>": 1}
    assert counts == {name: expected.get(name, 0) for name in SPECIALS}
    assert text in decoded(processor, inputs)


def test_labels_cover_the_answer_and_the_end_alone():
    processor = tiny_processor()
    inputs = processor(images=[picture(), picture()], text=["red ?", "?"], answers=["white", "Oslo"])
    for row, answer in enumerate(["white", "Oslo"]):
        kept = inputs["labels"][row]
        assert processor.tokenizer.decode(kept[kept != -100]) == answer + "<eos>"
        assert torch.equal(inputs["input_ids"][row][kept != -100], kept[kept != -100])


def test_passages_are_cut_before_the_question():
    processor = tiny_processor(max_length=40)
    inputs = processor(images=picture(), text="what is the capital ?", evidence=[["red " * 30, "white " * 30]])
    assert inputs["input_ids"].shape[1] == 40
    text = decoded(processor, inputs)
    assert text.endswith("<question>what is the capital ?<answer>")
    assert text.count("<image>") == 4
    with pytest.raises(InvalidInputError, match="the question is too long: .* the context holds 40"):
        processor(images=picture(), text="what is the capital " * 10)


def test_the_worst_passage_is_cut_first():
    processor = tiny_processor(max_length=40)
    best, worst = "Oslo " * 6, "white " * 40
    asked = {"images": picture(), "text": "red ?"}
    inputs = processor(**asked, evidence=[[best, worst]])
    assert inputs["input_ids"].shape[1] == 40
    first, second = decoded(processor, inputs).split("<passage>")[1:]
    assert worst.startswith(first)
    assert second == f"{best.strip()}<question>red ?<answer>"
    alone = processor(**asked, evidence=[[worst, best]])  # no room for a second one
    assert decoded(processor, alone).split("<passage>")[1:] == [decoded(processor, alone).split("<passage>")[1]]


def test_padding_is_left_for_prompts_and_right_for_training():
    processor = tiny_processor()
    prompts = processor(text=["red ?", "what is the capital of this country ?"])
    assert prompts["attention_mask"][0, 0] == 0
    training = processor(text=["red ?", "what is the capital of this country ?"], answers=["a", "b"])
    assert training["attention_mask"][0, 0] == 1
    assert training["attention_mask"][0, -1] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": "  \u200b "}, "question 0 is empty"),
        ({"text": ["red", ""]}, "question 1 is empty"),
        ({"text": ["red", None]}, "question 1 is of type NoneType; give words, or none at all"),
        ({"images": [picture(), picture()], "text": ["red"]}, "got 2 images and 1 questions"),
        ({"text": ["red", "white"], "evidence": [[]]}, "evidence for 1 questions and 2 questions"),
        ({"text": ["red"], "evidence": [[3.5]]}, "evidence of type float"),
        ({"text": ["red"], "answers": ["a", "b"]}, "got 2 answers and 1 questions"),
        ({"images": [[picture(), picture()]], "text": ["red"]}, "2 images for one question"),
    ],
)
def test_bad_calls_say_what_is_wrong(call, message):
    with pytest.raises(InvalidInputError, match=message):
        tiny_processor()(**call)


def test_a_broken_picture_is_refused_by_name(tmp_path):
    broken = tmp_path / "flag.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(UnsafeInputError, match="flag.png"):
        tiny_processor()(images=str(broken), text="red ?")


def test_a_chat_becomes_picture_and_question():
    processor = tiny_processor()
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "what is red ?"}]}
    ]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert decoded(processor, inputs) == "<bos>" + "<image>" * 4 + "<question>what is red ?<answer>"
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)


def test_saved_and_loaded_processor_gives_the_same_tensors(tmp_path):
    processor = tiny_processor(fusion="gated", max_length=99, max_passage_length=17, max_text_length=19)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    given = {"images": [picture()], "text": ["red ?"], "evidence": [["white red", "of"]]}
    for (name, one), (other_name, other) in zip(processor(**given).items(), loaded(**given).items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name
    processor.for_retrieval(texts=["red", "what is the capital of this country ?"])  # use leaves no trace
    assert loaded.retrieval_fingerprint() == processor.retrieval_fingerprint()
    assert loaded.max_length == 99


def test_a_tokenizer_without_our_marks_gets_them():
    from transformers import PreTrainedTokenizerFast

    plain = tiny_processor().tokenizer
    bare = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token="<eos>", bos_token="<bos>")
    from hf_ravlm import RavlmProcessor

    processor = RavlmProcessor(tiny_processor().image_processor, bare, tiny_processor().text_tokenizer)
    assert processor.tokenizer.pad_token == "<eos>"
    assert len(processor(text="red ?")["input_ids"][0]) > 3


@pytest.mark.parametrize("flat", [["a red kite"], [{"text": "a red kite"}]])
def test_passages_without_their_list_are_refused_and_not_read_letter_by_letter(flat):
    with pytest.raises(InvalidInputError, match="a list of passages per question"):
        tiny_processor()(text="red ?", evidence=flat)


def test_one_question_takes_one_answer_and_a_context_of_its_own():
    processor = tiny_processor(max_length=12)
    assert "labels" in processor(text="red ?", answers="white")
    with pytest.raises(InvalidInputError, match="too long"):
        processor(text="red ?", answers="white " * 20)
    assert "labels" in processor(text="red ?", answers="white " * 20, max_length=200)
