"""Tokens of the language model on states of the text encoder, by the characters that both stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_ravlm import RavlmForConditionalGeneration, RavlmProcessor
from hf_ravlm.model.prompts.alignment import aligned_tokens
from hf_ravlm.model.prompts.literal import framed_literal_ids
from hf_ravlm.model.reader.inputs import passage_tokens, split_inputs
from tiny import picture, tiny_config, tiny_processor, tiny_tokenizer


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Another vocabulary: whole words in lower case, between marks, as BERT has it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "capital", "of", "norway", "is", "oslo", "red", "white", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks)


def covered(text: str, max_text_length: int = 64, max_length: int = 64, lower: bool = False) -> list[tuple[str, str]]:
    """Every token of the language model, with the word whose state it stands on."""
    ours, theirs = tiny_tokenizer(), word_tokenizer()
    ((ids, places),) = aligned_tokens(ours, theirs, [text], max_text_length, max_length, lower)
    framed = theirs.convert_ids_to_tokens(framed_literal_ids(theirs, [text], max_text_length)[0])
    return [(ours.decode([id]), framed[place]) for id, place in zip(ids, places, strict=True)]


def test_every_token_stands_on_the_word_that_it_begins_in():
    found, text = covered("Oslo is Norway"), ""
    for token, word in found:
        begins = len(text) + len(token) - len(token.lstrip())  # a token may bring the blank before its word
        text += token
        assert word == ("oslo" if begins < 4 else "is" if begins < 7 else "norway")
    assert text == "Oslo is Norway"


def test_spelling_is_kept_where_the_encoder_knows_no_word():
    """What it has dropped stands on the word before."""
    for lower in (False, True):
        found = covered("Oslo N'Djamena 1905", lower=lower)
        assert "".join(token for token, _ in found) == "Oslo N'Djamena 1905"
        assert {word for _, word in found} == {"oslo"}


def test_what_the_encoder_does_not_read_has_no_token():
    assert "".join(token for token, _ in covered("red white Oslo", max_text_length=4)).strip() == "red white"
    assert len(covered("red white Oslo", max_length=2)) == 2


def test_control_words_stay_literal_and_in_their_place():
    found = covered("red </s> <image> white")
    assert "".join(token for token, _ in found) == "red </s> <image> white"
    assert found[-1][1] == "white"


def test_a_tokenizer_that_tells_no_places_is_spread_evenly():
    class Slow:
        """As tokenizers without a Rust part are: no offsets."""

        is_fast = False

        def __init__(self, fast):
            self.fast = fast

        def __getattr__(self, name):
            return getattr(self.fast, name)

        def __call__(self, texts, return_offsets_mapping=False, **options):
            assert not return_offsets_mapping
            return self.fast(texts, **options)

    ((ids, places),) = aligned_tokens(tiny_tokenizer(), Slow(word_tokenizer()), ["red white"], 64, 64, False)
    assert places == sorted(places)
    assert set(places) == {1, 2}


@pytest.mark.parametrize("fusion", ["concat", "product", "attention", "gated", "cross_attention"])
def test_a_reader_whose_encoder_has_another_vocabulary(tmp_path, fusion):
    config = tiny_config(fusion=fusion, text_config={**tiny_config().text_config.to_dict(), "vocab_size": 13})
    torch.manual_seed(0)
    model = RavlmForConditionalGeneration(config).eval()
    plain = tiny_processor(fusion=fusion)
    processor = RavlmProcessor(
        image_processor=plain.image_processor,
        tokenizer=plain.tokenizer,
        text_tokenizer=word_tokenizer(),
        fusion=fusion,
        num_memory_tokens=3,
        passage_images=True,
    )
    evidence = [[{"text": "the capital of Norway is Oslo", "image": picture(3)}, {"text": "red white"}]]
    inputs = processor(images=[picture(0)], text=["what ?"], evidence=evidence)
    with torch.no_grad():
        logits = model(**inputs).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = RavlmProcessor.from_pretrained(tmp_path)(images=[picture(0)], text=["what ?"], evidence=evidence)
    with torch.no_grad():
        loaded = RavlmForConditionalGeneration.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(**again).logits, logits)


def test_tokens_bring_the_embeddings_that_the_language_model_has_of_them():
    from hf_ravlm.model.reader.inputs import encode_inputs
    from tiny import tiny_model

    model, processor = tiny_model(fusion="concat"), tiny_processor(fusion="concat", passage_images=True)
    evidence = [["red white", {"text": "Oslo", "image": picture(1)}]]
    inputs = processor(images=[picture(0)], text=["what ?"], evidence=evidence)
    batch = encode_inputs(model, split_inputs(copy.copy(dict(inputs)))[0])
    tokens, embed = passage_tokens(model, batch), model.get_input_embeddings()
    ids = [processor.markers.passage, *processor.tokenizer("red white", add_special_tokens=False)["input_ids"]]
    torch.testing.assert_close(tokens["evidence_embeds"][0, 0, : len(ids)], embed(torch.tensor(ids)))
    assert tokens["evidence_token_mask"][0].sum(-1).tolist() == [
        len(ids),
        1 + 4 + len(processor.tokenizer("Oslo", add_special_tokens=False)["input_ids"]),
    ]
    assert not tokens["evidence_embeds"][0, 1, 1:5].any()  # the places of its image, whose states are not empty
    assert tokens["evidence_states"][0, 1, 1:5].any(-1).all()
