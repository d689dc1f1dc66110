"""trl's supervised fine-tuning, which knows nothing of us, trains our reader."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from tiny import picture, tiny_model, tiny_processor


trl = pytest.importorskip("trl", reason='needs trl: pip install -e ".[dev]"')


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_sft_trainer_takes_two_steps(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [
        {
            "images": [picture(n)],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red or white ?"}]}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": "white"}]}],
        }
        for n in range(4)
    ]
    settings = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        learning_rate=0.1,
        save_strategy="no",
        max_length=None,
    )
    trainer = trl.SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows), processing_class=processor)
    result = trainer.train()
    assert result.global_step == 2
    assert torch.isfinite(torch.tensor(result.training_loss))
    changed = [name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("language_model.") for name in changed)
    assert any(name.startswith("image_projector.") for name in changed)
