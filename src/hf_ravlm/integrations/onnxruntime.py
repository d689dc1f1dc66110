"""Exported towers as an encoder of a retriever, run by ONNX Runtime: pip install "hf_ravlm[onnx]"."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hub.export import IMAGE_TOWER, TEXT_TOWER, read_towers
from ..model import RavlmModel, RavlmProcessor
from ..retrieval import RavlmEncoder


def load_onnx_encoder(
    folder: str | os.PathLike[str], batch_size: int = 64, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> RavlmEncoder:
    """An encoder that runs what `hub.export.export_towers` wrote.

    Its vectors are those of the model up to rounding, but its fingerprint is another: a knowledge base that the model
    built takes it after looking at the stored probes, with a warning.

    Args:
        folder: The export.
        batch_size: As `RavlmEncoder`.
        providers: Execution providers of ONNX Runtime, best first.

    Raises:
        ImportError: If ONNX Runtime is missing.
        InvalidInputError: If the folder holds no whole export.

    Example:

    ```python
    >>> encoder = load_onnx_encoder("flags_onnx")  # doctest: +SKIP
    >>> RavlmRetriever.build(knowledge_base, encoder)  # doctest: +SKIP

    ```
    """
    towers = OnnxTowers(folder, providers)
    return RavlmEncoder(towers, RavlmProcessor.from_pretrained(folder), batch_size=batch_size)


class OnnxTowers(nn.Module):
    """What `RavlmEncoder` needs of a dual encoder, from an export; arguments and errors as `load_onnx_encoder`."""

    combine = RavlmModel.combine

    def __init__(self, folder: str | os.PathLike[str], providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        try:
            from onnxruntime import InferenceSession
        except ImportError as error:
            raise ImportError('Running exported towers needs: pip install "hf_ravlm[onnx]"') from error
        super().__init__()
        record = read_towers(folder)
        self.files: dict[str, str] = record["files"]
        self.modality_log_weight = nn.Parameter(torch.tensor(record["modality_log_weight"]), requires_grad=False)
        self._image_tower = InferenceSession(Path(folder) / IMAGE_TOWER, providers=list(providers))
        self._text_tower = InferenceSession(Path(folder) / TEXT_TOWER, providers=list(providers))

    def retrieval_fingerprint(self) -> dict[str, Any]:
        """The digests of the towers."""
        return {"files": self.files}

    def get_query_features(
        self,
        pixel_values: torch.Tensor | None = None,
        image_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Unit vectors `(B, D)`, as `RavlmModel.get_query_features`."""
        images = texts = None
        if pixel_values is not None:
            images = _run(self._image_tower, pixel_values=pixel_values)
        if input_ids is not None:
            texts = _run(self._text_tower, input_ids=input_ids, attention_mask=attention_mask)
        return self.combine(images, image_mask, texts, text_mask)

    get_passage_features = get_query_features


def _run(session: Any, **inputs: torch.Tensor) -> torch.Tensor:
    (embeds,) = session.run(["embeds"], {name: tensor.cpu().numpy() for name, tensor in inputs.items()})
    return torch.from_numpy(embeds)  # (B, D)


__all__ = ["OnnxTowers", "load_onnx_encoder"]
