"""Policies fitted in a toy world whose reader is known to the last answer, and heads against scikit-learn."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import auroc
from hf_ravlm.pipelines.answer import Answer
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.pipelines.policy.decision_heads import TOKEN_FEATURES
from hf_ravlm.pipelines.policy.steps import answer_by_policy, columns_of
from hf_ravlm.retrieval import Evidence
from hf_ravlm.training import policy_fitting
from hf_ravlm.training.policy_fitting import (
    JudgedQuestion,
    counterfactual_labels,
    fit_answer_policy,
    fit_decision_head,
)


K = 2


def world(number: int, seed: int) -> list[JudgedQuestion]:
    """Towns and their rivers. One third is known by heart, one third stands in the passages, one third nowhere.

    Of four passages two or more are about other towns, have lower cosines, and come first half of the times.
    """
    rng = Random(seed)
    questions = []
    for place in range(number):
        kind = ("known", "written", "lacking")[place % 3]
        own = [
            Evidence(id=f"{place}/{n}", text=f"town{place} river{place} fact {n}", score=rng.uniform(0.7, 0.9))
            for n in range(0 if kind == "lacking" else 2)
        ]
        strange = [
            Evidence(id=f"x{place}/{n}", text=f"town{n}x{place} river fact {n}", score=rng.uniform(0.3, 0.65))
            for n in range(4 - len(own))
        ]
        found = own + strange if rng.random() < 0.5 else strange + own
        relevant = [passage in own for passage in found]
        questions.append(
            JudgedQuestion(f"{kind} {place}", None, found, relevant, lambda text: float(text == "right"), str(place))
        )
    return questions


def read(model, processor, images, questions, evidence, **options):
    """Right by heart or from its own first passage; sure of both, and half sure of what it makes up."""
    answers, rows = [], []
    for question, passages in zip(questions, evidence):
        kind, place = question.split()
        right = passages[0].id.startswith(f"{place}/") if passages else kind == "known"
        noise = Random(f"{question} {len(passages)}").uniform(-0.15, 0.15)
        sure = (0.8 if right else 0.55) + noise
        answers.append(Answer("right" if right else "wrong", list(passages)))
        rows.append({name: 1 - sure if name == "entropy" else sure for name in TOKEN_FEATURES})
    return answers, columns_of(rows)


@pytest.fixture
def fit(monkeypatch):
    monkeypatch.setattr(policy_fitting, "read_with_confidence", read)
    model = SimpleNamespace(config=SimpleNamespace(num_passages=K))

    def fitted(number: int = 240, **options) -> AnswerPolicy:
        return fit_answer_policy(model, None, world(number, 0), calibration="temperature", **options)

    return fitted


def ask(policy: AnswerPolicy, questions: list[JudgedQuestion]) -> list[Answer]:
    def some(places, evidence):
        return read(None, None, None, [questions[place].question for place in places], evidence)

    return answer_by_policy(policy, len(questions), K, lambda places: [questions[p].found for p in places], some)


def share(marks) -> float:
    return float(np.mean(list(marks)))


def test_critic_and_abstention_do_no_harm(fit):
    questions = world(150, 1)
    plain, careful = ask(AnswerPolicy(), questions), ask(fit(), questions)
    answerable = [place for place, question in enumerate(questions) if any(question.relevant)]
    assert share(plain[place].text == "right" for place in answerable) < 0.7  # strangers come first
    assert share(careful[place].text == "right" for place in answerable) > 0.95
    held = [place for place, answer in enumerate(careful) if answer.decision.abstained]
    assert share("lacking" in questions[place].question for place in held) > 0.9
    assert len(held) > 40
    dropped = {passage.id for answer in careful for passage in answer.decision.dropped}
    assert share(name.startswith("x") for name in dropped) > 0.95
    confident = [answer.decision.confidence for answer in careful]
    right = [answer.text == "right" or answer.decision.withheld == "right" for answer in careful]
    assert auroc(confident, right) > 0.95


def test_as_much_is_withheld_as_a_share_of_wrong_answers_allows(fit):
    questions, held = world(150, 1), {}
    for precision in (0.95, 0.7, 0.0):
        answers = ask(fit(abstention_precision=precision), questions)
        held[precision] = [answer for answer in answers if answer.decision.abstained]
        assert share(answer.decision.withheld == "wrong" for answer in held[precision]) > precision - 0.1
    assert 20 < len(held[0.95]) <= len(held[0.7]) < len(held[0.0]) == len(questions)
    with pytest.raises(InvalidInputError, match=r"precision=1.5: expected a share"):
        fit(abstention_precision=1.5)


def test_the_gate_saves_searches_at_equal_accuracy(fit):
    questions = world(150, 2)
    always, gated = ask(fit(wrong_cost=0.0), questions), ask(fit(wrong_cost=0.0, search_cost=0.02), questions)
    accuracy = [share(answer.text == "right" for answer in answers) for answers in (always, gated)]
    assert accuracy[1] > accuracy[0] - 0.05
    assert all(answer.decision.retrieved for answer in always)
    searched = {kind: [] for kind in ("known", "written", "lacking")}
    for question, answer in zip(questions, gated):
        searched[question.question.split()[0]].append(answer.decision.retrieved)
    assert share(searched["known"]) < 0.3
    assert share(searched["written"]) > 0.9


def test_a_gate_of_a_reader_that_is_surest_of_not_knowing_searches_there_alone(monkeypatch):
    def modest(model, processor, images, questions, evidence, **options):
        """What it knows by heart it says, and else "unknown", surer of that than of anything."""
        answers, tokens = read(model, processor, images, questions, evidence, **options)
        for place, answer in enumerate(answers):
            if answer.text == "wrong" and not answer.evidence:
                answer.text = "unknown"
                for name, column in tokens.items():
                    column[place] = float(name != "entropy")
        return answers, tokens

    monkeypatch.setattr(policy_fitting, "read_with_confidence", modest)
    model = SimpleNamespace(config=SimpleNamespace(num_passages=K))
    policy = fit_answer_policy(model, None, world(240, 0), search_cost=0.02, calibration="temperature")
    draft = {name: torch.tensor([0.7, 1.0]) for name in TOKEN_FEATURES} | {"entropy": torch.tensor([0.3, 0.0])}
    need = policy.needs_search(draft | {"says_nothing": torch.tensor([0.0, 1.0])})
    assert need[0] < policy.gate_threshold < need[1]
    assert policy.gate_threshold > 0.05  # no draft of the fit stands near it


def test_the_confidence_also_learns_of_drafts_that_the_gate_gives(fit):
    questions = world(150, 5)
    answers = ask(fit(search_cost=0.02), questions)
    drafts = [answer for answer in answers if not answer.decision.retrieved]
    assert len(drafts) > 30
    right = share(answer.decision.withheld == "right" or answer.text == "right" for answer in drafts)
    assert share(answer.decision.confidence for answer in drafts) == pytest.approx(right, abs=0.1)
    assert share(answer.decision.abstained for answer in drafts) < 0.1


def test_a_dear_search_is_never_made_and_a_costless_error_always_risked(fit):
    answers = ask(fit(search_cost=2.0, wrong_cost=0.0), world(30, 3))
    assert not any(answer.decision.retrieved or answer.decision.abstained for answer in answers)


def test_fitting_is_repeatable(fit, tmp_path):
    assert fit(60, search_cost=0.02).fingerprint == fit(60, search_cost=0.02).fingerprint
    policy = fit(60, search_cost=0.02, hidden_dim=3)
    policy.save_pretrained(tmp_path)
    loaded = AnswerPolicy.from_pretrained(tmp_path)
    assert loaded.fingerprint == policy.fingerprint
    questions = world(30, 4)
    assert ask(loaded, questions) == ask(policy, questions)


def test_logistic_regression_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    values = rng.normal(size=(120, 3)) * [1.0, 5.0, 0.1] + [0.0, 3.0, -2.0]
    labels = rng.random(120) < 1 / (1 + np.exp(-values[:, 0] - 0.3 * values[:, 1]))
    features = {name: torch.tensor(values[:, place]) for place, name in enumerate("abc")}
    head = fit_decision_head(features, labels, weight_decay=0.01)
    scaled = (values - values.mean(0)) / values.std(0)
    oracle = linear_model.LogisticRegression(C=1 / (2 * 0.01 * 120), tol=1e-8).fit(scaled, labels)
    np.testing.assert_allclose(head.out.weight.numpy(), oracle.coef_, atol=1e-3)
    np.testing.assert_allclose(head(features).numpy(), oracle.predict_proba(scaled)[:, 1], atol=1e-3)


def test_a_hidden_layer_learns_what_a_line_cannot():
    rng = np.random.default_rng(1)
    a, b = rng.random(200) < 0.5, rng.random(200) < 0.5
    features = {"a": torch.tensor(a, dtype=torch.float32), "b": torch.tensor(b, dtype=torch.float32)}
    for hidden_dim, least, most in ((0, 0.3, 0.7), (4, 0.99, 1.0)):
        head = fit_decision_head(features, a ^ b, hidden_dim=hidden_dim, weight_decay=1e-5)
        assert least <= auroc(head(features).numpy(), a ^ b) <= most


def test_soft_labels_pass_through_the_margin():
    assert counterfactual_labels([1.0, 1.0], [0.7, 0.4], margin=0.5).tolist() == [0, 1]
    soft = counterfactual_labels(np.linspace(0, 2, 9), np.ones(9), margin=0.25, temperature=0.2)
    assert (np.diff(soft) > 0).all()
    assert soft[np.linspace(0, 2, 9) == 1.25] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: counterfactual_labels([1.0], [1.0, 2.0]), "two losses per question"),
        (lambda: counterfactual_labels([1.0], [0.0], temperature=0), "must be positive"),
        (lambda: fit_decision_head({"a": torch.zeros(2)}, [1, 1]), "labels are all the same"),
        (lambda: fit_decision_head({"a": torch.zeros(2)}, [1]), "one label in 0..1"),
        (lambda: fit_answer_policy(None, None, []), "No question came"),
        (lambda: fit_answer_policy(None, None, world(3, 0), k=1, num_folds=1), "two folds at least"),
        (lambda: fit_answer_policy(None, None, world(3, 0), k=1), "3 questions of 3 clusters came for num_folds=5"),
        (
            lambda: fit_answer_policy(None, None, [replace(row, relevant=[True]) for row in world(5, 0)], k=1),
            "has 4 passages and 1 marks",
        ),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_a_policy_that_reads_on_is_fitted_to_what_that_finds(monkeypatch):
    """The reader says so where a passage is of no use; two thirds have one that is, the first for half of these."""

    def read_or_say_so(model, processor, images, questions, evidence, **options):
        answers, features = read(model, processor, images, questions, evidence)
        for answer in answers:
            answer.text = "right" if answer.text == "right" else "unknown"
        return answers, features

    monkeypatch.setattr(policy_fitting, "read_with_confidence", read_or_say_so)
    monkeypatch.setattr(policy_fitting, "_fit_critic", lambda policy, *_: policy)  # it would drop what is of no use
    model, questions = SimpleNamespace(config=SimpleNamespace(num_passages=1)), world(240, 0)

    def some(places, evidence):
        return read_or_say_so(None, None, None, [questions[place].question for place in places], evidence)

    for number, expected in ((1, 1 / 3), (4, 2 / 3)):
        policy = fit_answer_policy(model, None, questions, wrong_cost=0.0, num_readings=number)
        rows = answer_by_policy(policy, len(questions), 1, lambda places: [questions[p].found for p in places], some)
        assert share(answer.text == "right" for answer in rows) == pytest.approx(expected, abs=0.05)
        confidences = [answer.decision.confidence for answer in rows]
        assert share(confidences) == pytest.approx(expected, abs=0.05)
