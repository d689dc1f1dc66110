"""Passages that were read once give the answers that passages read anew give; their file is mapped and checked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from hf_ravlm import InvalidInputError, KnowledgeBase, KnowledgeBaseMismatchError, Passage, UnsafeInputError
from hf_ravlm.errors import KnowledgeBaseCorruptError
from hf_ravlm.pipelines import EncodedKnowledge, answer_questions, encoded_knowledge
from hf_ravlm.retrieval import Evidence
from tiny import FUSIONS, picture, tiny_model, tiny_processor


ROWS = [
    {"id": "no", "text": "the capital of Norway is Oslo", "image": picture(3)},
    {"id": "td", "text": "of Chad"},
    {"id": "w", "text": "white or red", "image": picture(4)},
]
ASKED = {"images": [picture(0), picture(1)], "questions": ["what is the capital ?", "red ?"]}


def evidence_of(knowledge_base, *ids):
    fields = ("id", "text", "image_bytes")
    return [Evidence(**{name: getattr(knowledge_base[i], name) for name in fields}, score=0.5) for i in ids]


@pytest.mark.parametrize("fusion", [name for name in FUSIONS if name != "in_context"])
@pytest.mark.parametrize("passage_images", [False, True])
def test_answers_are_those_of_passages_read_anew(fusion, passage_images, tmp_path):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion, passage_images=passage_images)
    knowledge_base = KnowledgeBase.from_dicts(ROWS)
    EncodedKnowledge.build(model, processor, knowledge_base, tmp_path / "states.arrow", batch_size=2)
    encoded = EncodedKnowledge.open(model, processor, knowledge_base, tmp_path / "states.arrow")
    evidence = [evidence_of(knowledge_base, "w", "no"), evidence_of(knowledge_base, "td")]
    inputs = processor(images=ASKED["images"], text=ASKED["questions"], evidence=evidence)
    with torch.no_grad():
        anew = model(**inputs).logits[:, -1]
        encoded.replace_inputs(inputs, evidence)
        assert "evidence_input_ids" not in inputs
        kept = model(**inputs).logits[:, -1]
    torch.testing.assert_close(kept, anew, atol=2e-2, rtol=0)  # kept in bfloat16
    options = {"evidence": evidence, "max_new_tokens": 2, "do_sample": False}
    calls = []
    model.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    answers = answer_questions(model, processor, None, **ASKED, encoded_knowledge=encoded, **options)
    assert len(answers) == 2
    assert len(calls) == (2 if fusion in ("attention", "gated") else 0)  # questions, to answer and attribute


def test_another_reader_and_other_passages_are_refused(tmp_path):
    model, processor = tiny_model(fusion="product"), tiny_processor(fusion="product")
    knowledge_base = KnowledgeBase.from_dicts(ROWS)
    encoded = EncodedKnowledge.build(model, processor, knowledge_base, tmp_path / "states.arrow")
    other = tiny_model(seed=1, fusion="product")
    with pytest.raises(KnowledgeBaseMismatchError, match="made by another encoder"):
        EncodedKnowledge.open(other, processor, knowledge_base, tmp_path / "states.arrow")
    for rows in (ROWS[::-1], [{**row, "text": "red"} for row in ROWS]):
        with pytest.raises(KnowledgeBaseMismatchError):
            EncodedKnowledge.open(model, processor, KnowledgeBase.from_dicts(rows), tmp_path / "states.arrow")
    with pytest.raises(InvalidInputError, match="states of 3 passages came with a knowledge base of 1"):
        EncodedKnowledge(KnowledgeBase.from_dicts(ROWS[:1]), encoded.states)
    with pytest.raises(InvalidInputError, match="reads the words of passages"):
        EncodedKnowledge.build(tiny_model(), tiny_processor(), knowledge_base)
    strange = [[Evidence(id="x", text="red")]]
    inputs = processor(text=["red ?"], evidence=strange)
    with pytest.raises(InvalidInputError, match="'x' has no stored states"):
        encoded.replace_inputs(inputs, strange)


# --- The file, with an encoder that gives every letter random numbers of its own


def states_of(passage: Passage) -> torch.Tensor:
    seed = sum(map(ord, passage.text or "")) + (0 if passage.image is None else passage.image.width)
    return torch.randn(1 + len(passage.text or ""), 6, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def many() -> KnowledgeBase:
    """Texts of 1 to 10 letters, and one image without any."""
    rows = [{"id": row, "text": "abcdefghij"[: 1 + row * 7 % 10]} for row in range(70)]
    return KnowledgeBase.from_dicts([*rows, {"id": "picture", "image": picture(1)}])


@pytest.fixture
def system(monkeypatch):
    """A reader that counts what it reads, in place of a real one."""
    batches: list[list[int]] = []

    def encode(model, processor, passages):
        batches.append([len(passage.text or "") for passage in passages])
        return [states_of(passage) for passage in passages]

    monkeypatch.setattr(encoded_knowledge, "_encode", encode)
    monkeypatch.setattr(encoded_knowledge, "states_fingerprint", lambda *_: "f" * 64)
    model = SimpleNamespace(config=SimpleNamespace(fusion="gated"), training=False, eval=str, train=bool)
    return SimpleNamespace(parts=(model, None), batches=batches)


@pytest.mark.parametrize("on_disk", [False, True])
def test_states_are_those_of_the_passage_whatever_was_read_together(on_disk, many, system, tmp_path):
    path = tmp_path / "states" if on_disk else None
    encoded = EncodedKnowledge.build(*system.parts, many, path, batch_size=3)  # two windows of 48
    assert len(encoded.states) == 71
    assert encoded.states.num_chunks == 2
    for row, passage in enumerate(many):
        states, mask = encoded.gather([[row]])
        assert torch.equal(states[0, 0], states_of(passage))
        assert mask.all()
    first_window = [length for batch in system.batches[:16] for length in batch]
    assert max(map(len, system.batches)) == 3
    assert first_window == sorted(first_window, reverse=True)  # texts of similar length together
    assert [path.name for path in tmp_path.iterdir()] == ["states"] * on_disk


def test_gathered_states_are_padded_with_zeros(many, system):
    encoded = EncodedKnowledge.build(*system.parts, many)
    states, mask = encoded.gather([[0, 1], [-1, 70]])
    assert states.shape == (2, 2, 9, 6)
    assert states.dtype == torch.bfloat16
    assert mask.sum(-1).tolist() == [[2, 9], [0, 1]]
    assert not states[~mask].any()
    assert torch.equal(states[0, 1], states_of(many[1]))
    for rows in ([[-1, -1]], [[], []]):
        states, mask = encoded.gather(rows)
        assert states.shape == (len(rows), len(rows[0]), 1, 6)
        assert not mask.any()
    assert len(EncodedKnowledge.build(*system.parts, KnowledgeBase()).states) == 0


def test_opening_maps_the_file_instead_of_reading_it(many, system, tmp_path):
    EncodedKnowledge.build(*system.parts, many, tmp_path / "states")
    written = (tmp_path / "states").read_bytes()
    before = pa.total_allocated_bytes()
    opened = EncodedKnowledge.open(*system.parts, many, tmp_path / "states")
    assert pa.total_allocated_bytes() == before
    with pytest.raises(ValueError, match="read-only"):
        opened._tokens(0)[0] = 1
    EncodedKnowledge.build(*system.parts, many, tmp_path / "states")  # over the file that is mapped
    assert torch.equal(opened.gather([[5]])[0][0, 0], states_of(many[5]))
    assert (tmp_path / "states").read_bytes() == written  # the bytes depend on the content alone


def test_a_damaged_file_or_another_one_is_refused(many, system, tmp_path):
    path = tmp_path / "states"
    with pytest.raises(FileNotFoundError):
        EncodedKnowledge.open(*system.parts, many, path)
    EncodedKnowledge.build(*system.parts, many, path)
    whole = path.read_bytes()
    offsets = np.cumsum([0, *(len(states_of(passage)) for passage in many)]).tobytes()
    assert offsets in whole
    falling = whole.replace(offsets, offsets[:8] + (10**9).to_bytes(8, "little") + offsets[16:])
    another = pa.BufferOutputStream()
    with pa.ipc.new_file(another, pa.schema([("vectors", pa.float32())])):
        pass
    cut = (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], whole + b"\0")
    for damaged in (*cut, falling, another.getvalue().to_pybytes()):
        path.write_bytes(damaged)
        with pytest.raises(KnowledgeBaseCorruptError, match=r"states: the stored states cannot be read.*build them"):
            EncodedKnowledge.open(*system.parts, many, path)


def test_states_that_cannot_be_used_leave_no_file(tmp_path):
    model, processor = tiny_model(fusion="gated"), tiny_processor(fusion="gated")
    next(model.model.text_encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(UnsafeInputError, match="passage 'no' are NaN or infinite"):
        EncodedKnowledge.build(model, processor, KnowledgeBase.from_dicts(ROWS), tmp_path / "states")
    assert not list(tmp_path.iterdir())
