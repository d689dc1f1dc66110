"""Cross-attention inside language models of several families, in all that users do with them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointError
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel

from hf_ravlm.model.fusions.cross_attention import (
    HOOKS_ARE_RECOMPUTED,
    CrossAttentionFusion,
    CrossReading,
    attach_cross_attention,
    decoder_layers,
    held_evidence,
)
from hf_ravlm.model.fusions.registry import init_fusion_weights
from tiny import tiny_config


WIDTHS = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SPECIALS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "gpt2": {},
    "gemma2": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 8},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},  # hands no keywords to its layers
}
every_family = pytest.mark.parametrize("family", list(FAMILIES))


class Reader(PreTrainedModel, GenerationMixin):
    """The least that reads: a language model and its fusion."""

    supports_gradient_checkpointing = True

    def __init__(self, config):
        super().__init__(config)
        self.language_model = AutoModelForCausalLM.from_config(config.generator_config)
        self.fusion = CrossAttentionFusion(config)
        attach_cross_attention(self.language_model)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        init_fusion_weights(module, std=0.02)

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def forward(self, input_ids=None, evidence=None, evidence_ids=None, evidence_mask=None, **kwargs):
        if evidence is not None:
            embeds = self.get_input_embeddings()(evidence_ids).to(evidence)  # as the reader gives them
            memory = self.fusion(evidence_states=evidence, evidence_embeds=embeds, evidence_token_mask=evidence_mask)
            kwargs["evidence_memory"] = self.fusion.reading(memory, evidence_mask)
        return self.language_model(input_ids=input_ids, **kwargs)


def reader_of(family: str, gate: float = 0.8, every: int = 2, seed: int = 0) -> Reader:
    torch.manual_seed(seed)
    generator = {"model_type": family, **WIDTHS, **SPECIALS, **FAMILIES[family]}
    reader = Reader(tiny_config(generator_config=generator, cross_attention_every=every)).eval()
    torch.manual_seed(seed)  # whatever it began with
    for p in reader.language_model.parameters():  # large enough to see evidence in the choice of a token
        nn.init.normal_(p, std=0.3) if p.dim() > 1 else None
    for p in reader.fusion.parameters():
        nn.init.normal_(p, std=0.3) if p.dim() > 1 else None
    for layer in reader.fusion.layers.values():
        nn.init.constant_(layer.read_gate, gate / 10)
        nn.init.constant_(layer.feed_forward_gate, gate / 10)
    return reader


def inputs_of(seed: int = 0) -> dict[str, torch.Tensor]:
    """Two prompts; the first with three passages, the second with none that counts."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 3, 4, generator=generator) > 0.3
    mask[0, :, 0], mask[1] = True, False
    return {
        "input_ids": torch.randint(3, 60, (2, 6), generator=generator),
        "evidence": torch.randn(2, 3, 4, 32, generator=generator),
        "evidence_ids": torch.randint(3, 60, (2, 3, 4), generator=generator),
        "evidence_mask": mask,
    }


def bare(inputs: dict) -> dict:
    return {key: value for key, value in inputs.items() if not key.startswith("evidence")}


@every_family
def test_closed_gates_are_the_bare_language_model(family):
    reader, inputs = reader_of(family, gate=0.0), inputs_of()
    untouched = AutoModelForCausalLM.from_config(reader.language_model.config).eval()
    untouched.load_state_dict(reader.language_model.state_dict())  # no name has changed
    torch.testing.assert_close(reader(**inputs).logits, untouched(inputs["input_ids"]).logits)


@every_family
def test_evidence_is_read_and_masked_evidence_is_not(family):
    reader, inputs = reader_of(family), inputs_of()
    with_evidence, without = reader(**inputs).logits, reader(**bare(inputs)).logits
    assert (with_evidence[0] - without[0]).abs().max() > 1e-2
    torch.testing.assert_close(with_evidence[1], without[1])
    inputs["evidence"] = torch.where(inputs["evidence_mask"].unsqueeze(-1), inputs["evidence"], 9.0)
    torch.testing.assert_close(reader(**inputs).logits, with_evidence)


