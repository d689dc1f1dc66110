"""Encoders of every kind, by folder: each gives the vectors of its own documented use, or says why it cannot."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

from hf_ravlm import KnowledgeBase, RavlmRetriever, load_encoder
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval.encoding.encoders import MultiVectorEncoder, modalities_of
from tiny_encoders import (
    FAMILIES,
    IMAGES,
    TEXTS,
    own_vectors,
    save,
    save_late_interaction,
    save_sentence_transformer,
    saved_once,
)


PAGE = Path(__file__).parents[3] / "docs" / "encoders.md"
READS = {"dual": "images, texts, both", "image": "images", "text": "texts"}
# What cannot be one, by the type of its configuration, and words of the reason.
REFUSED = {
    "Qwen2-VL": ("qwen2_vl", "an image-text-to-text model"),
    "LLaVA": ("llava", "an image-text-to-text model"),
    "T5": ("t5", "has a decoder"),
    "X-CLIP": ("xclip", "reads videos"),
    "CLAP": ("clap", "reads sounds"),
    "BLIP-2": ("blip-2", "not in one space"),
    "CLIP, text half": ("clip_text_model", "text half of a dual encoder"),
    "DETR": ("detr", "no vectors of images or texts"),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return saved_once(tmp_path_factory.mktemp("encoders"))


@pytest.mark.parametrize("name", FAMILIES)
def test_vectors_are_those_of_the_models_own_use(folder_of, name):
    family, folder = FAMILIES[name], folder_of(name)
    own, encoder = own_vectors(family, folder), load_encoder(folder)
    assert encoder.reference is None
    assert encoder.folder_name == folder.name
    if "image" in own:
        np.testing.assert_allclose(encoder.encode_queries(IMAGES, None), own["image"], atol=1e-5)
        np.testing.assert_allclose(encoder.encode_passages([None] * 3, IMAGES), own["image"], atol=1e-5)
    if "text" in own:
        np.testing.assert_allclose(encoder.encode_queries(None, TEXTS), own["text"], atol=1e-5)
        assert (encoder.text_counts.texts, encoder.text_counts.cut) == (4, 1)
    expected = {"dual": ("text", "image"), "image": ("image",), "text": ("text",)}[family.kind]
    assert modalities_of(encoder) == expected
    assert encoder.fingerprint == load_encoder(folder).fingerprint


@pytest.mark.parametrize(("model_type", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_encodes_nothing_is_refused_in_one_line(tmp_path, model_type, reason):
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=reason) as caught:
        load_encoder(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_page_of_the_documents_lists_what_is_tested():
    lines = ["| model | kind | reads |", "|---|---|---|"]
    lines += [f"| {name} | `{family.kind}` | {READS[family.kind]} |" for name, family in FAMILIES.items()]
    lines += ["", "Refused:", "", "| model | why |", "|---|---|"]
    lines += [f"| {name} | {reason} |" for name, (_, reason) in REFUSED.items()]
    head = PAGE.read_text(encoding="utf-8").partition("<!-- table -->")[0]
    page = f"{head}<!-- table -->\n\n" + "\n".join(lines) + "\n"
    if os.environ.get("WRITE_DOCS"):
        PAGE.write_text(page, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page


@pytest.mark.parametrize("kind", ["mean", "last", "clip", "dense"])
def test_models_of_sentence_transformers_give_its_own_vectors(tmp_path, kind):
    library = pytest.importorskip("sentence_transformers", reason='pip install "hf_ravlm[sentence-transformers]"')
    folder = tmp_path / "model"
    save_sentence_transformer(folder, kind)
    theirs, encoder = library.SentenceTransformer(str(folder), device="cpu"), load_encoder(folder)
    expected = theirs.encode_query(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_queries(None, TEXTS), expected, atol=1e-5)
    expected = theirs.encode_document(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS, [None] * 4), expected, atol=1e-5)
    own = load_encoder(folder, query_prompt="ask: ")
    expected = theirs.encode([f"ask: {text}" for text in TEXTS], prompt="", normalize_embeddings=True)
    np.testing.assert_allclose(own.encode_queries(None, TEXTS), expected, atol=1e-5)
    assert own.fingerprint != encoder.fingerprint
    if kind == "clip":
        images = theirs.encode(IMAGES, normalize_embeddings=True)
        np.testing.assert_allclose(encoder.encode_passages([None] * 3, IMAGES), images, atol=1e-5)
        both = encoder.encode_passages(["a caption"] * 3, IMAGES)
        assert np.abs(both[0] - both[1]).max() > 1e-3  # one caption, two images


def test_late_interaction_models_search_by_one_vector_and_by_all(tmp_path):
    save_late_interaction(tmp_path)
    encoder = load_encoder(tmp_path)
    assert isinstance(encoder, MultiVectorEncoder)
    from transformers import ColQwen2ForRetrieval

    model, processor = ColQwen2ForRetrieval.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    tokens = encoder.encode_passages_tokens(None, IMAGES)
    with torch.no_grad():
        for image, ours in zip(IMAGES, tokens, strict=True):
            np.testing.assert_allclose(ours, model(**processor.process_images([image])).embeddings[0], atol=1e-5)
        query = model(**processor.process_queries(["Oslo"])).embeddings[0]
    np.testing.assert_allclose(encoder.encode_queries_tokens(None, ["Oslo"])[0], query, atol=1e-5)
    rows = [{"id": str(number), "image": image} for number, image in enumerate(IMAGES)]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder)
    assert len(retriever.retrieve(texts="Oslo", k=3)[0]) == 3


def test_weights_that_a_checkpoint_lacks_are_told(tmp_path, folder_of):
    save(FAMILIES["CLIP"], tmp_path)
    AutoModel.from_pretrained(tmp_path).vision_model.save_pretrained(tmp_path / "half")
    (tmp_path / "half" / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(InvalidInputError, match="lacks .* weights of a CLIPModel"):
        load_encoder(tmp_path / "half")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ViT", {"query_prompt": "a "}, "takes no prompts"),
        ("BERT", {"kind": "pictures"}, "kind='pictures' is not known"),
        ("BERT", {"dtype": "float8"}, "dtype='float8' is not known"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder_of, name, given, message):
    with pytest.raises(InvalidInputError, match=message):
        load_encoder(folder_of(name), **given)


def test_code_of_a_model_is_not_run(tmp_path, folder_of):
    save(FAMILIES["BERT"], tmp_path)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidInputError, match="code of its own .custom_st.Transformer."):
        load_encoder(tmp_path)


def test_an_image_encoder_needs_images_and_builds_a_knowledge_base(folder_of):
    encoder = load_encoder(folder_of("DINOv2"))
    with pytest.raises(InvalidInputError, match="row 1.*sees images only"):
        encoder.encode_passages(["a", "b"], [IMAGES[0], None])
    rows = [{"id": str(number), "image": image, "text": "x"} for number, image in enumerate(IMAGES)]
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder)
    assert retriever.retrieve(images=IMAGES[1], k=1)[0][0].id == "1"


def test_texts_that_are_cut_are_told_once_for_a_build(folder_of, caplog):
    encoder = load_encoder(folder_of("CLIP"))
    rows = [{"id": str(number), "text": "word " * (90 if number % 4 == 0 else 2)} for number in range(8)]
    RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder, batch_size=2)
    told = [record.getMessage() for record in caplog.records if "longer than" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("2 of 8 texts (25 %) are longer than the 40 tokens")
    assert (encoder.text_counts.texts, encoder.text_counts.cut) == (8, 2)


def test_queries_in_an_unknown_language_are_told(tmp_path, caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    save(FAMILIES["BERT"], tmp_path)
    backend = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "red": 2, "kite": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    encoder.encode_queries(None, ["red kite"])
    assert not caplog.records
    encoder.encode_queries(None, ["红 鸢", "red kite"])
    assert "does not know most words of 1 of 2 queries" in caplog.text


def test_threads_that_share_a_tokenizer_do_not_change_each_others_settings(folder_of):
    long = load_encoder(folder_of("BERT"))
    short = type(long)(long._inference_model.model, long.tokenizer, max_length=4)
    texts = ["the capital of Norway is Oslo " * 3] * 32
    expected = {id(encoder): encoder.encode_passages(texts) for encoder in (long, short)}
    wrong = []

    def work(encoder):
        for _ in range(20):
            if not np.allclose(encoder.encode_passages(texts), expected[id(encoder)], atol=1e-5):
                wrong.append(encoder.max_length)

    threads = [threading.Thread(target=work, args=(encoder,)) for encoder in (long, short, long, short)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_scale_is_that_of_the_model(folder_of):
    model = AutoModel.from_pretrained(folder_of("CLIP"))
    assert load_encoder(folder_of("CLIP")).logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
