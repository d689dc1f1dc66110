"""Our metrics as `evaluate` loads them from a script on the disk, with no network."""

from __future__ import annotations

import evaluate
import pytest

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import METRIC_SCRIPT
from hf_ravlm.evaluation.loadable_metrics import NAMES


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Loaded scripts are copied into a folder of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


def load(name: str) -> evaluate.Metric:
    return evaluate.load(METRIC_SCRIPT, name)


def test_evaluate_loads_every_metric_by_its_name():
    assert {load(name).config_name for name in NAMES} == set(NAMES)
    captions = {"predictions": ["a red flag", "a dog"], "references": [["a red flag"], ["a cat", "the dog"]]}
    for name in ("exact_match", "token_f1", "bleu_4", "rouge_l", "cider_d", "anls"):
        assert list(load(name).compute(**captions)) == [name]
    kinds = {"predictions": ["9"], "references": [["8", "10"]]}
    assert load("infoseek").compute(**kinds, kinds=["numerical"]) == {"infoseek": 1.0}
    assert load("encyclopedic_vqa").compute(**kinds, kinds=["automatic"]) == {"encyclopedic_vqa": 0.0}
    ranked = load("retrieval").compute(predictions=[["a", "b"], ["c"]], references=[["b"], ["c"]], ks=(1, 2))
    assert (ranked["hit@1"], ranked["recall@2"], ranked["mean_rank"]) == (0.5, 1.0, 1.5)
    again = load("retrieval").compute(predictions=[["a", "a", "b"]], references=[["b"]], ks=(2,))
    assert again["recall@2"] == 1.0  # an id that comes twice takes one place
    found = load("pseudo_recall").compute(predictions=[["It is red."]], references=[["re"]], match="word")
    assert found["pseudo_recall@5"] == found["pseudo_precision@5"] == 0.0
    voted = load("vqa_accuracy").compute(predictions=["Grey."], references=[["grey"] * 3 + ["blue"] * 7])
    assert voted == {"vqa_accuracy": pytest.approx(0.9)}


def test_evaluate_takes_batches_and_combines():
    metric = load("exact_match")
    metric.add_batch(predictions=["red"], references=[["Red"]])
    metric.add_batch(predictions=["blue"], references=[["Red"]])
    assert metric.compute() == {"exact_match": 0.5}
    both = evaluate.combine([load("exact_match"), load("token_f1")])
    assert both.compute(predictions=["a red dog"], references=[["red cat"]]) == {"exact_match": 0.0, "token_f1": 0.5}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load("meteor"), "'meteor' is not known. Choose of exact_match"),
        (
            lambda: load("retrieval").compute(predictions=[["a"], None], references=[["a"], ["b"]]),
            "1 of 2 predictions are missing .* row 1",
        ),
        (
            lambda: load("token_f1").compute(predictions=["a", "b"], references=[["a"], ["b", None]]),
            "1 of 2 references are missing .* row 1",
        ),
        (lambda: load("cider_d").compute(predictions=[], references=[]), "no predictions to score"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
