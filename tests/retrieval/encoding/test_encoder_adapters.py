from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import RavlmModel
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import (
    DualEncoder,
    Encoder,
    LateInteractionEncoder,
    RavlmEncoder,
    SentenceTransformerEncoder,
    load_encoder,
)
from hf_ravlm.retrieval.encoding.encoders import MultiVectorEncoder
from hf_ravlm.retrieval.encoding.text_model_encoder import TextModelEncoder
from tiny import VISION, WIDTHS, picture, tiny_config, tiny_processor, tiny_tokenizer


TEXTS = ["red white", None, "the capital of Norway is Oslo", "Oslo", None, "a red one"]
IMAGES = [None, picture(1), picture(2), None, picture(3, (9, 30)), None]
TOKENIZER = tiny_tokenizer()


def clip_config():
    text = {"vocab_size": len(TOKENIZER), "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, **WIDTHS}
    vision = {key: value for key, value in VISION.items() if key != "model_type"}
    return {"text_config": {**text, "max_position_embeddings": 32}, "vision_config": vision}


def tiny_clip():
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(projection_dim=16, **clip_config())).eval()


def tiny_siglip():
    torch.manual_seed(0)
    return SiglipModel(SiglipConfig(**clip_config())).eval()


def tiny_text_and_vit():
    torch.manual_seed(0)
    vision = ViTConfig(**{key: value for key, value in VISION.items() if key != "model_type"})
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision, BertConfig(vocab_size=len(TOKENIZER), **WIDTHS), projection_dim=16
    )
    return VisionTextDualEncoderModel(config).eval()


def processor():
    size = {"height": 16, "width": 16}
    return SimpleNamespace(image_processor=ViTImageProcessorPil(size=size), tokenizer=tiny_tokenizer())


def one_by_one(model, full_length=None):
    """The plain way: each image and each text alone."""
    vectors = []
    for text, image in zip(TEXTS, IMAGES, strict=True):
        total = 0
        with torch.no_grad():
            if image is not None:
                pixels = processor().image_processor(images=[image], return_tensors="pt")
                total = total + torch.nn.functional.normalize(model.get_image_features(**pixels).pooler_output, dim=-1)
            if text is not None:
                padding = {"padding": "max_length", "max_length": full_length} if full_length else {}
                inputs = TOKENIZER([text], return_tensors="pt", **padding)
                names = ["input_ids", "attention_mask"]
                pooled = model.get_text_features(**{name: inputs[name] for name in names}).pooler_output
                total = total + torch.nn.functional.normalize(pooled, dim=-1)
        vectors.append(torch.nn.functional.normalize(total, dim=-1)[0].numpy())
    return np.stack(vectors)


@pytest.mark.parametrize(("make", "full_length"), [(tiny_clip, None), (tiny_siglip, 32), (tiny_text_and_vit, None)])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_images_texts_and_both_give_the_vectors_of_the_towers(make, full_length, batch_size):
    model = make()
    encoder = DualEncoder(model, processor(), batch_size=batch_size)
    assert isinstance(encoder, Encoder)
    found = encoder.encode_passages(TEXTS, IMAGES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, one_by_one(model, full_length), atol=2e-6)
    np.testing.assert_allclose(found, encoder.encode_queries(IMAGES, TEXTS), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_queries(None, ["Oslo"]), found[3:4], atol=2e-6)
    np.testing.assert_allclose(encoder.encode_queries([IMAGES[1]], None), found[1:2], atol=2e-6)


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_bfloat16_towers_point_where_the_exact_ones_do(make):
    model = make()
    exact, fast = DualEncoder(model, processor()), DualEncoder(model, processor(), dtype="bfloat16")
    assert (exact.encode_passages(TEXTS, IMAGES) * fast.encode_passages(TEXTS, IMAGES)).sum(1).min() > 0.999
    assert exact.fingerprint != fast.fingerprint
    assert "bfloat16" in fast.name


def test_the_fingerprint_of_a_dual_encoder_covers_towers_and_preprocessing():
    fingerprints = {DualEncoder(tiny_clip(), processor()).fingerprint}
    assert DualEncoder(tiny_clip(), processor(), batch_size=3).fingerprint in fingerprints
    larger = processor()
    larger.image_processor.size = {"height": 32, "width": 32}
    fingerprints.add(DualEncoder(tiny_clip(), larger).fingerprint)
    more_words = processor()
    more_words.tokenizer.add_tokens(["Oslo"])
    fingerprints.add(DualEncoder(tiny_clip(), more_words).fingerprint)
    trained = tiny_clip()
    with torch.no_grad():
        trained.visual_projection.weight[0, 0] += 1e-3
    fingerprints.add(DualEncoder(trained, processor()).fingerprint)
    assert len(fingerprints) == 4


