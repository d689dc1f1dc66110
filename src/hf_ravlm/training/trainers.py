"""The Trainer for our models: what is frozen stays as it is, batch statistics included.

Freezing belongs to training and not to the model: `from_pretrained` makes every parameter trainable again.
"""

from __future__ import annotations

from torch import nn
from transformers import Trainer


def freeze(*modules: nn.Module) -> None:
    """Makes every parameter of the modules untrainable; [`RavlmTrainer`] then also keeps them in eval mode.

    Example:

    >>> tower = nn.Linear(2, 2)
    >>> freeze(tower)
    >>> any(parameter.requires_grad for parameter in tower.parameters())
    False
    """
    for module in modules:
        module.requires_grad_(False)


class RavlmTrainer(Trainer):
    """`transformers.Trainer` that leaves frozen parts of the model in eval mode.

    The reader is trained on a dual encoder that has already built an index. Dropout there would be noise, and a batch
    norm in training mode would move its running statistics: the encoder would no longer be the one of the index.
    """

    def compute_loss_context_manager(self):
        """Entered for every loss, after the model was put into training mode: frozen parts go back to eval mode."""
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return super().compute_loss_context_manager()
