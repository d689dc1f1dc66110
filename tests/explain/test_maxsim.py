"""The parts of a score add up to the score that the retriever reports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ravlm import InvalidInputError
from hf_ravlm.explain.maxsim import cosine_match, maxsim_match
from hf_ravlm.retrieval import RavlmEncoder
from hf_ravlm.retrieval.ranking.late_interaction import maxsim
from tiny import picture, tiny_model, tiny_processor


@pytest.mark.parametrize(
    ("query", "passage"),
    [
        ({"image": picture(0), "text": "what is this ?"}, {"passage_text": "red white"}),
        ({"image": picture(0)}, {"passage_image": picture(1)}),
        ({"text": "what is this ?"}, {"passage_text": "Oslo", "passage_image": picture(1)}),
    ],
)
def test_contributions_add_up_to_the_cosine(query, passage):
    model, processor = tiny_model(pooling_grid=2).model, tiny_processor()
    model.modality_log_weight.data = torch.tensor([0.3, -0.5])
    model.train()
    found = cosine_match(model, processor, **query, **passage)
    assert model.training
    encoder = RavlmEncoder(model, processor)
    asked = encoder.encode_queries([query.get("image")], [query.get("text")])
    known = encoder.encode_passages([passage.get("passage_text")], [passage.get("passage_image")])
    np.testing.assert_allclose(found.matches.sum(), (asked @ known.T).item(), atol=1e-5)
    assert found.score == pytest.approx(found.matches.sum())
    assert found.matches.shape == (len(found.query_parts), len(found.passage_parts))


def test_parts_are_named_by_what_they_are():
    model, processor = tiny_model(pooling_grid=2).model, tiny_processor()
    found = cosine_match(model, processor, image=picture(0), text="what is", passage_text="Oslo red")
    assert found.query_parts[:4] == ["[1,1]", "[1,2]", "[2,1]", "[2,2]"]
    assert "".join(found.query_parts[4:]) == "whatis"
    assert "".join(found.passage_parts) == "Oslored"
    assert list(found.shares) == ["image/words", "words/words"]
    assert sum(found.shares.values()) == pytest.approx(found.score, abs=1e-6)


def test_maxsim_is_that_of_the_reranker():
    random = np.random.default_rng(0)
    query, passage = random.normal(size=(5, 8)), random.normal(size=(7, 8))
    found = maxsim_match(query, passage)
    tensors = torch.tensor(query).float()[None], torch.tensor(passage).float()[None, None]
    assert found.score == pytest.approx(maxsim(*tensors).item(), abs=1e-5)
    assert found.matches[np.arange(5), found.best].sum() == pytest.approx(found.score, abs=1e-5)


def test_what_does_not_fit_is_told():
    with pytest.raises(InvalidInputError, match=r"expected \(Q, D\)"):
        maxsim_match(np.eye(2), np.eye(3))
    with pytest.raises(InvalidInputError, match="1 labels came for 2 tokens"):
        maxsim_match(np.eye(2), np.eye(2), ["one"])
