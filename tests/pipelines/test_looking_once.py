"""An image is prepared and looked at once, to search with, to read and to attribute; what comes out is the same."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch

from hf_ravlm import RavlmEncoder, RavlmRetriever, from_encoder
from hf_ravlm.model.parts.looking_once import look, looking_once
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.pipelines.closed_answers import Choice, choose_answers
from tiny import picture, tiny_model
from tiny_encoders import FAMILIES, IMAGES, saved_once
from tiny_folder import tiny_parts


IMAGE_ROWS = [picture(n) for n in range(3)]
WHOLE = [
    name for name, family in FAMILIES.items() if family.kind == "dual" and name not in ("SigLIP 2, NaFlex", "AIMv2")
]
QUESTIONS = ["red ?", "what is the capital of this country ?", "of ?"]  # the encoder sorts them by length


@contextmanager
def looks(tower):
    """The images that a vision tower is given, call by call."""
    seen: list[int] = []
    handle = tower.register_forward_hook(lambda module, args, output: seen.append(len(output[0])))
    yield seen
    handle.remove()


def sharing_and_not(**changes):
    """A reader, its processor, a retriever that searches with its towers, and one with a copy of them."""
    model, processor, retriever = tiny_parts(**changes)
    twin = RavlmEncoder(copy.deepcopy(model.model), processor)
    return model, processor, retriever, RavlmRetriever(retriever.knowledge_base, twin, retriever.vectors)


def assert_same_answers(found, expected):
    for (answer,), (other,) in zip(found, expected, strict=True):
        assert (answer.text, [one.id for one in answer.evidence]) == (other.text, [one.id for one in other.evidence])
        for values, others in (
            ([one.score for one in answer.evidence], [one.score for one in other.evidence]),
            (answer.posterior, other.posterior),
            (answer.leave_one_out, other.leave_one_out),
        ):
            assert values == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize(
    ("fusion", "asked", "expected_looks"),
    [
        ("in_context", {}, [3]),
        ("gated", {}, [3]),
        ("in_context", {"images": [IMAGE_ROWS[0], None, IMAGE_ROWS[2]]}, [3]),  # zeros stand for the second
        ("in_context", {"images": [IMAGE_ROWS[0]] * 3}, [1]),
        ("gated", {"region": (0, 0, 0.5, 1)}, [3, 3]),  # searched with a part, read whole
        ("in_context", {"queries": ["capital", "white", ""]}, [3]),
        ("in_context", {"channels": ["bm25"]}, [3]),  # the score of evidence is still its cosine
        ("in_context", {"k": 0}, [3]),
    ],
)
def test_the_tower_sees_each_image_once_and_answers_are_the_same(fusion, asked, expected_looks):
    model, processor, retriever, other = sharing_and_not(fusion=fusion)
    asked = {"images": IMAGE_ROWS, "questions": QUESTIONS, "k": 2, "max_new_tokens": 3, **asked}
    with looks(model.model.vision_tower) as seen:
        found = answer_questions(model, processor, retriever, **asked, with_leave_one_out=True)
    assert seen == expected_looks
    assert_same_answers(found, answer_questions(model, processor, other, **asked, with_leave_one_out=True))


def test_what_is_changed_between_two_answers_is_looked_at_again():
    model, processor, retriever, _ = sharing_and_not()
    asked = {"images": IMAGE_ROWS, "questions": QUESTIONS, "k": 1, "max_new_tokens": 2}
    with looks(model.model.vision_tower) as seen:
        answer_questions(model, processor, retriever, **asked)
        answer_questions(model, processor, retriever, **asked)
    assert seen == [3, 3]


def test_answers_of_a_closed_set_look_once():
    model, processor, retriever, other = sharing_and_not()
    asked = (IMAGE_ROWS, QUESTIONS, Choice(["Oslo", "N'Djamena"]))
    with looks(model.model.vision_tower) as seen:
        found = choose_answers(model, processor, retriever, *asked, k=1)
    assert seen == [3]
    for row, expected in zip(found, choose_answers(model, processor, other, *asked, k=1), strict=True):
        assert [one["answer"] for one in row] == [one["answer"] for one in expected]
        assert [one["score"] for one in row] == pytest.approx([one["score"] for one in expected], abs=1e-4)


def test_networks_in_training_and_gradients_look_each_time():
    model = tiny_model().model
    pixels = torch.rand(2, 3, 16, 16)
    with looks(model.vision_tower) as seen, looking_once():
        model.get_image_patches(pixels, 2).sum().backward()
        model.get_image_patches(pixels, 2)
        model.train()
        with torch.no_grad():
            model.get_image_patches(pixels, 2)
            model.get_image_features(pixels)
    assert seen == [2] * 4
    assert model.vision_tower.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


def test_other_towers_and_other_numbers_are_seen_for_themselves():
    one, other = tiny_model(0).model, tiny_model(1).model
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad(), looking_once():
        rows = [one.get_image_patches(pixels, 2), other.get_image_patches(pixels, 2)]
        rows += [one.get_image_patches(pixels.flip(0), 2), one.get_image_patches(pixels * 0.5, 2)]
    with torch.no_grad():
        alone = [one.get_image_patches(pixels, 2), other.get_image_patches(pixels, 2)]
        alone += [one.get_image_patches(pixels.flip(0), 2), one.get_image_patches(pixels * 0.5, 2)]
    torch.testing.assert_close(rows, alone)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return saved_once(tmp_path_factory.mktemp("encoders"))


@pytest.mark.parametrize("name", WHOLE)
def test_encoders_kept_whole_leave_their_looks_to_the_reader(folders, name):
    model, processor = from_encoder(folders(name))
    pixels = processor.for_retrieval(images=IMAGES)["pixel_values"]
    with torch.no_grad():
        expected = look(model.vision_tower, pixels).last_hidden_state
        with looks(model.vision_tower) as seen, looking_once():
            model.get_image_features(pixels)
            torch.testing.assert_close(look(model.vision_tower, pixels.flip(0)).last_hidden_state, expected.flip(0))
    assert seen == [len(IMAGES)]
