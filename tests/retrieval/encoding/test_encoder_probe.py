from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import tiny
from hf_ravlm import RavlmModel
from hf_ravlm.errors import InvalidInputError, KnowledgeBaseMismatchError
from hf_ravlm.retrieval import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.retrieval.encoding.encoder_probe import (
    PROBE_TEXTS,
    encode_probes,
    inputs_digest,
    probe_distance,
    probe_images,
)
from hf_ravlm.retrieval.store.versions import read_version


ROWS = [{"id": "a", "text": "a red kite"}, {"id": "b", "image": Image.new("RGB", (20, 20), "red")}]


def dual_encoder(seed: int = 0, processor=None, **config) -> RavlmEncoder:
    torch.manual_seed(seed)
    model = RavlmModel(tiny.tiny_config(**config)).eval()
    return RavlmEncoder(model, tiny.tiny_processor() if processor is None else processor)


@pytest.fixture(scope="module")
def right():
    return dual_encoder()


@pytest.fixture(scope="module")
def saved(right, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), right).save_pretrained(folder)
    return folder


def changed(right, change) -> RavlmEncoder:
    model = copy.deepcopy(right.model)
    with torch.no_grad():
        model = change(model) or model
    return RavlmEncoder(model, right.processor)


def noisy(part: str):
    def change(model):
        generator = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            if part in name:
                weight += 0.1 * torch.randn(weight.shape, generator=generator)

    return change


def with_adapter(right) -> torch.nn.Module:
    from peft import LoraConfig, inject_adapter_in_model

    targets = ["query", "value", "q_proj", "v_proj"]
    model = inject_adapter_in_model(LoraConfig(r=4, target_modules=targets), copy.deepcopy(right.model))
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


class Wrapped:
    """An encoder with the weights of another one, that treats inputs or outputs in its own way."""

    def __init__(self, inner, text=lambda text: text, image=lambda image: image, vectors=lambda vectors: vectors):
        self.inner, self.text, self.image, self.vectors = inner, text, image, vectors
        self.name, self.fingerprint = "Wrapped", "0" * 64

    def _inputs(self, images, texts):
        images = images and [image and self.image(image) for image in images]
        return images, texts and [text and self.text(text) for text in texts]

    def encode_queries(self, images, texts):
        return self.vectors(self.inner.encode_queries(*self._inputs(images, texts)))

    def encode_passages(self, texts, images):
        images, texts = self._inputs(images, texts)
        return self.vectors(self.inner.encode_passages(texts, images))


class SidesSwapped(Wrapped):
    def encode_queries(self, images, texts):
        return -self.inner.encode_queries(images, texts)


MISMATCHES = {
    "other weights": lambda right: dual_encoder(seed=1),
    "other weights, again": lambda right: dual_encoder(seed=2),
    "another width": lambda right: dual_encoder(projection_dim=24),
    "text tower trained": lambda right: changed(right, noisy("text")),
    "vision tower trained": lambda right: changed(right, noisy("vision")),
    "projections trained": lambda right: changed(right, noisy("projection")),
    "one layer lost": lambda right: changed(right, lambda model: zero_a_layer(model)),
    "an adapter loaded": lambda right: RavlmEncoder(with_adapter(right), right.processor),
    "a shorter text limit": lambda right: RavlmEncoder(right.model, tiny.tiny_processor(max_text_length=24)),
    "other image means": lambda right: RavlmEncoder(right.model, image_processor(image_mean=[0, 0, 0])),
    "other image scaling": lambda right: RavlmEncoder(right.model, image_processor(do_rescale=False)),
    "images not normalised": lambda right: RavlmEncoder(right.model, image_processor(do_normalize=False)),
    "images resized otherwise": lambda right: RavlmEncoder(right.model, image_processor(resample=0)),
    "a prompt before texts": lambda right: Wrapped(right, text=lambda text: f"query: {text}"),
    "lower case": lambda right: Wrapped(right, text=str.lower),
    "letters beyond ASCII lost": lambda right: Wrapped(right, text=lambda t: t.encode("ascii", "ignore").decode()),
    "images mirrored": lambda right: Wrapped(right, image=ImageOps.mirror),
    "images without colour": lambda right: Wrapped(right, image=lambda image: image.convert("L").convert("RGB")),
    "coordinates rotated": lambda right: Wrapped(right, vectors=lambda vectors: np.roll(vectors, 1, axis=1)),
    "one coordinate lost": lambda right: Wrapped(right, vectors=lambda v: v * (np.arange(v.shape[1]) != 3)),
    "queries turned round": SidesSwapped,
}


def zero_a_layer(model):
    for name, weight in model.named_parameters():
        if "layer.1." in name or "layers.1." in name:
            weight.zero_()


def image_processor(**settings):
    return tiny.RavlmProcessor(
        image_processor=ViTImageProcessorPil(**{"size": {"height": 16, "width": 16}, **settings}),
        tokenizer=tiny.tiny_tokenizer(),
        text_tokenizer=tiny.tiny_tokenizer(),
        max_text_length=64,
        num_memory_tokens=3,
    )


