"""Arguments that a retriever does not take: refused, and Milvus with how it is done."""

from __future__ import annotations

import pytest

from hash_encoder import HashEncoder, built
from hf_ravlm import InvalidInputError, KnowledgeBase, RavlmRetriever


ROWS = [{"id": "a", "text": "a small bird"}]


@pytest.mark.parametrize("given", [{"backend": "milvus"}, {"index": "milvus"}, {"milvus_uri": "http://localhost"}])
def test_milvus_is_told_where_it_is_asked_for(given):
    with pytest.raises(InvalidInputError, match=r"MilvusRetriever\.build\(knowledge_base, encoder, uri=..., coll"):
        RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), HashEncoder(), **given)


def test_what_opening_does_not_take_is_refused(tmp_path):
    built(ROWS, HashEncoder()).save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"from_pretrained takes no backend='milvus'\. Passages in Milvus"):
        RavlmRetriever.from_pretrained(tmp_path, HashEncoder(), backend="milvus")
    with pytest.raises(InvalidInputError, match="from_pretrained takes no revison='main'. Check its spelling"):
        RavlmRetriever.from_pretrained(tmp_path, HashEncoder(), revison="main")
    assert len(RavlmRetriever.from_pretrained(tmp_path, HashEncoder(), revision="main")) == 1
