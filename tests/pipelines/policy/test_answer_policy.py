"""Policies: what they decide, by law and by hand; saved and loaded; in answers and in a pipeline."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import pipeline

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.evaluation import IsotonicCalibrator, TemperatureCalibrator
from hf_ravlm.pipelines.answer import Answer
from hf_ravlm.pipelines.answering import answer_questions
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.pipelines.policy.decision_heads import (
    ANSWER_FEATURES,
    DRAFT_FEATURES,
    TOKEN_FEATURES,
    DecisionHead,
    UncertaintyRule,
)
from hf_ravlm.pipelines.policy.features import (
    evidence_features,
    passage_agreement,
    passage_features,
    word_shares,
)
from hf_ravlm.pipelines.policy.steps import answer_by_policy
from hf_ravlm.retrieval import Evidence
from hf_ravlm.saving.checksums import accept_changes
from tiny import picture, tiny_model, tiny_processor


def found(*scores: float, prefix: str = "p") -> list[Evidence]:
    words = ["Oslo is the capital of Norway", "the capital of Chad", "red and white", "of this country"]
    return [
        Evidence(id=f"{prefix}{n}", text=words[n % 4], score=score, ranking_score=score, rank=n + 1)
        for n, score in enumerate(scores)
    ]


EVIDENCE = [found(0.9, 0.8, 0.1), [], found(0.2, 0.1, prefix="q")]
ASKED = {"images": [picture(n) for n in range(3)], "questions": ["what is the capital ?", "red ?", "of ?"]}


@pytest.fixture(scope="module")
def system():
    return tiny_model(), tiny_processor()


def ask(system, evidence=EVIDENCE, policy=None, k=2, **options):
    options = {"max_new_tokens": 3, "do_sample": False, "with_posterior": False, **options}
    rows = answer_questions(*system, None, **ASKED, evidence=evidence, k=k, policy=policy, **options)
    return [answer for (answer,) in rows]


def critic_of_scores(threshold: float) -> DecisionHead:
    head = DecisionHead(("score",))
    head.out.weight.data.fill_(100.0)
    head.out.bias.data.fill_(-100.0 * threshold)
    return head.eval()


def random_head(features, seed: int, hidden_dim: int = 0) -> DecisionHead:
    torch.manual_seed(seed)
    head = DecisionHead(features, hidden_dim)
    torch.nn.init.normal_(head.out.weight)
    head.center.uniform_(), head.scale.uniform_(0.5, 2)
    return head.eval()


def test_the_default_changes_no_answer(system):
    plain = ask(system, [row[:2] for row in EVIDENCE], with_posterior=True)
    decided = ask(system, policy=AnswerPolicy(), with_posterior=True)
    for before, after in zip(plain, decided):
        assert (before.text, before.evidence, before.posterior) == (after.text, after.evidence, after.posterior)
        assert before.decision is None
        assert after.decision.retrieved
        assert not after.decision.abstained
        assert 0 <= after.decision.confidence <= 1
    assert "abstained" not in plain[0].to_record()
    assert plain[0].to_record().items() <= decided[0].to_record().items()


def test_what_the_critic_drops_is_as_if_it_had_not_been_found(system):
    for policy in (AnswerPolicy(critic=critic_of_scores(0.5)), AnswerPolicy(similarity_floor=0.5)):
        sifted = ask(system, policy=policy, with_posterior=True)
        bare = ask(system, [EVIDENCE[0][:2], [], []], policy=AnswerPolicy(), with_posterior=True)
        for one, other in zip(sifted, bare):
            assert (one.text, one.evidence) == (other.text, other.evidence)
            assert one.posterior == pytest.approx(other.posterior, abs=1e-5)
        assert [[passage.id for passage in answer.decision.dropped] for answer in sifted] == [["p2"], [], ["q0", "q1"]]
        assert sifted[2].to_record()["dropped"][0]["id"] == "q0"


def test_the_reader_gets_the_best_that_are_kept(system):
    policy = AnswerPolicy(critic=critic_of_scores(0.5))
    (answer, *_) = ask(system, [found(0.1, 0.6, 0.9, 0.7), [], []], policy, k=2)
    assert [passage.id for passage in answer.evidence] == ["p1", "p2"]
    assert [passage.id for passage in answer.decision.dropped] == ["p0"]


@pytest.mark.parametrize("threshold", [0.0, 1.1])
def test_the_gate_searches_for_all_or_for_none(system, threshold):
    searches = []

    def retrieve(images, texts, k):
        searches.append((len(texts), k))
        return [found(0.9, 0.8, 0.7) for _ in texts]

    policy = AnswerPolicy(gate=UncertaintyRule("entropy"), gate_threshold=threshold, num_candidates=3)
    retriever = SimpleNamespace(retrieve=retrieve)
    options = {"with_posterior": False, "max_new_tokens": 3}
    rows = answer_questions(*system, retriever, **ASKED, k=2, policy=policy, **options)
    decisions = [answer.decision for (answer,) in rows]
    assert searches == ([(3, 3)] if threshold == 0 else [])
    assert {decision.retrieved for decision in decisions} == {threshold == 0}
    assert all(0 <= decision.need <= 1 for decision in decisions)
    expected = ask(system, [found(0.9, 0.8, 0.7)] * 3 if threshold == 0 else [[]] * 3, AnswerPolicy())
    assert [answer.text for (answer,) in rows] == [answer.text for answer in expected]


def test_the_gate_searches_for_the_unsure(system):
    decisions = [answer.decision for answer in ask(system, policy=AnswerPolicy(gate=UncertaintyRule()))]
    between = sorted(decision.need for decision in decisions)
    assert between[0] < between[-1]
    threshold = (between[0] + between[-1]) / 2
    again = ask(system, policy=AnswerPolicy(gate=UncertaintyRule(), gate_threshold=threshold))
    assert [answer.decision.retrieved for answer in again] == [decision.need >= threshold for decision in decisions]
    assert {answer.decision.retrieved for answer in again} == {True, False}
    assert all(answer.decision.retrieved or not answer.evidence for answer in again)


def answer_in_turns(rows, says, k=1, **settings):
    """What a reader that says `says[id]` to the last passage it gets answers, and what it was given, in order."""
    given = []

    def read(places, evidence):
        given.extend([passage.id for passage in passages] for passages in evidence)
        said = [says.get(passages[-1].id if passages else None, "unknown") for passages in evidence]
        answers = [Answer(text, list(passages)) for text, passages in zip(said, evidence, strict=True)]
        return answers, {name: torch.full((len(places),), 0.5) for name in TOKEN_FEATURES}

    policy = AnswerPolicy(**settings)
    return answer_by_policy(policy, len(rows), k, lambda places: [rows[place] for place in places], read), given


def test_where_the_reader_finds_no_answer_it_reads_on():
    rows = [found(0.9, 0.8, 0.7), found(0.9, 0.8, 0.7, prefix="q"), found(0.9, prefix="r"), []]
    says = {"p0": "Oslo", "q0": "I don't know.", "q1": "Rome"}
    answers, given = answer_in_turns(rows, says, num_readings=2)
    assert [answer.text for answer in answers] == ["Oslo", "Rome", "unknown", "unknown"]
    assert [answer.decision.readings for answer in answers] == [1, 2, 1, 0]
    assert [[passage.id for passage in answer.evidence] for answer in answers] == [["p0"], ["q1"], ["r0"], []]
    assert given == [["p0"], ["q0"], ["r0"], ["q1"], []]
    assert answers[1].to_record()["readings"] == 2


def test_it_reads_k_passages_at_a_time_as_often_as_allowed():
    rows = [found(0.9, 0.8, 0.7, 0.6, 0.5)]
    assert answer_in_turns(rows, {}, k=2, num_readings=9)[1] == [["p0", "p1"], ["p2", "p3"], ["p4"]]
    assert answer_in_turns(rows, {}, k=2, num_readings=2)[1] == [["p0", "p1"], ["p2", "p3"]]
    assert answer_in_turns(rows, {})[1] == [["p0"]]
    kept = {"critic": critic_of_scores(0.65), "num_readings": 9}
    assert answer_in_turns(rows, {}, **kept)[1] == [["p0"], ["p1"], ["p2"]]


def test_what_counts_as_no_answer_can_be_said():
    rows = [found(0.9, 0.8)]
    answers, _ = answer_in_turns(rows, {"p0": "不知道", "p1": "北京"}, num_readings=2, no_answers=["不知道"])
    assert answers[0].text == "北京"


@pytest.mark.parametrize("rule", [UncertaintyRule(), random_head(DRAFT_FEATURES, 0, 3)])
def test_a_draft_that_says_nothing_is_searched_for_however_sure_it_is(rule):
    rows, says = [found(0.9), found(0.9, prefix="q")], {"p0": "Oslo", "q0": "Rome"}
    answers, given = answer_in_turns(rows, says, gate=rule, gate_threshold=1.0)
    assert [answer.text for answer in answers] == ["Oslo", "Rome"]
    assert [answer.decision.need for answer in answers] == [1.0, 1.0]
    answers, given = answer_in_turns(rows, says | {None: "Lima"}, gate=rule, gate_threshold=1.0)
    assert [answer.text for answer in answers] == ["Lima", "Lima"]
    assert given == [[], []]


def test_as_many_are_found_as_may_be_read(system):
    depths = []

    def retrieve(images, texts, k):
        depths.append(k)
        return [found(*[0.9] * k) for _ in texts]

    options = {"k": 2, "max_new_tokens": 2}
    for policy in (AnswerPolicy(num_readings=3), AnswerPolicy(num_readings=3, num_candidates=9)):
        answer_questions(*system, SimpleNamespace(retrieve=retrieve), **ASKED, policy=policy, **options)
    assert depths == [6, 9]


def test_abstention_withholds_what_would_be_said(system):
    open_minded = ask(system, policy=AnswerPolicy())
    silent = ask(system, policy=AnswerPolicy(answer_threshold=1.1))
    assert [answer.text for answer in silent] == ["", "", ""]
    assert [answer.decision.withheld for answer in silent] == [answer.text for answer in open_minded]
    assert all(answer.to_record()["abstained"] for answer in silent)


def test_an_answer_that_says_nothing_is_withheld_by_a_policy_that_withholds():
    rows = [found(0.9), found(0.9, prefix="q")]
    answers, _ = answer_in_turns(rows, {"p0": "Oslo"}, answer_threshold=0.1)
    assert [answer.text for answer in answers] == ["Oslo", ""]
    assert (answers[1].decision.abstained, answers[1].decision.withheld) == (True, "unknown")
    answers, _ = answer_in_turns(rows, {"p0": "Oslo"})
    assert [answer.text for answer in answers] == ["Oslo", "unknown"]


def test_confidence_without_a_head_is_that_of_the_tokens_and_can_be_calibrated(system):
    raw = [answer.decision.confidence for answer in ask(system, policy=AnswerPolicy())]
    calm = [
        answer.decision.confidence for answer in ask(system, policy=AnswerPolicy(calibrator=TemperatureCalibrator(4)))
    ]
    assert calm == pytest.approx(TemperatureCalibrator(4)(raw).tolist())


@pytest.mark.parametrize("hidden_dim", [0, 3])
def test_saved_and_loaded_it_decides_the_same(system, tmp_path, hidden_dim):
    policy = AnswerPolicy(
        gate=random_head(DRAFT_FEATURES, 0, hidden_dim),
        gate_threshold=0.3,
        num_candidates=3,
        similarity_floor=-0.5,
        critic=random_head(("score", "below_best", "agreement"), 1, hidden_dim),
        confidence=random_head(ANSWER_FEATURES, 2, hidden_dim),
        calibrator=IsotonicCalibrator((0.1, 1 / 3, 0.7), (0.0, 0.4, 0.9)),
        answer_threshold=0.2,
        num_readings=2,
        no_answers=("unknown", "不知道"),
        common_words={"the": 0.5, "資": 0.1},
    )
    policy.save_pretrained(tmp_path)
    loaded = AnswerPolicy.from_pretrained(tmp_path)
    assert ask(system, policy=loaded) == ask(system, policy=policy)
    for name in ("calibrator", "common_words", "num_readings", "no_answers"):
        assert getattr(loaded, name) == getattr(policy, name)
    first = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    loaded.save_pretrained(tmp_path)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == first
    AnswerPolicy(gate=UncertaintyRule("margin"), calibrator=TemperatureCalibrator(0.3)).save_pretrained(
        tmp_path / "rule"
    )
    rule = AnswerPolicy.from_pretrained(tmp_path / "rule")
    assert (rule.gate.rule, rule.calibrator, rule.critic) == ("margin", TemperatureCalibrator(0.3), None)


def test_agreement_counts_pairs_of_passages():
    texts = ["Norway has fjords", "Capital of Norway", "Capital of Chad", ""]
    shares = {"of": 1.0, "capital": 0.1}  # rarity 0 and 1/2
    assert passage_agreement(texts, [0.7] * 4, shares) == pytest.approx([1 / 3, 1 / 3, 0.5 / 3, 0.0])
    assert passage_agreement(["alone"], [0.7], shares) == [0.0]
    assert passage_agreement([], [], shares) == []
    far = passage_agreement(texts[:3], [0.7, 0.6, 0.5], shares)  # say 1, 1/e, 1/e²
    says = [1.0, math.exp(-1), math.exp(-2)]
    assert far == pytest.approx(
        [says[1] / (says[1] + says[2]), says[0] / (says[0] + says[2]), 0.5 * says[1] / (says[0] + says[1])]
    )
    assert word_shares(["a b", "a"], least_share=0.6) == {"a": 1.0}


def test_features_need_scores():
    with pytest.raises(InvalidInputError, match="judges passages by their scores"):
        passage_features([SimpleNamespace(text="a")], {})


def test_the_lead_of_the_best_and_the_widest_step_between_neighbours_whatever_the_order():
    for scores in ((0.95, 0.9, 0.5), (0.5, 0.95, 0.9)):
        told = evidence_features(passage_features(found(*scores), {}), [1.0] * 3, [0])
        assert told["score_lead"] == pytest.approx(0.05)
        assert told["widest_step"] == pytest.approx(0.4)
    alone = evidence_features(passage_features(found(0.9), {}), [1.0], [0])
    assert (alone["score_lead"], alone["widest_step"]) == (0.0, 0.0)


def test_features_of_a_passage_compare_it_with_its_rivals():
    features = {name: values.tolist() for name, values in passage_features(found(0.9, 0.7, 0.8), {}).items()}
    assert features["score"] == pytest.approx([0.9, 0.7, 0.8])
    assert features["below_best"] == pytest.approx([0.0, 0.2, 0.1])
    assert features["above_last"] == pytest.approx([0.2, 0.0, 0.1])
    most = max(features["agreement"])
    assert features["relative_agreement"] == pytest.approx([value / most for value in features["agreement"]])
    assert {name: values.shape for name, values in passage_features([], {}).items()} == dict.fromkeys(features, (0,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_candidates": 0}, "at least 1, or None"),
        ({"num_candidates": "3"}, "num_candidates='3': expected a whole number"),
        ({"answer_threshold": "x"}, "answer_threshold='x': expected a number from 0 to 1.1"),
        ({"critic_threshold": float("nan")}, "critic_threshold=nan: expected a number"),
        ({"similarity_floor": 2}, "similarity_floor=2: expected a number from -1 to 1"),
        ({"common_words": [1]}, "expected words with shares"),
        ({"gate": "margin"}, "gate= came as str: expected UncertaintyRule or DecisionHead"),
        ({"critic": UncertaintyRule()}, "critic= came as UncertaintyRule: expected DecisionHead"),
        ({"num_readings": 0}, "whole number of at least 1"),
        ({"num_readings": 10**30}, "a number from 1 to 100"),
        ({"no_answers": "unknown"}, "a list of texts"),
        ({"critic": DecisionHead(("colour",))}, "critic asks for the features colour"),
        ({"gate": DecisionHead(("best_score",))}, "gate asks for the features best_score"),
    ],
)
def test_wrong_policies_are_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        AnswerPolicy(**change)


def test_sampling_and_latent_passages_are_refused(system):
    with pytest.raises(InvalidInputError, match="one greedy answer"):
        ask(system, policy=AnswerPolicy(), do_sample=True)
    latent = tiny_model(marginalization="sequence"), tiny_processor(passage_prompts=True)
    with pytest.raises(InvalidInputError, match="several prompts at once"):
        ask(latent, policy=AnswerPolicy())


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="there is no answer_policy.json"):
        AnswerPolicy.from_pretrained(tmp_path)
    AnswerPolicy(critic=critic_of_scores(0.5)).save_pretrained(tmp_path)
    settings, numbers = tmp_path / "answer_policy.json", tmp_path / "answer_policy.safetensors"
    whole = settings.read_text()
    for damage in (
        {"format": 2},
        {"critic": {"features": ["score", "agreement"], "hidden_dim": 0}},
        {"critic": {"rule": "guess"}},
        {"calibrator": "magic"},
        {"num_candidates": -1},
        {"num_readings": "2"},
        {"no_answers": [1]},
        {"unknown": 1},
    ):
        settings.write_text(json.dumps({**json.loads(whole), **damage}))
        accept_changes(tmp_path)
        with pytest.raises(InvalidInputError):
            AnswerPolicy.from_pretrained(tmp_path)
    settings.write_text(whole)
    numbers.write_bytes(numbers.read_bytes()[:-4])
    accept_changes(tmp_path)
    with pytest.raises(InvalidInputError, match="not a policy that can be read"):
        AnswerPolicy.from_pretrained(tmp_path)


def test_pipelines_take_the_policy_of_their_folder(system, tmp_path):
    model, processor = system
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    passages = KnowledgeBase.from_dicts([{"id": n, "text": text} for n, text in enumerate(["red", "Oslo", "Chad"])])
    RavlmRetriever.build(passages, RavlmEncoder(model.model, processor)).save_pretrained(folder)
    asked = {"question": "red ?", "max_new_tokens": 3, "with_posterior": False}
    (plain,) = pipeline("image-to-text", model=str(folder))(picture(0), **asked)
    assert "abstained" not in plain

    AnswerPolicy(num_candidates=3, similarity_floor=1.0, answer_threshold=1.1).save_pretrained(folder)
    ask = pipeline("image-to-text", model=str(folder))
    (silent,) = ask(picture(0), **asked)
    assert (silent["generated_text"], silent["abstained"], silent["evidence"]) == ("", True, [])
    assert len(silent["dropped"]) == 3
    (spoken,) = ask(picture(0), policy=AnswerPolicy(), **asked)
    assert spoken["generated_text"] == plain["generated_text"]
    ask.save_pretrained(tmp_path / "again")
    again = pipeline("image-text-to-text", model=str(tmp_path / "again"))
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "red ?"}]}]
    assert again(text=chat, max_new_tokens=3, return_full_text=False)[0]["withheld"] == silent["withheld"]
    given = pipeline("image-to-text", model=str(folder), policy=AnswerPolicy())
    assert given(picture(0), **asked)[0]["abstained"] is False


def test_a_policy_that_is_nowhere_is_told_in_words():
    with pytest.raises(InvalidInputError, match="there is no such folder, and this is no name on the Hub"):
        AnswerPolicy.from_pretrained("/nix da")
