from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.retrieval import Encoder, RavlmEncoder
from hf_ravlm.retrieval.encoding.inference_model import fingerprint_of


class TinyModel(torch.nn.Module):
    """Adds a colour and a word embedding; padding counts for nothing."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = torch.nn.Parameter(torch.randn(50, 8, generator=generator))
        self.colour = torch.nn.Parameter(torch.randn(3, 8, generator=generator))
        self.dropout = torch.nn.Dropout(0.5)
        self.register_buffer("steps", torch.tensor(3))
        self.batches: list[tuple[int, ...]] = []

    def get_query_features(
        self, pixel_values=None, image_mask=None, input_ids=None, attention_mask=None, text_mask=None
    ):
        assert not torch.is_grad_enabled()
        features = 0.0
        if input_ids is not None:
            self.batches.append(tuple(input_ids.shape))
            features = (self.words[input_ids] * attention_mask[..., None]).sum(1) * text_mask[:, None]
        if pixel_values is not None:
            features = features + (pixel_values.mean((2, 3)) @ self.colour) * image_mask[:, None]
        return torch.nn.functional.normalize(self.dropout(features), dim=-1)

    def get_passage_features(self, **inputs):
        return -self.get_query_features(**inputs)


class TinyProcessor:
    max_length = 20

    def for_retrieval(self, images=None, texts=None):
        inputs = {}
        if texts is not None:
            ids = [[len(word) for word in (text or "").split()][: self.max_length] for text in texts]
            width = max(1, *map(len, ids))
            inputs["input_ids"] = torch.tensor([row + [0] * (width - len(row)) for row in ids])
            inputs["attention_mask"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            inputs["text_mask"] = torch.tensor([text is not None for text in texts])
        if images is not None:
            pictures = [image or Image.new("RGB", (4, 4)) for image in images]
            pixels = np.stack([np.asarray(picture.resize((4, 4)), np.float32) / 255 for picture in pictures])
            inputs["pixel_values"] = torch.tensor(pixels).permute(0, 3, 1, 2)
            inputs["image_mask"] = torch.tensor([image is not None for image in images])
        return inputs

    def retrieval_fingerprint(self):
        return {"max_length": self.max_length}


def tiny_encoder(**options) -> RavlmEncoder:
    return RavlmEncoder(TinyModel(), TinyProcessor(), **options)


TEXTS = ["one two", None, "a long text with many more words", "x", "five and six", None]
IMAGES = [
    None,
    Image.new("RGB", (8, 8), "red"),
    Image.new("RGB", (8, 8), "blue"),
    None,
    None,
    Image.new("RGB", (2, 2)),
]
IMAGES[5].putpixel((0, 0), (0, 200, 0))


def test_it_follows_the_protocol(encoder):
    assert isinstance(tiny_encoder(), Encoder)
    assert isinstance(encoder, Encoder)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_batches_change_neither_order_nor_result(batch_size):
    encoder = tiny_encoder(batch_size=batch_size)
    vectors = encoder.encode_queries(IMAGES, TEXTS)
    single = [encoder.encode_queries([image], [text])[0] for image, text in zip(IMAGES, TEXTS, strict=True)]
    assert vectors.dtype == np.float32
    assert vectors.shape == (6, 8)
    np.testing.assert_allclose(vectors, single, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_passages_use_the_passage_side_of_the_model():
    encoder = tiny_encoder()
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS, IMAGES), -encoder.encode_queries(IMAGES, TEXTS))


def test_images_alone_and_texts_alone():
    encoder = tiny_encoder()
    pictures, words = [IMAGES[1], IMAGES[2]], ["one two", "three"]
    np.testing.assert_allclose(
        encoder.encode_queries(pictures, None), encoder.encode_queries(pictures, [None, None]), atol=1e-7
    )
    np.testing.assert_allclose(
        encoder.encode_queries(None, words), encoder.encode_queries([None] * 2, words), atol=1e-7
    )


def test_texts_of_similar_length_share_a_batch():
    encoder = tiny_encoder(batch_size=2)
    encoder.encode_queries(None, ["a", "a b c d e f", "a b", "a b c d e"])
    assert encoder.model.batches == [(2, 6), (2, 2)]


def test_the_model_is_used_in_evaluation_mode_and_left_as_it_was():
    encoder = tiny_encoder()
    encoder.model.train()
    encoder.model.dropout.eval()
    first, second = (encoder.encode_queries(None, ["some text"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert encoder.model.training
    assert not encoder.model.dropout.training
    encoder.model.dropout.train()
    np.testing.assert_array_equal(encoder.encode_queries(None, ["some text"]), first)
    assert encoder.model.dropout.training


def test_nothing_and_unequal_lengths_are_refused():
    encoder = tiny_encoder()
    with pytest.raises(InvalidInputError, match="nothing to encode"):
        encoder.encode_queries(None, None)
    with pytest.raises(InvalidInputError, match="1 images came with 2 texts"):
        encoder.encode_queries([IMAGES[1]], ["a", "b"])
    assert len(encoder.encode_queries([], [])) == 0


def test_a_model_or_processor_of_another_kind_is_refused_with_what_it_lacks():
    with pytest.raises(InvalidInputError, match="A Linear without .*get_query_features.*the model of"):
        RavlmEncoder(torch.nn.Linear(2, 2), TinyProcessor())
    with pytest.raises(InvalidInputError, match="A object without .*for_retrieval.*the processor of"):
        RavlmEncoder(TinyModel(), object())
    with pytest.raises(InvalidInputError, match="batch_size=0"):
        tiny_encoder(batch_size=0)


def test_equal_weights_and_preprocessing_have_one_fingerprint():
    encoder = tiny_encoder()
    clone = RavlmEncoder(copy.deepcopy(encoder.model), TinyProcessor(), batch_size=3)
    encoder.encode_queries(None, ["a"])
    assert encoder.fingerprint == clone.fingerprint == tiny_encoder().fingerprint
    assert len(encoder.fingerprint) == 64


def change_one_weight(encoder):
    with torch.no_grad():
        encoder.model.words[7, 3] += 1e-3


def change_a_buffer(encoder):
    encoder.model.steps += 1


def change_the_type(encoder):
    encoder.model.bfloat16()


def reinterpret_a_buffer(encoder):
    encoder.model.steps = encoder.model.steps.view(torch.float64)


def rename_a_weight(encoder):
    encoder.model.palette = encoder.model.colour
    del encoder.model.colour


def reshape_a_weight(encoder):
    encoder.model.colour = torch.nn.Parameter(encoder.model.colour.detach().reshape(8, 3))


def change_the_processor(encoder):
    encoder.processor.max_length = 10


def change_the_model_settings(encoder):
    encoder.model.retrieval_fingerprint = lambda: {"pooling": "mean"}


@pytest.mark.parametrize(
    "change",
    [change_one_weight, change_a_buffer, reinterpret_a_buffer, change_the_type, rename_a_weight, reshape_a_weight]
    + [change_the_processor, change_the_model_settings],
)
def test_any_change_of_what_shapes_a_vector_changes_the_fingerprint(change):
    encoder = tiny_encoder()
    before = encoder.fingerprint
    change(encoder)
    assert encoder.fingerprint != before


def test_fingerprints_ignore_the_order_of_preprocessing_keys():
    model = TinyModel()
    assert fingerprint_of(model, {"a": 1, "b": 2}) == fingerprint_of(model, {"b": 2, "a": 1})
    assert fingerprint_of(model, {"a": 1}) != fingerprint_of(model, {"a": 2})


def test_the_name_describes_the_model():
    encoder = tiny_encoder()
    assert encoder.name == "TinyModel"
    towers = {"vision_config": type("C", (), {"model_type": "resnet"}), "projection_dim": 8}
    encoder.model.config = type("C", (), towers)
    assert encoder.name == "TinyModel vision=resnet dim=8"
