"""Tiny detectors of many families with the image processors that their checkpoints name, and scenes to look at."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForObjectDetection
from transformers.models.conditional_detr.image_processing_pil_conditional_detr import ConditionalDetrImageProcessorPil
from transformers.models.deformable_detr.image_processing_pil_deformable_detr import DeformableDetrImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

from labelled_world import coloured


SIDE = 64
NAMES = {0: "red", 1: "green", 2: "blue"}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
DETR = {
    **HEADS,
    **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 6},
    **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
}
SMALL = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
RESNET = {"model_type": "resnet", **SMALL, "out_features": ["stage4"]}
THREE = {"out_features": ["stage2", "stage3", "stage4"]}
RT_DETR = {
    **DETR,
    **{"backbone_config": {"model_type": "rt_detr_resnet", **SMALL, **THREE}, "encoder_in_channels": [8, 16, 16]},
    **{"encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "num_denoising": 0, "decoder_layers": 2},
}
WIDTHS = [16, 16, 16, 16]
HGNET = {
    **{"model_type": "hgnet_v2", "stage_in_channels": WIDTHS, "stage_mid_channels": WIDTHS, "hidden_sizes": WIDTHS},
    **{"stage_out_channels": WIDTHS, "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4},
    **{"stem_channels": [3, 8, 16], "stage_kernel_size": [3] * 4, "depths": [1] * 4, **THREE},
}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES: dict[str, tuple[dict[str, Any], Any]] = {
    "detr": ({**DETR, "backbone_config": RESNET}, DetrImageProcessorPil),
    "table-transformer": ({**DETR, "backbone_config": RESNET}, DetrImageProcessorPil),
    "yolos": (
        {**VIT, "image_size": [SIDE, SIDE], "patch_size": 16, "num_detection_tokens": 6},
        YolosImageProcessorPil,
    ),
    "conditional_detr": ({**DETR, "backbone_config": RESNET}, ConditionalDetrImageProcessorPil),
    "dab-detr": (
        {**DETR, "hidden_size": 32, "backbone_config": RESNET, "d_model": 32},
        ConditionalDetrImageProcessorPil,
    ),
    "deformable_detr": (
        {**DETR, "decoder_layers": 2, "num_feature_levels": 3, "backbone_config": {**RESNET, **THREE}},
        DeformableDetrImageProcessorPil,
    ),
    "rt_detr": (RT_DETR, RTDetrImageProcessorPil),
    "rt_detr_v2": (RT_DETR, RTDetrImageProcessorPil),
    "d_fine": (
        {**RT_DETR, "backbone_config": HGNET, "encoder_in_channels": [16, 16, 16], "max_num_bins": 8},
        RTDetrImageProcessorPil,
    ),
    "rf_detr": (
        {
            **DETR,
            "backbone_config": {
                **{"model_type": "rf_detr_dinov2", **VIT, "num_hidden_layers": 2, "out_indices": [1, 2]},
                **{"image_size": SIDE, "patch_size": 8, "num_windows": 2},
            },
            **{"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "group_detr": 1},
        },
        DeformableDetrImageProcessorPil,
    ),
}


def tiny_detector(family: str = "detr", seed: int = 0):
    """A detector of red, green and blue with random weights, in eval mode, and its image processor."""
    settings, processor = FAMILIES[family]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **settings, id2label=NAMES, label2id={v: k for k, v in NAMES.items()})
    model = AutoModelForObjectDetection.from_config(config).eval()
    return model, processor(size={"height": SIDE, "width": SIDE})


class PointingDetector(torch.nn.Module):
    """Says of every image the same: given boxes, with given logits."""

    def __init__(self, detector, boxes: list[tuple[float, float, float, float]], logits: list[list[float]]):
        super().__init__()
        self.detector, self.config = detector, detector.config
        self.boxes, self.logits = torch.tensor(boxes), torch.tensor(logits)

    def forward(self, pixel_values, **kwargs):
        outputs = self.detector(pixel_values, **kwargs)
        size = len(pixel_values)
        outputs["pred_boxes"], outputs["logits"] = self.boxes.repeat(size, 1, 1), self.logits.repeat(size, 1, 1)
        return outputs


def scene(left: str, right: str, seed: int = 0) -> Image.Image:
    """Two squares of colours on grey, at the boxes `LEFT` and `RIGHT`."""
    picture = Image.new("RGB", (80, 40), (90, 90, 90))
    picture.paste(coloured(left, seed).resize((24, 24)), (8, 8))
    picture.paste(coloured(right, seed + 1).resize((24, 24)), (48, 8))
    return picture


LEFT, RIGHT = (0.25, 0.5, 0.3, 0.6), (0.75, 0.5, 0.3, 0.6)  # centre, width, height, as shares
LEFT_BOX = {"xmin": 8, "ymin": 8, "xmax": 32, "ymax": 32}
