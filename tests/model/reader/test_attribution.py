"""Attribution against scoring one prompt at a time, in double precision; its scale, its price and its memory."""

from __future__ import annotations

import copy

import pytest
import torch

from hf_ravlm import from_backbones
from hf_ravlm.model.reader import scoring
from hf_ravlm.model.reader.attribution import attribute_prompts
from hf_ravlm.model.reader.latent_passages import NEUTRAL_SCALE, own_prior_scale
from hf_ravlm.model.reader.likelihoods import passage_posterior
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.retrieval import Evidence
from tiny import FUSIONS, picture, tiny_model, tiny_processor
from tiny_backbones import MULTIMODAL, causal_model, causal_tokenizer, multimodal_model


QUESTIONS, ANSWERS = ["what is the capital ?", "red or white of this country ?"], ["Oslo and", "white"]
TEXTS = [["the capital of Norway is Oslo", "red white", "of Chad"], ["the capital of Chad is N'Djamena", "white"]]
SCORES = [[0.9, 0.1, 0.3], [0.7, 0.6]]


def passages(row: int, with_images: bool = False) -> list[dict]:
    return [
        {"text": text, "score": score, **({"image": picture(k + 2)} if with_images and k != 1 else {})}
        for k, (text, score) in enumerate(zip(TEXTS[row], SCORES[row], strict=True))
    ]


def by_hand(model, write, row: int, evidence: list[dict], scale: float):
    """Posterior and losses of one question, each prompt written and read alone; `write(row, passages)`."""

    def log_likelihood(shown):
        inputs = write(row, shown)
        labels = inputs.pop("labels")[0]
        with torch.no_grad():
            log_probs = model(**inputs).logits[0].double().log_softmax(-1)
        places = (labels != -100).nonzero().flatten().tolist()
        return sum(log_probs[t - 1, labels[t]] for t in places)

    alone = torch.stack([log_likelihood([passage]) for passage in evidence])
    whole = log_likelihood(evidence)
    without = torch.stack([log_likelihood(evidence[:k] + evidence[k + 1 :]) for k in range(len(evidence))])
    scores = torch.tensor([passage["score"] for passage in evidence], dtype=torch.float64)
    return (alone + scale * scores).softmax(0), whole - without


def assert_equal(told, expected, row: int):
    posterior, without = expected
    number = len(posterior)
    torch.testing.assert_close(told.posterior[row, :number].double(), posterior, atol=1e-5, rtol=0)
    torch.testing.assert_close(told.leave_one_out[row, :number].double(), without, atol=1e-4, rtol=0)
    assert not told.posterior[row, number:].any()
    assert not told.leave_one_out[row, number:].any()


@pytest.fixture(params=["roomy", "narrow"])
def budget(request, monkeypatch):
    """Everything in one pass, or few tokens and fewer logits than an answer has."""
    if request.param == "narrow":
        monkeypatch.setattr(scoring, "TOKENS_PER_PASS", 40)
        monkeypatch.setattr(scoring, "LOGITS_PER_PASS", 700)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_marked_prompts_are_scored_as_one_by_one(fusion, budget):
    model = copy.deepcopy(tiny_model(fusion=fusion)).double()
    processor = tiny_processor(fusion=fusion)
    images = [picture(0), picture(1)]

    def write(rows, evidence):
        inputs = processor(
            images=[images[row] for row in rows],
            text=[QUESTIONS[row] for row in rows],
            evidence=evidence,
            answers=[ANSWERS[row] for row in rows],
        )
        return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}

    together = write([0, 1], [passages(0), passages(1)])
    told = model.attribute(**together, prior_scale=3.0)
    for row in range(2):
        hand = by_hand(model, lambda row, shown: write([row], [shown]), row, passages(row), 3.0)
        assert_equal(told, hand, row)
    light = model.attribute(**together, prior_scale=3.0, with_leave_one_out=False)
    torch.testing.assert_close(light.posterior, told.posterior)
    assert light.leave_one_out is None
    assert light.log_likelihood is None


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mistral", "opt"])
def test_prompts_of_words_are_scored_as_one_by_one(family, budget):
    model, processor = from_backbones(generator=causal_model(family).double(), tokenizer=causal_tokenizer())

    def write(rows, evidence):
        asked = {"text": [QUESTIONS[row] for row in rows], "answers": [ANSWERS[row] for row in rows]}
        return processor(evidence=evidence, **asked, padding_side="left")

    told = model.attribute(**write([0, 1], [passages(0), passages(1)]))
    for row in range(2):
        assert_equal(told, by_hand(model, lambda row, shown: write([row], [shown]), row, passages(row), 1.0), row)


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("family", list(MULTIMODAL))
def test_prompts_with_images_are_scored_as_one_by_one(family, with_images, budget):
    generator, own = multimodal_model(family)
    model, processor = from_backbones(generator=generator.double(), generator_processor=own)
    processor.passage_images = True
    images, evidence = [picture(0), picture(1, (40, 20))], [passages(0, with_images), passages(1, with_images)]

    def write(row, shown):
        asked = {"images": [images[row]], "text": [QUESTIONS[row]], "answers": [ANSWERS[row]]}
        inputs = processor(evidence=[shown], **asked)
        return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}

    told = attribute_prompts(model, processor, images, QUESTIONS, evidence, ANSWERS, prior_scale=2.0)
    for row in range(2):
        assert_equal(told, by_hand(model, write, row, evidence[row], 2.0), row)


