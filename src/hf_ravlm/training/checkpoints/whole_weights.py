"""Loading of a checkpoint's weights into a model, under whatever names they were saved.

transformers saves some towers (such as ViT) under older names, which `from_pretrained` translates. Its Trainer does
not when it resumes or takes the best model: it warns, and goes on with the weights that the model had
(https://github.com/huggingface/transformers/issues/43701).
"""

from __future__ import annotations

import os

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...errors import InvalidInputError


def holds_whole_model(folder: str | os.PathLike[str], model: nn.Module) -> bool:
    """Whether a checkpoint has all weights of a model, and not those of adapters alone."""
    names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    return isinstance(model, PreTrainedModel) and any(os.path.isfile(os.path.join(folder, name)) for name in names)


def load_weights(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Loads the weights of a checkpoint into a model.

    Raises:
        InvalidInputError: If the checkpoint lacks weights, or has them in another shape.
    """
    saved, report = type(model).from_pretrained(
        folder, config=model.config, dtype=model.dtype, output_loading_info=True, verify=False
    )
    wrong = sorted([*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])])
    if wrong:
        raise InvalidInputError(
            f"the checkpoint {os.fspath(folder)!r} lacks {len(wrong)} weights of a {type(model).__name__}, or has "
            f"them in another shape ({', '.join(wrong[:3])}, ...): give a checkpoint of this model"
        )
    model.load_state_dict(saved.state_dict())
