"""peft alone, by its own calls: adapters on our reader are trained, saved, found again by name, and merged."""

from __future__ import annotations

import peft
import pytest
import torch

from hf_ravlm import RavlmForConditionalGeneration
from tiny import picture, tiny_model, tiny_processor


# peft asks by that name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    return folder


def inputs_with_evidence():
    evidence = [["the capital of Norway is Oslo", "red"], ["white"]]
    return tiny_processor()(
        images=[picture(0), picture(1)], text=["what is the capital ?"] * 2, evidence=evidence, answers=["Oslo", "red"]
    )


@pytest.fixture
def trained(base):
    """A reader of the folder `base` after one step of its adapters."""
    torch.manual_seed(0)
    model = peft.get_peft_model(RavlmForConditionalGeneration.from_pretrained(base), peft.LoraConfig(r=2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    for _ in range(2):  # one half of an adapter starts at zero, so that the other learns nothing at first
        model(**inputs_with_evidence()).loss.backward()
        optimizer.step()
    return model.eval()


def logits_of(model):
    with torch.no_grad():
        return model(**inputs_with_evidence()).logits


def test_adapters_go_to_a_folder_of_their_own_and_back(trained, base, tmp_path):
    plain = RavlmForConditionalGeneration.from_pretrained(base)
    assert not torch.allclose(logits_of(trained), logits_of(plain), atol=1e-3)
    trained.save_pretrained(tmp_path / "adapter")
    assert sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir()) < 50_000
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded), logits_of(trained), rtol=1e-4, atol=1e-4)
    with loaded.disable_adapter():
        closed = logits_of(loaded)
    expected = logits_of(RavlmForConditionalGeneration.from_pretrained(base))
    torch.testing.assert_close(closed, expected, rtol=1e-4, atol=1e-4)


def test_merged_weights_need_no_peft_any_more(trained, tmp_path):
    expected = logits_of(trained)
    merged = trained.merge_and_unload()
    assert type(merged) is RavlmForConditionalGeneration
    merged.save_pretrained(tmp_path / "merged")
    loaded, report = RavlmForConditionalGeneration.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits_of(loaded), expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_alone_finds_its_base_model(trained, tmp_path):
    trained.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"not in the import allowlist"):
        peft.AutoPeftModel.from_pretrained(tmp_path / "adapter")
    loaded = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["hf_ravlm"]).eval()
    torch.testing.assert_close(logits_of(loaded), logits_of(trained), rtol=1e-4, atol=1e-4)
