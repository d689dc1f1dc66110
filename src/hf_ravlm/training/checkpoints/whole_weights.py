"""Knows how the weights of a checkpoint come back into a model, whatever names they were saved under.

transformers saves some towers (a ViT, for one) under their names of old and translates when `from_pretrained` loads
them. Its Trainer does not translate when it resumes or takes the best model: it warns, and goes on with the weights
that the model had (https://github.com/huggingface/transformers/issues/43701).
"""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...errors import InvalidInputError


def load_weights(model: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Puts the weights of a checkpoint into a model of the same architecture.

    Raises:
        InvalidInputError: If the checkpoint lacks weights.
    """
    loading: dict[str, Any] = {"dtype": model.dtype, "output_loading_info": True}
    saved, report = type(model).from_pretrained(folder, config=model.config, **loading)
    wrong = sorted([*report["missing_keys"], *(str(entry[0]) for entry in report["mismatched_keys"])])
    if wrong:
        raise InvalidInputError(
            f"the checkpoint {os.fspath(folder)!r} lacks {len(wrong)} weights of a {type(model).__name__}, or has "
            f"them in another shape ({', '.join(wrong[:3])}, ...): give a checkpoint of this model"
        )
    model.load_state_dict(saved.state_dict())


class LoadsWholeWeights(Trainer):
    """For a Trainer: resumes and takes the best model with every weight of the checkpoint.

    Adapters, FSDP and DeepSpeed keep their own ways of loading.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        model = self.model if model is None else model
        if self._holds_whole_model(resume_from_checkpoint, model):
            load_weights(model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        folder = self.state.best_model_checkpoint
        if self._holds_whole_model(folder, self.model):
            load_weights(self.model, folder)
        else:
            super()._load_best_model()

    def _holds_whole_model(self, folder: str, model: nn.Module) -> bool:
        names = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        whole = any(os.path.isfile(os.path.join(folder, name)) for name in names)
        return whole and isinstance(model, PreTrainedModel) and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
