"""A knowledge base is encoded anew by another encoder: one commit, resumed after a kill, nobody's passages lost."""

from __future__ import annotations

import numpy as np
import pytest

from bird_world import ToyEncoder
from hf_ravlm.errors import KnowledgeBaseMismatchError
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.store.versions import read_version


ROWS = [{"id": str(number), "text": f"bird number {number} of {number % 7}"} for number in range(1200)]


@pytest.fixture
def base():
    return KnowledgeBase.from_dicts(ROWS)


class FailsOnce(ToyEncoder):
    """Breaks off after some texts, once; counts what it encodes."""

    def __init__(self, after):
        super().__init__(seed=1)
        self.after, self.encoded = after, 0

    def encode_passages(self, texts, images):
        if self.after is not None and self.encoded >= self.after:
            self.after = None
            raise OSError("the power went")
        self.encoded += len(texts)
        return super().encode_passages(texts, images)


@pytest.mark.parametrize("stored", [True, False])
def test_vectors_index_and_encoder_change_together(base, tmp_path, stored):
    old, new = ToyEncoder(seed=0), ToyEncoder(seed=1)
    retriever = RavlmRetriever.build(base, old)
    if stored:
        retriever.save_pretrained(tmp_path)
    retriever.remove(["3"])
    retriever.reencode(new)
    fresh = RavlmRetriever.build(retriever.knowledge_base, new)
    assert retriever.encoder is new
    assert "3" not in retriever.knowledge_base.ids
    np.testing.assert_allclose(retriever.vectors, fresh.vectors, atol=1e-6)
    asked = {"texts": "bird number 5 of 5", "k": 3}
    ids = [found.id for found in fresh.retrieve(**asked)[0]]
    assert [found.id for found in retriever.retrieve(**asked)[0]] == ids
    retriever.add([{"id": "new", "text": "an owl"}])
    if not stored:
        retriever.save_pretrained(tmp_path)
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=new)
    assert [found.id for found in again.retrieve(**asked)[0]] == ids
    assert len(again) == 1200
    with pytest.raises(KnowledgeBaseMismatchError):
        RavlmRetriever.from_pretrained(tmp_path, encoder=old)


def test_interrupted_it_leaves_what_was_there_and_goes_on(base, tmp_path):
    old = ToyEncoder(seed=0)
    RavlmRetriever.build(base, old).save_pretrained(tmp_path)
    retriever = RavlmRetriever.from_pretrained(tmp_path, encoder=old)
    before = read_version(tmp_path / "knowledge_base").sha256
    new = FailsOnce(after=600)
    with pytest.raises(OSError, match="the power went"):
        retriever.reencode(new, batch_size=4)
    assert read_version(tmp_path / "knowledge_base").sha256 == before
    assert retriever.retrieve(texts="bird", k=1)[0]
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=old)
    first = new.encoded
    again.reencode(new, batch_size=4)
    assert new.encoded - first < 1200
    assert len(RavlmRetriever.from_pretrained(tmp_path, encoder=new)) == 1200
    assert not list((tmp_path / "knowledge_base" / "staging").glob("*"))


def test_passages_that_came_meanwhile_are_kept(base, tmp_path):
    old = ToyEncoder(seed=0)
    RavlmRetriever.build(base, old).save_pretrained(tmp_path)
    retriever, other = (RavlmRetriever.from_pretrained(tmp_path, encoder=old) for _ in range(2))

    class Busy(ToyEncoder):
        added = False

        def encode_passages(self, texts, images):
            if not Busy.added:
                Busy.added = True
                other.add([{"id": "late", "text": "a late owl"}])
            return super().encode_passages(texts, images)

    retriever.reencode(Busy(seed=1))
    assert retriever.retrieve(texts="a late owl", k=1)[0][0].id == "late"
