"""Heads on the dual encoder: pairs are read one by one, hidden words see the picture, everything is saved."""

from __future__ import annotations

import pytest
import torch

from hf_ravlm import RavlmForConditionalGeneration, RavlmModel
from hf_ravlm.model.heads.matching import RavlmForImageTextRetrieval, RavlmForPreTraining
from tiny import assert_same_weights, picture, tiny_config, tiny_model, tiny_processor


TEXTS = ["red white", "the capital of Norway is Oslo", "what is red ?"]


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    """Three pictures and their texts."""
    processor = tiny_processor()
    queries = processor.for_retrieval(images=[picture(n) for n in range(3)])
    passages = processor.for_retrieval(texts=TEXTS)
    return {**queries, **{f"passage_{name}": tensor for name, tensor in passages.items()}}


def head(cls=RavlmForPreTraining, seed: int = 0):
    torch.manual_seed(seed)
    return cls(tiny_config()).eval()


@torch.no_grad()
def test_a_pair_is_read_alike_in_any_company(batch):
    model = head()
    together = model(**batch, match_queries=torch.tensor([0, 2, 1]), match_passages=torch.tensor([1, 2, 0]))
    for pair, (query, passage) in enumerate([(0, 1), (2, 2), (1, 0)]):
        alone = {name: tensor[[passage if name.startswith("passage_") else query]] for name, tensor in batch.items()}
        assert torch.allclose(model(**alone).match_logits, together.match_logits[[pair]], atol=1e-5)


@torch.no_grad()
def test_further_rows_count_on_from_the_own_ones(batch):
    model = head()
    expected = model(**batch, match_queries=torch.tensor([0, 1]), match_passages=torch.tensor([2, 0])).match_logits
    own = {name: tensor[:1] for name, tensor in batch.items()}
    further = {name: tensor[[2, 0]] for name, tensor in batch.items() if name.startswith("passage_")}
    further |= {name: tensor[[1]] for name, tensor in batch.items() if not name.startswith("passage_")}
    rows = {"match_queries": torch.tensor([0, 1]), "match_passages": torch.tensor([1, 2])}
    assert torch.allclose(model(**own, **rows, match_inputs=further).match_logits, expected, atol=1e-5)


@torch.no_grad()
def test_what_a_mask_leaves_out_is_not_read(batch):
    model, processor = head(), tiny_processor()
    both = processor.for_retrieval(images=[None, picture(5)], texts=["red", None])
    absent = {**both, "pixel_values": both["pixel_values"].clone(), "input_ids": both["input_ids"].clone()}
    absent["pixel_values"][0] += 3.0
    absent["input_ids"][1] = 17
    passages = {name: tensor[:2] for name, tensor in batch.items() if name.startswith("passage_")}
    torch.testing.assert_close(model(**both, **passages).match_logits, model(**absent, **passages).match_logits)


@torch.no_grad()
def test_hidden_words_are_guessed_from_the_picture(batch):
    model = head()
    ids = batch["passage_input_ids"]
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.5, -100)
    gaps = {"masked_passage_input_ids": ids.masked_fill(labels != -100, 5), "mlm_labels": labels}
    outputs = model(**batch, **gaps, return_loss=True)
    assert outputs.mlm_logits.shape == (int((labels != -100).sum()), len(tiny_processor().text_tokenizer))
    other = {**batch, "pixel_values": batch["pixel_values"].flip(0)}
    assert not torch.allclose(model(**other, **gaps).mlm_logits, outputs.mlm_logits, atol=1e-6)
    with pytest.raises(ValueError, match="use RavlmForPreTraining"):
        head(RavlmForImageTextRetrieval)(**batch, **gaps)


def test_everything_is_learned(batch):
    model = head().train()
    labels = batch["passage_input_ids"]
    outputs = model(
        **batch,
        mlm_labels=labels,
        masked_passage_input_ids=labels,
        match_labels=torch.tensor([1, 0, 1]),
        return_loss=True,
    )
    outputs.loss.backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all("pooler" in name or "layernorm" in name for name in still), still


@torch.no_grad()
@pytest.mark.parametrize("cls", [RavlmForPreTraining, RavlmForImageTextRetrieval])
def test_what_is_saved_is_loaded(cls, batch, tmp_path):
    model = head(cls)
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path).eval()
    assert_same_weights(again, model)
    torch.testing.assert_close(again(**batch).match_logits, model(**batch).match_logits)
    tower, report = RavlmModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    torch.testing.assert_close(tower.eval()(**batch).scores, model(**batch).scores)


@torch.no_grad()
def test_heads_start_on_a_trained_dual_encoder_or_reader(batch, tmp_path):
    reader = tiny_model(seed=3)
    head = RavlmForPreTraining.from_dual_encoder(reader.model)
    assert head.model is reader.model
    assert torch.isfinite(head(**batch).match_logits).all()
    assert all(parameter.device.type != "meta" for parameter in head.parameters())
    reader.save_pretrained(tmp_path)
    loaded, report = RavlmForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    torch.testing.assert_close(loaded.eval()(**batch).scores, head(**batch).scores)
    again = RavlmForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.model.logit_scale, reader.model.logit_scale)


def unexpected(cls, folder) -> set[str]:
    return set(cls.from_pretrained(folder, output_loading_info=True)[1]["unexpected_keys"])


def test_every_class_takes_its_own_out_of_a_folder_of_another(tmp_path):
    aligned = head()
    aligned.save_pretrained(tmp_path / "aligned")
    for cls in (RavlmModel, RavlmForConditionalGeneration, RavlmForImageTextRetrieval, RavlmForPreTraining):
        assert not unexpected(cls, tmp_path / "aligned")
    plain = RavlmModel.from_pretrained(tmp_path / "aligned")
    assert_same_weights(plain, aligned.model)
    tiny_model().save_pretrained(tmp_path / "reader")
    for cls in (RavlmModel, RavlmForImageTextRetrieval, RavlmForPreTraining):
        assert not unexpected(cls, tmp_path / "reader")
