"""Chunks give the gradient of the whole batch, with dropout, in the memory of one chunk."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm.training.losses.grad_cache import split_batch
from hf_ravlm.training.losses.objectives import contrast
from tiny_alignment import ALL, build_batch, build_model, build_trainer, step_gradients


def same(found: dict, expected: dict) -> None:
    assert {name for name in expected if expected[name].any()} == {name for name in found if found[name].any()}
    for name in found:
        if name in expected:
            scale = expected[name].abs().max().clamp(min=1e-2)
            assert (found[name] - expected[name]).abs().max() / scale < 1e-4, name


@pytest.mark.parametrize("settings", [{"symmetric": True}, ALL], ids=["contrast", "all"])
def test_chunks_give_the_gradient_of_the_whole(settings, tmp_path):
    batch = build_batch(5, 0 if "symmetric" in settings else 3)
    loss, expected = step_gradients(build_trainer(tmp_path, build_model(), use_cpu=True, **settings), batch)
    settings = {**settings, "grad_cache_chunk_size": 2}
    chunked, found = step_gradients(build_trainer(tmp_path, build_model(), use_cpu=True, **settings), batch)
    assert chunked == pytest.approx(loss, rel=1e-5)
    same(found, expected)


def test_dropout_drops_the_same_in_both_passes(tmp_path):
    batch = build_batch(6, 2)
    trainer = build_trainer(tmp_path, build_model(dropout=0.3), use_cpu=True, grad_cache_chunk_size=4)
    torch.manual_seed(7)
    loss, found = step_gradients(trainer, batch)
    model = trainer.model
    torch.manual_seed(7)
    model.zero_grad()
    inputs = {name: batch[name] for name in ("pixel_values", "passage_input_ids", "passage_attention_mask")}
    nobody = {"match_queries": torch.tensor([]), "match_passages": torch.tensor([])}
    chunks = split_batch(inputs, 6, 8, 4)
    outputs = [model(**chunk.inputs, **nobody) for chunk in chunks]  # the graphs of all chunks at once
    queries = torch.cat([output.query_embeds for output in outputs])
    order = torch.tensor([row for chunk in chunks for row in chunk.passages]).argsort()
    passages = torch.cat([output.passage_embeds for output in outputs])[order]
    labels = (batch["query_labels"], batch["passage_labels"])
    plain = contrast(queries, passages, outputs[0].logit_scale, labels, trainer.args)["itc"]
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    same(found, {name: gradient for name, gradient in gradients.items() if gradient is not None})


def test_accumulated_batches_count_alike(tmp_path):
    batches = [build_batch(4, seed=seed) for seed in range(2)]
    found = []
    for chunk in (None, 2):
        trainer = build_trainer(tmp_path, build_model(), use_cpu=True, grad_cache_chunk_size=chunk)
        trainer.model.zero_grad()
        trainer.current_gradient_accumulation_steps = 2
        for batch in batches:
            trainer.training_step(trainer.model, batch)
        found.append({n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None})
    same(found[1], found[0])


class SavedBytes:
    """Counts the bytes that autograd keeps for the backward pass, and the most at any time."""

    def __init__(self):
        self.now = self.most = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor)

    def pack(self, tensor: torch.Tensor):
        return Kept(tensor, self)


class Kept:
    def __init__(self, tensor: torch.Tensor, count: SavedBytes):
        self.tensor, self.count = tensor.detach(), count  # an output would else keep its own graph alive
        self.count.now += tensor.nbytes
        self.count.most = max(self.count.most, self.count.now)

    def __del__(self):
        self.count.now -= self.tensor.nbytes


@pytest.mark.slow
def test_a_batch_of_4096_trains_in_the_memory_of_64(tmp_path):
    most = {}
    for rows, chunk in ((64, None), (4096, 64)):
        trainer = build_trainer(tmp_path, build_model(), use_cpu=True, grad_cache_chunk_size=chunk)
        batch, count = build_batch(rows), SavedBytes()
        with count.hooks:
            loss, gradients = step_gradients(trainer, batch)
        assert torch.isfinite(torch.tensor(loss))
        assert any(gradient.any() for gradient in gradients.values())
        most[rows] = count.most
    assert most[4096] < 1.25 * most[64], most
