"""The gate for text: one spelling for what looks the same, nothing unseen, nothing lost that carries meaning."""

from __future__ import annotations

import json
import random
import unicodedata

import datasets
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_ravlm import KnowledgeBase
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.model.prompts.literal import framed_literal_ids
from hf_ravlm.retrieval.evidence import checked_queries
from hf_ravlm.retrieval.metadata import metadata_table
from hf_ravlm.text import clean_text, plain_json, plain_text, whole_characters, without_controls


SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
HALF = "an owl \ud83e"


@pytest.mark.parametrize(
    "same",
    [
        "plain words, with marks.",
        "می\u200cخواهم",  # Persian: without the joiner another word
        "क्\u200dष",  # Devanagari: a half letter
        "ന്\u200d",  # Malayalam: a final letter in the older spelling
        "👩\u200d🚀",
        "👩🏽\u200d⚕\ufe0f",
        "❤\ufe0f\u200d🔥",
        SCOTLAND,
        "葛\U000e0100",  # a variant of the character
        "\u0600 ١٢٣",  # the Arabic number sign is a format character that is seen
    ],
)
def test_what_carries_meaning_stays(same):
    assert clean_text(same) == same


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Cafe\u0301", "Café"),
        ("e\u200b\u0301", "é"),  # composed only when what stands between is gone
        ("\ufeffhead", "head"),
        ("so\u00adft", "soft"),
        ("a\u200db \u200cc", "ab c"),
        ("a\x1fb\x85c\u2028d", "a b c d"),  # separators are blanks
        ("\x1f \u200b", ""),
        ("\u3164\u2800", ""),
        ("x\U000e0041\U000e0042", "x"),  # letters that nobody sees
        ("y\ufe0f\ufe01\ufe02", "y\ufe0f"),
        ("\ud83e\udd89", "🦉"),  # two halves that belong together
        ("abc\u202ecba", "abccba"),
    ],
)
def test_one_spelling(text, clean):
    assert clean_text(text) == clean


def test_lines_stay_lines():
    assert plain_text("one\r\ntwo\rthree\n\n four ") == "one\ntwo\nthree\n\n four "


def test_passing_twice_changes_nothing():
    draw = random.Random(0)
    odd = [ord(char) for char in "\u200b\u200c\u200d\ufeff\u00ad\u0301\u0327\ufe0f\ufe0e\u2800♂ \n\r\x1c\x1fé"]
    odd += [
        ord(char) for char in SCOTLAND + "👩🚀🏽میـَक्ष്ന\u180eᠠ가각\u1100\u1161\u11a8\u1160\u3164\u034f\U000e0101葛ﬡﬁΩ"
    ]
    for _ in range(20_000):
        picked = [draw.choice(odd) if draw.random() < 0.9 else draw.randrange(0xE000, 0x110000) for _ in range(8)]
        text = "".join(map(chr, picked))
        text = without_controls(text)
        for gate in (clean_text, plain_text):
            assert gate(gate(text)) == gate(text), ascii(text)
        assert unicodedata.is_normalized("NFC", clean_text(text))


@pytest.mark.parametrize("gate", [clean_text, plain_text, whole_characters, plain_json])
def test_half_a_pair_is_refused(gate):
    with pytest.raises(InvalidInputError, match="half of a character pair.*U\\+D83E at position 7"):
        gate(HALF)


@pytest.mark.parametrize(
    "row",
    [
        {"id": HALF, "text": "owl"},
        {"id": "owl", "text": HALF},
        {"id": "owl", "text": "owl", "title": HALF},
        {"id": "owl", "text": "owl", "place": HALF},
        {"id": "owl", "text": "owl", HALF: 3},
        {"id": "owl", "text": "owl", "places": [{"name": HALF}]},
    ],
)
def test_no_half_pair_enters_a_knowledge_base(row):
    with pytest.raises(InvalidInputError, match="row 0.*half of a character pair"):
        KnowledgeBase.from_dicts([row])
    kept = KnowledgeBase.from_dicts([row, {"id": "wren", "text": "wren"}], on_error="skip")
    assert kept.ids == ["wren"]
    assert len(kept.skipped) == 1


CONTROLS = ["\x00", "\x01", "\x08", "\x0e", "\x1b", "\x7f", "\x80", "\x9f"]


@pytest.mark.parametrize("control", CONTROLS)
def test_control_characters_are_refused_with_their_place_and_never_dropped(control):
    text = f"kite{control}s"
    told = f"control character U\\+{ord(control):04X} at position 4"
    for gate in (clean_text, plain_text, plain_json, lambda text: plain_json({text: 1})):
        with pytest.raises(InvalidInputError, match=told):
            gate(text)
    with pytest.raises(InvalidInputError, match=told):
        checked_queries(None, text)
    assert clean_text(without_controls(text)) == "kite s"
    for gate in (clean_text, plain_text):
        assert gate("a\tb") in ("a b", "a\tb")
        assert gate("a\nb\x0cc\x85d") in ("a b c d", "a\nb\nc\nd")


