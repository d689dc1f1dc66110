"""Models, batches and settings on which the alignment is compared: one process and two, in one piece and in chunks.

As a program it is one of two processes (`torchrun --nproc_per_node 2`): it takes a training step on its share of each
batch and writes the gradients to a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


sys.path.insert(0, str(Path(__file__).parent))

from hf_ravlm.model.heads.matching import RavlmForPreTraining
from hf_ravlm.training import RavlmPreTrainer, RavlmPreTrainingArguments
from hf_ravlm.training.losses.joined_batch import gather_inputs, read_layout
from tiny import WIDTHS, tiny_config, tiny_processor


ALL = {"itc_weight": 1.0, "itm_weight": 0.7, "mlm_weight": 0.5, "triplet_weight": 0.3, "triplet_margin": 0.5}
CASES = {  # settings, and queries and hard negatives of each process
    "symmetric": ({"symmetric": True, "matryoshka_dims": [4, 16]}, (3, 2), (0, 0)),
    "hard_negatives": ({"false_negative_ratio": 0.99, "triplet_weight": 0.3, "triplet_margin": 0.5}, (3, 2), (2, 3)),
    "all": (ALL, (3, 2), (1, 2)),
    "in_chunks": ({**ALL, "grad_cache_chunk_size": 2}, (3, 2), (1, 2)),
}


def build_model(dropout: float = 0.0, seed: int = 0) -> RavlmForPreTraining:
    """A model of all objectives whose temperature is not at its limit."""
    torch.manual_seed(seed)
    text = {"model_type": "bert", "vocab_size": 300, "max_position_embeddings": 64, **WIDTHS}
    text |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return RavlmForPreTraining(tiny_config(text_config=text))


def build_batch(num_queries: int, num_hard: int = 0, seed: int = 0, device: str = "cpu") -> dict:
    """Random images and captions, two captions of one label, and words hidden in them."""
    generator = torch.Generator().manual_seed(seed)
    num_passages = num_queries + num_hard
    ids = torch.randint(8, 300, (num_passages, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    labels = torch.arange(num_passages)
    if num_queries > 3:
        labels[3] = labels[0]
    hidden = torch.rand((num_queries, 7), generator=generator) < 0.4
    hidden &= mask[:num_queries].bool()
    batch = {
        "pixel_values": torch.randn((num_queries, 3, 16, 16), generator=generator),
        "passage_input_ids": ids,
        "passage_attention_mask": mask,
        "query_labels": labels[:num_queries].clone(),
        "passage_labels": labels,
        "masked_passage_input_ids": ids[:num_queries].masked_fill(hidden, 7),
        "mlm_labels": ids[:num_queries].masked_fill(~hidden, -100),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def share(batch: dict, queries: tuple[int, int], hard: tuple[int, int], rank: int) -> dict:
    """What one of two processes holds of a batch; its texts are cut to their longest, as a collator would."""
    start, first_hard = sum(queries[:rank]), sum(queries) + sum(hard[:rank])
    own = list(range(start, start + queries[rank]))
    passages = own + list(range(first_hard, first_hard + hard[rank]))
    side = ("passage_input_ids", "passage_attention_mask", "passage_labels")
    return {name: tensor[passages if name in side else own] for name, tensor in batch.items()}


def build_trainer(folder: Path, model: RavlmForPreTraining, **settings) -> RavlmPreTrainer:
    """A trainer that writes nothing by itself."""
    defaults = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}
    args = RavlmPreTrainingArguments(str(folder), **{**defaults, **settings})
    processor = tiny_processor()
    processor.text_tokenizer.add_special_tokens({"mask_token": "<pad>"})
    return RavlmPreTrainer(model=model, args=args, processing_class=processor, data_collator=lambda rows: rows)


def step_gradients(trainer: RavlmPreTrainer, batch: dict, wrap: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a training step and the gradient of every parameter."""
    model = trainer.accelerator.prepare_model(trainer.model) if wrap else trainer.model.to(trainer.args.device)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.training_step(model, batch)
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    return loss.item(), {name: gradient.clone() for name, gradient in gradients.items() if gradient is not None}


def main(folder: Path) -> None:
    for name, (settings, queries, hard) in CASES.items():
        trainer = build_trainer(folder, build_model(), use_cpu=True, **settings)
        rank = trainer.args.process_index
        assert trainer.args.world_size == 2, "run with torchrun --nproc_per_node 2"
        batch = share(build_batch(sum(queries), sum(hard)), queries, hard, rank)
        _, gradients = step_gradients(trainer, batch, wrap=True)
        save_file(gradients, folder / f"{name}_{rank}.safetensors")
    one_sided = {"pixel_values": torch.ones(2, 3, 4, 4)} if rank == 0 else {"input_ids": torch.full((1, 3), 9)}
    passages = {"passage_input_ids": torch.full((3 - rank, 2 + rank), rank + 5)}
    joined = gather_inputs({**one_sided, **passages}, read_layout(2 - rank, 3 - rank, torch.device("cpu")))
    save_file({name: tensor.contiguous() for name, tensor in joined.items()}, folder / f"inputs_{rank}.safetensors")
    train_with_uneven_rows(folder, rank)


def train_with_uneven_rows(folder: Path, rank: int) -> None:
    """Two epochs of 7 rows in batches of 2 per process: the last batch is short."""
    whole = build_batch(7)
    names = ("pixel_values", "passage_input_ids", "passage_attention_mask", "query_labels", "passage_labels")
    rows = [{name: whole[name][row] for name in names} for row in range(7)]
    settings = {"use_cpu": True, "num_train_epochs": 2, "per_device_train_batch_size": 2, "optim": "sgd"}
    trainer = build_trainer(folder, build_model(), **settings, itm_weight=1.0, learning_rate=0.1)
    trainer.train_dataset = rows
    trainer.data_collator = lambda batch: {name: torch.stack([row[name] for row in batch]) for name in names}
    trainer.train()
    logs = {name: torch.tensor(value) for name, value in trainer.state.log_history[0].items()}
    measured = {name: torch.tensor(value) for name, value in trainer.evaluate(rows).items()}
    save_file({**logs, **measured}, folder / f"logs_{rank}.safetensors")
    save_file(trainer.model.state_dict(), folder / f"trained_{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
