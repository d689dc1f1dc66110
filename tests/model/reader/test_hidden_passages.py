"""One law for all fusions and ways to read: a passage that `evidence_mask` leaves out is as if it were not there."""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessorList

from hf_ravlm import InvalidInputError
from hf_ravlm.model.reader.probe import probe_language_model
from tiny import FUSIONS, WIDTHS, picture, tiny_config, tiny_model, tiny_processor, tiny_tokenizer


TOKENS = len(tiny_tokenizer())
PASSAGES = [("the capital of Norway is Oslo", 0.9), ("red white of Chad", 0.5), ("this country", 0.1)]
SLIDING = {
    "model_type": "mistral",
    "sliding_window": 12,
    "vocab_size": TOKENS,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **WIDTHS,
}
HYBRID = {
    "model_type": "qwen3_next",
    "vocab_size": TOKENS,
    "layer_types": ["linear_attention", "full_attention"],
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **WIDTHS,
}
GENERATORS = {"llama": {}, "sliding": {"generator_config": SLIDING}, "hybrid": {"generator_config": HYBRID}}
every_fusion = pytest.mark.parametrize("fusion", FUSIONS)
every_generator = pytest.mark.parametrize("generator", list(GENERATORS))


def hidden_and_absent(fusion, images=True, **more):
    """Inputs that hide the passage in the middle, and inputs without it."""
    processor = tiny_processor(fusion=fusion)
    asked = {"images": [picture(0)] if images else None, "text": ["what is the capital ?"], **more}
    given = [{"text": text, "score": score} for text, score in PASSAGES]
    hidden = processor(**asked, evidence=[given])
    hidden["evidence_mask"] = torch.tensor([[True, False, True]])
    return hidden, processor(**asked, evidence=[[given[0], given[2]]])


def in_4d(inputs, dtype):
    length = inputs["input_ids"].shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril() & inputs["attention_mask"].bool()[:, None, None]
    mask = seen if dtype == torch.bool else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(dtype).min)
    return {**inputs, "attention_mask": mask}


def as_embeddings(model, inputs):
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    return {**{name: value for name, value in inputs.items() if name != "input_ids"}, "inputs_embeds": embeds}


def last_logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits[:, -1]


@every_generator
@every_fusion
def test_hidden_is_absent_in_every_forward_pass(fusion, generator):
    model = tiny_model(fusion=fusion, **GENERATORS[generator])
    hidden, absent = hidden_and_absent(fusion)
    expected = last_logits(model, absent)
    torch.testing.assert_close(last_logits(model, hidden), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(last_logits(model, {**hidden, "evidence_mask": None}), expected, atol=1e-3)
    for dtype in (torch.bool, torch.float32):
        if generator == "llama":
            found = last_logits(model, in_4d(hidden, dtype))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        else:
            with pytest.raises(ValueError, match="measures distance in columns"):
                model(**in_4d(hidden, dtype))


@every_generator
@every_fusion
def test_hidden_is_absent_where_the_prompt_comes_as_embeddings(fusion, generator):
    model = tiny_model(fusion=fusion, **GENERATORS[generator])
    hidden, absent = (as_embeddings(model, inputs) for inputs in hidden_and_absent(fusion))
    torch.testing.assert_close(last_logits(model, hidden), last_logits(model, absent), atol=1e-4, rtol=1e-4)
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    found, expected = (model.generate(**given, **options) for given in (hidden, absent))
    assert torch.equal(found.sequences, expected.sequences)
    for logits, others in zip(found.logits, expected.logits, strict=True):  # evidence is read for each token, not one
        torch.testing.assert_close(logits, others, atol=1e-4, rtol=1e-4)
    ids = hidden_and_absent(fusion)[0]
    from_ids = model.generate(**ids, **options)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(from_ids.logits), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(**hidden, use_cache=False)


@every_generator
@every_fusion
def test_hidden_is_absent_in_every_generation(fusion, generator):
    model = tiny_model(fusion=fusion, **GENERATORS[generator])
    hidden, absent = hidden_and_absent(fusion)
    for options in ({"use_cache": True}, {"use_cache": False}, {"num_beams": 3, "num_return_sequences": 3}):
        answers = [
            model.generate(**given, max_new_tokens=5, do_sample=False, **options)[:, given["input_ids"].shape[1] :]
            for given in (hidden, absent)
        ]
        assert torch.equal(*answers)


@every_generator
def test_columns_of_all_outputs_are_those_of_the_prompt_and_a_cache_goes_on(generator):
    model = tiny_model(**GENERATORS[generator])
    hidden, absent = hidden_and_absent("in_context", images=False)
    there = (hidden["token_passages"] != 1)[0]
    with torch.no_grad():
        whole, plain = (model(**given, output_hidden_states=True, use_cache=True) for given in (hidden, absent))
        for states, others in zip(whole.hidden_states, plain.hidden_states, strict=True):
            torch.testing.assert_close(states[:, there], others, atol=1e-4, rtol=1e-4)
        steps = []
        for given, outputs in ((hidden, whole), (absent, plain)):
            cache = outputs.past_key_values
            mask = given["attention_mask"].clone()
            if given is hidden:
                mask[:, ~there] = 0
            for token in (9, 17, 33):
                mask = torch.nn.functional.pad(mask, (0, 1), value=1)
                ids = torch.tensor([[token]])
                logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
            steps.append(logits)
    torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fusion", ["in_context", "concat", "gated", "cross_attention"])
def test_what_is_hidden_may_be_no_number(fusion):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion, passage_images=True)
    evidence = [[{"text": text, "score": score, "image": picture(n)} for n, (text, score) in enumerate(PASSAGES)]]
    inputs = processor(images=[picture(0)], text=["what ?"], evidence=evidence, answers=["Oslo"])
    inputs["evidence_mask"] = torch.tensor([[True, False, True]])
    pixels = inputs["evidence_pixel_values"]
    expected = model(**inputs).loss
    pixels[:, 1] = float("nan")
    loss = model(**inputs).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@every_fusion
