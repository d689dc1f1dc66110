"""The weights that are told are those that the model multiplied with, and they add up."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm import InvalidInputError
from hf_ravlm.explain.attention import _cross_weights, passage_attention
from hf_ravlm.model.fusions.cross_attention import CrossReading
from tiny import FUSIONS, picture, tiny_config, tiny_model, tiny_processor


EVIDENCE = [["the capital of Norway is Oslo", "red white"], ["Chad"]]
ASKED = ([picture(0), picture(1)], ["what is the capital ?", "what ?"], ["Oslo", "N'Djamena"])


def test_weights_times_values_are_what_a_layer_reads():
    torch.manual_seed(0)
    layer = CrossReading(tiny_config(fusion_heads=2), hidden_dim=32)
    for parameter in (layer.null_key, layer.log_scale):
        torch.nn.init.normal_(parameter)
    torch.nn.init.constant_(layer.read_gate, 9.0)
    states, keys, values = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    keep = torch.rand(2, 7) > 0.4
    weights = _cross_weights(layer, states, keys, values, keep)
    assert weights.shape == (2, 2, 5, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))
    assert weights[..., 1:].masked_select(~keep[:, None, None]).abs().max() == 0
    read = (weights[..., 1:] @ values.unsqueeze(1)).mean(1)
    torch.testing.assert_close(states + layer.output(read), layer(states, keys, values, keep), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shares_add_up_and_a_missing_passage_has_none(fusion):
    model, processor = tiny_model(fusion=fusion).train(), tiny_processor(fusion=fusion)
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    found = passage_attention(model, processor, *ASKED, EVIDENCE)
    assert found.passages.shape == (2, 2)
    assert found.passages[1, 1] == 0
    assert found.passages[0].min() > 0
    whole = found.passages + found.elsewhere
    if fusion not in ("attention", "gated"):
        whole = found.passages.sum(1, keepdim=True) + found.elsewhere
    torch.testing.assert_close(whole, torch.ones_like(whole))
    if found.tokens is not None:
        torch.testing.assert_close(found.tokens.sum(-1), found.passages)
    assert (found.read_by == "fusion") == (fusion in ("attention", "gated", "cross_attention"))
    assert model.training
    assert model.language_model.config._attn_implementation == "sdpa"
    assert hooks == sum(len(module._forward_pre_hooks) for module in model.modules())


def test_what_a_key_draws_is_told():
    """A null key that shuts out everything else gets all of it; a batch is its rows."""
    model, processor = tiny_model(fusion="cross_attention"), tiny_processor(fusion="cross_attention")
    both = passage_attention(model, processor, *ASKED, EVIDENCE)
    second = passage_attention(model, processor, *([item[1]] for item in ASKED), EVIDENCE[1:])
    torch.testing.assert_close(both.passages[1:, :1], second.passages)
    for layer in model.fusion.layers.values():
        layer.query.weight.data.zero_()
        layer.query.bias.data.fill_(1.0)
        layer.null_key.data.fill_(100.0)
    drawn = passage_attention(model, processor, *ASKED, EVIDENCE)
    torch.testing.assert_close(drawn.elsewhere, torch.ones(2, 1))
    torch.testing.assert_close(drawn.passages, torch.zeros(2, 2), atol=1e-6, rtol=0)


def test_the_language_models_own_weights_are_grouped_by_passage():
    """By hand: the mean over layers, heads and the positions that write the answer."""
    model, processor = tiny_model(), tiny_processor()
    given = tuple([item[0]] for item in ASKED)
    found = passage_attention(model, processor, *given, EVIDENCE[:1])
    inputs = processor(images=given[0], text=given[1], answers=given[2], evidence=EVIDENCE[:1])
    labels, owners = inputs.pop("labels"), inputs["token_passages"][0]
    model.set_attn_implementation("eager")
    layers = torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0].mean((0, 1))  # (L, L)
    writes = torch.nonzero(labels[0] != -100).flatten() - 1
    by_hand = torch.stack([layers[writes][:, owners == k].sum(1).mean() for k in range(2)])
    torch.testing.assert_close(found.passages[0], by_hand)


def test_what_has_no_shared_attention_is_told():
    with pytest.raises(InvalidInputError, match="posterior"):
        passage_attention(
            tiny_model(marginalization="sequence"), tiny_processor(passage_prompts=True), *ASKED, EVIDENCE
        )
    with pytest.raises(InvalidInputError, match="no passage"):
        passage_attention(tiny_model(), tiny_processor(), *ASKED, [[], []])
