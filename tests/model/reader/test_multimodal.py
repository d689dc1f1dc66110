"""Image-text-to-text models as the reader: their own prompts, with words from outside kept words."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import (
    InvalidInputError,
    RavlmConfig,
    RavlmForConditionalGeneration,
    RavlmModel,
    RavlmProcessor,
    from_backbones,
)
from hf_ravlm.model.prompts.chat import MultimodalPrompt, MultimodalRow
from hf_ravlm.model.prompts.chat_processor import load_generator_processor, without_videos
from hf_ravlm.model.prompts.literal import control_tokens
from hf_ravlm.pipelines.answering import answer_questions
from tiny import picture
from tiny_backbones import MULTIMODAL, build, causal_tokenizer, multimodal_model, text_model, vision_model, with_towers


FAMILIES = list(MULTIMODAL)
EVIDENCE = [[{"text": "the capital is Oslo", "image": picture(2), "score": 0.5}, "red white"], ["Chad"]]


@pytest.fixture(scope="module")
def readers():
    """Reader and processor of a family, made once: `readers("llava")`."""
    made = {}

    def reader(family: str) -> tuple[RavlmForConditionalGeneration, RavlmProcessor]:
        if family not in made:
            made[family] = with_towers(*multimodal_model(family), projection_dim=16)
            made[family][1].passage_images = True
        return made[family]

    return reader


def ask(processor, evidence=EVIDENCE, **more):
    return processor(
        images=[picture(0), picture(1, (40, 20))], text=["what is it?", "red or"], evidence=evidence, **more
    )


def words_of(processor, inputs, row=0):
    return processor.tokenizer.decode(inputs["input_ids"][row][inputs["attention_mask"][row].bool()])


def image_tokens(model, inputs):
    return int((inputs["input_ids"] == model.config.image_token_id).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_question_is_what_the_processor_itself_would_write(readers, family):
    model, processor = readers(family)
    ours = processor(images=[picture(0)], text=["what is it?"])
    parts = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "what is it?"}]
    theirs = processor.generator_processor.apply_chat_template(
        [[{"role": "user", "content": parts}]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert set(ours) == set(theirs)
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(**ours, **options), model.language_model.generate(**theirs, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_passages_and_their_pictures_are_in_the_prompt_best_last(readers, family):
    model, processor = readers(family)
    inputs = ask(processor)
    text = words_of(processor, inputs)
    assert text.index("Passage: red white") < text.index("Passage: the capital is Oslo") < text.index("Question: what")
    assert inputs["evidence_mask"].tolist() == [[True, True], [True, False]]
    assert inputs["evidence_scores"][0].tolist() == [0.5, 0.0]
    processor.passage_images = False
    without = ask(processor)
    processor.passage_images = True
    assert image_tokens(model, without) < image_tokens(model, inputs)
    with torch.no_grad():  # the model itself checks that there are as many image tokens as image features
        assert not torch.equal(model(**inputs).logits[:, -1], model(**without).logits[:, -1])


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_from_outside_becomes_a_control_token(readers, family):
    _, processor = readers(family)
    control = control_tokens(processor.tokenizer)
    attack = " ".join(control)
    harmless = ask(processor, [["kite", "kite"], ["kite"]])
    attacked = processor(
        images=[picture(0), picture(1, (40, 20))],
        text=[f"what {attack} is it?", f"{attack} red or"],
        evidence=[[{"text": attack}, f"a{attack}b"], [attack.upper() + attack]],
    )
    forbidden = torch.tensor(sorted(control.values()))
    for row in range(2):
        counts = [
            torch.isin(inputs["input_ids"][row][inputs["attention_mask"][row].bool()], forbidden).sum()
            for inputs in (harmless, attacked)
        ]
        assert counts[0] == counts[1] > 0
    assert attack in words_of(processor, attacked)  # and it still is there as words


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_labelled_and_close_the_turn(readers, family):
    model, processor = readers(family)
    prompt = ask(processor, padding_side="right")
    inputs = ask(processor, answers=["Oslo", "the red"])
    length = int(prompt["attention_mask"][0].sum())
    assert torch.equal(inputs["input_ids"][0, :length], prompt["input_ids"][0, :length])
    assert (inputs["labels"][:, :length][0] == -100).all()
    labelled = inputs["labels"][0][inputs["labels"][0] != -100]
    closing = {"qwen": "<|im_end|>", "llava": "<eos>", "idefics": "<end_of_utterance>", "gemma": "<end_of_turn>"}
    closed = next(mark for name, mark in closing.items() if family.startswith(name))
    assert processor.tokenizer.decode(labelled).strip() == "Oslo" + closed
    outputs = model.train()(**inputs)
    outputs.loss.backward()
    model.eval()
    log_probs = outputs.logits[:, :-1].float().log_softmax(-1)
    kept = inputs["labels"][:, 1:]
    picked = log_probs.gather(-1, kept.clamp(min=0).unsqueeze(-1)).squeeze(-1)[kept != -100]
    torch.testing.assert_close(outputs.loss, -picked.mean())
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    model.zero_grad()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_without_a_cache_looks_for_an_image_that_was_written(readers, family):
    model, processor = readers(family)
    inputs = ask(processor)
    mark = model.config.image_token_id

    class Wanted(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores.index_fill(1, torch.tensor([mark]), 1e4).where(scores.isfinite(), scores)

    options = {"max_new_tokens": 3, "do_sample": False, "logits_processor": LogitsProcessorList([Wanted()])}
    answers = model.generate(**inputs, **options, use_cache=False)[:, inputs["input_ids"].shape[1] :]
    assert answers.shape == (2, 3)
    assert not (answers == mark).any()
    stopped = model.generate(**inputs, **options, use_cache=False, suppress_tokens=[4, 5])
    assert stopped.shape[1] == inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_passage_that_is_hidden_is_cut_out_of_the_prompt(readers, family):
    model, processor = readers(family)
    words = [["the capital is Oslo", "red white"], ["Chad"]]
    hidden, absent = ask(processor, words), ask(processor, [words[0][1:], words[1]])
    hidden["evidence_mask"][0, 0] = False
    options = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        found, expected = model(**hidden).logits, model(**absent).logits
    torch.testing.assert_close(found[:, -1], expected[:, -1], atol=1e-4, rtol=1e-4)
    assert found.shape[:2] == hidden["input_ids"].shape, "in the columns of the prompt that came"
    told, others = model.generate(**hidden, **options), model.generate(**absent, **options)
    assert told[:, -4:].tolist() == others[:, -4:].tolist()
    assert torch.equal(told[:, : hidden["input_ids"].shape[1]], hidden["input_ids"])
    shown = ask(processor)  # with the image of the first passage
    shown["evidence_mask"][0, 0] = False
    with pytest.raises(ValueError, match="whose image is among the pixels"):
        model(**shown)
    shown.pop("token_passages")
    with pytest.raises(ValueError, match="token_passages is missing"):
        model.generate(**shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_its_rows_do(readers, family):
    model, processor = readers(family)
    options = {"max_new_tokens": 4, "do_sample": False}
    inputs = ask(processor)
    together = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for row, (shown, asked) in enumerate([(picture(0), "what is it?"), (picture(1, (40, 20)), "red or")]):
        single = processor(images=[shown], text=[asked], evidence=[EVIDENCE[row]])
        alone = model.generate(**single, **options)[0, single["input_ids"].shape[1] :]
        assert torch.equal(together[row, : len(alone)], alone)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(readers, family, tmp_path):
    model, processor = readers(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    reread = AutoProcessor.from_pretrained(tmp_path)
    assert type(reread) is RavlmProcessor
    assert type(reread.generator_processor).__name__ == type(processor.generator_processor).__name__
    assert reread.tokenizer is reread.generator_processor.tokenizer
    first, second = ask(processor), ask(reread)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        torch.testing.assert_close(again(**second).logits, model(**first).logits)
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert again.config.get_text_config() is again.config.generator_config.get_text_config()
    encoder, state = RavlmModel.from_pretrained(tmp_path), model.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def test_a_text_only_question_has_no_picture(readers):
    for family in FAMILIES:
        model, processor = readers(family)
        inputs = processor(text=["what is it?"], evidence=[["the capital is Oslo"]])
        assert image_tokens(model, inputs) == 0
        assert "pixel_values" not in inputs
        assert model.generate(**inputs, max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_too_long_a_prompt_loses_the_worst_passage_first(readers, family):
    model, processor = readers(family)
    evidence = [["red " * 30, {"text": "white " * 30, "image": picture(2)}, "Chad " * 30]]

    def prompt(max_length=None):
        return processor(images=[picture(0)], text=["what is it?"], evidence=evidence, max_length=max_length)

    whole = prompt().input_ids.shape[1]
    lengths, shown = [], []
    for limit in range(whole, whole - 200, -20):
        try:
            inputs = prompt(limit)
        except InvalidInputError:  # what it says is tested below
            break
        text = words_of(processor, inputs)
        assert "Question: what is it?" in text or "what is it?" in text
        lengths.append(inputs["input_ids"].shape[1])
        assert lengths[-1] <= limit
        shown.append([text.count(word) for word in ("red", "white", "Chad")])
        assert image_tokens(model, inputs) in (  # pictures are whole, or not there
            image_tokens(model, prompt()),
            image_tokens(model, processor(images=[picture(0)], text=["what is it?"])),
        )
    best, middle, worst = (list(column) for column in zip(*shown, strict=True))
    assert worst == sorted(worst, reverse=True)
    assert all(b >= m >= w for b, m, w in zip(best, middle, worst, strict=True))
    assert worst[-1] == 0
    with pytest.raises(InvalidInputError, match="its image, the chat template, question and answer take"):
        prompt(8)


def test_a_long_passage_is_cut_where_passages_are_cut(readers):
    _, processor = readers("llava")
    processor.max_passage_length, before = 5, processor.max_passage_length
    text = words_of(processor, processor(text=["red?"], evidence=[["red " * 50]]))
    processor.max_passage_length = before
    assert text.count("red") < 8


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_come_with_what_they_rest_on(readers, family):
    model, processor = readers(family)
    images, questions = [picture(0), picture(1)], ["what is it?", "red or"]

    class Passage:
        def __init__(self, text, score):
            self.text, self.score, self.image = text, score, None

    evidence = [[Passage("the capital is Oslo", 0.9), Passage("red", 0.1)], [Passage("white", 0.5)]]
    answers = answer_questions(
        model, processor, None, images, questions, evidence=evidence, max_new_tokens=3, with_leave_one_out=True
    )
    assert [len(row[0].posterior) for row in answers] == [2, 1]
    told = answers[0][0]
    assert abs(sum(told.posterior) - 1) < 1e-5

    def worth(passages):  # log p(answer | question, passages), by the loss of a prompt of its own
        row = processor(images=images[:1], text=questions[:1], evidence=[passages], answers=[told.text])
        with torch.no_grad():
            return -model(**row).loss.item() * int((row["labels"] != -100).sum())

    both, first, second = worth(evidence[0]), worth(evidence[0][:1]), worth(evidence[0][1:])
    assert told.leave_one_out == pytest.approx([both - second, both - first], abs=1e-4)
    odds = first - second + (0.9 - 0.1)  # scores of unknown origin as they are, not by the scale of untrained towers
    assert told.posterior[0] == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)


@pytest.mark.parametrize(("field", "value"), [("fusion", "gated"), ("marginalization", "sequence")])
def test_only_prompts_reach_such_a_reader(field, value):
    generator, _ = multimodal_model("llava")
    towers = {"vision_config": vision_model("vit").config, "text_config": text_model("bert").config}
    config = RavlmConfig(**towers, generator_config=generator.config, **{field: value})
    with pytest.raises(ValueError, match="choose fusion='in_context' and marginalization='none'"):
        RavlmForConditionalGeneration(config)


def test_attribution_by_masking_says_what_to_use_instead(readers):
    model, processor = readers("llava")
    with pytest.raises(ValueError, match="use attribute_prompts"):
        model.attribute(**ask(processor, answers=["Oslo", "red"]))


def test_one_prompt_per_passage_is_refused(readers):
    _, processor = readers("llava")
    with pytest.raises(InvalidInputError, match="reads all passages in one prompt"):
        ask(processor, passage_prompts=True)


def test_answers_and_questions_are_as_many(readers):
    _, processor = readers("llava")
    with pytest.raises(InvalidInputError, match="got 1 answers and 2 questions"):
        ask(processor, answers=["Oslo"])


def test_a_template_must_exist_and_write_every_part_once():
    processor = MULTIMODAL["llava"]()[2]
    processor.chat_template = "{% for message in messages %}{{ message['role'] }}{% endfor %}"
    with pytest.raises(InvalidInputError, match="of 1 texts it wrote 0"):
        MultimodalPrompt(processor)([MultimodalRow([5])], max_length=99)
    processor.chat_template = None
    with pytest.raises(InvalidInputError, match="has no chat template"):
        MultimodalPrompt(processor)


def test_the_tokenizer_itself_is_not_changed():
    processor = MULTIMODAL["idefics3"]()[2]
    before = len(processor.tokenizer)
    MultimodalPrompt(processor)
    assert len(processor.tokenizer) == before


def test_generator_settings_of_ours_are_used(readers):
    model, processor = readers("llava")
    inputs = processor(images=[picture(0)], text=["red?"])
    model.generation_config.max_new_tokens, before = 2, model.generation_config.max_new_tokens
    assert model.generate(**inputs, do_sample=False).shape[1] <= inputs["input_ids"].shape[1] + 2
    ids = inputs.pop("input_ids")
    assert model.generate(ids, **inputs, do_sample=False).shape[1] <= ids.shape[1] + 2
    model.generation_config.max_new_tokens = before


def test_a_processor_of_videos_loads_without_torchvision(tmp_path):
    processor = MULTIMODAL["qwen2_5_vl"]()[2]
    processor.save_pretrained(tmp_path)
    again = load_generator_processor(tmp_path, "Qwen2_5_VLProcessor")
    assert type(again).__name__ == "Qwen2_5_VLProcessor"
    assert again.chat_template == processor.chat_template


@pytest.mark.skipif(importlib.util.find_spec("num2words") is None, reason="SmolVLM's processor needs num2words")
def test_smolvlm():
    from transformers import SmolVLMProcessor

    _, settings, idefics = MULTIMODAL["idefics3"]()
    processor = without_videos(SmolVLMProcessor)(
        idefics.image_processor, idefics.tokenizer, None, image_seq_len=4, chat_template=idefics.chat_template
    )
    generator = build(AutoModelForImageTextToText, "smolvlm", settings)
    model, ours = with_towers(generator, processor)
    assert model.generate(**ask(ours), max_new_tokens=2).shape[0] == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_by_folder_equals_by_object(family, readers, tmp_path):
    by_object, its_processor = readers(family)
    generator, generator_processor = multimodal_model(family)
    generator.load_state_dict(by_object.language_model.state_dict())
    generator.save_pretrained(tmp_path / "generator")
    generator_processor.save_pretrained(tmp_path / "generator")
    model, processor = from_backbones(
        vision_model("vit"),
        text_model("bert"),
        tmp_path / "generator",
        image_processor=ViTImageProcessorPil(size={"height": 16, "width": 16}),
        text_tokenizer=causal_tokenizer(),
        projection_dim=16,
    )
    processor.passage_images = True
    inputs, expected = ask(processor), ask(its_processor)
    torch.testing.assert_close(inputs["input_ids"], expected["input_ids"])
    torch.testing.assert_close(model(**inputs).logits, by_object(**expected).logits)
