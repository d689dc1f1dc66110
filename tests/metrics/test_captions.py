"""Caption metrics and tokens against pycocoevalcap: what it said once, and live where it is installed."""

from __future__ import annotations

import json

import numpy as np
import pytest

import caption_oracles
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.metrics import bleu, caption_tokens, cider_d, rouge_l


SAID = json.loads(caption_oracles.FIXTURE.read_text(encoding="utf-8"))


def check_against(said, candidates, references):
    for order in range(1, 5):
        ours = bleu(candidates, references, order)
        assert ours.corpus == pytest.approx(said["bleu"][order - 1], abs=1e-12)
        np.testing.assert_allclose(ours.per_image, said["bleu_each"][order - 1], atol=1e-12)
    for name, metric in {"rouge_l": rouge_l, "cider_d": cider_d}.items():
        ours = metric(candidates, references)
        assert ours.corpus == pytest.approx(said[name][0], abs=1e-12)
        np.testing.assert_allclose(ours.per_image, said[name][1], atol=1e-12)


@pytest.mark.parametrize("corpus", SAID["corpora"], ids=lambda corpus: f"{len(corpus['candidates'])} images")
def test_metrics_equal_what_the_reference_said(corpus):
    check_against(corpus, corpus["candidates"], corpus["references"])


def test_metrics_equal_the_reference():
    pytest.importorskip("pycocoevalcap", reason="pip install --no-deps pycocoevalcap")
    for seed in range(100, 120):
        candidates, references = caption_oracles.random_corpus(seed)
        check_against(caption_oracles.ask_metrics(candidates, references), candidates, references)


@pytest.mark.parametrize(("text", "tokens"), SAID["tokens"])
def test_tokens_equal_those_of_the_java_program(text, tokens):
    assert caption_tokens(text) == tokens


def test_the_corpus_decides_what_a_word_is_worth():
    candidates = [["a", "red", "flag"], ["a", "blue", "flag"]]
    references = [[candidate] for candidate in candidates]
    assert cider_d(candidates[:1], references[:1]).corpus == 0  # every word is in every image
    assert cider_d(candidates[:1], references[:1], document_references=references).corpus > 7


def test_order_of_images_and_references_does_not_matter():
    candidates, references = caption_oracles.random_corpus(4)
    turned = [of_image[::-1] for of_image in references][::-1]
    for metric in (bleu, rouge_l, cider_d):
        there, back = metric(candidates, references), metric(candidates[::-1], turned)
        assert there.corpus == pytest.approx(back.corpus)
        np.testing.assert_allclose(there.per_image, back.per_image[::-1], atol=1e-12)


def test_quirks_can_be_left_out():
    assert caption_tokens("a flag (red)", official_quirks=False) == ["a", "flag", "red"]
    # the best precision is that of the first reference, the best recall that of the second
    candidate, accepted = ["a", "b", "c", "d"], [["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"], ["a"]]
    assert rouge_l([candidate], [accepted]).corpus == pytest.approx(1.0)
    assert rouge_l([candidate], [accepted], official_quirks=False).corpus < 0.6
    one, three = ["flag"], ["red", "flag", "pole"]
    references = [[three], [["a"]]]
    with_quirks = cider_d([one, ["a"]], references).per_image[0]
    assert cider_d([one, ["a"]], references, official_quirks=False).per_image[0] == pytest.approx(with_quirks)
    assert cider_d([[], ["a"]], [[one], [["a"]]]).per_image[0] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bleu([["a"]], []), "1 candidates came with the references of 0 images"),
        (lambda: cider_d([], []), "no captions"),
        (lambda: rouge_l([["a"]], [[]]), "Image 0 needs a list"),
        (lambda: cider_d(["a cat"], [[["a", "cat"]]]), "Call `caption_tokens` first"),
        (lambda: cider_d([["a"]], [["a cat"]]), "Call `caption_tokens` first"),
        (lambda: bleu([["a"]], [[["a"]]], order=0), "at least 1; came: 0"),
        (lambda: caption_tokens(None), "must be a string"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
