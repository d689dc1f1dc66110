"""A detector small enough to learn on a processor: an RT-DETR of narrow layers."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForObjectDetection, RTDetrConfig
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from detection.scenes import SIDE


WIDTH, STAGES = 64, [24, 32, 48, 64]
BACKBONE = {
    **{"model_type": "rt_detr_resnet", "embedding_size": STAGES[0], "hidden_sizes": STAGES, "depths": [1, 1, 1, 1]},
    **{"layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]},
}
SETTINGS = {
    **{"d_model": WIDTH, "encoder_hidden_dim": WIDTH, "encoder_ffn_dim": 2 * WIDTH, "decoder_ffn_dim": 2 * WIDTH},
    **{"encoder_in_channels": STAGES[1:], "decoder_in_channels": [WIDTH] * 3, "freeze_backbone_batch_norms": False},
    **{"decoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4},
    **{"num_queries": 20, "num_denoising": 20},
}


def small_detector(labels: dict[str, Any]):
    """New weights for scenes of `SIDE` pixels, and the image processor; `labels` are `id2label` and `label2id`."""
    model = AutoModelForObjectDetection.from_config(RTDetrConfig(backbone_config=BACKBONE, **SETTINGS, **labels))
    return model, RTDetrImageProcessorPil(size={"height": SIDE, "width": SIDE})
