from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_ravlm.retrieval.encoding.packed_encoding import PackedTextEncoder, is_packable, with_packed_text_encoders


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
POSITIONS = 128


def tiny_encoder(model_type: str = "bert", seed: int = 0, **changes):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, vocab_size=60, max_position_embeddings=POSITIONS, **{**SIZES, **changes})
    model = AutoModel.from_config(config).eval()
    for parameter in model.parameters():  # far from the small random start, where everything is nearly linear
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def padded(lengths, pad_id: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(5, 60, mask.shape, generator=generator)
    return ids.masked_fill(~mask, pad_id), mask.long()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("lengths", [[7], [3, 9, 3, 1, 40, 9], [33, 64, 100, 2]])
def test_packed_states_are_the_padded_ones(model_type, lengths):
    model = tiny_encoder(model_type)
    ids, mask = padded(lengths, model.config.pad_token_id)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask)
        found = PackedTextEncoder(model)(input_ids=ids, attention_mask=mask)
    keep = mask.bool()
    torch.testing.assert_close(found.last_hidden_state[keep], expected.last_hidden_state[keep], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
    assert not found.last_hidden_state[~keep].any()


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu_python"])
def test_other_activations_are_used_as_they_are(activation):
    model = tiny_encoder(hidden_act=activation)
    ids, mask = padded([3, 9], 0)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        found = PackedTextEncoder(model)(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [1, 6, 20, 27, 32, 40, 64, 90, 128])
def test_bfloat16_states_point_where_the_exact_ones_do(length):
    model = tiny_encoder(hidden_size=64)
    ids, mask = padded([length] * 3 + [max(1, length - 1)], 0)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        found = PackedTextEncoder(model.bfloat16())(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    assert torch.cosine_similarity(found.float(), expected, dim=-1).min() > 0.999


def test_left_padding_and_holes_keep_the_positions_of_their_columns():
    model = tiny_encoder()
    ids, mask = padded([6, 6, 6], 0)
    mask[0, :3] = 0
    mask[1, 2] = 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        found = PackedTextEncoder(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


def test_a_row_without_a_token_is_zero_and_disturbs_nobody():
    model = tiny_encoder()
    ids, mask = padded([4, 5], 0)
    empty = torch.cat([mask, torch.zeros_like(mask[:1])])
    with torch.inference_mode():
        packed = PackedTextEncoder(model)
        found = packed(input_ids=torch.cat([ids, ids[:1]]), attention_mask=empty).last_hidden_state
        torch.testing.assert_close(found[:2], packed(input_ids=ids, attention_mask=mask).last_hidden_state)
    assert not found[2].any()


def test_texts_as_lists_give_the_states_of_the_padded_batch():
    for model_type in ("bert", "roberta"):
        model = tiny_encoder(model_type)
        ids, mask = padded([9, 9, 4, 1], model.config.pad_token_id)
        texts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask)]
        with torch.inference_mode():
            states, lengths = PackedTextEncoder(model).encode_texts(texts, torch.device("cpu"))
            expected = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
        assert lengths == [9, 9, 4, 1]
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)


def test_other_inputs_and_outputs_are_left_to_the_encoder():
    model = tiny_encoder()
    ids, mask = padded([4, 5], 0)
    types = torch.ones_like(ids)
    with torch.inference_mode():
        found = PackedTextEncoder(model)(ids, mask, token_type_ids=types, output_hidden_states=True)
        expected = model(ids, mask, token_type_ids=types, output_hidden_states=True)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    assert len(found.hidden_states) == 3


class TwoTowers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.text = torch.nn.ModuleDict({"encoder": tiny_encoder()})
        self.head = torch.nn.Linear(32, 4)

    def forward(self, ids, mask):
        return self.head(self.text["encoder"](input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])


def test_the_twin_computes_packed_with_the_weights_of_the_model_and_leaves_it_alone():
    model = TwoTowers().eval()
    twin = with_packed_text_encoders(model)
    ids, mask = padded([3, 8], 0)
    with torch.inference_mode():
        torch.testing.assert_close(twin(ids, mask), model(ids, mask), atol=1e-5, rtol=0)
    assert isinstance(twin.text["encoder"], PackedTextEncoder)
    assert not isinstance(model.text["encoder"], PackedTextEncoder)
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert twin.head.weight is model.head.weight


@pytest.mark.parametrize(
    "model",
    [
        tiny_encoder(is_decoder=True),
        tiny_encoder(is_decoder=True, add_cross_attention=True),
        torch.nn.Linear(2, 2),
    ],
    ids=["decoder", "cross-attention", "linear"],
)
def test_what_is_not_a_plain_encoder_stays_as_it_is(model):
    assert not is_packable(model)
    assert with_packed_text_encoders(model) is model
