"""An explanation tells what the parts tell, and names what a model cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hash_encoder import HashEncoder
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever, from_backbones
from hf_ravlm.explain import explain_answer, explanation_sheet, heat_overlay, match_chart, maxsim_match, seen_image
from hf_ravlm.explain.gradcam import answer_grad_cam
from tiny import picture, tiny_model, tiny_processor
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model, with_towers


QUESTION = "what is the capital ?"
ROWS = [{"id": "a", "text": "Oslo", "image": picture(3), "licence": "CC0-1.0"}, {"id": "b", "text": "Chad"}]


def parts(**changes):
    model, processor = tiny_model(**changes), tiny_processor(fusion=changes.get("fusion", "in_context"))
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), RavlmEncoder(model.model, processor))
    return model, processor, retriever


@pytest.mark.parametrize("fusion", ["in_context", "gated", "cross_attention"])
def test_it_tells_what_its_parts_tell(fusion):
    model, processor, retriever = parts(fusion=fusion)
    told = explain_answer(model, processor, retriever, picture(0), QUESTION, answer="Oslo is")
    assert told.answer.text == "Oslo is"
    assert sum(told.answer.posterior) == pytest.approx(1)
    evidence = retriever.retrieve([picture(0)], [QUESTION], k=model.config.num_passages)
    assert [passage.id for passage in told.answer.evidence] == [passage.id for passage in evidence[0]]
    expected = answer_grad_cam(model, processor, [picture(0)], [QUESTION], ["Oslo is"], evidence)
    np.testing.assert_allclose(told.answer_map, expected[0].numpy(), atol=1e-6)
    assert len(told.passage_maps) == len(told.matches) == 2
    for match, passage in zip(told.matches, told.answer.evidence, strict=True):
        assert match.score == pytest.approx(passage.score, abs=1e-5)
    assert told.missing == []
    record = told.to_record()
    assert [passage["attention"] for passage in record["passages"]] == told.attention.passages[0].tolist()
    assert explanation_sheet(told).width >= 1040


def test_words_of_a_page_are_shown_on_their_page():
    page = {"id": "m.pdf#page=1", "text": "Manual, page 1", "image": Image.new("RGB", (100, 100), "black")}
    box = {"document": page["id"], "page": 1, "box": [0.2, 0.2, 0.8, 0.8]}
    words = {"id": "m.pdf#page=1-0", "text": "Oslo is a capital", **box}
    lost = {"id": "n.pdf#page=1-0", "text": "Chad is a capital", **box, "document": "n.pdf#page=1", "box": ["a"]}
    model, processor = tiny_model(fusion="in_context", num_passages=3), tiny_processor(fusion="in_context")
    encoder = RavlmEncoder(model.model, processor)
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts([page, words, lost]), encoder)
    told = explain_answer(model, processor, retriever, picture(0), QUESTION, k=3, answer="Oslo")
    shown = dict(zip([passage.id for passage in told.answer.evidence], told.passage_images, strict=True))
    assert shown["m.pdf#page=1-0"].getpixel((50, 50)) == (0, 0, 0)
    assert shown["m.pdf#page=1-0"].getpixel((5, 5)) == (102, 102, 102)  # paler outside of the box
    assert shown["m.pdf#page=1"].getpixel((5, 5)) == (0, 0, 0)
    assert shown["n.pdf#page=1-0"] is None
    records = {passage["id"]: passage for passage in told.to_record()["passages"]}
    assert records["m.pdf#page=1-0"]["box"] == box["box"]
    assert "box" not in records["m.pdf#page=1"]
    explanation_sheet(told)


def test_closed_book_and_latent_passages():
    model, processor, retriever = parts(marginalization="sequence")
    processor.passage_prompts = True
    told = explain_answer(model, processor, retriever, picture(0), QUESTION, max_new_tokens=4)
    assert told.attention is None
    assert "posterior" in told.missing[0]
    alone = explain_answer(model, processor, None, picture(0), QUESTION, k=0, max_new_tokens=4)
    assert (alone.passage_maps, alone.matches, alone.answer.posterior) == ([], [], [])
    assert alone.answer_map.shape == (16, 16)
    assert explanation_sheet(told).height > explanation_sheet(alone).height


def test_an_encoder_that_is_not_ours_is_named():
    model, processor, _ = parts()
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), HashEncoder())
    told = explain_answer(model, processor, retriever, picture(0), QUESTION, answer="Oslo")
    assert told.passage_maps == told.matches == []
    assert "encoder is not one of ours" in told.missing[0]
    assert told.attention is not None


def test_an_image_text_to_text_reader_tells_what_it_can():
    model, processor = with_towers(*multimodal_model("llava"), projection_dim=16)
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), RavlmEncoder(model.model, processor))
    told = explain_answer(model, processor, retriever, picture(0), "what is it?", answer="red")
    assert told.answer_map is told.attention is None
    assert [note.split(":")[0] for note in told.missing] == [
        "where the image speaks for the answer",
        "attention over passages",
    ]
    assert len(told.passage_maps) == len(told.matches) == len(told.answer.posterior) == 2
    explanation_sheet(told)


def test_a_reader_beside_its_encoder_tells_what_it_can():
    generator = causal_model("llama")
    model, processor = from_backbones(generator=generator, tokenizer=causal_tokenizer())
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), HashEncoder())
    told = explain_answer(model, processor, retriever, picture(0), QUESTION, answer="Oslo")
    assert told.answer_map is None
    assert told.attention is not None
    assert told.missing[0] == "where the image speaks for the answer: the reader reads words alone"
    assert len(told.answer.posterior) == 2
    explanation_sheet(told)


def test_heat_is_bright_where_it_is():
    ground = Image.new("RGB", (40, 20), "gray")
    heat = torch.zeros(4, 8)
    heat[3, 7] = 1.0
    shown = np.asarray(heat_overlay(ground, heat)).astype(int).sum(-1)
    assert np.unravel_index(shown.argmax(), shown.shape)[0] >= 15
    assert np.unravel_index(shown.argmax(), shown.shape)[1] >= 35
    assert shown[:10].max() == shown[:, :20].max() < shown.max()


def test_maps_lie_on_what_the_model_sees():
    processor = tiny_processor()
    assert seen_image(processor, picture(0)).size == picture(0).size
    framed = Image.new("RGB", (72, 72), "white")
    framed.paste("navy", (4, 16, 68, 56))
    processor.trim_image_margins = True
    assert seen_image(processor, framed).size == (64, 40)
    processor.trim_image_margins = False
    processor.image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    half = Image.new("RGB", (48, 16), "white")  # of which the crop leaves the middle
    half.paste("navy", (24, 0, 48, 16))
    seen = np.asarray(seen_image(processor, half), int)
    assert seen.shape == (16, 16, 3)
    np.testing.assert_allclose(seen, np.asarray(half, int)[:, 16:32], atol=2)


def test_matches_are_drawn_by_their_strength():
    matches = maxsim_match(np.eye(3), np.array([[1.0, 0, 0], [0, -0.5, 0]]), list("abc"), list("xy"))
    chart = np.asarray(match_chart(matches)).reshape(-1, 3)
    colours = {tuple(colour) for colour in chart.tolist()}
    assert (31, 111, 235) in colours  # the strongest match, in full blue
    assert (231, 144, 150) in colours  # half as strong, against it


def test_a_question_without_an_image_is_explained_by_its_passages():
    model, processor, retriever = parts()
    told = explain_answer(model, processor, retriever, None, QUESTION, answer="Oslo")
    assert (told.image, told.answer_map, told.passage_maps) == (None, None, [])
    assert sum(told.answer.posterior) == pytest.approx(1)
    assert "the question has none" in told.missing[0]
    assert len(told.matches) == 2
    assert explanation_sheet(told).width >= 1040
    again = explain_answer(model, processor, retriever, [], QUESTION, answer="Oslo")
    assert again.answer.posterior == pytest.approx(told.answer.posterior)


def test_several_images_are_explained_by_a_reader_that_sees_them():
    reader, its_processor = multimodal_model("qwen3_vl")
    model, processor = from_backbones(generator=reader, generator_processor=its_processor)
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), HashEncoder())
    told = explain_answer(model, processor, retriever, [picture(1), picture(2)], QUESTION, answer="Oslo")
    assert told.image is not None
    assert sum(told.answer.posterior) == pytest.approx(1)
