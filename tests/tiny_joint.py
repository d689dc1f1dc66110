"""Trainers of reader and retriever that one process and two are compared on.

As a program it is one of two processes (`torchrun --nproc_per_node 2`): it trains and writes what came out.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import save_file


sys.path.insert(0, str(Path(__file__).parent))

from hf_ravlm.training.batches.evidence_mixing import EvidenceMix
from hf_ravlm.training.callbacks import MineNegativesCallback
from hf_ravlm.training.joint_trainer import JointSettings, RavlmJointTrainer
from hf_ravlm.training.trainers import RavlmTrainer
from reading_world import arguments, colour_retriever, rows
from tiny import tiny_model, tiny_processor
from tiny_backbones import multimodal_model, with_towers


TIMEOUT = 6  # seconds that a collective operation may take
MIX = EvidenceMix(num_passages=3, gold=0.5, distractors=0.5, noise=0.5, dropout=0.7)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def reader_trainer(folder, **changes):
    model, processor = (
        without_dropout(tiny_model(marginalization="sequence", fusion="gated")),
        tiny_processor(fusion="gated"),
    )
    return RavlmTrainer(
        model,
        arguments(folder, **changes),
        train_dataset=rows(),
        eval_dataset=rows(7),
        processing_class=processor,
        retriever=colour_retriever(model, processor),
        evidence=MIX,
        generation={"max_new_tokens": 2, "do_sample": False},
    )


class Stream(torch.utils.data.IterableDataset):
    """Rows that have no numbers: every process reads all of them and takes its own."""

    def __iter__(self):
        return iter(rows())


def stream_trainer(folder, **changes):
    model, processor = without_dropout(tiny_model()), tiny_processor()
    return RavlmTrainer(
        model,
        arguments(folder, **changes),
        train_dataset=Stream(),
        processing_class=processor,
        retriever=colour_retriever(model, processor),
    )


def joint_trainer(folder, objective="perplexity_distillation", callbacks=None, **changes):
    model, processor = without_dropout(tiny_model(marginalization="sequence")), tiny_processor()
    return RavlmJointTrainer(
        model,
        arguments(folder, **changes),
        train_dataset=rows(),
        processing_class=processor,
        retriever=colour_retriever(model, processor),
        evidence=EvidenceMix(num_passages=3),
        settings=JointSettings(objective, side="passage", refresh_every=2),
        callbacks=callbacks,
    )


def adapted_trainer(folder, **changes):
    """Adapters in the language model and in both towers."""
    model, processor = without_dropout(tiny_model(marginalization="sequence")), tiny_processor()
    retriever = colour_retriever(model, processor)
    layers = ["q_proj", "v_proj", "query", "value"]
    return RavlmJointTrainer(
        model,
        arguments(folder, **changes),
        train_dataset=rows(),
        processing_class=processor,
        retriever=retriever,
        evidence=EvidenceMix(num_passages=4),
        settings=JointSettings("rag_sequence", side="passage"),
        peft_config=LoraConfig(r=2, target_modules=layers, init_lora_weights="gaussian"),
    )


def sighted_trainer(folder, settings=None, **changes):
    """A reader that sees images by itself, with adapters in its language model and in the towers beside it."""
    model, processor = with_towers(*multimodal_model("llava"), projection_dim=16)
    retriever = colour_retriever(without_dropout(model), processor)
    layers = r"language_model\.model\.language_model\..*\.(q_proj|v_proj)|model\..*\.(query|value)"
    return RavlmJointTrainer(
        model,
        arguments(folder, activation_checkpointing=True, **changes),
        train_dataset=rows(),
        processing_class=processor,
        retriever=retriever,
        evidence=EvidenceMix(num_passages=4),
        settings=JointSettings("rag_sequence", side="passage") if settings is None else settings,
        peft_config=LoraConfig(r=2, target_modules=layers, init_lora_weights="gaussian"),
    )


BUILDERS = {
    "sighted": sighted_trainer,
    "adapted": adapted_trainer,
    "reader": reader_trainer,
    "stream": stream_trainer,
    "distilled": joint_trainer,
    "marginal": lambda folder, **changes: joint_trainer(folder, "rag_sequence", **changes),
}


def step_gradients(trainer) -> dict[str, torch.Tensor]:
    """The gradients of the first optimizer step."""
    kept: dict[str, torch.Tensor] = {}

    def keep(*_):
        named = trainer.model.named_parameters()
        kept.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return kept


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    # On processors the Trainer does not pass `ddp_timeout` on.
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    for name, build in BUILDERS.items():
        changes = {"per_device_train_batch_size": 2, "max_steps": 1, "max_grad_norm": 0.0}
        save_file(step_gradients(build(folder / name, **changes)), folder / f"{name}_{rank}.safetensors")
    measured = reader_trainer(folder / "measured", per_device_eval_batch_size=2).evaluate()
    kept = {name: torch.tensor(value) for name, value in measured.items() if isinstance(value, float)}
    save_file(kept, folder / f"measured_{rank}.safetensors")

    train, taken = rows(), []
    trainer = joint_trainer(
        folder / "long",
        max_steps=5,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=4,
    )
    knowledge, encoder = trainer.retriever.knowledge_base, trainer.retriever.encoder
    mine = MineNegativesCallback(knowledge, encoder, train, 3, taken.extend, num_negatives=2, batch_size=4)
    trainer.add_callback(mine)
    if rank == 0:  # it works longer than the others would wait in a collective operation
        plain, waits = encoder.encode_passages, iter([TIMEOUT + 2] * 2)  # at the first refresh and at the mining
        encoder.encode_passages = lambda *given: time.sleep(next(waits, 0)) or plain(*given)
        trainer.retriever.encoder = encoder
    trainer.train()
    outcome = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    outcome["vectors"] = torch.from_numpy(np.array(trainer.retriever.vectors))
    outcome["version"] = torch.tensor(trainer.index_version)
    outcome["mined"] = torch.tensor([knowledge.ids.index(name) for negatives in taken for name in negatives.ids])
    save_file(outcome, folder / f"trained_{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
