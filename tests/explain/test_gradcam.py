"""Grad-CAM finds evidence where it was put, equals captum's, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import nn

from hf_ravlm import InvalidInputError
from hf_ravlm.explain.gradcam import (
    answer_grad_cam,
    find_layer,
    heat_maps,
    image_worth,
    layer_grad_cam,
    retrieval_grad_cam,
)
from tiny import VISION, picture, tiny_model, tiny_processor


CNN = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
EVIDENCE = [["the capital of Norway is Oslo", "red white"], ["Chad"]]


class BrightCorner(nn.Module):
    """A network whose score is the brightness of the lower right quarter, through a channel of its own."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(1, 2, kernel_size=4, stride=4)  # channel 0: brightness, channel 1: darkness
        self.features.weight.data = torch.stack([torch.full((1, 4, 4), 1 / 16), torch.full((1, 4, 4), -1 / 16)])
        self.features.bias.data.zero_()
        self.normalization = nn.BatchNorm2d(2, affine=False)
        self.normalization.running_var -= self.normalization.eps

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        maps = self.normalization(self.features(pictures))  # (B, 2, h, w)
        return (maps[:, 0] - maps[:, 1]).sum((1, 2))


def test_evidence_in_a_corner_is_found_there():
    pictures = torch.zeros(2, 1, 16, 16)
    pictures[0, :, 8:, 8:] = 1.0
    pictures[1, :, :8, 8:] = 1.0
    network = BrightCorner().train()
    maps = layer_grad_cam(network, network.features, lambda: network(pictures))
    assert maps.shape == (2, 4, 4)
    expected = pictures[:, 0, ::4, ::4] * maps.amax()
    torch.testing.assert_close(maps, expected)
    large = heat_maps(maps, (16, 16))
    assert large[0, 12:, 12:].min() == 1
    assert large[0, :, :6].max() == large[1, 10:].max() == 0


