"""The towers of the dual encoder as ONNX files, which `integrations/onnxruntime.py` reads without PyTorch.

The folder holds `image_tower.onnx`, `text_tower.onnx`, the processor, and `towers.json`, which is written last: the
weights with which image and text are added up, and the SHA-256 of the files.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..errors import InvalidInputError
from ..model import RavlmModel, RavlmProcessor
from ..saving.durable import sha256_of


TOWERS_FILE = "towers.json"
IMAGE_TOWER, TEXT_TOWER = "image_tower.onnx", "text_tower.onnx"
_LARGEST_FILE = 2**30  # with weights inside; ONNX files end at 2 GiB


def export_towers(model: Any, processor: RavlmProcessor, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes both towers of a dual encoder, with their projections, in float32 and for batches of any size.

    `image_tower.onnx` takes `pixel_values` `(B, 3, height, width)`, `text_tower.onnx` takes `input_ids` and
    `attention_mask` `(B, L)`, both in int64; each returns `embeds` `(B, D)`, unit vectors in float32.

    Args:
        model (`RavlmModel` or a model that holds one as `model`): with trained weights; it is not changed.
        processor (`RavlmProcessor`): of the model; saved with the towers.
        folder: an empty or new folder, or one that an export has written before.

    Returns:
        The files of the towers.

    Raises:
        `ImportError`: if the packages that write ONNX are missing.
        `InvalidInputError`: if the model holds no dual encoder.

    Example:

    >>> export_towers(model, processor, "flags_onnx")  # doctest: +SKIP
    >>> load_onnx_encoder("flags_onnx").encode_queries([image], ["What is this?"])  # doctest: +SKIP
    """
    dual_encoder = model if isinstance(model, RavlmModel) else getattr(model, "model", None)
    if not isinstance(dual_encoder, RavlmModel):
        raise InvalidInputError(
            f"a {type(model).__name__} came, expected a RavlmModel, or a reader that holds one as `model`"
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / TOWERS_FILE).unlink(missing_ok=True)  # while it is missing, the folder is not whole
    towers = copy.deepcopy(dual_encoder).float().cpu().eval()
    # Two rows of two and more tokens: what is one in an example is taken for fixed.
    inputs = processor.for_retrieval([Image.new("RGB", (64, 64))] * 2, ["a red kite", "a wren in the garden"])
    texts = (inputs["input_ids"], inputs["attention_mask"])
    files = _export(_ImageTower(towers), (inputs["pixel_values"],), ["pixel_values"], 1, target / IMAGE_TOWER)
    files += _export(_TextTower(towers), texts, ["input_ids", "attention_mask"], 2, target / TEXT_TOWER)
    processor.save_pretrained(target)
    record = {
        "files": {file.name: sha256_of(file) for file in files},
        "modality_log_weight": towers.modality_log_weight.tolist(),
        "projection_dim": towers.config.projection_dim,
    }
    (target / TOWERS_FILE).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return files


def read_towers(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `towers.json` says, after its files were found to be the ones that were written.

    Raises:
        `InvalidInputError`: if there is no whole export, or a file has changed.
    """
    place = Path(folder) / TOWERS_FILE
    if not place.is_file():
        raise InvalidInputError(f"{folder}: there is no {TOWERS_FILE}, so no export was finished here; export again")
    record = json.loads(place.read_text(encoding="utf-8"))
    for name, expected in record["files"].items():
        file = place.parent / Path(name).name
        if not file.is_file() or sha256_of(file) != expected:
            raise InvalidInputError(f"{file}: the file is missing or not the one that was exported; export again")
    return record


class _ImageTower(nn.Module):
    def __init__(self, model: RavlmModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_features(pixel_values).pooler_output


class _TextTower(nn.Module):
    def __init__(self, model: RavlmModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


def _export(tower: nn.Module, example: tuple, names: list[str], num_dynamic: int, path: Path) -> list[Path]:
    """Writes one tower, whose inputs may be of any size along their first axes; weights apart where they are large."""
    weights = path.with_name(f"{path.name}.data")
    weights.unlink(missing_ok=True)
    dynamic = dict.fromkeys(range(num_dynamic), torch.export.Dim.DYNAMIC)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in tower.parameters())
    try:
        torch.onnx.export(
            tower.eval(),
            example,
            f=path,
            dynamo=True,
            dynamic_shapes=(dynamic,) * len(example),
            external_data=num_bytes > _LARGEST_FILE,
            input_names=names,
            output_names=["embeds"],
            verbose=False,
        )
    except ImportError as error:
        raise ImportError('Exporting to ONNX needs: pip install "hf_ravlm[onnx]"') from error
    return [file for file in (path, weights) if file.exists()]


__all__ = ["export_towers", "read_towers"]
