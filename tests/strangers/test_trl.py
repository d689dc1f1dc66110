"""trl, which knows nothing of us, trains our readers: by examples, by preferences, by rewards."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText

from hf_ravlm import from_backbones
from tiny import picture, tiny_model, tiny_processor
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model, with_towers


trl = pytest.importorskip("trl", reason='needs trl: pip install -e ".[dev]"')

SETTINGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "learning_rate": 0.1,
    "save_strategy": "no",
    "disable_tqdm": True,
}
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red or white ?"}]}]


def said(text: str) -> list[dict]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def by_examples(model, processor, folder):
    rows = [{"images": [picture(n)], "prompt": ASKED, "completion": said("white")} for n in range(4)]
    args = trl.SFTConfig(output_dir=folder, max_length=None, **SETTINGS)
    return trl.SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=processor)


def by_preferences(model, processor, folder):
    pair = {"chosen": said("white"), "rejected": said("red")}
    rows = Dataset.from_list([{"images": [picture(n)], "prompt": ASKED, **pair} for n in range(4)])
    args = trl.DPOConfig(output_dir=folder, max_length=None, **SETTINGS)
    return trl.DPOTrainer(model, args=args, train_dataset=rows, processing_class=processor)


def by_rewards(model, processor, folder):
    rows = [{"image": picture(n), "prompt": [{"role": "user", "content": "red or white ?"}]} for n in range(4)]
    if processor.layout != "marks" and processor.generator_processor is None:  # it reads words alone
        rows = [{"prompt": row["prompt"]} for row in rows]
    args = trl.GRPOConfig(output_dir=folder, num_generations=2, max_completion_length=4, **SETTINGS)

    def reward(completions, **_):
        return [float(number) for number in range(len(completions))]

    rows = Dataset.from_list(rows)
    return trl.GRPOTrainer(model, reward, args=args, train_dataset=rows, processing_class=processor)


def saved_reader(kind: str, folder) -> tuple:
    """A reader from a folder, as trl loads it once more to compare with."""
    if kind == "text":
        model, processor = tiny_model(), tiny_processor()
    elif kind in ("words", "sees"):  # without towers: the encoder stands beside it
        if kind == "words":
            parts = {"generator": causal_model("llama"), "tokenizer": causal_tokenizer()}
        else:
            parts = dict(zip(("generator", "generator_processor"), multimodal_model("llava"), strict=True))
        model, processor = from_backbones(**parts)
    else:
        model, processor = with_towers(*multimodal_model(kind), projection_dim=16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return AutoModelForImageTextToText.from_pretrained(folder), processor


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["text", "words", "sees", "llava", "qwen2_5_vl"])
@pytest.mark.parametrize("trained", [by_examples, by_preferences, by_rewards])
def test_every_trainer_takes_two_steps(tmp_path, trained, kind):
    model, processor = saved_reader(kind, tmp_path / "reader")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = trained(model, processor, str(tmp_path / "run"))
    result = trainer.train()
    assert result.global_step == 2
    assert torch.isfinite(torch.tensor(result.training_loss))
    changed = [name for name, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("language_model.") for name in changed)
    if kind == "text" and trained is not by_rewards:
        assert any(name.startswith("image_projector.") for name in changed)
