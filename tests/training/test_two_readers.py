"""Two processes train a reader and its retriever as one would, and wait for each other as long as it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_ravlm.training.checkpoints.checkpoints import newest_complete
from tiny_joint import BUILDERS, reader_trainer, step_gradients


# peft asks by the old name
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")]


@pytest.fixture
def two_processes(written_by_two) -> Path:
    """The folder that two processes have written to."""
    return written_by_two / "tiny_joint"


@pytest.mark.parametrize("name", BUILDERS)
def test_the_gradient_is_that_of_the_joined_batch(name, two_processes, tmp_path):
    trainer = BUILDERS[name](tmp_path, per_device_train_batch_size=4, max_steps=1, max_grad_norm=0.0)
    expected = step_gradients(trainer)
    for rank in range(2):
        found = load_file(two_processes / f"{name}_{rank}.safetensors")
        for key, gradient in expected.items():
            torch.testing.assert_close(found.get(key, torch.zeros_like(gradient)), gradient, atol=1e-5, rtol=1e-3)


def test_measures_are_those_of_one_process(two_processes, tmp_path):
    expected = reader_trainer(tmp_path, per_device_eval_batch_size=2).evaluate()
    for rank in range(2):
        found = load_file(two_processes / f"measured_{rank}.safetensors")
        for name in ("exact_match", "token_f1", "closed_book_exact_match", "hit@1", "mrr"):
            assert found[f"eval_{name}"].item() == pytest.approx(expected[f"eval_{name}"], abs=1e-6)


def test_a_slow_first_process_is_waited_for_and_all_end_alike(two_processes):
    first, second = (load_file(two_processes / f"trained_{rank}.safetensors") for rank in range(2))
    assert set(first) == set(second)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    assert first["version"].item() == 3  # after 2 and 4 steps, and at the end
    assert len(first["mined"])
    assert newest_complete(two_processes / "long").name == "checkpoint-5"
    kept = sorted(path.name for path in (two_processes / "long" / "checkpoint-4").glob("rng_state_*.pth"))
    assert kept == ["rng_state_0.pth", "rng_state_1.pth"]
