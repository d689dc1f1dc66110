"""Recomputed activations change no weight, in any of the trainers, and bfloat16 learns as float32 does."""

from __future__ import annotations

import pytest
import torch

from tiny_alignment import ALL, build_batch, build_model, build_trainer
from tiny_joint import joint_trainer, reader_trainer


pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]
STEPS = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "logging_steps": 1}
NAMES = ("pixel_values", "passage_input_ids", "passage_attention_mask", "query_labels", "passage_labels")


def pre_trainer(folder, **changes):
    """All objectives, on random pictures and captions."""
    whole = build_batch(8)
    trainer = build_trainer(folder, build_model(), use_cpu=True, per_device_train_batch_size=4, **{**ALL, **changes})
    trainer.train_dataset = [{name: whole[name][row] for name in NAMES} for row in range(8)]
    trainer.data_collator = lambda rows: {name: torch.stack([row[name] for row in rows]) for name in NAMES}
    return trainer


TRAINERS = {
    "reader": reader_trainer,
    "joint": lambda folder, **changes: joint_trainer(folder, "rag_sequence", **changes),
    "alignment": pre_trainer,
    "alignment in chunks": lambda folder, **changes: pre_trainer(folder, grad_cache_chunk_size=2, **changes),
}


def trained(build, folder, **changes):
    """The trainer after two steps, and whether a layer was computed anew in a backward pass."""
    trainer = build(folder, **{**STEPS, **changes})
    model = getattr(trainer.model, "language_model", trainer.model)
    layer = next(module for module in model.modules() if type(module).__name__ in ("LlamaDecoderLayer", "BertLayer"))
    inner = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
    in_backward = []
    inner.register_forward_pre_hook(lambda *_: in_backward.append(torch._C._current_graph_task_id() >= 0))
    trainer.train()
    return trainer, any(in_backward)


@pytest.mark.parametrize("name", TRAINERS)
def test_neither_recomputed_activations_nor_bfloat16_change_what_is_learned(name, tmp_path):
    exact, recomputed = trained(TRAINERS[name], tmp_path)
    saving, recomputed_then = trained(TRAINERS[name], tmp_path, activation_checkpointing=True)
    assert (recomputed, recomputed_then) == (False, True)
    expected = exact.model.state_dict()
    for weight, found in saving.model.state_dict().items():
        torch.testing.assert_close(found, expected[weight], atol=1e-6, rtol=1e-5, msg=weight)

    rough, _ = trained(TRAINERS[name], tmp_path, bf16=True)
    losses = [[log["loss"] for log in trainer.state.log_history if "loss" in log] for trainer in (exact, rough)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05, abs=0.05)
    assert losses[1] != losses[0]
    assert {parameter.dtype for parameter in rough.model.parameters()} == {torch.float32}
