"""`hf-ravlm export`: the towers of a model as ONNX files."""

from __future__ import annotations

import argparse
import logging

from ..hub.export import export_towers
from ..model import RavlmModel, RavlmProcessor
from ..model.loading import loading_errors
from .outcome import Outcome, size


def export(arguments: argparse.Namespace) -> Outcome:
    """`export`: loads the dual encoder and writes its towers.

    Raises:
        InvalidInputError: The model cannot be loaded.
    """
    with loading_errors("model", arguments.model):
        model = RavlmModel.from_pretrained(arguments.model)
        processor = RavlmProcessor.from_pretrained(arguments.model)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, of which nothing here needs any
    files = export_towers(model, processor, arguments.folder)
    sizes = {str(file): file.stat().st_size for file in files}
    return Outcome({"files": sizes}, "\n".join(f"{file}: {size(number)}" for file, number in sizes.items()))