@every_family
def test_order_of_passages_does_not_matter(family):
    reader, inputs = reader_of(family), inputs_of()
    logits = reader(**inputs).logits
    for key in ("evidence", "evidence_ids", "evidence_mask"):
        inputs[key] = inputs[key][:, [2, 0, 1]]
    torch.testing.assert_close(reader(**inputs).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@every_family
def test_every_step_reads_the_evidence(family, beams):
    reader, inputs = reader_of(family, seed=1), inputs_of()
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": beams, "num_return_sequences": beams}
    cached = reader.generate(**inputs, **options, do_sample=False)
    assert torch.equal(reader.generate(**inputs, **options, do_sample=False, use_cache=False), cached)
    closed = reader.generate(**bare(inputs), **options, do_sample=False)
    assert torch.equal(cached[beams:], closed[beams:])
    assert not torch.equal(cached[:beams], closed[:beams])
    if beams == 1:  # the last token, from a prompt that holds all before it
        longer = {**inputs, "input_ids": cached[:, :-1]}
        torch.testing.assert_close(reader(**longer).logits[:, -1].argmax(-1), cached[:, -1])


def gradients(reader: Reader, *batches: dict) -> dict[str, torch.Tensor]:
    """Of the summed losses of all batches: all forwards come before the one backward."""
    reader.zero_grad()
    sum(reader(**batch, labels=batch["input_ids"], use_cache=False).loss for batch in batches).backward()
    return {name: p.grad.clone() for name, p in reader.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@every_family
def test_gradient_checkpointing_gives_the_same_gradients(family, reentrant):
    reader, inputs = reader_of(family).train(), inputs_of()
    for module in reader.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    reader.enable_input_require_grads()
    plain = gradients(reader, inputs)
    assert all(plain[f"fusion.{name}"].any() for name, _ in reader.fusion.named_parameters())
    enable = "activation_checkpointing_enable"  # the newer name; the other warns where both exist
    getattr(reader, enable if hasattr(reader, enable) else "gradient_checkpointing_enable")(
        {"use_reentrant": reentrant}
    )
    if family == "gpt_neo" and HOOKS_ARE_RECOMPUTED:
        with pytest.raises(RuntimeError, match="GPTNeoBlock gets no keywords"):
            gradients(reader, inputs)
        return
    again = gradients(reader, inputs)
    assert set(again) == set(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient)


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_layers_recomputed_with_their_hooks_read_again_or_are_refused(family):
    reader, inputs = reader_of(family).train(), inputs_of()
    for module in reader.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    plain = gradients(reader, inputs)
    layers = decoder_layers(reader.language_model)
    for place, layer in enumerate(layers):  # as FSDP's activation checkpointing does
        layers[place] = checkpoint_wrapper(layer)
    if family == "gpt_neo":
        with pytest.raises(CheckpointError):
            gradients(reader, inputs)
        return
    again = gradients(reader, inputs)
    for name, _ in reader.fusion.named_parameters():
        torch.testing.assert_close(again[f"fusion.{name}"], plain[f"fusion.{name}"])


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_two_forwards_before_a_backward_keep_their_own_evidence(family):
    reader, first, second = reader_of(family), inputs_of(0), inputs_of(1)
    alone, other, both = gradients(reader, first), gradients(reader, second), gradients(reader, first, second)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, alone[name] + other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda reader: pickle.loads(pickle.dumps(reader))])  # noqa: S301
def test_a_copy_reads_with_its_own_weights(duplicate):
    reader, inputs = reader_of("llama"), inputs_of()
    before = reader(**inputs).logits
    twin = duplicate(reader)
    nn.init.zeros_(twin.fusion.evidence_input.embed.weight)
    assert not torch.allclose(twin(**inputs).logits, before)
    torch.testing.assert_close(reader(**inputs).logits, before)


def test_save_and_load(tmp_path):
    reader, inputs = reader_of("gpt2"), inputs_of()
    reader.save_pretrained(tmp_path)
    loaded = Reader.from_pretrained(tmp_path, config=reader.config).eval()
    torch.testing.assert_close(loaded(**inputs).logits, reader(**inputs).logits)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_an_adapter_reads_with_the_fusion_that_it_trains():
    from peft import LoraConfig, get_peft_model

    reader, inputs = reader_of("llama"), inputs_of()
    before = reader(**inputs).logits
    settings = LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["fusion"])
    adapted = get_peft_model(reader, settings)
    torch.testing.assert_close(adapted(**inputs).logits, before)
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    trained = {name: p for name, p in adapted.named_parameters() if ".modules_to_save." in name}
    assert len(trained) == len(list(reader.fusion.original_module.parameters()))
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    with torch.no_grad():
        for p in trained.values():
            p.zero_()
        torch.testing.assert_close(adapted(**inputs).logits, adapted(**bare(inputs)).logits)
        with adapted.disable_adapter():
            torch.testing.assert_close(adapted(**inputs).logits, before)


