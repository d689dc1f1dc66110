"""Mined negatives in a world of numbered passages, against rules written out by hand."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from PIL import Image

from hash_encoder import HashEncoder
from hf_ravlm import InvalidInputError, UnsafeInputError
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.training.batches.leakage import differing_bits, holds_answer, image_hash
from hf_ravlm.training.negatives.hard_negatives import NegativeRules, mine_hard_negatives
from tiny import picture


BIRDS = ["robin", "wren", "owl", "kite"]
SECTIONS = ["looks", "sings", "nests"]
LOOSE = NegativeRules(positive_ratio=None)


def smooth(seed):
    """A picture with large spots, as photographs have and noise has not."""
    return picture(seed, (6, 4)).resize((96, 64), Image.Resampling.BICUBIC)


class MixedEncoder(HashEncoder):
    """Reads texts; a picture alone stands for its own number."""

    def encode_queries(self, images, texts):
        texts = [None] * len(images) if texts is None else texts
        images = [None] * len(texts) if images is None else images
        return np.stack([self._vector(t or f"pictures {i.getpixel((0, 0))}") for i, t in zip(images, texts)])

    def encode_passages(self, texts, images):
        return self.encode_queries(images, texts)


@pytest.fixture
def retriever():
    rows = [
        {"id": f"{bird}-{section}", "text": f"{bird} {section} so and so", "title": bird}
        for bird in BIRDS
        for section in SECTIONS
    ]
    rows += [{"id": f"photo-{n}", "image": smooth(n), "title": BIRDS[n]} for n in range(4)]
    rows += [
        {"id": "copy", "text": "robin sings so and so"},
        {"id": "both", "text": "owl and wren", "image": smooth(9)},
    ]
    return RavlmRetriever.build(KnowledgeBase.from_dicts(rows), MixedEncoder())


def asked(**more):
    return {"question": "robin sings how ?", "gold_ids": ["robin-sings"], **more}


def test_every_kind_finds_its_own_and_never_the_gold_or_its_copy(retriever):
    for kind in ("nearest", "lexical", "same_entity", "other_modality"):
        (found,) = mine_hard_negatives(retriever, [asked()], 3, kinds=[kind], rules=LOOSE)
        own = [passage_id for passage_id, how in zip(found.ids, found.kinds) if how == kind]
        assert own
        assert not {"robin-sings", "copy"} & set(found.ids)
        passages = [retriever.knowledge_base[passage_id] for passage_id in own]
        if kind == "same_entity":
            assert sorted(own) == ["photo-0", "robin-looks", "robin-nests"]
        if kind == "other_modality":
            assert all(passage.image_bytes for passage in passages)
        if kind == "lexical":
            told = [f"{passage.title} {passage.text}" for passage in passages]
            assert all("robin" in text or "sings" in text for text in told)
        if kind == "nearest":
            query = retriever.encoder.encode_queries(None, [asked()["question"]])[0]
            order = [retriever.knowledge_base.ids[row] for row in np.argsort(-(retriever.vectors @ query))]
            assert own == [name for name in order if name not in ("robin-sings", "copy")][:3]


def test_kinds_take_turns_and_random_passages_fill_up(retriever):
    (found,) = mine_hard_negatives(retriever, [asked()], 12, kinds=["same_entity", "lexical"], rules=LOOSE)
    assert found.kinds[:4] == ["same_entity", "lexical", "same_entity", "lexical"]
    assert found.kinds[-1] == "random"
    assert len(set(found.ids)) == 12


def test_rules_strike_out_what_may_be_right(retriever):
    rows = [asked(answers=["looks"], exclude_ids=["robin-nests"])]
    (found,) = mine_hard_negatives(retriever, rows, 20, kinds=["nearest"], rules=LOOSE)
    assert not any("looks" in name for name in found.ids)
    assert "robin-nests" not in found.ids
    query = retriever.encoder.encode_queries(None, [asked()["question"]])[0]
    score = dict(zip(retriever.knowledge_base.ids, retriever.vectors @ query))
    for rules in (NegativeRules(positive_ratio=0.5), NegativeRules(positive_ratio=None, positive_margin=0.3)):
        (found,) = mine_hard_negatives(retriever, [asked()], 30, kinds=["nearest"], rules=rules)
        limit = 0.5 * score["robin-sings"] if rules.positive_ratio else score["robin-sings"] - 0.3
        wanted = {name for name, value in score.items() if value <= limit} - {"robin-sings", "copy"}
        assert set(found.ids) == wanted
        np.testing.assert_allclose(found.scores, [score[name] for name in found.ids], rtol=1e-5)


def test_a_near_copy_of_the_query_picture_is_no_negative(retriever):
    rows = [
        {"image": smooth(2).resize((48, 32)), "gold_ids": ["owl-looks"]},
        {"image": smooth(50), "gold_ids": ["owl-looks"]},
    ]
    mined = mine_hard_negatives(retriever, rows, 30, kinds=["other_modality"], rules=LOOSE)
    assert "photo-2" not in mined[0].ids
    assert "photo-2" in mined[1].ids


def test_the_cache_resumes_and_knows_other_rows_and_other_settings(retriever, tmp_path):
    rows = [
        asked(),
        {"question": "owl looks ?", "gold_ids": ["owl-looks"]},
        {"question": "kite ?", "gold_ids": ["both"]},
    ]
    fresh = mine_hard_negatives(retriever, rows, 5, batch_size=1)
    assert mine_hard_negatives(retriever, rows, 5, batch_size=1, cache=tmp_path) == fresh
    files = sorted(tmp_path.rglob("*.json"))
    assert len(files) == 3
    files[0].unlink()  # never finished
    files[1].write_text('[["torn')
    files[2].write_text(json.dumps([[["owl-looks"], ["marked"], [0.0]]]))
    again = mine_hard_negatives(retriever, rows, 5, batch_size=1, cache=tmp_path)
    assert again[:2] == fresh[:2]
    assert again[2].kinds == ["marked"]  # read, not mined
    other = [*rows[:2], {**rows[2], "answers": ["nests"]}]
    assert mine_hard_negatives(retriever, other, 5, batch_size=1, cache=tmp_path)[2].kinds != ["marked"]
    assert mine_hard_negatives(retriever, rows, 4, batch_size=1, cache=tmp_path)[2].kinds != ["marked"]


def test_processes_share_the_work_through_files(retriever, tmp_path):
    rows = [asked(), {"question": "owl looks ?", "gold_ids": ["owl-looks"]}] * 3
    results = {}

    def mine(rank):
        results[rank] = mine_hard_negatives(retriever, rows, 4, batch_size=2, cache=tmp_path, process=(rank, 2))

    threads = [threading.Thread(target=mine, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert results[0] == results[1] == mine_hard_negatives(retriever, rows, 4, batch_size=2)


def test_wrong_input_is_refused(retriever):
    with pytest.raises(InvalidInputError, match="'eagle' \\(row 1\\)"):
        mine_hard_negatives(retriever, [asked(), asked(gold_ids=["eagle"])], 3)
    with pytest.raises(InvalidInputError, match="row 'q9'|'q9'.*gold_ids"):
        mine_hard_negatives(retriever, [{"question": "owl ?", "id": "q9"}], 3)
    with pytest.raises(InvalidInputError, match="kinds"):
        mine_hard_negatives(retriever, [asked()], 3, kinds=["bm42"])
    with pytest.raises(InvalidInputError, match="entity"):
        mine_hard_negatives(retriever, [asked()], 3, entity="colour")
    with pytest.raises(InvalidInputError, match="cache"):
        mine_hard_negatives(retriever, [asked()], 3, process=(0, 2))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"gold_ids": ["eagle"]}, r"'eagle' \(row 4\)"),
        ({"gold_ids": []}, "row 4"),
        ({"image": b"no picture"}, "image of row 4"),
    ],
)
def test_a_wrong_row_is_named_by_its_place_among_all(fault, error, retriever):
    rows = [asked() for _ in range(4)] + [asked(**fault)]
    with pytest.raises((InvalidInputError, UnsafeInputError), match=error):
        mine_hard_negatives(retriever, rows, 1, batch_size=3)


def test_answers_are_found_as_words_and_pictures_by_their_look():
    assert holds_answer("It is the U.S. dollar", ["us dollar"])
    assert not holds_answer("Norwegian", ["Norway", "wegian"])
    assert not holds_answer("", ["Oslo"])
    assert not holds_answer("Oslo", ["", "the"])
    same, other = smooth(1), smooth(2)
    assert differing_bits(image_hash(same), image_hash(same.resize((300, 200)))) <= 24
    assert differing_bits(image_hash(same), image_hash(other)) > 100