class Counted:
    """Tokens that a language model reads, and images that a vision tower sees."""

    def __init__(self, model):
        self.tokens = self.patches = 0
        self.hooks = [
            model.language_model.get_decoder().register_forward_pre_hook(self.read, with_kwargs=True),
            model.language_model.model.visual.register_forward_pre_hook(self.see, with_kwargs=True),
        ]

    def read(self, _, args, kwargs):
        self.tokens += kwargs["inputs_embeds"].shape[:2].numel()

    def see(self, _, args, kwargs):
        self.patches += (args[0] if args else kwargs["hidden_states"]).shape[0]

    def taken(self) -> tuple[int, int]:
        seen, self.tokens, self.patches = (self.tokens, self.patches), 0, 0
        return seen


def test_the_posterior_reads_images_and_instructions_once():
    generator, own = multimodal_model("qwen2_5_vl")
    model, processor = from_backbones(generator=generator, generator_processor=own)
    processor.passage_images = True
    evidence = [{"text": "red white " * 20 + str(k), "image": picture(k + 2)} for k in range(4)]
    asked = (model, processor, None, [picture(0, (64, 64))], ["what ?"])
    options = {"evidence": [evidence], "min_new_tokens": 40, "max_new_tokens": 40}
    counted = Counted(model)
    answer_questions(*asked, **options, with_posterior=False)
    plain = counted.taken()
    (answer,) = answer_questions(*asked, **options)[0]
    tokens, patches = counted.taken()
    assert len(answer.posterior) == 4
    assert answer.leave_one_out == []
    assert patches - plain[1] <= plain[1]
    length = len(processor.tokenizer(answer.text)["input_ids"])
    answers = 4 * (length + 20)  # which are read with each passage, with the question and what closes a prompt
    assert tokens - plain[0] <= plain[0] + answers


def test_logits_are_made_within_the_budget(monkeypatch):
    model, processor = from_backbones(generator=causal_model("llama"), tokenizer=causal_tokenizer())
    monkeypatch.setattr(scoring, "LOGITS_PER_PASS", 5 * model.config.get_text_config().vocab_size)
    sizes = []
    model.language_model.register_forward_hook(lambda _, args, outputs: sizes.append(outputs.logits.shape[:2].numel()))
    for each in (False, True):
        model.config.marginalization = "sequence" if each else "none"
        inputs = processor(
            text=QUESTIONS, evidence=[passages(0), passages(1)], answers=["red " * 30] * 2, passage_prompts=each
        )
        model.attribute(**inputs)
    assert max(sizes) <= 5
    assert len(sizes) > 12


@pytest.mark.parametrize("kind", ["words", "image_text"])
def test_scores_of_unknown_origin_do_not_decide(kind):
    if kind == "words":
        model, processor = from_backbones(generator=causal_model("llama"), tokenizer=causal_tokenizer())
    else:
        generator, own = multimodal_model("llava")
        model, processor = from_backbones(generator=generator, generator_processor=own)
    evidence = [[Evidence(id="a", text="red", score=0.9, rank=1), Evidence(id="b", text="white", score=0.1, rank=2)]]
    (answer,) = answer_questions(model, processor, None, None, ["what ?"], evidence=evidence, max_new_tokens=2)[0]
    assert max(answer.posterior) < 0.9
    assert own_prior_scale(model) == NEUTRAL_SCALE


@pytest.mark.parametrize(("scale", "used"), [(25.0, 25.0), (None, 1.0)])
def test_the_prior_has_the_scale_of_the_encoder_that_searched(scale, used):
    class Encoder:
        logit_scale = scale

    class Retriever:
        encoder = Encoder()

        def retrieve(self, images, texts, k, **_):
            texts = zip(TEXTS[0][:k], SCORES[0], strict=False)
            return [[Evidence(id=text, text=text, score=score, rank=1) for text, score in texts]]

    model, processor = tiny_model(), tiny_processor()  # whose untrained towers have a scale of 14
    (answer,) = answer_questions(model, processor, Retriever(), [picture(0)], ["what ?"], k=3, max_new_tokens=2)[0]
    inputs = processor(images=[picture(0)], text=["what ?"], evidence=[answer.evidence], answers=[answer.text])
    told = model.attribute(**inputs)
    expected = passage_posterior(told.passage_log_likelihood, torch.tensor([SCORES[0]]), used)
    torch.testing.assert_close(torch.tensor([answer.posterior]), expected, atol=1e-4, rtol=0)
