"""Every fusion by itself: what it reads, what it must not read, and numbers that stay finite."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hf_ravlm import RavlmForConditionalGeneration
from hf_ravlm.model.fusions.gated import GatedExchange
from hf_ravlm.model.fusions.null_attention import NullAttend
from hf_ravlm.model.fusions.registry import FUSIONS, init_fusion_weights
from hf_ravlm.model.fusions.tokens import AddedToWords, Pointing, word_scale
from tiny import tiny_config


READS = {  # which of its inputs a fusion reads
    "concat": {"evidence_states", "evidence_embeds"},
    "product": {"image_patches", "evidence_states", "evidence_embeds"},
    "attention": {"image_patches", "question_states", "evidence_states", "evidence_embeds"},
    "gated": {"image_patches", "question_states", "evidence_states", "evidence_embeds"},
    "cross_attention": {"evidence_states", "evidence_embeds"},
}
MASKS = (
    ("evidence_states", "evidence_token_mask"),
    ("evidence_embeds", "evidence_token_mask"),
    ("question_states", "question_mask"),
)
every_fusion = pytest.mark.parametrize("name", list(READS))


def fusion_of(name: str, seed: int = 0, **changes) -> torch.nn.Module:
    torch.manual_seed(seed)
    fusion = FUSIONS[name](tiny_config(**changes))
    for module in fusion.modules():
        init_fusion_weights(module, std=0.5)
        if isinstance(module, NullAttend):
            torch.nn.init.normal_(module.null_key_value)
    return fusion.eval()


def inputs_of(batch=2, passages=3, length=5, question=4, patches=4, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(batch, passages, length, generator=generator) > 0.4
    if passages:
        kept[..., 0] = True
    return {
        "image_patches": torch.randn(batch, patches, 32, generator=generator),
        "question_states": torch.randn(batch, question, 32, generator=generator),
        "question_mask": torch.arange(question) < torch.tensor([[question], [question - 1]])[:batch],
        "evidence_states": torch.randn(batch, passages, length, 32, generator=generator),
        "evidence_embeds": torch.randn(batch, passages, length, 32, generator=generator),
        "evidence_token_mask": kept,
    }


def meaning(name: str, memory: torch.Tensor, inputs: dict) -> torch.Tensor:
    """The memory without the tokens of `concat` and `cross_attention` that stand for masked states."""
    return memory[inputs["evidence_token_mask"]] if name in ("concat", "cross_attention") else memory


@every_fusion
def test_shapes_and_numbers_of_tokens(name):
    fusion, inputs = fusion_of(name, num_memory_tokens=3), inputs_of()
    tokens = {"concat": None, "product": 1, "attention": 3, "gated": 3, "cross_attention": 0}[name]
    width = 32 + 32 if name == "cross_attention" else 32  # keys of one layer, and values; the language model's width
    assert fusion.num_memory_tokens == tokens
    assert fusion.reads_evidence
    assert fusion(**inputs).shape == (2, 3, tokens or 5, width)
    assert fusion(**inputs_of(passages=0)).shape[:2] == (2, 0)


def test_in_context_reads_nothing():
    fusion = FUSIONS["in_context"](tiny_config())
    assert (fusion.num_memory_tokens, fusion.reads_evidence, list(fusion.parameters())) == (0, False, [])


@every_fusion
def test_what_is_masked_is_not_read(name):
    fusion, inputs = fusion_of(name), inputs_of()
    memory = meaning(name, fusion(**inputs), inputs)
    other = inputs_of(seed=1)
    for states, mask in MASKS:
        inputs[states] = torch.where(inputs[mask].unsqueeze(-1), inputs[states], other[states])
    torch.testing.assert_close(meaning(name, fusion(**inputs), inputs), memory)


@every_fusion
def test_padding_changes_nothing(name):
    fusion, inputs = fusion_of(name), inputs_of()
    longer = dict(inputs)
    for states, mask in MASKS:
        longer[states] = torch.cat([inputs[states], torch.zeros_like(inputs[states])], dim=-2)
        longer[mask] = torch.cat([inputs[mask], torch.zeros_like(inputs[mask])], dim=-1)
    expected = meaning(name, fusion(**inputs), inputs)
    torch.testing.assert_close(meaning(name, fusion(**longer), longer), expected)


@every_fusion
def test_order_and_company_do_not_matter(name):
    fusion, inputs = fusion_of(name), inputs_of()
    memory = fusion(**inputs)
    passages, rows = torch.tensor([2, 0, 1]), torch.tensor([1, 0])
    moved = {key: value[rows] for key, value in inputs.items()}
    for key in ("evidence_states", "evidence_embeds", "evidence_token_mask"):
        moved[key] = moved[key][:, passages]
    torch.testing.assert_close(fusion(**moved), memory[rows][:, passages])
    for k in range(3):
        alone = {key: value[:, k : k + 1] if key.startswith("evidence") else value for key, value in inputs.items()}
        torch.testing.assert_close(fusion(**alone), memory[:, k : k + 1])


@every_fusion
def test_it_reads_what_it_says_and_every_weight_learns(name):
    fusion, inputs = fusion_of(name), inputs_of()
    read = {key: inputs[key].requires_grad_() for key in inputs if not key.endswith("mask")}
    fusion(**inputs).square().sum().backward()
    assert {key for key, value in read.items() if value.grad is not None and value.grad.abs().max() > 1e-4} == READS[
        name
    ]
    silent = [key for key, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(key.startswith("layers.") for key in silent) if name == "cross_attention" else not silent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_fusion
def test_nothing_at_all_gives_finite_numbers_and_gradients(name, dtype):
    fusion = fusion_of(name).to(dtype)
    inputs = inputs_of(patches=0)
    inputs["evidence_token_mask"][0] = False
    inputs["question_mask"][:] = False
    inputs = {
        key: value.to(dtype).requires_grad_() if value.is_floating_point() else value for key, value in inputs.items()
    }
    memory = fusion(**inputs)
    memory.float().square().sum().backward()
    assert memory.dtype == dtype
    assert torch.isfinite(memory).all()
    assert all(torch.isfinite(p.grad).all() for p in fusion.parameters() if p.grad is not None)
    assert torch.isfinite(inputs["evidence_states"].grad).all()


@pytest.mark.parametrize("name", ["attention", "gated"])
def test_gradient_checkpointing_gives_the_same_gradients(name):
    fusion, inputs = fusion_of(name).train(), inputs_of()
    fusion(**inputs).square().sum().backward()
    plain = {key: p.grad.clone() for key, p in fusion.named_parameters()}
    fusion.zero_grad()
    for module in fusion.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    fusion(**inputs).square().sum().backward()
    for key, p in fusion.named_parameters():
        torch.testing.assert_close(p.grad, plain[key])


@pytest.mark.parametrize("name", ["concat", "product"])
def test_a_new_memory_is_made_of_the_language_models_words(name):
    torch.manual_seed(0)
    fusion, inputs = FUSIONS[name](tiny_config()), inputs_of()
    for module in fusion.modules():
        init_fusion_weights(module, std=0.0)
    embeds, mask = inputs["evidence_embeds"], inputs["evidence_token_mask"].unsqueeze(-1)
    words = embeds if name == "concat" else (embeds * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True)
    torch.testing.assert_close(fusion(**inputs), words)


@pytest.mark.parametrize("loaded", [False, True])
@every_fusion
def test_what_is_added_to_words_starts_small_in_a_reader(name, loaded, tmp_path):
    torch.manual_seed(0)
    reader = RavlmForConditionalGeneration(tiny_config(fusion="in_context" if loaded else name))
    if loaded:  # with weights for all but the fusion
        reader.save_pretrained(tmp_path)
        reader = RavlmForConditionalGeneration.from_pretrained(tmp_path, fusion=name)
    (added,) = (module for module in reader.modules() if isinstance(module, AddedToWords))
    assert added.weight.std().item() == pytest.approx(reader.config.initializer_range / 100, rel=0.15)
    assert not added.bias.any()
    if name == "concat":
        inputs = inputs_of()
        inputs["evidence_embeds"] /= 100  # of a language model with small embeddings
        words, memory = inputs["evidence_embeds"], reader.fusion(**inputs)
        assert ((memory - words).norm() / words.norm()).item() < 0.05


@pytest.mark.parametrize("name", ["concat", "product", "attention", "gated"])
def test_what_is_added_to_words_is_as_large_as_they_are(name):
    fusion, inputs = fusion_of(name), inputs_of()
    larger = fusion(**{**inputs, "evidence_embeds": 50 * inputs["evidence_embeds"]})
    mask = inputs["evidence_token_mask"] if name == "concat" else ...
    torch.testing.assert_close(larger[mask], 50 * fusion(**inputs)[mask], rtol=1e-3, atol=1e-2)


def test_the_scale_of_words_is_that_of_those_which_have_an_embedding():
    embeds = torch.randn(2, 3, 5, 8)
    embeds[..., 1, :] = 0  # of an image
    mask = torch.ones(2, 3, 5, dtype=torch.bool)
    mask[..., 4] = mask[1, 2] = False
    scale = word_scale(embeds.requires_grad_(), mask)
    assert scale.shape == (2, 3, 1, 1)
    assert not scale.requires_grad
    assert scale[1, 2].item() == 0
    size = embeds[0, 1, [0, 2, 3]].detach().square().mean().sqrt()
    torch.testing.assert_close(scale[0, 1].squeeze(), size)


@pytest.mark.parametrize("name", ["attention", "gated"])
def test_a_new_memory_that_points_is_one_stretch_of_the_passage(name):
    torch.manual_seed(0)
    pointing = RavlmForConditionalGeneration(tiny_config(fusion=name)).fusion.pointing
    queries, tokens = torch.randn(1, 1, 4, 32), torch.randn(1, 1, 9, 32)
    weights = pointing.weights(queries, tokens, torch.ones(1, 1, 9, dtype=torch.bool))
    moved = torch.nn.functional.pad(weights, (1, 0))[..., :-1, :-1]  # each one a token further on
    assert (weights[..., 1:, :] - moved).abs().sum(-1).max() < 0.2


def test_pointing_is_its_loop_and_reads_on():
    torch.manual_seed(0)
    pointing = Pointing(8)
    torch.nn.init.constant_(pointing.log_scale, 1.0)
    queries, tokens, embeds = torch.randn(1, 1, 3, 8), torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 5)
    mask = torch.tensor([[[True, True, True, False]]])
    before = None
    memory = pointing(queries, tokens, mask, embeds * mask.unsqueeze(-1))[0, 0]
    for m in range(3):
        query, keys = pointing.query(queries[0, 0, m]), pointing.key(tokens[0, 0, :3])
        cosines = [torch.cosine_similarity(query, key, dim=0) for key in keys]
        scores = torch.stack([torch.zeros(()), *(math.e * cosine for cosine in cosines)])
        weights = torch.cat([scores.softmax(0)[1:], torch.zeros(1)])
        if before is not None:
            gate = torch.sigmoid(pointing.go_on(queries[0, 0, m]))
            weights = gate * torch.cat([torch.zeros(1), before[:-1]]) + (1 - gate) * weights
        before = weights
        torch.testing.assert_close(memory[m], weights[:3] @ embeds[0, 0, :3])
    torch.nn.init.constant_(pointing.log_scale, 20.0)  # one choice, then the way on
    torch.nn.init.constant_(pointing.go_on.bias, 50.0)
    found = pointing.weights(queries, tokens, torch.ones(1, 1, 4, dtype=torch.bool))[0, 0]
    first = int(found[0].argmax())
    for m in range(1, 3):
        assert first + m >= 4 or int(found[m].argmax()) == first + m


def test_no_image_is_an_image_of_zeros_to_the_product():
    fusion, inputs = fusion_of("product"), inputs_of()
    without = fusion(**{**inputs, "image_patches": torch.zeros(2, 0, 32)})
    torch.testing.assert_close(without, fusion(**{**inputs, "image_patches": torch.zeros(2, 4, 32)}))
    assert not torch.allclose(without, fusion(**inputs))


def naive_attend(attend: NullAttend, target: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`target (T, width)` reads `source (S, width)`: one head, one target at a time."""
    width = target.shape[-1]
    kept = [attend.key_value(state) for state, keep in zip(source, mask, strict=True) if keep]
    rows = torch.stack([attend.null_key_value, *kept])
    read = []
    for state in target:
        parts = []
        for head in torch.arange(width).chunk(attend.heads):
            query, keys, values = attend.query(state)[head], rows[:, head], rows[:, width + head]
            parts.append(torch.softmax(keys @ query / math.sqrt(len(head)), dim=0) @ values)
        read.append(attend.output(torch.cat(parts)))
    return torch.stack(read)