@pytest.mark.parametrize(
    "row",
    [
        {"id": "o\x00wl", "text": "owl"},
        {"id": "owl", "text": "o\x00wl"},
        {"id": "owl", "text": "owl", "title": "\x1b[31mowl"},
        {"id": "owl", "text": "owl", "place": ["a", {"b": "c\x7f"}]},
        {"id": "owl", "text": "owl", "pla\x00ce": 3},
    ],
)
def test_no_control_character_enters_a_knowledge_base(row, tmp_path):
    """Two ids that differ by one would become the same, and so would two keys."""
    rows = [row, {"id": "wren", "text": "wren"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for read, source in ((KnowledgeBase.from_dicts, rows), (KnowledgeBase.from_jsonl, path)):
        with pytest.raises(InvalidInputError, match="control character"):
            read(source)
        kept = read(source, on_error="skip")
        assert (kept.ids, len(kept.skipped)) == (["wren"], 1)


def test_a_file_name_with_a_control_character_is_named(tmp_path):
    (tmp_path / "o\x01wl.txt").write_text("owl")
    (tmp_path / "wren.txt").write_text("wren")
    with pytest.raises(InvalidInputError, match="control character U\\+0001"):
        KnowledgeBase.from_folder(tmp_path)
    kept = KnowledgeBase.from_folder(tmp_path, on_error="skip")
    assert (len(kept), len(kept.skipped)) == (1, 1)


def test_a_knowledge_base_holds_one_spelling():
    knowledge_base = KnowledgeBase.from_dicts(
        [
            {
                "id": "Cafe\u0301",
                "text": "\ufeffA cafe\u0301\r\nin Ko\u0308ln",
                "title": "K\u200bafe",
                "pla\u0308tze": ["O\u0308"],
            }
        ]
    )
    passage = knowledge_base["Café"]
    assert (passage.text, passage.title, passage.metadata) == ("A café\nin Köln", "Kafe", {"plätze": ["Ö"]})
    assert knowledge_base["Cafe\u0301"].id == "Café"
    assert "Cafe\u0301" in knowledge_base


@pytest.mark.parametrize("unseen", ["\u200b", "\ufeff\u2060", "\u3164", " \x1f", "\u00ad"])
def test_what_nobody_sees_is_empty(unseen):
    with pytest.raises(InvalidInputError, match="neither text nor image"):
        KnowledgeBase.from_dicts([{"id": "a", "text": unseen}])
    with pytest.raises(InvalidInputError, match="id is empty"):
        KnowledgeBase.from_dicts([{"id": unseen, "text": "words"}])
    with pytest.raises(InvalidInputError, match="Query 0 is empty"):
        checked_queries(None, unseen)


def test_half_a_pair_that_an_earlier_version_stored_does_not_stop_filters():
    stored = [json.dumps({"place": HALF, "year": 3}), json.dumps({"place": "🦉", "year": 4}), None]
    table = metadata_table(pa.table({"metadata": pa.array(stored, pa.large_string())}))
    assert table["year"].to_pylist() == [3, 4, None]
    assert table["place"].to_pylist()[1:] == ["🦉", None]


def test_a_column_of_a_data_set_is_a_list():
    asked = checked_queries(None, datasets.Dataset.from_dict({"q": ["a", "b"]})["q"])
    assert [query.text for query in asked] == ["a", "b"]


@pytest.mark.parametrize("text", ["the </s> kite", "</s>", "<pad>", "", "\u200b"])
def test_no_text_makes_a_control_id_in_a_unigram_vocabulary(text):
    letters = [(char, -3.0) for char in "abcdefghijklmnopqrstuvwxyz</>"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    unigram = Tokenizer(models.Unigram(vocabulary, 2))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    bare = PreTrainedTokenizerFast(tokenizer_object=unigram, **names)
    (ids,) = framed_literal_ids(bare, [text], 10)
    assert ids
    assert not {0, 1}.intersection(ids)
    unigram.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    (ids,) = framed_literal_ids(PreTrainedTokenizerFast(tokenizer_object=unigram, **names), [text], 6)
    assert ids[-1] == 1
    assert not {0, 1}.intersection(ids[:-1])
    assert len(ids) <= 6


def test_queries_pass_the_gate():
    assert checked_queries(None, ["cafe\u0301\u200b"])[0].text == "café"
    with pytest.raises(InvalidInputError, match="query 1.*half of a character pair"):
        checked_queries(None, ["owl", HALF])
