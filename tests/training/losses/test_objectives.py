"""The objectives of a step: shares add up, widths and directions are weighted, pairs and gaps are drawn rightly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hf_ravlm.model.modeling_ravlm import info_nce
from hf_ravlm.training import RavlmPreTrainingArguments
from hf_ravlm.training.losses.masking import hide_words
from hf_ravlm.training.losses.objectives import contrast, hidden_words, matching, weighted_sum
from hf_ravlm.training.losses.pairs import draw_pairs, pair_inputs
from tiny import tiny_processor


def vectors(num_rows: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def arguments(tmp_path, **settings) -> RavlmPreTrainingArguments:
    return RavlmPreTrainingArguments(str(tmp_path), report_to="none", use_cpu=True, **settings)


def test_the_symmetric_contrast_is_the_mean_of_both_directions_at_every_width(tmp_path):
    queries, passages, labels = vectors(5, 0), vectors(5, 1), torch.tensor([0, 1, 2, 1, 4])
    args = arguments(tmp_path, symmetric=True, matryoshka_dims=[2, 8], matryoshka_weights=[0.25, 2.0])
    expected = 0.0
    for weight, dim in ((0.25, 2), (2.0, 8)):
        cut = [F.normalize(side[:, :dim], dim=-1) for side in (queries, passages)]
        both = info_nce(*cut, 9.0, labels, labels) + info_nce(*cut[::-1], 9.0, labels, labels)
        expected += weight * both / 2
    found = contrast(queries, passages, torch.tensor(9.0), (labels, labels), args)
    assert set(found) == {"itc"}
    assert found["itc"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_shares_of_all_rows_add_up(tmp_path):
    queries, passages = vectors(5, 0), vectors(9, 1)
    args = arguments(tmp_path, triplet_weight=0.5, false_negative_ratio=0.9)
    whole = contrast(queries, passages, torch.tensor(9.0), None, args)
    shares = [contrast(queries, passages, torch.tensor(9.0), None, args, slice(n, n + 2)) for n in (0, 2, 4)]
    for name, loss in whole.items():
        assert sum(share[name] for share in shares).item() == pytest.approx(loss.item(), rel=1e-5)
    assert weighted_sum(whole, args).item() == pytest.approx((whole["itc"] + 0.5 * whole["triplet"]).item())


def test_nothing_hidden_and_nobody_paired_is_zero_and_no_nan():
    labels = torch.full((2, 3), -100)
    assert hidden_words(torch.zeros(0, 5), labels, 0).item() == 0
    assert matching(torch.zeros(0), torch.zeros(0), 0).item() == 0


def test_pairs_are_hard_and_never_of_one_label():
    queries, passages = vectors(40, 0), vectors(60, 1)
    labels = (torch.arange(40) % 8, torch.arange(60) % 8)
    pairs = draw_pairs(queries, passages, 30.0, labels, generator=torch.Generator().manual_seed(0))
    assert len(pairs) == 120
    belong = labels[0][pairs.queries] == labels[1][pairs.passages]
    assert torch.equal(belong, pairs.labels.bool())
    assert (pairs.passages[40:80] >= 40).any()  # also of the hard negatives
    cosines = queries @ passages.T
    drawn = cosines[pairs.queries[40:80], pairs.passages[40:80]].mean()
    assert drawn > cosines.topk(6, dim=1).values.mean() - 0.1
    assert pairs.of_rows(range(3, 5)).rows.tolist() == [3, 4] * 3


def test_rows_that_are_not_at_hand_are_taken_along_once():
    pairs = draw_pairs(vectors(4, 0), vectors(6, 1), 1.0, generator=torch.Generator().manual_seed(1))
    pool = {"pixel_values": torch.arange(4)[:, None], "passage_input_ids": 10 * torch.arange(6)[:, None]}
    own = range(1, 3)
    inputs = pair_inputs(pairs.of_rows(own), own, [1, 2, 5], pool)
    queries = torch.cat([pool["pixel_values"][1:3], inputs["match_inputs"].get("pixel_values", torch.empty(0, 1))])
    further = inputs["match_inputs"].get("passage_input_ids", torch.empty(0, 1))
    passages = torch.cat([pool["passage_input_ids"][[1, 2, 5]], further])
    assert queries[inputs["match_queries"], 0].tolist() == pairs.of_rows(own).queries.tolist()
    assert passages[inputs["match_passages"], 0].tolist() == (10 * pairs.of_rows(own).passages).tolist()
    assert len(passages.unique()) == len(passages)


def test_words_are_hidden_in_the_shares_of_bert():
    processor = tiny_processor()
    tokenizer = processor.text_tokenizer
    tokenizer.add_special_tokens({"mask_token": "<pad>"})
    word, hidden = tokenizer.convert_tokens_to_ids("red"), tokenizer.mask_token_id
    ids = torch.full((200, 100), word)
    ids[:, :5] = tokenizer.all_special_ids[-1]
    attended = torch.ones_like(ids)
    attended[:, 5:10] = 0
    batch = {"passage_input_ids": ids, "passage_attention_mask": attended}
    masked, labels = hide_words(batch, 200, processor, 0.15, seed=0).values()
    again = hide_words(batch, 200, processor, 0.15, seed=0)["mlm_labels"]
    assert torch.equal(labels, again)
    assert not torch.equal(labels, hide_words(batch, 200, processor, 0.15, seed=1)["mlm_labels"])
    asked = labels != -100
    assert not asked[:, :10].any()
    assert torch.equal(masked[~asked], ids[~asked])
    assert (labels[asked] == word).all()
    assert asked[:, 10:].float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (masked[asked] == hidden).float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert (masked[asked] == word).float().mean().item() == pytest.approx(0.1, abs=0.03)