@pytest.mark.parametrize(("of_target", "of_source"), [(1, 1), (3, 1), (1, 3), (3, 3)])
def test_attention_is_that_of_a_loop(of_target, of_source):
    torch.manual_seed(0)
    attend = NullAttend(width=8, heads=2)
    torch.nn.init.normal_(attend.null_key_value)
    target, source = torch.randn(2, of_target, 3, 8), torch.randn(2, of_source, 5, 8)
    mask = torch.rand(2, of_source, 5) > 0.5
    mask[1, 0] = False
    read = attend(target, source, mask)
    assert read.shape == (2, max(of_target, of_source), 3, 8)
    for b in range(2):
        for k in range(read.shape[1]):
            t, s = min(k, of_target - 1), min(k, of_source - 1)
            torch.testing.assert_close(read[b, k], naive_attend(attend, target[b, t], source[b, s], mask[b, s]))


def test_gated_exchange_is_its_formula():
    torch.manual_seed(0)
    layer = GatedExchange(8, heads=2, targets=(0, 1, 2))
    streams = [torch.randn(2, 1, 3, 8), torch.randn(2, 1, 4, 8), torch.randn(2, 3, 5, 8)]
    masks = [torch.ones(2, 1, 3, dtype=torch.bool), torch.ones(2, 1, 4, dtype=torch.bool), torch.rand(2, 3, 5) > 0.4]
    updated = layer(*streams, masks=masks)
    for b in range(2):
        for k in range(3):
            own = [stream[b, k % stream.shape[1]] for stream in streams]
            keep = [mask[b, k % mask.shape[1]] for mask in masks]
            normed = [norm(states) for norm, states in zip(layer.norms, own, strict=True)]
            for i in range(3):
                expected = own[i]
                for j in range(3):
                    means = [normed[place][keep[place]].sum(0) / max(int(keep[place].sum()), 1) for place in (i, j)]
                    gate = torch.sigmoid(layer.gates[3 * i + j](torch.cat(means)))
                    expected = expected + gate * naive_attend(layer.attend[3 * i + j], normed[i], normed[j], keep[j])
                torch.testing.assert_close(updated[i][b, k], expected)


@every_fusion
def test_loaded_weights_are_not_initialised_again(name):
    fusion = fusion_of(name)
    for p in fusion.parameters():
        torch.nn.init.constant_(p, 7.0)
        p._is_hf_initialized = True
    for module in fusion.modules():
        init_fusion_weights(module, std=0.02)
    assert all((p == 7).all() for p in fusion.parameters())
