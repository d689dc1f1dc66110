"""Going on from a checkpoint gives what an uninterrupted run gives, and never from half a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch

from hf_ravlm import InvalidInputError, KnowledgeBaseCorruptError, KnowledgeBaseMismatchError, RavlmEncoder
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.training.batches.evidence_mixing import EvidenceMix
from hf_ravlm.training.callbacks import MineNegativesCallback
from hf_ravlm.training.checkpoints.checkpoints import (
    COMPLETE,
    checkpoint_to_resume,
    mark_complete,
    newest_complete,
    what_is_torn,
)
from hf_ravlm.training.joint_trainer import JointSettings, RavlmJointTrainer
from hf_ravlm.training.trainers import RavlmTrainer
from reading_world import STEADY, arguments, assert_same_weights, colour_retriever, passages, rows
from tiny import tiny_model, tiny_processor


STEPS = {"max_steps": 12, "save_strategy": "steps", "save_steps": 6, "per_device_train_batch_size": 2, **STEADY}
MIX = EvidenceMix(num_passages=3, gold=(1.0, 0.0), distractors=(0.0, 1.0), noise=0.5, dropout=0.5)


class Rows(list):
    """Training rows whose negatives are exchanged while training."""

    def take(self, negatives):
        for row, mined in zip(self, negatives):
            row["negative_ids"] = mined.ids


def reader_trainer(folder, **changes):
    model, processor = tiny_model(marginalization="sequence"), tiny_processor()
    retriever, train = colour_retriever(model, processor), Rows(rows())
    callback = MineNegativesCallback(
        retriever.knowledge_base, retriever.encoder, train, 3, train.take, num_negatives=2, kinds=["nearest"]
    )
    return RavlmTrainer(
        model,
        arguments(folder, **{**STEPS, **changes}),
        train_dataset=train,
        processing_class=processor,
        retriever=retriever,
        evidence=MIX,
        callbacks=[callback],
    )


def joint_trainer(folder, retriever_of=colour_retriever, **changes):
    model, processor = tiny_model(marginalization="sequence"), tiny_processor()
    return RavlmJointTrainer(
        model,
        arguments(folder, **{**STEPS, **changes}),
        train_dataset=rows(),
        processing_class=processor,
        retriever=retriever_of(model, processor),
        evidence=EvidenceMix(num_passages=3),
        settings=JointSettings("perplexity_distillation", side="passage", refresh_every=3),
    )


@pytest.mark.parametrize("build", [reader_trainer, joint_trainer])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, build):
    whole = build(tmp_path)
    whole.train()
    resumed = build(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert resumed.state.global_step == 12
    expected = whole.model.state_dict()
    assert_same_weights(resumed.model.state_dict(), expected)
    start = tiny_model(marginalization="sequence").state_dict()
    assert not torch.equal(start["language_model.lm_head.weight"], expected["language_model.lm_head.weight"])
    if build is joint_trainer:
        assert resumed.index_version == whole.index_version == 4  # after 3, 6 and 9 steps, and at the end
        np.testing.assert_allclose(resumed.retriever.vectors, whole.retriever.vectors, atol=1e-4)
    else:
        assert [row.get("negative_ids") for row in resumed.train_dataset] == [
            row.get("negative_ids") for row in whole.train_dataset
        ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An output folder with the complete checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    reader_trainer(folder, max_steps=4, save_steps=2).train()
    return folder


def test_every_torn_file_is_seen_and_the_checkpoint_before_is_taken(finished, tmp_path, caplog):
    names = [path.relative_to(finished / "checkpoint-4") for path in (finished / "checkpoint-4").rglob("*")]
    files = [name for name in names if (finished / "checkpoint-4" / name).is_file()]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", COMPLETE} <= set(map(str, files))
    for number, name in enumerate(files):
        for torn in ("deleted", "cut"):
            folder = tmp_path / f"{number}-{torn}"
            folder.mkdir()
            (folder / "checkpoint-2").symlink_to(finished / "checkpoint-2")
            shutil.copytree(finished / "checkpoint-4", folder / "checkpoint-4")
            path = folder / "checkpoint-4" / name
            if torn == "deleted":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            with caplog.at_level(logging.WARNING):
                caplog.clear()
                assert newest_complete(folder) == folder / "checkpoint-2", (name, torn)
            assert "checkpoint-4 is skipped" in caplog.text
            assert checkpoint_to_resume(str(folder), folder / "checkpoint-4") == str(folder / "checkpoint-2")


def test_the_trainer_goes_on_from_the_newest_complete_checkpoint(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "checkpoint-4" / "optimizer.pt").unlink()
    trainer = reader_trainer(folder, max_steps=4, save_steps=2)
    steps = []
    plain = trainer.training_step
    trainer.training_step = lambda *args: steps.append(trainer.state.global_step) or plain(*args)
    trainer.train(resume_from_checkpoint=True)
    assert steps == [2, 3]
    assert what_is_torn(folder / "checkpoint-4") is None  # written anew


def test_nothing_begins_anew_in_silence(finished, tmp_path):
    assert checkpoint_to_resume(str(tmp_path), None) is None
    with pytest.raises(InvalidInputError, match="no checkpoint"):
        checkpoint_to_resume(str(tmp_path), True)
    for step in (2, 4):
        shutil.copytree(finished / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}" / "scheduler.pt").unlink()
    for asked in (True, tmp_path / "checkpoint-4"):
        with pytest.raises(InvalidInputError, match=r"none of 2 .*scheduler.pt is missing"):
            checkpoint_to_resume(str(tmp_path), asked)
    model_alone = tmp_path / "alone"
    reader_trainer(model_alone, max_steps=1, save_steps=1, save_only_model=True).train()
    with pytest.raises(InvalidInputError, match="save_only_model"):
        reader_trainer(model_alone).train(resume_from_checkpoint=True)


def test_old_checkpoints_go_only_when_the_new_one_is_complete(tmp_path, monkeypatch):
    trainer = reader_trainer(tmp_path, max_steps=4, save_steps=2, save_total_limit=1)
    monkeypatch.setattr("hf_ravlm.training.trainers.mark_complete", _fail_at("checkpoint-4"))
    with pytest.raises(OSError, match="disk"):
        trainer.train()
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-2"
    monkeypatch.undo()
    reader_trainer(tmp_path, max_steps=4, save_steps=2, save_total_limit=1).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4"]


def _fail_at(name):
    from hf_ravlm.training.checkpoints.checkpoints import mark_complete

    def mark(folder, resumable):
        if folder.name == name:
            raise OSError("no room on the disk")
        mark_complete(folder, resumable)

    return mark


def test_another_knowledge_base_or_a_damaged_version_is_refused(tmp_path):
    joint_trainer(tmp_path, max_steps=7).train()
    state = json.loads((tmp_path / "checkpoint-6" / "index_generation.json").read_text())
    assert state["generation"] == 2

    def other(model, processor):
        knowledge = [{**row, "id": row["id"] + "2"} for row in passages()]
        return RavlmRetriever.build(KnowledgeBase.from_dicts(knowledge), RavlmEncoder(model.model, processor))

    trainer = joint_trainer(tmp_path)
    trainer.batches.retriever = other(trainer.model, trainer.processing_class)
    with pytest.raises(KnowledgeBaseMismatchError, match="other passages"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    path = tmp_path / "index_generations" / "generation-000002.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(KnowledgeBaseCorruptError, match="damaged"):
        joint_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_byte_that_has_changed_is_seen(finished, tmp_path):
    """Sizes say nothing about it, and torch and safetensors load most such files."""
    names = [path.relative_to(finished / "checkpoint-4") for path in (finished / "checkpoint-4").rglob("*")]
    for number, name in enumerate(name for name in names if (finished / "checkpoint-4" / name).is_file()):
        folder = tmp_path / str(number)
        shutil.copytree(finished / "checkpoint-4", folder)
        content = bytearray((folder / name).read_bytes())
        content[len(content) * 2 // 3] ^= 1
        (folder / name).write_bytes(content)
        assert what_is_torn(folder) is not None, name


def test_the_highest_steps_are_kept_whatever_the_clock_says(tmp_path):
    trainer = reader_trainer(tmp_path, max_steps=6, save_steps=2, save_total_limit=2)
    future = 4_000_000_000
    save = trainer.save_more
    trainer.save_more = lambda folder: (
        save(folder),
        trainer.state.global_step == 2 and os.utime(folder, (future,) * 2),
    )
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


def test_the_mark_of_a_checkpoint_in_a_hurry_is_no_part_of_it(tmp_path):
    """`enable_jit_checkpoint` puts it there while it writes, and takes it away afterwards."""
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    mark = tmp_path / "checkpoint-is-incomplete.txt"
    mark.write_text("writing")
    mark_complete(tmp_path)
    mark.unlink()
    assert what_is_torn(tmp_path) is None
