"""The configuration of EfficientNet-Lite: its stages, as data."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


LITE0 = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@strict
class EfficientNetLiteConfig(PreTrainedConfig):
    r"""
    Configuration of [`EfficientNetLiteModel`]; the defaults are Lite0.

    Args:
        stages (`list[list[int]]`, *optional*):
            Per stage repeats, kernel size, stride of its first block, expansion, and channels.
        stem_size (`int`, *optional*, defaults to 32): channels of the first convolution.
        hidden_size (`int`, *optional*, defaults to 1280): channels of the feature map.
        image_size (`int`, *optional*, defaults to 224): side of the pictures, in pixels.
        batch_norm_eps (`float`, *optional*, defaults to 1e-3), batch_norm_momentum (`float`, *optional*, 0.01).

    Example:

    >>> EfficientNetLiteConfig().hidden_size
    1280
    """

    model_type = "efficientnet_lite"

    stages: list | tuple = LITE0
    stem_size: int = 32
    hidden_size: int = 1280
    image_size: int = 224
    batch_norm_eps: float = 1e-3
    batch_norm_momentum: float = 0.01
    initializer_range: float = 0.02

    def validate_stages(self):
        """Five whole numbers per stage."""
        for stage in self.stages:
            if len(stage) != 5 or min(stage) < 1:
                raise ValueError(
                    f"stage {stage}: expected five whole numbers of at least 1: repeats, kernel size, stride, "
                    "expansion, channels"
                )


__all__ = ["EfficientNetLiteConfig"]
