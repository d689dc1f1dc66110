"""Training the reader leaves the encoder of an existing index as it was."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from hf_ravlm import RavlmEncoder
from hf_ravlm.training import RavlmTrainer, freeze
from tiny import picture, tiny_model, tiny_processor


SMALL = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def test_training_the_reader_leaves_the_encoder_untouched_and_lowers_the_loss(tmp_path):
    model, processor = (
        tiny_model(vision_config={"model_type": "resnet", **SMALL}),
        tiny_processor(),
    )  # a tower with batch norm
    before = RavlmEncoder(model.model, processor).fingerprint
    freeze(model.model)
    rows = [
        {"image": picture(n), "question": "what is red ?", "evidence": ["red white"], "answer": ["white", "of"][n % 2]}
        for n in range(8)
    ]

    def collate(batch):
        return processor(
            images=[row["image"] for row in batch],
            text=[row["question"] for row in batch],
            evidence=[row["evidence"] for row in batch],
            answers=[row["answer"] for row in batch],
        )

    arguments = TrainingArguments(
        tmp_path,
        num_train_epochs=15,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    with torch.no_grad():
        first = model(**collate(rows)).loss.item()
    RavlmTrainer(model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    with torch.no_grad():
        last = model.eval()(**collate(rows)).loss.item()
    assert last < first / 2
    assert RavlmEncoder(model.model, processor).fingerprint == before