def test_empty_rows_and_models_of_another_kind_are_refused():
    encoder = DualEncoder(tiny_clip(), processor())
    with pytest.raises(InvalidInputError, match="every row is empty"):
        encoder.encode_queries([None], [None])
    with pytest.raises(InvalidInputError, match="1 images came with 2 texts"):
        encoder.encode_queries([IMAGES[1]], ["a", "b"])
    with pytest.raises(InvalidInputError, match="Linear without.*get_image_features"):
        DualEncoder(torch.nn.Linear(2, 2), processor())
    with pytest.raises(InvalidInputError, match="batch_size=0"):
        DualEncoder(tiny_clip(), processor(), batch_size=0)
    assert encoder.encode_queries([], []).shape == (0, 0)


def test_a_row_that_is_empty_among_others_is_zero_so_that_its_passage_can_be_named():
    found = DualEncoder(tiny_clip(), processor()).encode_queries([None, None], ["Oslo", None])
    assert not found[1].any()


def tiny_ravlm():
    torch.manual_seed(0)
    return RavlmModel(tiny_config()).eval()


def test_our_own_model_runs_packed_and_gives_its_own_vectors():
    model, ravlm_processor = tiny_ravlm(), tiny_processor()
    encoder = RavlmEncoder(model, ravlm_processor)
    texts = ["Oslo", "red white " * 9, "the capital of Chad", "x"] * 3
    with torch.no_grad():
        expected = torch.cat([model.get_passage_features(**ravlm_processor.for_retrieval(texts=[t])) for t in texts])
        both = model.get_query_features(**ravlm_processor.for_retrieval(images=IMAGES, texts=TEXTS))
    np.testing.assert_allclose(encoder.encode_passages(texts, [None] * 12), expected.numpy(), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_queries(IMAGES, TEXTS), both.numpy(), atol=2e-6)
    fast = RavlmEncoder(model, ravlm_processor, dtype="bfloat16")
    assert (fast.encode_passages(texts, [None] * 12) * expected.numpy()).sum(1).min() > 0.999
    assert fast.fingerprint != encoder.fingerprint
    assert fast.name.startswith("RavlmModel dtype=bfloat16")


def test_load_encoder_knows_the_kinds_of_models(tmp_path):
    tiny_ravlm().save_pretrained(tmp_path / "ravlm")
    tiny_processor().save_pretrained(tmp_path / "ravlm")
    BertModel(BertConfig(vocab_size=len(TOKENIZER), **WIDTHS)).save_pretrained(tmp_path / "bert")
    TOKENIZER.save_pretrained(tmp_path / "bert")
    assert isinstance(load_encoder(tmp_path / "ravlm"), RavlmEncoder)
    text_encoder = load_encoder(tmp_path / "bert", dtype="bfloat16")
    assert isinstance(text_encoder, TextModelEncoder)
    assert "bfloat16" in text_encoder.name


def sentence_transformer(prompts=None):
    pytest.importorskip("sentence_transformers", reason='needs: pip install "hf_ravlm[sentence-transformers]"')
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(0)
    bert = BertModel(BertConfig(vocab_size=len(TOKENIZER), max_position_embeddings=64, **WIDTHS)).eval()
    return bert, lambda folder: _sentence_transformer_in(
        folder, bert, prompts, SentenceTransformer, Transformer, Pooling, Normalize
    )


def _sentence_transformer_in(folder, bert, prompts, model_class, transformer, pooling, normalize):
    bert.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    steps = [transformer(str(folder)), pooling(32, "mean"), normalize()]
    return model_class(modules=steps, prompts=prompts, device="cpu")


