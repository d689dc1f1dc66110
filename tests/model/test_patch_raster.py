"""Images that are not square keep their rows and columns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from hf_ravlm import RavlmModel
from hf_ravlm.explain.gradcam import retrieval_grad_cam
from hf_ravlm.model.backbones import patch_raster
from tiny import picture, tiny_config, tiny_processor
from tiny_backbones import VISION


def wide_model(family: str, **config) -> RavlmModel:
    torch.manual_seed(0)
    vision = {"model_type": family, **VISION[family], **config}
    return RavlmModel(tiny_config(vision_config=vision, pooling_grid=2)).eval()


@pytest.mark.parametrize(
    ("family", "config", "before"),
    [("dinov2", {}, 1), ("dinov2_with_registers", {}, 5), ("vit", {"image_size": [16, 32]}, 1)],
)
@torch.no_grad()
def test_cells_average_the_patches_that_lie_in_them(family, config, before):
    model = wide_model(family, **config)
    pixels = torch.randn(2, 3, 16, 32)
    tokens = model.vision_tower(pixels).last_hidden_state[:, before:]
    assert tokens.shape[1] == 4 * 8
    cells = F.adaptive_avg_pool2d(tokens.mT.unflatten(-1, (4, 8)), 2).flatten(2).mT
    torch.testing.assert_close(model.get_image_patches(pixels, 2), cells)
    expected = F.normalize(model.image_projection(cells.flatten(1)), dim=-1)
    torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected)


@pytest.mark.parametrize(
    ("tokens", "size", "patch", "raster"),
    [
        (33, (16, 32), 4, (4, 8)),
        (37, (16, 32), [4, 4], (4, 8)),
        (16, (32, 32), 2, (4, 4)),
        (8, (16, 32), 2, (2, 4)),
        (10, (16, 32), None, (3, 3)),
    ],
)
def test_rows_and_columns_of_patches(tokens, size, patch, raster):
    assert patch_raster(tokens, size, SimpleNamespace(patch_size=patch)) == raster


def test_heat_maps_keep_the_shape_of_the_image():
    model = wide_model("dinov2")
    processor = tiny_processor()
    processor.image_processor.size = {"height": 16, "width": 32}
    maps = retrieval_grad_cam(model, processor, [picture(0)], ["Oslo"], torch.ones(1, 16))
    assert maps.shape == (1, 16, 32)
