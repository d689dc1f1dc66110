"""The reader in the hands of others: adapters, checkpointing, half precision, inputs that are not complete."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from tiny import FUSIONS, picture, tiny_model, tiny_processor


EVIDENCE = [["the capital of Norway is Oslo", "red white"], ["red"]]


def inputs_for(fusion: str, **more):
    processor = tiny_processor(fusion=fusion)
    return processor(images=[picture(0), picture(1)], text=["what is ?", "red or"], evidence=EVIDENCE, **more)


def checkpoint_activations(model) -> None:
    """By the newer of two names; the older one warns where both exist."""
    enable = "activation_checkpointing_enable"
    getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()


def test_zero_passages_as_empty_tensors_are_closed_book():
    model = tiny_model(fusion="gated")
    closed = tiny_processor(fusion="gated")(images=[picture(0)], text=["red ?"])
    empty = {
        "evidence_scores": torch.zeros(1, 0),
        "evidence_mask": torch.zeros(1, 0, dtype=torch.bool),
        "evidence_input_ids": torch.zeros(1, 0, 5, dtype=torch.long),
        "evidence_attention_mask": torch.zeros(1, 0, 5, dtype=torch.long),
    }
    with torch.no_grad():
        torch.testing.assert_close(model(**closed, **empty).logits, model(**closed).logits)
    sequences = [model.generate(**given, max_new_tokens=4, do_sample=False) for given in (closed, {**closed, **empty})]
    assert torch.equal(*sequences)


def test_a_missing_half_of_the_evidence_is_named():
    for missing in ("evidence_attention_mask", "question_attention_mask", "evidence_alignment"):
        inputs = inputs_for("gated")
        del inputs[missing]
        with pytest.raises(ValueError, match=f"{missing}.*pass all outputs of RavlmProcessor"):
            tiny_model(fusion="gated")(**inputs)


def test_a_generation_config_may_be_given_by_place():
    inputs = inputs_for("gated")
    ids = inputs.pop("input_ids")
    sequences = tiny_model(fusion="gated").generate(ids, GenerationConfig(max_new_tokens=2, pad_token_id=0), **inputs)
    assert sequences.shape[1] <= ids.shape[1] + 2


def test_evidence_of_another_row_does_not_reach_a_beam():
    model, inputs = tiny_model(fusion="gated"), inputs_for("gated")
    options = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    first = model.generate(**inputs, **options)[:3]
    for name in ("evidence_input_ids", "evidence_token_ids"):
        inputs[name][1] = inputs[name][1].flip(-1)
    assert torch.equal(model.generate(**inputs, **options)[:3], first)


def test_token_states_are_zero_where_nothing_stands(monkeypatch):
    model = tiny_model().model
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[1, 1, 0], [0, 0, 0]])
    encode = model.text_encoder.forward

    def with_nan(**kwargs):  # as some attention kernels give for a row without a token
        outputs = encode(**kwargs)
        outputs.last_hidden_state[mask == 0] = float("nan")
        return outputs

    monkeypatch.setattr(model.text_encoder, "forward", with_nan)
    with torch.no_grad():
        states = model.get_text_states(ids, mask)
    assert torch.isfinite(states).all()
    assert not states[mask == 0].any()
    nan = torch.full((1, 16), float("nan"))
    image, absent = torch.nn.functional.normalize(torch.ones(1, 16)), torch.tensor([False])
    torch.testing.assert_close(model.combine(image, None, nan, absent), image)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_half_precision_generates_and_trains(fusion):
    model = tiny_model(fusion=fusion).bfloat16()
    assert len(model.generate(**inputs_for(fusion), max_new_tokens=3, num_beams=2, num_return_sequences=2)) == 4
    model.train()(**inputs_for(fusion, answers=["white", "of"])).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_gradient_checkpointing_gives_the_same_gradients(fusion):
    model, inputs = tiny_model(fusion=fusion).train(), inputs_for(fusion, answers=["white", "of"])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model(**inputs).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    checkpoint_activations(model)
    model(**inputs, use_cache=False).loss.backward()
    for name, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


@pytest.mark.parametrize("marginalization", ["none", "sequence", "token"])
def test_in_training_with_gradient_checkpointing_it_writes_and_scores_the_same(marginalization):
    model, processor = tiny_model(marginalization=marginalization), tiny_processor()
    asked = {"images": [picture(0)], "text": ["what is ?"], "evidence": EVIDENCE[:1]}
    inputs = processor(**asked, passage_prompts=marginalization != "none")
    labelled = processor(**asked, answers=["Oslo and"], passage_prompts=marginalization != "none")

    def written_and_scored():
        return model.generate(**inputs, max_new_tokens=4), model.attribute(**labelled).posterior

    sequences, posterior = written_and_scored()
    checkpoint_activations(model.train())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    again, its_posterior = written_and_scored()
    assert torch.equal(again, sequences)
    torch.testing.assert_close(its_posterior, posterior)
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
@pytest.mark.parametrize("fusion", FUSIONS)
def test_lora_on_the_language_model_trains_answers_and_comes_back(fusion, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    tiny_model(fusion=fusion).save_pretrained(tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base").eval()
    inputs, options = inputs_for(fusion), {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    before = base(**inputs).logits
    trained = ["image_projector"] if fusion == "in_context" else ["image_projector", "fusion"]
    settings = LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=trained)
    adapted = get_peft_model(base, settings).eval()
    torch.testing.assert_close(adapted(**inputs).logits, before)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    adapted.train()(**inputs_for(fusion, answers=["white", "of"])).loss.backward()
    optimizer.step()
    adapted.eval()
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert not torch.allclose(adapted(**inputs).logits, before)
    torch.testing.assert_close(again(**inputs).logits, adapted(**inputs).logits)
    assert torch.equal(again.generate(**inputs, **options), adapted.generate(**inputs, **options))