def test_the_tower_of_a_reader_looks_where_the_score_reads():
    """The projection of the tower is set to read one quarter of its raster alone."""
    model = tiny_model(pooling_grid=2, num_image_tokens=4)
    width = model.config.vision_dim
    with torch.no_grad():
        model.model.image_projection.weight[:, width:] = 0  # the upper left cell is left
    encoded = tiny_processor(num_image_tokens=4).for_retrieval(images=[picture(1)])
    kept = {}
    handle = model.model.vision_tower.register_forward_hook(lambda *call: kept.update(states=call[-1]))
    passage = torch.randn(1, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(
        torch.cosine_similarity(model.model.get_query_features(**encoded), passage).sum(),
        kept["states"].last_hidden_state,
    )
    handle.remove()
    on_raster = gradient[0, 1:].norm(dim=-1).reshape(4, 4)
    assert on_raster[:2, :2].min() > 0
    assert on_raster[2:].max() == on_raster[:, 2:].max() == 0
    weights = gradient[0, 1:].mean(dim=0)
    by_hand = (kept["states"].last_hidden_state[0, 1:] @ weights).relu().reshape(1, 4, 4).detach()
    maps = retrieval_grad_cam(model.model, tiny_processor(), [picture(1)], None, passage)
    torch.testing.assert_close(maps, heat_maps(by_hand, (16, 16)))


@pytest.mark.parametrize("vision", [VISION, CNN], ids=["vit", "resnet"])
@pytest.mark.parametrize(
    ("fusion", "marginalization"), [("in_context", "none"), ("gated", "none"), ("in_context", "sequence")]
)
def test_maps_of_answers_leave_no_trace(vision, fusion, marginalization):
    model = tiny_model(vision_config=vision, fusion=fusion, marginalization=marginalization, num_image_tokens=4)
    processor = tiny_processor(fusion=fusion, passage_prompts=marginalization != "none")
    model.train()
    model.language_model.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    given = ([picture(0), picture(1)], ["what is the capital ?"] * 2, ["Oslo", "N'Djamena"], EVIDENCE)
    with torch.no_grad():
        maps = answer_grad_cam(model, processor, *given)
    assert maps.shape == (2, 16, 16)
    assert not maps.requires_grad
    assert 0 <= maps.min()
    assert all(row.max() in (0, 1) for row in maps)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert hooks == sum(len(module._forward_hooks) for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    torch.testing.assert_close(answer_grad_cam(model, processor, *given), maps)  # a frozen model, too


def test_every_token_of_an_answer_has_a_map_of_its_own():
    model, processor = tiny_model(), tiny_processor()
    given = ([picture(0)], ["what is the capital ?"], ["Oslo is"], [["red white"]])
    inputs = processor(images=given[0], text=given[1], answers=given[2], evidence=given[3])
    number = int((inputs["labels"] != -100).sum())
    single = [answer_grad_cam(model, processor, *given, token=place) for place in range(number)]
    assert len({tuple(row.flatten().tolist()) for row in single}) == number
    last = answer_grad_cam(model, processor, *given, token=-1)
    torch.testing.assert_close(last, single[-1])


def test_a_picture_is_worth_what_the_answer_loses_without_it():
    model, processor = tiny_model(), tiny_processor()
    plain = Image.new("RGB", (16, 16), (90, 120, 30))
    given = (["what ?", "what ?"], ["Oslo", "Oslo"], [["red white"]] * 2)
    worth = image_worth(model, processor, [picture(0), plain], *given)
    assert worth[0].abs() > 1e-3
    assert worth[1].abs() < 1e-5  # covered by its own colour
    inputs = processor(images=[picture(0)], text=given[0][:1], answers=given[1][:1], evidence=given[2][:1])
    labels = inputs.pop("labels")
    scores = []
    for pixels in (inputs["pixel_values"], inputs["pixel_values"].mean((2, 3), keepdim=True).expand(1, 3, 16, 16)):
        logits = model(**{**inputs, "pixel_values": pixels}).logits.log_softmax(-1)
        places = torch.nonzero(labels[0] != -100).flatten()
        scores.append(logits[0, places - 1, labels[0, places]].sum())
    torch.testing.assert_close(worth[0], (scores[0] - scores[1]).detach())


def test_bad_requests_say_what_to_do():
    model, processor = tiny_model(), tiny_processor()
    given = ([picture(0)], ["what ?"], ["Oslo"])
    with pytest.raises(InvalidInputError, match="count from 0"):
        answer_grad_cam(model, processor, *given, token=99)
    with pytest.raises(InvalidInputError, match="did not run"):
        answer_grad_cam(model, processor, *given, layer=model.model.text_encoder)
    with pytest.raises(InvalidInputError, match=r"\(B, C, h, w\) or tokens"):
        layer_grad_cam(layer := nn.Linear(2, 2), layer, lambda: layer(torch.ones(1, 2)).sum(1))
    with pytest.raises(InvalidInputError, match="grad_cam, hires_cam"):
        answer_grad_cam(model, processor, *given, method="eigen")
    with pytest.raises(InvalidInputError, match="1 images came with 2"):
        retrieval_grad_cam(model.model, processor, [picture(0)], None, torch.zeros(2, 16))
    with pytest.raises(InvalidInputError, match=r"there are .*vision_tower\.embeddings"):
        find_layer(model.model, "vision_tower.nothing")
    assert all(not module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize("method", ["grad_cam", "hires_cam"])
@pytest.mark.parametrize("vision", [VISION, CNN], ids=["vit", "resnet"])
def test_it_equals_captum(vision, method):
    attr = pytest.importorskip("captum.attr", reason='pip install "hf_ravlm[strangers]"')
    model = tiny_model(vision_config=vision).model
    pixels = tiny_processor().for_retrieval(images=[picture(0), picture(1)])["pixel_values"]
    passages = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))

    def cosine(pictures: torch.Tensor) -> torch.Tensor:
        return torch.cosine_similarity(model.get_query_features(pixel_values=pictures), passages)

    def theirs(part: nn.Module) -> torch.Tensor:
        if method == "grad_cam":
            return attr.LayerGradCam(cosine, part).attribute(pixels, relu_attributions=True)[:, 0]
        return attr.LayerGradientXActivation(cosine, part).attribute(pixels).sum(dim=1).relu()

    layer = model.vision_tower.encoder.stages[0] if vision is CNN else model.vision_tower.layernorm
    ours = layer_grad_cam(model, layer, lambda: cosine(pixels), method)
    if vision is CNN:
        expected = theirs(layer)
    else:  # captum takes the second axis for the channels, so the tokens are put on their raster first
        raster = nn.Identity()
        tokens = layer.register_forward_hook(lambda _module, _args, states: back(raster(forth(states)), states))
        expected = theirs(raster)
        tokens.remove()
    assert float(ours.detach().amax()) > 0
    torch.testing.assert_close(ours, expected.detach())


def forth(states: torch.Tensor) -> torch.Tensor:
    return states[:, 1:].mT.unflatten(-1, (4, 4))


def back(maps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    return torch.cat([states[:, :1], maps.flatten(2).mT], dim=1)
