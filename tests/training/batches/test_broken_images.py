"""Pictures that cannot be used, where reader and retriever learn together: all parts of a batch have the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_ravlm import InvalidInputError, UnsafeInputError
from hf_ravlm.training.batches.broken_images import blank_image, check_on_error
from hf_ravlm.training.batches.evidence_mixing import EvidenceMix
from hf_ravlm.training.joint_trainer import JOINT, RavlmJointTrainer
from reading_world import arguments, colour_retriever, rows
from tiny import tiny_model, tiny_processor


def joint_trainer(folder, **options):
    model, processor = tiny_model(marginalization="sequence"), tiny_processor()
    return RavlmJointTrainer(
        model,
        arguments(folder, num_train_epochs=1),
        train_dataset=broken_rows(),
        processing_class=processor,
        retriever=colour_retriever(model, processor),
        evidence=EvidenceMix(num_passages=2),
        **options,
    )


def broken_rows() -> list[dict]:
    return [{**row, "image": b"no picture"} if n in (1, 6) else row for n, row in enumerate(rows(8))]


def test_the_joint_trainer_refuses_replaces_or_leaves_out(tmp_path):
    with pytest.raises(UnsafeInputError, match="'q[16]'"):
        joint_trainer(tmp_path).train()
    for policy in ("blank", "skip"):
        trainer = joint_trainer(tmp_path, on_error=policy)
        trainer.train()
        assert trainer.batches.num_broken == 2
        assert trainer.state.global_step == 2
        assert np.isfinite(trainer.state.log_history[-1]["train_loss"])


def test_a_joint_batch_has_the_same_rows_everywhere(tmp_path):
    trainer = joint_trainer(tmp_path, on_error="skip")
    inputs = trainer.training_inputs(broken_rows()[:4])
    assert inputs["row_names"] == ["'q0'", "'q2'", "'q3'"]
    assert len(inputs["pixel_values"]) == len(inputs["evidence_scores"]) == 3
    assert len(inputs["labels"]) == 3 * 2  # a prompt per passage
    assert len(inputs[JOINT]["has_answer"]) == len(inputs[JOINT]["query"]["pixel_values"]) == 3
    grey = joint_trainer(tmp_path, on_error="blank").training_inputs(broken_rows()[:4])
    expected = trainer.processing_class.for_retrieval(images=[blank_image()])["pixel_values"][0]
    torch.testing.assert_close(grey[JOINT]["query"]["pixel_values"][1], expected)


def test_an_unknown_policy_is_refused_with_the_choices(tmp_path):
    with pytest.raises(InvalidInputError, match=r"'drop': expected one of \['raise', 'blank', 'skip'\]"):
        check_on_error("drop")
    with pytest.raises(InvalidInputError, match="'drop'"):
        joint_trainer(tmp_path, on_error="drop")