def test_sentence_transformers_give_what_the_text_encoder_gives(tmp_path):
    prompts = {"query": "ask: ", "document": "know: "}
    bert, build = sentence_transformer(prompts)
    encoder = SentenceTransformerEncoder(build(tmp_path), batch_size=2)
    ours = TextModelEncoder(bert, TOKENIZER, query_prompt="ask: ", passage_prompt="know: ")
    texts = [text for text in TEXTS if text]
    assert isinstance(encoder, Encoder)
    np.testing.assert_allclose(encoder.encode_queries(None, texts), ours.encode_queries(None, texts), atol=2e-6)
    np.testing.assert_allclose(encoder.encode_passages(texts), ours.encode_passages(texts), atol=2e-6)
    with pytest.raises(InvalidInputError, match="2 of 6 rows have no text"):
        encoder.encode_passages(TEXTS, IMAGES)


def test_the_fingerprint_of_a_sentence_transformer_covers_weights_prompts_and_length(tmp_path):
    _, build = sentence_transformer({"query": "ask: "})
    model = build(tmp_path)
    encoder = SentenceTransformerEncoder(model)
    fingerprints = [encoder.fingerprint]
    encoder.encode_queries(None, ["Oslo"])
    assert encoder.fingerprint == fingerprints[0]
    model.max_seq_length = 7
    fingerprints.append(encoder.fingerprint)
    model.prompts = {"query": "tell: "}
    fingerprints.append(encoder.fingerprint)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    fingerprints.append(encoder.fingerprint)
    model[1].pooling_mode = "cls"
    fingerprints.append(encoder.fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)


class TinyPages(torch.nn.Module):
    """Like ColPali: a vector per patch or token, zero at padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(len(TOKENIZER), 8)
        self.patches = torch.nn.Linear(3, 8)
        self.config = BertConfig(vocab_size=len(TOKENIZER))

    def forward(self, attention_mask, input_ids=None, pixel_values=None):
        embeddings = self.words(input_ids) if pixel_values is None else self.patches(pixel_values)
        return SimpleNamespace(embeddings=embeddings * attention_mask.unsqueeze(-1))


class TinyPagesProcessor:
    query_prefix = "Query: "

    def __init__(self):
        self.tokenizer = tiny_tokenizer()
        self.image_processor = ViTImageProcessorPil(size={"height": 16, "width": 16})

    def process_queries(self, text):
        inputs = self.tokenizer(text, padding=True, return_tensors="pt")
        return BatchFeature({name: inputs[name] for name in ("input_ids", "attention_mask")})

    def process_images(self, images):
        pixels = torch.stack([torch.tensor(np.asarray(image.resize((2, 2)), np.float32)) for image in images])
        return BatchFeature({"pixel_values": pixels.flatten(1, 2), "attention_mask": torch.ones(len(images), 4)})


@pytest.mark.parametrize("batch_size", [1, 8])
def test_late_interaction_models_give_a_unit_vector_per_token_and_patch(batch_size):
    model = TinyPages()
    encoder = LateInteractionEncoder(model, TinyPagesProcessor(), batch_size=batch_size)
    assert isinstance(encoder, MultiVectorEncoder)
    texts = ["red", "the capital of Norway is Oslo", "red white"]
    queries = encoder.encode_queries_tokens(None, texts)
    assert [len(query) for query in queries] == [len(TOKENIZER(text)["input_ids"]) for text in texts]
    expected = torch.nn.functional.normalize(model.words(torch.tensor(TOKENIZER("red")["input_ids"])), dim=-1)
    np.testing.assert_allclose(queries[0], expected.detach().numpy(), atol=1e-6)
    pages = encoder.encode_passages_tokens(None, [picture(1), picture(2)])
    assert [page.shape for page in pages] == [(4, 8), (4, 8)]
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(pages), axis=1), 1, atol=1e-6)


def test_late_interaction_needs_images_of_passages_and_knows_its_identity():
    encoder = LateInteractionEncoder(TinyPages(), TinyPagesProcessor())
    with pytest.raises(InvalidInputError, match="1 passages have no image.*row 1"):
        encoder.encode_passages_tokens([None, "a"], [Image.new("RGB", (4, 4)), None])
    other = copy.deepcopy(encoder.processor)
    other.query_prefix = "Question: "
    fast = LateInteractionEncoder(TinyPages(), TinyPagesProcessor(), dtype="bfloat16")
    fingerprints = {encoder.fingerprint, LateInteractionEncoder(TinyPages(), other).fingerprint, fast.fingerprint}
    assert len(fingerprints) == 3
    assert LateInteractionEncoder(TinyPages(), TinyPagesProcessor(), batch_size=2).fingerprint == encoder.fingerprint
