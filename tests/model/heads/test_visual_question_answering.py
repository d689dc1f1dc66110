"""The closed set as a model of transformers: a head over what was read, or the reader itself."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForVisualQuestionAnswering

from hf_ravlm import InvalidInputError, RavlmForConditionalGeneration, RavlmForVisualQuestionAnswering
from tiny import assert_same_weights, picture, tiny_config, tiny_model, tiny_processor


ANSWERS = ["Oslo", "red", "white"]
ASKED = {"text": ["Oslo or red ?", "what is the capital of this country ?"], "evidence": [["red white"], ["Oslo"]]}


@pytest.fixture(scope="module")
def inputs():
    return tiny_processor()(images=[picture(0), picture(1)], **ASKED)


def test_a_head_sees_the_last_state_whatever_side_is_padded(inputs):
    model = RavlmForVisualQuestionAnswering.from_reader(tiny_model(), ANSWERS, head=True).eval()
    left = model(**inputs).logits
    assert left.shape == (2, 3)
    right = model(**tiny_processor()(images=[picture(0), picture(1)], **ASKED, padding_side="right")).logits
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
    closed = model(**tiny_processor()(images=[picture(0), picture(1)], text=ASKED["text"])).logits
    assert not torch.allclose(left, closed, atol=1e-4)  # passages are seen


def test_it_learns_one_answer_or_several_and_comes_back(inputs, tmp_path):
    torch.manual_seed(0)
    model = RavlmForVisualQuestionAnswering.from_reader(tiny_model(), ANSWERS, head=True)
    labels = torch.tensor([1, 0])
    optimizer = torch.optim.Adam(model.answer_head.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        assert model(**inputs).logits.argmax(-1).tolist() == [1, 0]
        unknown = model(**inputs, labels=torch.tensor([1, -100])).loss
        torch.testing.assert_close(unknown, torch.nn.functional.cross_entropy(model(**inputs).logits[:1], labels[:1]))
        soft = model(**inputs, labels=torch.tensor([[0.0, 1.0, 0.3], [1.0, 0.0, 0.0]])).loss
    assert soft > 0
    model.save_pretrained(tmp_path)
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert type(loaded) is RavlmForVisualQuestionAnswering
    assert_same_weights(loaded, model)
    with pytest.raises(InvalidInputError, match="writes none"):
        loaded.generate(**inputs)
    _, report = RavlmForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_without_a_head_it_is_the_reader(inputs, tmp_path):
    reader = tiny_model()
    model = RavlmForVisualQuestionAnswering.from_reader(reader, ANSWERS)
    assert model.language_model is reader.language_model
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, reader(**inputs).logits)
        asked = {**inputs, "max_new_tokens": 3, "do_sample": False}
        assert model.generate(**asked).tolist() == reader.generate(**asked).tolist()
    reader.save_pretrained(tmp_path)
    loaded = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)  # any reader can choose
    assert_same_weights(loaded, reader)


def test_what_cannot_be_is_refused():
    with pytest.raises(InvalidInputError, match="a head sees one prompt"):
        RavlmForVisualQuestionAnswering(tiny_config(answer_head=True, marginalization="token"))
    with pytest.raises(InvalidInputError, match="occurs twice"):
        RavlmForVisualQuestionAnswering.from_reader(tiny_model(), ["a", "a"])
