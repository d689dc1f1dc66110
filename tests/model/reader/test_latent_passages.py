"""Answers over latent passages, against enumeration: one forward pass per passage, sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LogitsProcessorList

from hf_ravlm.model.reader import reading
from hf_ravlm.model.reader.proposals import answer_mask
from tiny import FUSIONS, picture, tiny_model, tiny_processor


QUESTIONS = ["what is the capital ?", "red or white of this country ?"]
EVIDENCE = [
    [("the capital of Norway is Oslo", 0.9), ("red white", 0.1), ("of Chad", 0.3)],
    [("the capital of Chad is N'Djamena and of Norway", 0.7), ("white", 0.6), ("is", -0.2)],
]
PASSAGES = [[{"text": text, "score": score} for text, score in row] for row in EVIDENCE]
SCORES = torch.tensor([[score for _, score in row] for row in EVIDENCE])
ANSWERS = ["Oslo and", "white"]


def marginal_model(marginalization: str, fusion: str = "in_context", **changes):
    return tiny_model(fusion=fusion, marginalization=marginalization, **changes)


def inputs_for(fusion: str = "in_context", question_first: bool = True, evidence=PASSAGES, **more):
    processor = tiny_processor(fusion=fusion, question_first=question_first, passage_prompts=True)
    return processor(images=[picture(0), picture(1)], text=QUESTIONS, evidence=evidence, **more)


def token_log_probs_by_hand(model, row: int, passage: str | None, answer: str, fusion: str, question_first: bool):
    """Log-probability of each answer token with one passage alone in the prompt."""
    processor = tiny_processor(fusion=fusion, question_first=question_first)
    evidence = [[] if passage is None else [passage]]
    inputs = processor(images=[picture(row)], text=[QUESTIONS[row]], evidence=evidence, answers=[answer])
    labels = inputs.pop("labels")
    plain, model.config.marginalization = model.config.marginalization, "none"
    with torch.no_grad():
        logits = model(**inputs).logits.double()
    model.config.marginalization = plain
    places = [t for t in range(labels.shape[1]) if labels[0, t] != -100]
    return torch.stack([logits[0, t - 1].log_softmax(-1)[labels[0, t]] for t in places])


def log_prior_by_hand(model, row: int) -> torch.Tensor:
    return (SCORES[row].double() * model.model.logit_scale.detach().double().exp()).log_softmax(0)


def log_likelihood_by_hand(
    model, marginalization: str, row: int, answer: str, fusion="in_context", question_first=True
):
    prior = log_prior_by_hand(model, row).exp()
    tokens = torch.stack(
        [token_log_probs_by_hand(model, row, text, answer, fusion, question_first) for text, _ in EVIDENCE[row]]
    ).exp()  # (K, T)
    if marginalization == "sequence":
        return (prior * tokens.prod(dim=1)).sum().log()
    return (prior[:, None] * tokens).sum(dim=0).log().sum()


@pytest.mark.parametrize("question_first", [True, False])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("marginalization", ["sequence", "token"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_loss_is_the_enumerated_likelihood(fusion, marginalization, padding_side, question_first):
    model = marginal_model(marginalization, fusion)
    inputs = inputs_for(fusion, question_first, answers=ANSWERS, padding_side=padding_side)
    with torch.no_grad():
        outputs = model(**inputs)
    expected = sum(
        log_likelihood_by_hand(model, marginalization, row, ANSWERS[row], fusion, question_first) for row in range(2)
    )
    num_tokens = (inputs["labels"][::3] != -100).sum()
    torch.testing.assert_close(outputs.loss.double(), -expected / num_tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.posterior.sum(-1), torch.ones(2))


@pytest.mark.parametrize("marginalization", ["sequence", "token"])
def test_what_prompts_share_is_read_once_and_changes_no_logit(marginalization, monkeypatch):
    model, inputs = marginal_model(marginalization), inputs_for(answers=ANSWERS, padding_side="left")
    seen = []
    read = model.language_model.forward

    def counting(**kwargs):
        seen.append(kwargs["inputs_embeds"].shape[:2])
        return read(**kwargs)

    monkeypatch.setattr(model.language_model, "forward", counting)
    with torch.no_grad():
        shared = model(**inputs)
        tokens_read = sum(rows * length for rows, length in seen)
        seen.clear()
        monkeypatch.setattr(reading, "grouped_prefix", lambda *_: None)
        naive = model(**inputs)
    assert [rows for rows, _ in seen] == [6]
    assert tokens_read < 0.8 * seen[0][0] * seen[0][1]
    width, keep = inputs["input_ids"].shape[1], shared.logits.shape[1]
    real = inputs["attention_mask"][:, width - keep :].bool()
    torch.testing.assert_close(shared.logits[real], naive.logits[:, -keep:][real], atol=1e-4, rtol=0)
    torch.testing.assert_close(shared.loss, naive.loss)


def test_padding_stays_below_its_limit():
    model = marginal_model("sequence")
    evidence = [[{"text": "red " * n, "score": 0.0} for n in row] for row in ([1, 30, 7], [25, 2, 6])]
    inputs = inputs_for(evidence=evidence, answers=ANSWERS, padding_side="left")
    read, sent, kept = model.language_model.forward, 0, 0

    def counting(**kwargs):
        nonlocal sent, kept
        length = kwargs["inputs_embeds"].shape[1]
        sent += kwargs["inputs_embeds"].shape[:2].numel()
        kept += int(kwargs["attention_mask"][:, -length:].sum())
        return read(**kwargs)

    model.language_model.forward = counting
    with torch.no_grad():
        model(**inputs)
    assert 1 - kept / sent <= 0.15
    assert 1 - inputs["attention_mask"].float().mean() > 0.3  # as one batch it would not


@pytest.mark.parametrize("marginalization", ["sequence", "token"])
@pytest.mark.parametrize("answer", ["a", "Oslo and of"])
def test_the_scores_get_prior_minus_posterior_as_gradient(marginalization, answer):
    model = marginal_model(marginalization)
    inputs = inputs_for(answers=[answer] * 2)
    if answer == "a":  # one token, without an end mark
        ends = inputs["labels"] == model.generation_config.eos_token_id
        inputs["labels"][ends] = -100
        assert int((inputs["labels"] != -100).sum(1).max()) == 1
    inputs["evidence_scores"].requires_grad_()
    outputs = model(**inputs)
    outputs.loss.backward()
    gradient = inputs["evidence_scores"].grad * (inputs["labels"][::3] != -100).sum()
    assert gradient.abs().max() > 1e-4
    if marginalization == "sequence" or answer == "a":
        scale = model.model.logit_scale.exp()
        prior = (SCORES * scale).softmax(-1)
        torch.testing.assert_close(gradient, scale * (prior - outputs.posterior), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("marginalization", ["sequence", "token"])
def test_the_order_of_passages_does_not_matter(marginalization, fusion):
    model = marginal_model(marginalization, fusion)
    with torch.no_grad():
        loss = model(**inputs_for(fusion, answers=ANSWERS)).loss
        turned = [row[1:] + row[:1] for row in PASSAGES]
        torch.testing.assert_close(model(**inputs_for(fusion, answers=ANSWERS, evidence=turned)).loss, loss)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("marginalization", ["sequence", "token"])
def test_no_evidence_is_the_plain_loss(marginalization, fusion):
    model = marginal_model(marginalization, fusion)
    with torch.no_grad():
        closed = model(**inputs_for(fusion, answers=ANSWERS, evidence=None)).loss
        inputs = inputs_for(fusion, answers=ANSWERS)
        inputs["evidence_mask"] = torch.zeros_like(inputs["evidence_mask"])
        torch.testing.assert_close(model(**inputs).loss, closed, atol=1e-5, rtol=0)
        one = inputs_for(fusion, answers=ANSWERS, evidence=[row[:1] for row in PASSAGES])
        lone = model(**one).loss
        model.config.marginalization = "none"
        torch.testing.assert_close(lone, model(**one).loss)


def test_a_missing_passage_counts_for_nothing():
    model = marginal_model("sequence")
    uneven = [PASSAGES[0], PASSAGES[1][:2]]
    with torch.no_grad():
        outputs = model(**inputs_for(answers=ANSWERS, evidence=uneven))
    assert outputs.posterior[1, 2] == 0
    prior = (SCORES[1, :2].double() * model.model.logit_scale.double().exp()).softmax(0)
    likelihood = [
        token_log_probs_by_hand(model, 1, text, ANSWERS[1], "in_context", True).sum() for text, _ in EVIDENCE[1][:2]
    ]
    joint = prior * torch.stack(likelihood).exp()
    torch.testing.assert_close(outputs.posterior[1, :2].double(), joint / joint.sum(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("marginalization", ["sequence", "token"])
def test_the_prior_has_the_scale_of_the_encoder_that_scored(marginalization, beams):
    """Told with the inputs, in training and in generation, it is as if the reader had learned it."""
    model, given = marginal_model(marginalization), {"prior_scale": torch.full((2,), 60.0)}
    writing = {"max_new_tokens": 3, "do_sample": False, "num_beams": beams, "return_dict_in_generate": True}
    writing |= {} if marginalization == "sequence" else {"output_logits": True}

    def found(**told):
        with torch.no_grad():
            outputs = model(**inputs_for(answers=ANSWERS), **told)
            written = model.generate(**inputs_for(), **told, **writing)
        scores = written.sequences_scores if marginalization == "sequence" else torch.stack(written.logits)
        return outputs.loss, outputs.posterior, written.sequences, scores

    own, told = found(), found(**given)
    model.model.logit_scale.data.fill_(math.log(60.0))
    for one, other in zip(told, found(), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(own[1], told[1], atol=1e-3)


@pytest.mark.parametrize("fusion", ["in_context", "gated", "concat", "cross_attention"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_rag_token_picks_the_best_of_the_mixture_at_every_step(fusion, use_cache):
    model = marginal_model("token", fusion)
    inputs = inputs_for(fusion)
    sequences = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=use_cache)
    new = sequences[:, inputs["input_ids"].shape[1] :]
    for row in range(2):
        prior = log_prior_by_hand(model, row)
        written: list[int] = []
        for token in new[row].tolist():
            if written and written[-1] == model.generation_config.eos_token_id:
                break
            mixed = (
                torch.stack([next_log_probs(model, fusion, row, text, written) for text, _ in EVIDENCE[row]])
                + prior[:, None]
            )
            assert mixed.logsumexp(0).argmax() == token
            written.append(token)


def next_log_probs(model, fusion, row, passage, written):
    processor = tiny_processor(fusion=fusion, question_first=True)
    inputs = processor(images=[picture(row)], text=[QUESTIONS[row]], evidence=[[passage]])
    more = torch.tensor([written], dtype=torch.long)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    model.config.marginalization = "none"
    with torch.no_grad():
        log_probs = model(**inputs).logits[0, -1].double().log_softmax(-1)
    model.config.marginalization = "token"
    return log_probs


@pytest.mark.parametrize("fusion", ["in_context", "attention", "cross_attention"])
def test_rag_token_beams_score_what_the_likelihood_says(fusion):
    model, inputs = marginal_model("token", fusion), inputs_for(fusion)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 4, "length_penalty": 0.0}
    outputs = model.generate(**inputs, **options, do_sample=False, return_dict_in_generate=True, output_scores=True)
    assert len(outputs.sequences) == 6
    for place, (sequence, score) in enumerate(zip(outputs.sequences, outputs.sequences_scores)):
        tokens = sequence[inputs["input_ids"].shape[1] :].tolist()
        end = model.generation_config.eos_token_id
        tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
        row = place // 3
        prior = log_prior_by_hand(model, row)
        total = 0.0
        for t, token in enumerate(tokens):
            each = [next_log_probs(model, fusion, row, text, tokens[:t])[token] for text, _ in EVIDENCE[row]]
            total += (torch.stack(each) + prior).logsumexp(0)
        assert math.isclose(total, score, abs_tol=1e-4)


def test_rag_token_samples_and_obeys_processors():
    model, inputs = marginal_model("token"), inputs_for()
    torch.manual_seed(1)
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3}
    first = model.generate(**inputs, **options)
    torch.manual_seed(1)
    assert torch.equal(model.generate(**inputs, **options), first)
    only = LogitsProcessorList([lambda ids, scores: scores.masked_fill(torch.arange(scores.shape[1]) != 40, -1e9)])
    forced = model.generate(**inputs, logits_processor=only, max_new_tokens=2, do_sample=False)
    assert forced[:, -2:].tolist() == [[40, 40]] * 2


@pytest.mark.parametrize("fusion", ["in_context", "gated", "cross_attention"])
@pytest.mark.parametrize("beams", [1, 3])
def test_rag_sequence_takes_the_likeliest_proposal(fusion, beams):
    model, inputs = marginal_model("sequence", fusion), inputs_for(fusion)
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": beams}
    outputs = model.generate(**inputs, **options, num_return_sequences=1, return_dict_in_generate=True)
    proposals = {0: set(), 1: set()}
    model.config.marginalization = "none"
    processor = tiny_processor(fusion=fusion, question_first=True)
    for row in range(2):
        for text, _ in EVIDENCE[row]:
            alone = processor(images=[picture(row)], text=[QUESTIONS[row]], evidence=[[text]])
            sequences = model.generate(**alone, **options, num_return_sequences=beams)
            proposals[row] |= {tuple(s) for s in sequences[:, alone["input_ids"].shape[1] :].tolist()}
    model.config.marginalization = "sequence"
    for row in range(2):
        scored = {answer: sequence_log_likelihood(model, fusion, row, answer) for answer in proposals[row]}
        chosen = tuple(outputs.sequences[row, inputs["input_ids"].shape[1] :].tolist())
        best = max(scored.values())
        assert math.isclose(outputs.sequences_scores[row], best, abs_tol=1e-4)
        chosen = next(answer for answer in scored if answer[: len(chosen)] == chosen[: len(answer)])
        assert math.isclose(scored[chosen], best, abs_tol=1e-4)


def sequence_log_likelihood(model, fusion, row, tokens) -> float:
    end = model.generation_config.eos_token_id
    tokens = list(tokens)
    tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
    prior = log_prior_by_hand(model, row)
    each = []
    for text, _ in EVIDENCE[row]:
        steps = [next_log_probs(model, fusion, row, text, tokens[:t])[token] for t, token in enumerate(tokens)]
        each.append(sum(steps))
    model.config.marginalization = "sequence"
    return float((torch.stack(each) + prior).logsumexp(0))


def test_fast_decoding_takes_a_passage_and_its_own_answer():
    model, inputs = marginal_model("sequence"), inputs_for()
    outputs = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, decoding="fast", return_dict_in_generate=True
    )
    model.config.marginalization = "none"
    prompt = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    pixels = inputs["pixel_values"].repeat_interleave(3, dim=0)
    sequences = model.generate(**prompt, pixel_values=pixels, max_new_tokens=3, do_sample=False)
    for row in range(2):
        prior = log_prior_by_hand(model, row)
        best = -math.inf
        for k, (text, _) in enumerate(EVIDENCE[row]):
            tokens = sequences[3 * row + k, prompt["input_ids"].shape[1] :].tolist()
            end = model.generation_config.eos_token_id
            tokens = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            own = sum(
                next_log_probs(model, "in_context", row, text, tokens[:t])[token] for t, token in enumerate(tokens)
            )
            best = max(best, float(own + prior[k]))
        assert math.isclose(outputs.sequences_scores[row], best, abs_tol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_attribution_from_one_prompt_equals_taking_passages_away(fusion):
    model, processor = tiny_model(fusion=fusion), tiny_processor(fusion=fusion)

    def log_likelihood(row, evidence):
        inputs = processor(images=[picture(row)], text=[QUESTIONS[row]], evidence=[evidence], answers=[ANSWERS[row]])
        count = (inputs["labels"] != -100).sum()
        with torch.no_grad():
            return -model(**inputs).loss * count

    inputs = processor(images=[picture(0), picture(1)], text=QUESTIONS, evidence=PASSAGES, answers=ANSWERS)
    told = model.attribute(**inputs)
    scale = model.model.logit_scale.exp()
    for row, passages in enumerate(PASSAGES):
        whole = log_likelihood(row, passages)
        without = torch.stack([log_likelihood(row, passages[:k] + passages[k + 1 :]) for k in range(3)])
        alone = torch.stack([log_likelihood(row, [passage]) for passage in passages])
        torch.testing.assert_close(told.log_likelihood[row], whole, atol=1e-4, rtol=0)
        torch.testing.assert_close(told.leave_one_out[row], whole - without, atol=1e-4, rtol=0)
        torch.testing.assert_close(told.posterior[row], (alone + SCORES[row] * scale).softmax(0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("marginalization", ["sequence", "token"])
def test_attribution_over_latent_passages(marginalization):
    model, inputs = marginal_model(marginalization), inputs_for(answers=ANSWERS)
    told = model.attribute(**inputs)
    with torch.no_grad():
        torch.testing.assert_close(told.posterior, model(**inputs).posterior)
    for row in range(2):
        texts = [text for text, _ in EVIDENCE[row]]
        alone = torch.stack(
            [token_log_probs_by_hand(model, row, t, ANSWERS[row], "in_context", True).sum() for t in texts]
        )
        scores = SCORES[row].double() * model.model.logit_scale.double().exp()
        whole = (alone + scores.log_softmax(0)).logsumexp(0)
        for k in range(3):
            rest = [i for i in range(3) if i != k]
            without = (alone[rest] + scores[rest].log_softmax(0)).logsumexp(0)
            torch.testing.assert_close(told.leave_one_out[row, k].double(), whole - without, atol=1e-4, rtol=0)


def test_inputs_that_do_not_fit_are_named():
    model, inputs = marginal_model("sequence"), inputs_for(answers=ANSWERS)
    with pytest.raises(ValueError, match=r"B=2 queries with K=3 passages, input_ids have 5 rows: expected 6"):
        model(**{**inputs, "input_ids": inputs["input_ids"][:5]})
    bad = inputs["evidence_scores"].clone()
    bad[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"NaN or infinite in rows \[1\]"):
        model(**{**inputs, "evidence_scores": bad})
    with pytest.raises(ValueError, match="expected one of"):
        model.generate(**inputs_for(), decoding="quick")
    missing = {k: v for k, v in inputs_for().items() if k != "token_passages"}
    with pytest.raises(ValueError, match="token_passages"):
        model.generate(**missing, max_new_tokens=2)
    gated = marginal_model("sequence", "gated")
    torn = inputs_for("gated", answers=ANSWERS)
    torn["evidence_mask"] = torn["evidence_mask"][:, :2]
    with pytest.raises(ValueError, match=r"disagree about \(B, K\)"):
        gated(**torn)


GENERATORS = {
    "mistral": {"model_type": "mistral", "sliding_window": 8, "num_key_value_heads": 2},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 8, "num_key_value_heads": 2, "head_dim": 8},
    "mpt": {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2},
}


def other_generator(name: str) -> dict:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    return {**(shape if name in ("mistral", "gemma3", "opt") else {}), **special, **GENERATORS[name]}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_generators_that_count_columns_are_enumerated_right_too(name, padding_side):
    model = marginal_model("sequence", generator_config=other_generator(name))
    inputs = inputs_for(answers=ANSWERS, padding_side=padding_side)
    with torch.no_grad():
        likelihood = model(**inputs).passage_log_likelihood
    for row in range(2):
        for k, (text, _) in enumerate(EVIDENCE[row]):
            by_hand = token_log_probs_by_hand(model, row, text, ANSWERS[row], "in_context", True).sum()
            assert math.isclose(likelihood[row, k], by_hand, abs_tol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_that_count_columns_do_not_see_hidden_passages(name):
    model, processor = tiny_model(generator_config=other_generator(name)), tiny_processor()
    asked = {"images": [picture(0)], "text": [QUESTIONS[0]]}
    three = processor(**asked, evidence=[["red white", "of Chad and of Norway", "the capital"]])
    three["evidence_mask"][0, 1] = False
    two = processor(**asked, evidence=[["red white", "the capital"]])
    options = {"max_new_tokens": 4, "do_sample": False}
    with torch.no_grad():
        torch.testing.assert_close(model(**three).logits[:, -1], model(**two).logits[:, -1], atol=1e-5, rtol=0)
    hidden, absent = model.generate(**three, **options), model.generate(**two, **options)
    assert torch.equal(hidden[:, : three["input_ids"].shape[1]], three["input_ids"])
    assert torch.equal(hidden[:, three["input_ids"].shape[1] :], absent[:, two["input_ids"].shape[1] :])


@pytest.mark.parametrize("name", ["mistral", "gemma3", "mpt"])
def test_generators_that_count_columns_mix_tokens_right(name):
    model, inputs = marginal_model("token", generator_config=other_generator(name)), inputs_for()
    first = model.generate(**inputs, max_new_tokens=1, do_sample=False)[:, -1]
    for row in range(2):
        each = [next_log_probs(model, "in_context", row, text, []) for text, _ in EVIDENCE[row]]
        assert (torch.stack(each) + log_prior_by_hand(model, row)[:, None]).logsumexp(0).argmax() == first[row]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("marginalization", ["none", "sequence", "token"])
def test_attribution_of_a_row_does_not_hang_on_its_batch(fusion, marginalization):
    model = tiny_model(fusion=fusion, marginalization=marginalization)
    processor = tiny_processor(fusion=fusion, passage_prompts=marginalization != "none", question_first=True)
    evidence = [PASSAGES[0], PASSAGES[1][:1]]

    def told(rows):
        return model.attribute(
            **processor(
                images=[picture(row) for row in rows],
                text=[QUESTIONS[row] for row in rows],
                evidence=[evidence[row] for row in rows],
                answers=[ANSWERS[row] for row in rows],
            )
        )

    together = told([0, 1])
    for row, count in ((0, 3), (1, 1)):
        alone = told([row])
        for name in ("posterior", "leave_one_out"):
            torch.testing.assert_close(together[name][row, :count], alone[name][0], atol=1e-4, rtol=0)
            assert not together[name][row, count:].any()
    if marginalization != "none":
        assert together.leave_one_out[1, 0] == 0  # nothing would stay


@pytest.mark.parametrize("seed", range(6))
def test_an_answer_of_rag_sequence_does_not_hang_on_its_batch(seed):
    model = marginal_model("sequence", seed=seed)
    for parameter in model.language_model.parameters():
        torch.nn.init.normal_(parameter, std=0.15) if parameter.dim() > 1 else None
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    uneven = model.generate(**inputs_for(evidence=[PASSAGES[0][:1], PASSAGES[1]]), **options)
    processor = tiny_processor(question_first=True, passage_prompts=True)
    alone = model.generate(**processor(images=[picture(0)], text=QUESTIONS[:1], evidence=[PASSAGES[0][:1]]), **options)
    assert math.isclose(uneven.sequences_scores[0], alone.sequences_scores[0], abs_tol=1e-4)


def test_settings_of_a_generation_config_count_as_those_of_the_call():
    from transformers import GenerationConfig

    model, inputs = marginal_model("token"), inputs_for()
    settings = GenerationConfig(use_cache=False, max_new_tokens=4, pad_token_id=0, eos_token_id=2)
    said = model.generate(**inputs, use_cache=False, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(**inputs, generation_config=settings), said)
    model = marginal_model("sequence")
    plain = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    end = int(plain.sequences[0, inputs["input_ids"].shape[1] + 1])
    ended = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, eos_token_id=end)
    model.generation_config.eos_token_id = end
    same = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert torch.equal(ended.sequences, same.sequences)
    torch.testing.assert_close(ended.sequences_scores, same.sequences_scores)


def test_more_answers_than_proposals_and_no_evidence_are_legal():
    model = marginal_model("sequence")
    several = model.generate(**inputs_for(), max_new_tokens=3, do_sample=False, num_return_sequences=2)
    assert len(several) == 4
    closed = model.generate(**inputs_for(evidence=None), max_new_tokens=2, do_sample=False, decoding="fast")
    assert len(closed) == 2
    with pytest.raises(ValueError, match="RAG-token none"):
        marginal_model("token").generate(**inputs_for(), decoding="fast")


def test_a_score_that_does_not_count_may_be_anything():
    model = marginal_model("sequence")
    inputs = inputs_for(answers=ANSWERS, evidence=[PASSAGES[0], PASSAGES[1][:2]])
    inputs["evidence_scores"][1, 2] = float("nan")
    model(**inputs).loss.backward()
    assert torch.isfinite(model.model.logit_scale.grad)


@pytest.mark.parametrize("decoding", ["thorough", "fast"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "temperature": 0.01}])
def test_several_answers_are_as_many_as_asked_for_and_no_two_alike(decoding, options):
    """One query has a passage fewer, whose place is padding; greedy passages agree; cold samples are alike."""
    model = marginal_model("sequence")
    inputs = inputs_for(evidence=[PASSAGES[0], PASSAGES[1][:1]])
    torch.manual_seed(0)
    asked = {"max_new_tokens": 4, "num_return_sequences": 5, "return_dict_in_generate": True, "decoding": decoding}
    outputs = model.generate(**inputs, **{"do_sample": False, **options}, **asked)
    answers = outputs.sequences[:, inputs["input_ids"].shape[1] :].unflatten(0, (2, 5)).tolist()
    assert outputs.sequences_scores.isfinite().all()
    for row, scores in zip(answers, outputs.sequences_scores.unflatten(0, (2, 5)).tolist(), strict=True):
        assert len({tuple(answer) for answer in row}) == 5
        assert not any(set(answer) == {0} for answer in row)
        assert scores == sorted(scores, reverse=True)


def test_fewer_answers_than_asked_for_are_an_error():
    model, inputs = marginal_model("sequence"), inputs_for()
    allowed = lambda batch, ids: [9 if ids[-1] != 9 else 2]  # noqa: E731
    with pytest.raises(ValueError, match="num_return_sequences=3, and the passages .* fewer different"):
        model.generate(
            **inputs, max_new_tokens=2, num_return_sequences=3, do_sample=False, prefix_allowed_tokens_fn=allowed
        )


def test_an_answer_that_is_a_padding_token_has_its_probability():
    answers = torch.tensor([[[0, 0, 0], [7, 0, 0]]])
    assert answer_mask(answers, ends=[2], pad=0).int().tolist() == [[[1, 0, 0], [1, 0, 0]]]
    model, inputs = marginal_model("sequence"), inputs_for()
    only = LogitsProcessorList([lambda ids, scores: scores.masked_fill(torch.arange(scores.shape[1]) != 0, -1e9)])
    outputs = model.generate(
        **inputs, max_new_tokens=1, do_sample=False, logits_processor=only, return_dict_in_generate=True
    )
    assert (outputs.sequences_scores < -1).all()


class Heard:
    """A streamer that notes what it is given."""

    def __init__(self):
        self.given, self.ended = [], False

    def put(self, value):
        self.given.append(value.flatten().tolist())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("marginalization", ["sequence", "token"])
def test_a_streamer_hears_the_answer_alone(marginalization):
    model, processor = marginal_model(marginalization), tiny_processor(passage_prompts=True)
    inputs = processor(images=[picture(0)], text=QUESTIONS[:1], evidence=PASSAGES[:1])
    heard = Heard()
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False, streamer=heard)
    prompt, *tokens = heard.given
    assert [*prompt, *(token for put in tokens for token in put)] == answer[0].tolist()[: len(prompt) + len(tokens)]
    assert set(answer[0].tolist()[len(prompt) + len(tokens) :]) <= {0}
    assert heard.ended
    if marginalization == "sequence":
        with pytest.raises(ValueError, match="a streamer takes one answer, and there are 2"):
            model.generate(**inputs_for(), streamer=Heard())


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1}])
@pytest.mark.parametrize("beams", [1, 2])
def test_repetitions_are_judged_by_all_passages_in_any_order(penalty, beams):
    """RAG-token: a word of any passage that is read counts as said, one of a hidden passage does not."""
    model = marginal_model("token")
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, **penalty}
    start = inputs_for()["input_ids"].shape[1]
    forward, backward = (
        model.generate(**inputs_for(evidence=[row[::step] for row in PASSAGES]), **options)[:, start:]
        for step in (1, -1)
    )
    assert torch.equal(forward, backward)
    if "no_repeat_ngram_size" in penalty:
        inputs = inputs_for()
        said = inputs["input_ids"].unflatten(0, (2, 3)).flatten(1)
        for row, answer in zip(said.tolist(), forward.tolist(), strict=True):
            assert not set(answer) & set(row) - {0, 2}
    hidden, absent = inputs_for(), inputs_for(evidence=[row[:2] for row in PASSAGES])
    hidden["evidence_mask"][:, 2] = False
    width = absent["input_ids"].shape[1]
    assert torch.equal(model.generate(**hidden, **options)[:, start:], model.generate(**absent, **options)[:, width:])