def test_half_precision_beside_single_precision():
    reader, inputs = reader_of("llama", gate=0.0), inputs_of()
    reader.language_model.bfloat16()  # the fusion stays in single precision
    torch.testing.assert_close(reader(**inputs).logits, reader(**bare(inputs)).logits)
    reader = reader_of("llama").bfloat16()
    inputs["evidence"] = inputs["evidence"].bfloat16()
    torch.testing.assert_close(reader(**inputs).logits[1], reader(**bare(inputs)).logits[1])
    assert all(torch.isfinite(gradient).all() for gradient in gradients(reader, inputs).values())


@pytest.mark.parametrize("family", ["llama", "gpt_neo"])
def test_the_compiled_model_computes_the_same(family):
    reader, inputs = reader_of(family), inputs_of()
    compiled = torch.compile(reader, backend="eager", fullgraph=family == "llama")
    for batch in (inputs, bare(inputs), inputs_of(1)):
        with torch.no_grad():
            torch.testing.assert_close(compiled(**batch).logits, reader(**batch).logits)


def test_attaching_twice_reads_once_and_handles_undo_it():
    reader, inputs = reader_of("llama"), inputs_of()
    logits = reader(**inputs).logits
    assert attach_cross_attention(reader.language_model) == []
    torch.testing.assert_close(reader(**inputs).logits, logits)
    fresh = AutoModelForCausalLM.from_config(reader.language_model.config)
    handles = attach_cross_attention(fresh)
    for handle in handles:
        handle.remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in fresh.modules())


def test_nothing_is_held_after_an_error():
    reader, inputs = reader_of("gpt_neo"), inputs_of()
    with pytest.raises(IndexError):
        reader(**{**inputs, "input_ids": inputs["input_ids"] + 1000})
    assert held_evidence.get() is None


def test_a_model_without_a_list_of_layers_is_refused():
    language_model = reader_of("llama").language_model
    language_model.config.num_hidden_layers = 7
    with pytest.raises(ValueError, match=r"no list of 7 decoder layers \(found lists of length \[3\]\)"):
        decoder_layers(language_model)


def test_one_layer_is_its_formula():
    torch.manual_seed(0)
    config = tiny_config(fusion_heads=2)
    layer = CrossReading(config, hidden_dim=6)  # width 32, values 32
    for parameter in (layer.null_key, layer.read_gate, layer.feed_forward_gate, layer.log_scale):
        nn.init.normal_(parameter)
    hidden, keys, values = torch.randn(2, 3, 6), torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    keep = torch.tensor([[True, False, True, True, False], [False] * 5])
    output = layer(hidden, keys, values, keep)
    assert torch.equal(output[1], hidden[1])
    for state, result in zip(hidden[0], output[0], strict=True):
        query, read = layer.query(layer.norm(state)), torch.zeros(32)
        for head in torch.arange(32).chunk(2):
            cosines = torch.cosine_similarity(query[head], keys[0][keep[0]][:, head])
            null = layer.null_key[head] @ (query[head] / query[head].norm())
            scores = torch.cat([null[None], cosines]) * layer.log_scale.exp()
            read = read + torch.softmax(scores, dim=0)[1:] @ values[0][keep[0]] / 2  # the null's value is zero
        state = state + torch.tanh(10 * layer.read_gate) * layer.output(read)
        torch.testing.assert_close(
            state + torch.tanh(10 * layer.feed_forward_gate) * layer.feed_forward(state), result
        )


def test_what_was_written_last_finds_what_comes_next():
    """Keys hold the token before, values the token itself."""
    fusion = CrossAttentionFusion(tiny_config())
    states, mask = torch.zeros(1, 1, 4, 32), torch.ones(1, 1, 4, dtype=torch.bool)
    embeds = torch.randn(1, 1, 4, 32)
    keys, values = fusion(states, embeds, mask).tensor_split([32], dim=-1)
    other = embeds.clone()
    other[0, 0, 1] = torch.randn(32)
    other_keys, other_values = fusion(states, other, mask).tensor_split([32], dim=-1)
    assert (keys != other_keys).any(-1).tolist() == [[[False, False, True, False]]]
    assert (values != other_values).any(-1).tolist() == [[[False, True, False, False]]]
