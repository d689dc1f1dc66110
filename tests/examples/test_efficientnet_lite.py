"""The tower that transformers lacks: its shapes, its padding, its names, its place among the Auto classes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from hf_ravlm import InvalidInputError
from photographs.efficientnet_lite import ConvNorm, EfficientNetLiteConfig, EfficientNetLiteModel, convert_lite_weights
from photographs.parts import from_parts
from tiny import picture
from tiny_backbones import causal_model, causal_tokenizer, text_model


def test_lite0_has_the_published_size():
    with torch.device("meta"):
        model = EfficientNetLiteModel(EfficientNetLiteConfig())
    assert len(model.blocks) == 16
    # 4,652,008 of the published network less its classifier of 1280 x 1000 + 1000
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_652_008 - 1_281_000
    assert model(torch.zeros(1, 3, 224, 224, device="meta")).last_hidden_state.shape == (1, 1280, 7, 7)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (9, 5, 1), (8, 5, 2), (5, 1, 1)])
def test_padding_is_that_of_tensorflow(size, kernel, stride):
    """'Same': as many outputs as steps fit, an odd pixel of padding goes to the right and below."""
    torch.manual_seed(0)
    layer = ConvNorm(2, 3, kernel, EfficientNetLiteConfig(batch_norm_eps=0.0), stride, active=False).eval()
    pixels = torch.randn(1, 2, size, size + 1)
    out = layer(pixels)
    assert out.shape[2:] == (-(-size // stride), -(-(size + 1) // stride))
    rows = (out.shape[2] - 1) * stride + kernel - size
    columns = (out.shape[3] - 1) * stride + kernel - size - 1
    rows, columns = max(rows, 0), max(columns, 0)
    wide = torch.zeros(1, 2, size + rows, size + 1 + columns)
    wide[:, :, rows // 2 : rows // 2 + size, columns // 2 : columns // 2 + size + 1] = pixels
    torch.testing.assert_close(out, F.conv2d(wide, layer.convolution.weight, stride=stride))


def test_saves_and_loads_by_its_type(tmp_path):
    torch.manual_seed(0)
    config = EfficientNetLiteConfig(hidden_size=16, stem_size=8, stages=[[1, 3, 1, 1, 8], [2, 5, 2, 6, 8]])
    model = EfficientNetLiteModel(config).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    assert type(again) is EfficientNetLiteModel
    assert AutoConfig.from_pretrained(tmp_path).stages == config.stages
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(again(pixels).pooler_output, model(pixels).pooler_output)


def test_is_a_tower_of_a_reader_that_reloads(tmp_path):
    torch.manual_seed(0)
    config = EfficientNetLiteConfig(hidden_size=16, stem_size=8, stages=[[1, 3, 2, 1, 8], [2, 5, 2, 6, 8]])
    tower = EfficientNetLiteModel(config).eval()
    model, processor = from_parts(
        tower, text_model("bert"), causal_model("llama"), causal_tokenizer(), causal_tokenizer()
    )
    pixels = processor.for_retrieval(images=[picture(0), picture(1)])
    features = model.model.get_query_features(**pixels)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(again.model.get_query_features(**pixels), features)


def test_wrong_settings_and_wrong_weights_are_refused():
    with pytest.raises(Exception, match="five whole numbers of at least 1"):
        EfficientNetLiteConfig(stages=[[1, 3, 2]])
    with pytest.raises(InvalidInputError, match="names look like '_blocks.0._depthwise_conv.weight'"):
        convert_lite_weights({"layer1.0.conv1.weight": torch.zeros(1)})
