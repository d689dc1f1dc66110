"""EfficientNet-Lite: a small convolutional vision tower that transformers has no class for.

MobileNet-like inverted bottlenecks with ReLU6 and without squeeze-and-excitation, 'same' padding as TensorFlow pads.
Lite0 at 224 pixels is 4 M parameters and a feature map of 7 x 7 x 1280. Importing this module registers the tower with
`AutoConfig` and `AutoModel`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from hf_ravlm import InvalidInputError


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
        image_size (`int`, *optional*, defaults to 224): side of the images, in pixels.
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


class EfficientNetLiteModel(PreTrainedModel):
    """The tower: images `(B, 3, height, width)` to a feature map `(B, hidden_size, height / 32, width / 32)`.

    Example:

    >>> import torch
    >>> config = EfficientNetLiteConfig(hidden_size=16, stages=[[1, 3, 2, 1, 8], [2, 5, 2, 6, 8]], stem_size=8)
    >>> EfficientNetLiteModel(config).eval()(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape
    torch.Size([1, 16, 4, 4])
    """

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: EfficientNetLiteConfig):
        super().__init__(config)
        self.stem = ConvNorm(3, config.stem_size, kernel=3, stride=2, config=config)
        width, blocks = config.stem_size, []
        for repeats, kernel, stride, expansion, out in config.stages:
            for repeat in range(repeats):
                blocks.append(InvertedBottleneck(width, out, kernel, 1 if repeat else stride, expansion, config))
                width = out
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(width, config.hidden_size, kernel=1, config=config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPoolingAndNoAttention:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): `(x - 127) / 128` of pixels 0..255.
        """
        features = self.stem(pixel_values)
        for block in self.blocks:
            features = block(features)
        features = self.head(features)  # (B, hidden_size, h, w)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=features, pooler_output=features.mean((2, 3))
        )


class ConvNorm(nn.Module):
    """Convolution with 'same' padding, batch norm and, unless it is a bottleneck, ReLU6."""

    def __init__(
        self,
        width: int,
        out: int,
        kernel: int,
        config: EfficientNetLiteConfig,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ):
        super().__init__()
        self.convolution = nn.Conv2d(width, out, kernel, stride, groups=groups, bias=False)
        self.normalization = nn.BatchNorm2d(out, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.active = active

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.convolution.kernel_size[0], self.convolution.stride[0]
        padding = []
        for size in (features.shape[3], features.shape[2]):  # `F.pad` counts from the last axis
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        features = self.normalization(self.convolution(F.pad(features, padding)))
        return F.relu6(features) if self.active else features


class InvertedBottleneck(nn.Module):
    """Wide, depthwise, narrow; with a short cut where the shape stays the same."""

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int, config: EfficientNetLiteConfig):
        super().__init__()
        inner = width * expansion
        self.expand = ConvNorm(width, inner, 1, config) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNorm(inner, inner, kernel, config, stride, groups=inner)
        self.project = ConvNorm(inner, out, 1, config, active=False)
        self.short_cut = stride == 1 and width == out

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        changed = self.project(self.depthwise(self.expand(features)))
        return features + changed if self.short_cut else changed


def convert_lite_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of the package `efficientnet-lite-pytorch`, under the names of [`EfficientNetLiteModel`].

    Args:
        weights (`Mapping[str, torch.Tensor]`): that package's state dict; its classifier is left out.

    Raises:
        `InvalidInputError`: for a name that is not of that package.

    Example:

    >>> list(convert_lite_weights({"_blocks.3._project_conv.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)}))
    ['blocks.3.project.convolution.weight']
    """
    converted = {}
    for name, tensor in weights.items():
        if name.startswith("_fc."):
            continue
        *path, module, entry = name.split(".")
        table = _OF_BLOCK if path else _OF_NETWORK
        if module not in table:
            raise InvalidInputError(
                f"weight {name!r}: expected a state dict of efficientnet-lite-pytorch, whose names look like "
                "'_blocks.0._depthwise_conv.weight'"
            )
        place = [part.removeprefix("_") for part in path]
        converted[".".join([*place, table[module], entry])] = tensor
    return converted


_OF_NETWORK = {
    "_conv_stem": "stem.convolution",
    "_bn0": "stem.normalization",
    "_conv_head": "head.convolution",
    "_bn1": "head.normalization",
}
_OF_BLOCK = {
    "_expand_conv": "expand.convolution",
    "_bn0": "expand.normalization",
    "_depthwise_conv": "depthwise.convolution",
    "_bn1": "depthwise.normalization",
    "_project_conv": "project.convolution",
    "_bn2": "project.normalization",
}


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