@pytest.mark.parametrize("evidence", [True, False])
def test_a_placeholder_that_is_written_is_a_word(fusion, evidence):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion)
    passages = [["red", "white"]] if evidence else None
    inputs = processor(images=[picture(0)], text=["what ?"], evidence=passages)
    marks = [model.config.image_token_id, model.config.evidence_token_id]

    def only_marks(ids, scores):
        kept = torch.isin(torch.arange(scores.shape[1]), torch.tensor(marks))
        return scores.masked_fill(~kept, float("-inf"))

    options = {"max_new_tokens": 4, "do_sample": False, "logits_processor": LogitsProcessorList([only_marks])}
    with_cache, without = (model.generate(**inputs, **options, use_cache=use_cache) for use_cache in (True, False))
    assert torch.equal(with_cache, without)


def causal(model_type: str, **changes):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=99, **changes)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    ("model_type", "settings", "law"),
    [
        ("bert", WIDTHS, "see those behind them"),
        ("roberta", WIDTHS, "see those behind them"),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, "cache of keys and values"),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}, "hidden still change"),
        ("openai-gpt", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "cache of keys and values"),
    ],
)
def test_a_language_model_that_breaks_a_law_is_refused_before_it_reads(model_type, settings, law):
    model = causal(model_type, **settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InvalidInputError, match=f"{model_type!r} model, which cannot be a reader: .*{law}"):
        probe_language_model(model.train())
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_one_that_reads_nothing_is_not_told_to_break_a_law(monkeypatch):
    model = causal("llama", **WIDTHS)

    def forward(*args, **kwargs):
        raise RuntimeError("shape '[32, 0]' is invalid")

    monkeypatch.setattr(model, "forward", forward)
    model.is_quantized = True
    with pytest.raises(InvalidInputError, match=r"it reads no plain tokens here \(it fails .*load it without quant"):
        probe_language_model(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", WIDTHS),
        ("bert", {**WIDTHS, "is_decoder": True}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("mistral", {**SLIDING, "vocab_size": 99}),
        ("qwen3_next", {**HYBRID, "vocab_size": 99}),
    ],
)
def test_a_language_model_that_keeps_the_laws_passes(model_type, settings, dtype):
    settings = {name: value for name, value in settings.items() if name not in ("model_type", "vocab_size")}
    probe_language_model(causal(model_type, **settings).to(dtype))
    with torch.device("meta"):
        nowhere = causal("llama", **WIDTHS)
    probe_language_model(nowhere)


def test_latent_passages_need_layers_without_a_state():
    with pytest.raises(InvalidInputError, match="marginalization='token' with a 'qwen3_next' generator, whose layers"):
        tiny_model(marginalization="token", generator_config=HYBRID)
    settings = {"block_ff_dim": 48, "block_multiple_of": 8, "layer_types": ["conv", "full_attention"]}
    convolving = {**SLIDING, "model_type": "lfm2", "sliding_window": None, **settings}
    with pytest.raises(InvalidInputError, match="marginalization='sequence' with a 'lfm2' generator"):
        tiny_model(marginalization="sequence", generator_config=convolving)
    assert tiny_config(generator_config=HYBRID).marginalization == "none"


def test_placeholders_that_look_alike_are_not_guessed():
    model = tiny_model(fusion="gated")
    rows, config = model.get_input_embeddings().weight, model.config
    with torch.no_grad():
        rows[config.image_token_id] = rows[config.evidence_token_id]
    inputs = as_embeddings(model, hidden_and_absent("gated")[0])
    with pytest.raises(ValueError, match="same embedding.*give input_ids"):
        model(**inputs)
