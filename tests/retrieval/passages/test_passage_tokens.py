"""Token ids of passages: those that the tokenizer would give now, or an error."""

from __future__ import annotations

import numpy as np
import pytest

from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError, KnowledgeBaseMismatchError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.passages.passage_states import PassageStates
from hf_ravlm.retrieval.passages.passage_tokens import PassageTokens


def letters(texts: list[str]) -> list[list[int]]:
    return [[1, *(ord(letter) for letter in text), 2] for text in texts]


def knowledge_base(num_passages: int = 2_500) -> KnowledgeBase:
    rng = np.random.default_rng(0)
    return KnowledgeBase.from_dicts(
        {"id": row, "text": "x" + "".join(rng.choice(list("abcdef "), rng.integers(0, 20)))}
        for row in range(num_passages)
    )


@pytest.mark.parametrize("on_disk", [False, True])
def test_ids_are_those_of_tokenising_the_passage_itself(tmp_path, on_disk):
    passages = knowledge_base()
    path = tmp_path / "tokens" if on_disk else None
    tokens = PassageTokens.build(passages, letters, "letters", path=path)
    assert len(tokens) == len(passages)
    rows = np.array([[0, 999, 1000], [2499, -1, 17]])
    ids, mask = tokens.gather(rows)
    assert ids.dtype == np.int64
    for place in np.ndindex(rows.shape):
        wanted = letters([passages[int(rows[place])].text])[0] if rows[place] >= 0 else []
        assert ids[place][mask[place]].tolist() == wanted
        assert (ids[place][~mask[place]] == 0).all()


def test_a_passage_without_text_is_an_empty_text():
    from PIL import Image

    passages = KnowledgeBase.from_dicts([{"id": 1, "image": Image.new("RGB", (2, 2))}, {"id": 2, "text": "a"}])
    ids, mask = PassageTokens.build(passages, letters, "letters", pad_token_id=9).gather([[0, 1]])
    assert ids.tolist() == [[[1, 2, 9], [1, 97, 2]]]
    assert mask.tolist() == [[[True, True, False], [True, True, True]]]


def test_saving_keeps_all(tmp_path):
    passages = knowledge_base(20)
    built = PassageTokens.build(passages, letters, "letters", pad_token_id=5)
    built.write(tmp_path / "tokens")
    opened = PassageTokens.open(tmp_path / "tokens", "letters")
    rows = np.arange(20).reshape(4, 5)
    for was, now in zip(built.gather(rows), opened.gather(rows)):
        assert np.array_equal(was, now)
    assert len(PassageTokens.build(KnowledgeBase(), letters, "letters", path=tmp_path / "none")) == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_knowledge_base_that_grew_is_tokenised_where_it_is_new(tmp_path, on_disk):
    passages, texts = knowledge_base(1_200), []

    def recorded(batch):
        texts.extend(batch)
        return letters(batch)

    path = tmp_path / "tokens" if on_disk else None
    first = PassageTokens.build(KnowledgeBase(passages.table.slice(0, 1_100)), letters, "letters", path=path)
    grown = PassageTokens.build(passages, recorded, "letters", path=path, earlier=first)
    rows = np.arange(1_200)[None]
    for was, now in zip(PassageTokens.build(passages, letters, "letters").gather(rows), grown.gather(rows)):
        assert np.array_equal(was, now)
    assert texts == passages.table["text"].to_pylist()[1_100:]
    with pytest.raises(KnowledgeBaseMismatchError):
        PassageTokens.build(passages, letters, "other", earlier=first)
    with pytest.raises(InvalidInputError, match="1200 passages came with 3"):
        PassageTokens.build(knowledge_base(3), letters, "letters", earlier=grown)


def test_ids_are_kept_beside_the_passages_in_a_store(tmp_path):
    from hf_ravlm.retrieval import RavlmRetriever
    from hf_ravlm.retrieval.store.derived_files import attach_derived, derived_files
    from hf_ravlm.retrieval.store.storage import NewFile, read_generation, verify_file

    class Encoder:
        name, fingerprint = "letters", "0" * 64

        def encode_queries(self, images, texts):
            return np.array([[1 + text.count("a"), 1 + text.count("b")] for text in texts], np.float32)

        def encode_passages(self, texts, images):
            return self.encode_queries(images, texts)

    passages = knowledge_base(30)
    RavlmRetriever.build(passages, Encoder()).save_pretrained(tmp_path)
    store = tmp_path / "knowledge_base"
    tokens = PassageTokens.build(passages, letters, "letters")
    passage_files = read_generation(store).files_of("passages")
    attach_derived(store, NewFile("tokens", "safetensors", len(tokens), tokens.write), made_from=passage_files)
    (stored,) = derived_files(read_generation(store), "tokens")
    verify_file(stored.file)
    opened = PassageTokens.open(stored.file.path, "letters")
    assert np.array_equal(opened.gather([[3, 29]])[0], tokens.gather([[3, 29]])[0])


def test_another_tokenizer_is_refused(tmp_path):
    tokens = PassageTokens.build(knowledge_base(3), letters, "a" * 64, path=tmp_path / "tokens")
    tokens.check_fingerprint("a" * 64)
    with pytest.raises(KnowledgeBaseMismatchError, match="fingerprint bbbbbbbbbbbb"):
        tokens.check_fingerprint("b" * 64)
    with pytest.raises(KnowledgeBaseMismatchError, match="Build them again"):
        PassageTokens.open(tmp_path / "tokens", "b" * 64)


def test_states_are_not_taken_for_tokens(tmp_path):
    import torch

    states = PassageStates.build(knowledge_base(3), lambda texts, images: [torch.ones(2, 4)] * len(texts), "f")
    states.write(tmp_path / "states")
    with pytest.raises(KnowledgeBaseCorruptError, match="holds 'states'"):
        PassageTokens.open(tmp_path / "states", "f")
    with pytest.raises(FileNotFoundError):
        PassageTokens.open(tmp_path / "missing", "f")


@pytest.mark.parametrize(
    ("encode", "fault"),
    [
        (lambda texts: letters(texts)[1:], "2 lists of ids for 3 texts"),
        (lambda texts: [[-1]] * len(texts), "token id -1"),
        (lambda texts: [[2**31]] * len(texts), "32 bits"),
    ],
)
def test_an_encoder_that_errs_is_told_so(encode, fault):
    with pytest.raises(InvalidInputError, match=fault):
        PassageTokens.build(knowledge_base(3), encode, "f")