@pytest.mark.parametrize("make", MISMATCHES.values(), ids=MISMATCHES.keys())
def test_an_encoder_that_sees_otherwise_is_refused(right, saved, make):
    with pytest.raises(KnowledgeBaseMismatchError, match="RavlmModel.*the same adapters and preprocessing"):
        RavlmRetriever.from_pretrained(saved, encoder=make(right))


FALSE_ALARMS = {
    "itself": lambda right: right,
    "loaded again": lambda right: dual_encoder(),
    "a copy in small batches": lambda right: RavlmEncoder(copy.deepcopy(right.model), right.processor, batch_size=1),
    "in training mode": lambda right: changed(right, lambda model: model.train()),
    "in double precision": lambda right: changed(right, lambda model: model.double()),
    "in bfloat16": lambda right: changed(right, lambda model: model.bfloat16()),
    "in half precision": lambda right: changed(right, lambda model: model.half()),
    "vectors of another length": lambda right: Wrapped(right, vectors=lambda vectors: 3 * vectors),
}


@pytest.mark.parametrize(("name", "make"), FALSE_ALARMS.items(), ids=FALSE_ALARMS.keys())
def test_the_same_encoder_is_accepted_in_any_form(right, saved, name, make, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_ravlm"):
        retriever = RavlmRetriever.from_pretrained(saved, encoder=make(right))
    assert retriever.retrieve(texts="a red kite", k=1)[0][0].id == "a"
    differs = any(word in name for word in ("precision", "bfloat16", "another"))
    assert ("not bit for bit" in caplog.text) == differs


def test_an_accepted_encoder_may_add_and_the_record_stays(right, saved, tmp_path):
    retriever = RavlmRetriever.from_pretrained(saved, encoder=changed(right, lambda model: model.bfloat16()))
    retriever.save_pretrained(tmp_path)
    retriever.add([{"id": "c", "text": "a blue kite"}])
    again = RavlmRetriever.from_pretrained(tmp_path, encoder=right)
    assert again.encoder_fingerprint == right.fingerprint
    assert again.retrieve(texts="a blue kite", k=1)[0][0].id == "c"


def test_an_adapter_that_is_switched_off_is_noticed_and_named(right, tmp_path):
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = with_adapter(right)
    encoder = RavlmEncoder(model, right.processor)
    RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), encoder).save_pretrained(tmp_path)
    RavlmRetriever.from_pretrained(tmp_path, encoder=encoder)
    with pytest.raises(KnowledgeBaseMismatchError):  # the base model without it
        RavlmRetriever.from_pretrained(tmp_path, encoder=right)
    fingerprint = encoder.fingerprint
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(False)
    assert encoder.fingerprint == fingerprint  # the weights are the same
    with pytest.raises(KnowledgeBaseMismatchError, match="now gives other vectors.*adapter switched off"):
        RavlmRetriever.from_pretrained(tmp_path, encoder=encoder)


def test_an_encoder_of_texts_alone_is_probed_with_texts(saved, tmp_path, toy_encoder):
    encoder = toy_encoder()
    original = encoder._encode

    def texts_alone(texts, images):
        if any(image is not None for image in images):
            raise TypeError("no images, please")
        return original(texts, images)

    encoder._encode = texts_alone
    assert sorted(encode_probes(encoder)) == ["passage_texts", "query_texts"]
    RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS[:1]), encoder).save_pretrained(tmp_path)
    RavlmRetriever.from_pretrained(tmp_path, encoder=encoder)
    encoder.projection = -encoder.projection
    with pytest.raises(KnowledgeBaseMismatchError, match="now gives other vectors"):
        RavlmRetriever.from_pretrained(tmp_path, encoder=encoder)


def test_probes_of_another_version_are_not_compared(saved, right, tmp_path, monkeypatch):
    from hf_ravlm.retrieval.store import loading

    monkeypatch.setattr(loading, "inputs_digest", lambda: "0" * 64)
    RavlmRetriever.from_pretrained(saved, encoder=right)
    with pytest.raises(KnowledgeBaseMismatchError, match="cannot be compared"):
        RavlmRetriever.from_pretrained(saved, encoder=changed(right, lambda model: model.bfloat16()))


def test_the_probes_are_the_same_everywhere(saved):
    assert len(PROBE_TEXTS) == len(set(PROBE_TEXTS)) == 8
    assert [image.size for image in probe_images()] == [(120, 90)] * 4
    assert inputs_digest() == "19b5f5658c41797efa5a5e69dcf4dd627a86cecf93dabd38fe7f65cb6833b57a"
    (file,) = read_version(saved / "knowledge_base").files_of("probe")
    assert file.fields["inputs_sha256"] == inputs_digest()
    assert file.rows == 24


def test_what_cannot_be_compared_is_far_away():
    stored = {"query_texts": np.eye(3)}
    assert probe_distance(stored, {}) == 2
    assert probe_distance(stored, {"query_texts": np.eye(4)}) == 2
    assert probe_distance({"query_texts": np.full((3, 3), np.nan)}, stored) == 2
    assert probe_distance(stored, {"query_texts": -np.eye(3)}) == 2
    with pytest.raises(InvalidInputError, match="no stored probes"):
        probe_distance({}, stored)
