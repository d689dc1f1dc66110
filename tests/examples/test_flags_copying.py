"""The start that copies, against the ordinary random start."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from flags import copying
from flags.copying import copier_config, copying_accuracy, copying_parts, deepen, start_as_copier


@pytest.fixture(scope="module")
def ordinary():
    torch.manual_seed(0)
    return LlamaForCausalLM(copier_config(vocab_size=2048))


@pytest.fixture(scope="module")
def copier():
    return start_as_copier(LlamaForCausalLM(copier_config(vocab_size=2048)))


def test_copies_random_strings_before_the_first_step(ordinary, copier):
    assert copying_accuracy(ordinary) < 0.05
    assert copying_accuracy(copier) >= 0.8
    assert copying_accuracy(copier, length=512, num_sequences=4) >= 0.8


def test_a_copier_does_not_know_what_it_has_not_seen(copier):
    """Strings that stand once give nothing to copy: the accuracy comes from the context, not from the weights."""
    tokens = torch.randint(8, 2048, (8, 128), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = copier(input_ids=tokens).logits.argmax(-1)[:, :-1]
    assert (predicted == tokens[:, 1:]).float().mean() < 0.02


def test_copying_accuracy_counts_only_what_can_be_known():
    """An oracle that looks the strings up scores 1."""

    class Lookup:
        config = copier_config(vocab_size=2048)
        device = torch.device("cpu")

        def __call__(self, input_ids):
            logits = torch.zeros(*input_ids.shape, 2048)
            for row, tokens in enumerate(input_ids.tolist()):
                followers = {}
                for position, token in enumerate(tokens):
                    logits[row, position, followers.get(token, 0)] = 1
                    if position + 1 < len(tokens):
                        followers.setdefault(token, tokens[position + 1])
            return type("Output", (), {"logits": logits})

    assert copying_accuracy(Lookup(), num_sequences=4) > 0.95  # a token may stand in two strings


def test_the_seed_decides_every_weight(copier):
    small = copier_config(vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=16)
    first, second, other = (start_as_copier(LlamaForCausalLM(small), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_two_tokens_start_alike_and_nothing_else_changes():
    """Then an answer mark asks for what followed a colon: attention cannot tell one from the other."""
    small = copier_config(vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=16)
    plain, alike = (start_as_copier(LlamaForCausalLM(small), alike=pair) for pair in (None, (7, 33)))
    embeddings, changed = (model.get_input_embeddings().weight for model in (plain, alike))
    assert not torch.equal(embeddings[7], embeddings[33])
    assert torch.equal(changed[7], changed[33])
    assert (embeddings != changed).any(dim=1).nonzero().flatten().tolist() == [7]
    assert alike.get_output_embeddings().weight is changed
    others = {name: weight for name, weight in plain.state_dict().items() if weight.shape != embeddings.shape}
    assert all(torch.equal(weight, alike.state_dict()[name]) for name, weight in others.items())


def test_what_followed_a_token_is_copied_after_the_one_that_is_alike():
    """As in `Capital of Utopia: value. … <answer> value`: the mark itself stood nowhere before the value."""
    answer, colon, stop = 7, 33, 34
    generator = torch.Generator().manual_seed(0)
    label, value = torch.randint(100, 2048, (2, 64, 5), generator=generator)
    marks = torch.tensor([colon, stop, answer]).expand(64, 3)
    input_ids = torch.cat([label, marks[:, :1], value, marks[:, 1:], value], dim=1)
    right = []
    for pair in (None, (answer, colon)):
        model = start_as_copier(LlamaForCausalLM(copier_config(vocab_size=2048)), alike=pair)
        with torch.no_grad():
            right.append((model(input_ids=input_ids).logits.argmax(-1)[:, -6:-1] == value).float().mean(dim=0))
    plain, alike = right  # by place in the value
    assert plain[0] < 0.1
    assert alike[0] > 0.6
    assert min(plain[1:].min(), alike[1:].min()) > 0.8


@pytest.mark.parametrize("num_shared", [2, 3, 4])
def test_two_places_that_begin_alike_are_told_apart_by_what_stands_before(copier, num_shared, monkeypatch):
    """As "of Fiji" and ": Fijian": what stands before the tokens that they share decides how it goes on."""
    monkeypatch.setattr(copying, "FURTHER_GAIN", 0.0)
    forgetful = start_as_copier(LlamaForCausalLM(copier_config(vocab_size=2048)))
    generator = torch.Generator().manual_seed(0)
    first, second, apart = (torch.randint(8, 2048, (256, size), generator=generator) for size in (2, 2, 6))
    shared = torch.randint(8, 2048, (256, num_shared), generator=generator)
    told = [torch.cat([ends[:, :1], shared, ends[:, 1:]], dim=1) for ends in (first, second)]
    told = torch.cat([told[0], apart[:, :3], told[1], apart[:, 3:]], dim=1)
    right = []
    for model in (forgetful, copier):
        asked = [torch.cat([told, ends[:, :1], shared], dim=1) for ends in (first, second)]
        with torch.no_grad():
            goes_on = [model(input_ids=ids).logits[:, -1].argmax(-1) for ids in asked]
        right.append(sum((said == ends[:, 1]).float().mean() / 2 for said, ends in zip(goes_on, (first, second))))
    assert right[1] > right[0] + 0.1


def test_a_deepened_copier_answers_as_before(copier):
    deep = deepen(copier)
    input_ids = torch.randint(8, 2048, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(deep(input_ids=input_ids).logits, copier(input_ids=input_ids).logits)
    assert deepen(deep) is deep
    assert [len(model.model.layers) for model in (copier, deep)] == [4, 7]
    assert [len(copying_parts(model)) for model in (copier, deep)] == [4, 4]


@pytest.mark.parametrize(
    ("changes", "options", "named"),
    [
        ({"attention_bias": False}, {}, "attention_bias"),
        ({"tie_word_embeddings": False}, {}, "tie_word_embeddings"),
        ({"num_key_value_heads": 1}, {}, "num_key_value_heads"),
        ({"num_hidden_layers": 2}, {}, "previous_layers"),
        ({}, {"num_fast_pairs": 9}, "head_dim"),
    ],
)
def test_says_what_the_model_lacks(changes, options, named):
    small = copier_config(vocab_size=64, hidden_size=32, intermediate_size=48, head_dim=16, **changes)
    with pytest.raises(ValueError, match=named):
        start_as_copier(LlamaForCausalLM(small), **options)
