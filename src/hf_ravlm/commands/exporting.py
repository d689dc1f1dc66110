"""`hf-ravlm export`: the towers of a model as ONNX files."""

from __future__ import annotations

import argparse
import logging

from ..errors import InvalidInputError
from ..hub.export import export_towers
from ..model import RavlmModel, RavlmProcessor
from .outcome import Outcome, size


def export(arguments: argparse.Namespace) -> Outcome:
    """`export`: loads the dual encoder and writes its towers.

    Raises:
        InvalidInputError: The model cannot be loaded.
    """
    try:
        model = RavlmModel.from_pretrained(arguments.model)
        processor = RavlmProcessor.from_pretrained(arguments.model)
    except (OSError, ValueError) as error:  # as transformers reports what is wrong with a model
        raise InvalidInputError(f"{arguments.model}: it cannot be loaded: {str(error)[:500]}") from error
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, of which nothing here needs any
    files = export_towers(model, processor, arguments.folder)
    sizes = {str(file): file.stat().st_size for file in files}
    return Outcome({"files": sizes}, "\n".join(f"{file}: {size(number)}" for file, number in sizes.items()))
