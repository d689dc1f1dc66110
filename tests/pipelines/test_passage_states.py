"""States of passages: what the encoder gave, rounded to bfloat16, whatever the order in which it saw them."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from hf_ravlm.errors import InvalidInputError, KnowledgeBaseMismatchError, UnsafeInputError
from hf_ravlm.pipelines.passage_states import PassageStates
from hf_ravlm.retrieval import KnowledgeBase


def states_of(text: str | None, image: Image.Image | None = None) -> torch.Tensor:
    seed = sum(map(ord, text or "")) + (0 if image is None else image.width)
    return torch.randn(1 + len(text or ""), 6, generator=torch.Generator().manual_seed(seed))


def encode_states(texts, images):
    return [states_of(text, image) for text, image in zip(texts, images)]


def knowledge_base(num_passages: int = 70) -> KnowledgeBase:
    rows = [{"id": row, "text": "abcdefghij"[: 1 + row * 7 % 10]} for row in range(num_passages)]
    return KnowledgeBase.from_dicts([*rows, {"id": "picture", "image": Image.new("RGB", (5, 5))}])


@pytest.mark.parametrize("on_disk", [False, True])
def test_states_are_those_of_the_passage(tmp_path, on_disk):
    passages = knowledge_base()
    path = tmp_path / "states" if on_disk else None
    stored = PassageStates.build(passages, encode_states, "f", batch_size=3, path=path)  # two windows of 48
    assert len(stored) == 71
    for row, passage in enumerate(passages):
        states, mask = stored.gather([[row]])
        assert torch.equal(states[0, 0], states_of(passage.text, passage.image).bfloat16())
        assert mask.all()


def test_gather_pads_with_zeros():
    states, mask = PassageStates.build(knowledge_base(), encode_states, "f").gather([[0, 1], [-1, 70]])
    assert states.shape == (2, 2, 9, 6)
    assert states.dtype == torch.bfloat16
    assert mask.sum(-1).tolist() == [[2, 9], [0, 1]]
    assert not states[~mask].any()
    assert torch.equal(states[0, 1], states_of("abcdefgh").bfloat16())


def test_a_knowledge_base_that_grew_is_encoded_where_it_is_new():
    passages = knowledge_base()
    first = PassageStates.build(KnowledgeBase(passages.table.slice(0, 50)), encode_states, "f")
    calls = []

    def recorded(texts, images):
        calls.extend(texts)
        return encode_states(texts, images)

    grown = PassageStates.build(passages, recorded, "f", earlier=first)
    for was, now in zip(
        PassageStates.build(passages, encode_states, "f").gather([range(71)]), grown.gather([range(71)])
    ):
        assert torch.equal(was, now)
    assert len(calls) == 21
    with pytest.raises(KnowledgeBaseMismatchError):
        PassageStates.build(passages, encode_states, "g", earlier=first)


def test_texts_of_similar_length_are_encoded_together():
    batches = []

    def recorded(texts, images):
        batches.append([len(text or "") for text in texts])
        return encode_states(texts, images)

    PassageStates.build(knowledge_base(31), recorded, "f", batch_size=4)
    lengths = [length for batch in batches for length in batch]
    assert max(map(len, batches)) == 4
    assert lengths == sorted(lengths, reverse=True)


def test_saving_keeps_all_and_another_encoder_is_refused(tmp_path):
    built = PassageStates.build(knowledge_base(), encode_states, "a" * 64)
    built.write(tmp_path / "states")
    opened = PassageStates.open(tmp_path / "states", "a" * 64)
    for was, now in zip(built.gather([[0, 9, 70]]), opened.gather([[0, 9, 70]])):
        assert torch.equal(was, now)
    with pytest.raises(KnowledgeBaseMismatchError, match="another encoder"):
        PassageStates.open(tmp_path / "states", "b" * 64)
    assert len(PassageStates.build(KnowledgeBase(), encode_states, "f", path=tmp_path / "none")) == 0


@pytest.mark.parametrize(
    ("bad", "error", "fault"),
    [
        (torch.full((2, 6), float("nan")), UnsafeInputError, "passage '[0-9]+' are NaN or infinite"),
        (torch.full((2, 6), 1e39, dtype=torch.float64), UnsafeInputError, "NaN or infinite"),
        (torch.zeros(6), InvalidInputError, "shape \\(tokens, channels\\)"),
        (torch.zeros(2, 6, dtype=torch.int64), InvalidInputError, "floating-point"),
    ],
)
def test_states_that_cannot_be_used_are_refused(bad, error, fault):
    with pytest.raises(error, match=fault):
        PassageStates.build(knowledge_base(3), lambda texts, images: [bad] * len(texts), "f")


def test_a_wrong_number_or_width_is_refused():
    with pytest.raises(InvalidInputError, match="3 tensors for 4 passages"):
        PassageStates.build(knowledge_base(3), lambda texts, images: [torch.zeros(1, 2)] * 3, "f")
    widths = iter([2, 3])
    with pytest.raises(InvalidInputError, match=r"widths \[2, 3\]"):
        PassageStates.build(
            knowledge_base(1), lambda texts, images: [torch.zeros(1, next(widths)) for _ in texts], "f"
        )
