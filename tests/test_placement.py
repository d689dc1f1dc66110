"""Everything stays on one device: shown on a pretended one, whose tensors refuse to meet the CPU's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from hf_ravlm import RavlmEncoder, from_backbones
from hf_ravlm.pipelines import RavlmImageToTextPipeline
from hf_ravlm.pipelines.answering import add_attributions, answer_questions
from hf_ravlm.retrieval import Evidence
from pretended_device import DEVICE, DeviceTensor, PretendedDevice, on_device
from tiny import FUSIONS, picture, tiny_model, tiny_processor
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model
from tiny_folder import tiny_parts


READ = [Evidence(id=name, text=f"{name} red white", score=0.5 / n, rank=n) for n, name in enumerate("ab", start=1)]
ASKED = {"images": [picture(0), picture(1)], "text": ["what is the capital ?", "red ?"], "evidence": [READ, READ[:1]]}
KINDS = [*FUSIONS, "sequence", "token", "words", "image_text"]


def reader(kind: str):
    if kind == "words":
        return from_backbones(generator=causal_model("llama"), tokenizer=causal_tokenizer())
    if kind == "image_text":
        generator, processor = multimodal_model("llava")
        return from_backbones(generator=generator, generator_processor=processor)
    if kind in ("sequence", "token"):
        return tiny_model(marginalization=kind), tiny_processor(passage_prompts=True)
    return tiny_model(fusion=kind), tiny_processor(fusion=kind)


def test_the_pretended_device_refuses_what_a_real_one_would():
    with PretendedDevice() as device:
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert isinstance(there + 1, DeviceTensor)
        with pytest.raises(RuntimeError, match="came with others on the CPU"):
            there + here
        with pytest.raises(TypeError, match="NumPy"):
            np.asarray(there)
        assert (there + here.to(DEVICE)).cpu().tolist() == [2.0, 2.0, 2.0]
        assert bool(there.sum() == 3)
    assert {what for what, _ in device.reads} == {"to_cpu", "item"}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_computed_on_the_device(kind):
    model, processor = reader(kind)
    asked = ASKED if kind != "words" else {**ASKED, "images": None}
    inputs = processor(**asked, answers=["Oslo", "red"])
    model.train(kind != "cross_attention")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    expected = copy.deepcopy(model)(**inputs).loss
    with PretendedDevice():
        there = on_device(model)
        loss = there(**{name: on_device(tensor) for name, tensor in inputs.items()}).loss
        loss.backward()
        assert isinstance(loss, DeviceTensor)
        torch.testing.assert_close(loss.detach().cpu(), expected.detach())
        grads = [weight.grad for weight in there.parameters() if weight.grad is not None]
        assert grads
        assert all(isinstance(grad, DeviceTensor) for grad in grads)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_attributions_are_those_of_the_cpu(kind):
    model, processor = reader(kind)
    images = None if kind == "words" else [picture(0)]
    asked = {"images": images, "questions": ["what is the capital ?"], "evidence": [READ], "max_new_tokens": 5}
    ((expected,),) = answer_questions(model, processor, None, **asked)
    with PretendedDevice():
        there = on_device(copy.deepcopy(model))
        ((found,),) = answer_questions(there, processor, None, **asked, with_posterior=False)
        add_attributions(there, processor, images, asked["questions"], [found])
    assert found.text == expected.text
    assert found.posterior == pytest.approx(expected.posterior, abs=1e-4)


@pytest.mark.parametrize("kind", ["in_context", "gated", "cross_attention", "words", "image_text"])
def test_no_value_of_ours_is_read_back_per_token(kind):
    model, processor = reader(kind)
    model.generation_config.eos_token_id = None
    asked = ASKED if kind != "words" else {**ASKED, "images": None}
    inputs = processor(**asked)
    reads = []
    with PretendedDevice() as device:
        there = on_device(model)
        for tokens in (4, 12):
            device.reads.clear()
            there.generate(**{name: on_device(tensor) for name, tensor in inputs.items()}, max_new_tokens=tokens)
            reads.append(device.of_ours())
    assert reads[0] == reads[1]


def test_an_encoder_and_a_pipeline_work_on_the_device():
    model, processor, retriever = tiny_parts()
    pipe = RavlmImageToTextPipeline(model, processor, retriever, device="cpu")
    (expected,) = pipe(picture(0), question="what ?", max_new_tokens=4)
    vectors = RavlmEncoder(model.model, processor).encode_queries([picture(1)], ["red ?"])
    with PretendedDevice():
        there = on_device(model)
        assert np.allclose(RavlmEncoder(there.model, processor).encode_queries([picture(1)], ["red ?"]), vectors)
        pipe = RavlmImageToTextPipeline(there, processor, retriever, device=DEVICE)
        (found,) = pipe(picture(0), question="what ?", max_new_tokens=4)
    assert found["generated_text"] == expected["generated_text"]
    assert [one["id"] for one in found["evidence"]] == [one["id"] for one in expected["evidence"]]
