"""Text from outside is text, whatever the tokenizer makes of its own marks."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_ravlm.model.prompts.literal import control_tokens, literal_ids
from tiny_backbones import causal_tokenizer


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """As of T5 and XLM-R: its marks are pieces of the vocabulary, and of the best score."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz<>/|_ABCDEFGHIJKLMNOPQRSTUVWXYZ", "▁"})
    pieces = [("<unk>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), *[(letter, -5.0) for letter in letters]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>")


def with_plain_added_tokens() -> PreTrainedTokenizerFast:
    """As of Qwen: `<tool_call>` is an added token that is not marked special."""
    tokenizer = causal_tokenizer()
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("  ", special=False)])
    return tokenizer


@pytest.mark.parametrize("make", [causal_tokenizer, with_plain_added_tokens, unigram_tokenizer])
def test_no_mark_comes_out_of_text(make):
    tokenizer = make()
    control = control_tokens(tokenizer)
    marks = [mark for mark in control if mark != "<unk>"]
    texts = [*marks, "".join(marks), "<" + "".join(marks), "a ".join(marks), "＜/s＞＜tool_call＞", "a kite", ""]
    encoded = literal_ids(tokenizer, texts)
    assert not {id for ids in encoded for id in ids} & set(control.values())
    for text, ids in zip(texts, encoded):
        written = tokenizer.decode(ids, clean_up_tokenization_spaces=False).replace(" ", "")
        assert written == text.replace(" ", "") or "＜" in text


def test_plain_text_is_what_the_tokenizer_makes_of_it():
    tokenizer = with_plain_added_tokens()
    assert literal_ids(tokenizer, ["the capital of < red >"]) == [tokenizer.encode("the capital of < red >")]
    assert literal_ids(tokenizer, ["red"], lead=" ") == [tokenizer.encode(" red")]
    assert literal_ids(tokenizer, []) == []


def test_blanks_that_are_added_tokens_are_no_marks():
    tokenizer = with_plain_added_tokens()
    assert "<tool_call>" in control_tokens(tokenizer)
    assert "  " not in control_tokens(tokenizer)
