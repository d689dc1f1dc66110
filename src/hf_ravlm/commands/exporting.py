"""Knows how the towers of a model are exported from the command line."""

from __future__ import annotations

import argparse

from ..errors import InvalidInputError
from .outcome import Outcome, size


def add_export_command(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    """Declares `export`.

    Args:
        commands: Where it is added.
        common: Options that every command has.
    """
    parser = commands.add_parser(
        "export",
        parents=[common],
        help="write the two towers that find passages as ONNX files",
        description="Writes image tower and text tower with their projections to FOLDER, as ONNX files for batches of "
        'any size.\nNeeds: pip install "hf_ravlm[onnx]"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=export, interrupted="Stopped. The folder is not whole: run the same command again.")
    parser.add_argument("model", metavar="MODEL", help="a folder or Hub id of a RAVLM with its processor")
    parser.add_argument("folder", metavar="FOLDER", help="where the files go")


def export(arguments: argparse.Namespace) -> Outcome:
    """`export`: loads the dual encoder and writes its towers."""
    from ..hub.export import export_towers
    from ..model import RavlmModel, RavlmProcessor

    try:
        model = RavlmModel.from_pretrained(arguments.model)
        processor = RavlmProcessor.from_pretrained(arguments.model)
    except (OSError, ValueError) as error:  # as transformers reports what is wrong with a model
        raise InvalidInputError(f"{arguments.model}: it cannot be loaded: {str(error)[:500]}") from error
    files = export_towers(model, processor, arguments.folder)
    sizes = {str(file): file.stat().st_size for file in files}
    return Outcome({"files": sizes}, "\n".join(f"{file}: {size(number)}" for file, number in sizes.items()))
