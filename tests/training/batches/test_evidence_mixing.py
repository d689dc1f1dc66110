"""Shares of retrieved, gold and distracting passages, drawn many times in a small world."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm import InvalidInputError
from hf_ravlm.training.batches.evidence_mixing import EvidenceMix, mix_evidence
from hf_ravlm.training.batches.passage_view import PassageView
from hf_ravlm.training.batches.rows import TrainingRow


RETRIEVED = [10, 11, 12, 13, 14, 15]
ROW = TrainingRow(gold_ids=("3",), negative_ids=("20", "21", "22", "23"), exclude_ids=("11",))


@pytest.fixture(scope="module")
def view():
    return PassageView(built(numbered(range(40)), HashEncoder()))


def draws(view, mix, row=ROW, number=400, retrieved=RETRIEVED):
    return [mix_evidence(mix, row, retrieved, view, np.random.default_rng([7, n])) for n in range(number)]


def test_without_shares_it_is_what_the_retriever_finds_less_what_is_excluded(view):
    assert draws(view, EvidenceMix(4), number=3) == [[10, 12, 13, 14]] * 3
    assert draws(view, EvidenceMix(0), number=1) == [[]]


def test_gold_comes_in_as_often_as_asked_and_is_never_pushed_out(view):
    for share in (0.0, 0.3, 1.0):
        mixed = draws(view, EvidenceMix(4, gold=share, distractors=0.5, noise=1.0))
        assert np.mean([3 in chosen for chosen in mixed]) == pytest.approx(share, abs=0.07)
    found = draws(view, EvidenceMix(4, distractors=1.0, noise=1.0), retrieved=[3, 10, 12, 13])
    assert all(3 in chosen for chosen in found)


def test_distractors_are_the_mined_negatives_and_noise_is_anything_else(view):
    mined = {20, 21, 22, 23}
    for chosen in draws(view, EvidenceMix(4, distractors=1.0)):
        assert set(chosen) == mined
    few = draws(view, EvidenceMix(4, distractors=1.0), replace(ROW, negative_ids=("20",)))
    assert all(20 in chosen and len(chosen) == 4 and not set(chosen) & {3, 10, 11, 12, 13, 14} for chosen in few)
    share = np.mean([len(mined & set(chosen)) for chosen in draws(view, EvidenceMix(4, distractors=0.5))])
    assert share == pytest.approx(2.0, abs=0.2)
    for chosen in draws(view, EvidenceMix(4, noise=1.0)):
        strangers = set(chosen) - {10, 12, 13, 14}
        assert len(chosen) == 4
        assert len(strangers) == 1
        assert not strangers & {3, 11}


def test_withheld_gold_passages_come_back_by_no_way(view):
    found = [3, 10, 12, 13, 14, 15]
    mixes = [EvidenceMix(4, gold=1.0, distractors=0.5, noise=1.0, withheld=share) for share in (0.3, 1.0)]
    some, all_of_them = (draws(view, mix, replace(ROW, negative_ids=("3", "20")), retrieved=found) for mix in mixes)
    assert np.mean([3 not in chosen for chosen in some]) == pytest.approx(0.3, abs=0.07)
    assert all(3 not in chosen and len(chosen) == 4 for chosen in all_of_them)
    assert all(3 in chosen for chosen in draws(view, mixes[1], replace(ROW, known=False), retrieved=found))


def test_dropout_draws_the_number_of_passages_from_zero_to_k(view):
    lengths = [len(chosen) for chosen in draws(view, EvidenceMix(4, gold=1.0, dropout=1.0), number=1000)]
    np.testing.assert_allclose(np.bincount(lengths) / 1000, 0.2, atol=0.05)
    halved = [len(chosen) for chosen in draws(view, EvidenceMix(4, dropout=0.5), number=1000)]
    assert np.mean(np.array(halved) == 4) == pytest.approx(0.6, abs=0.05)


def test_shares_run_in_a_straight_line_and_draws_depend_on_the_generator_alone(view):
    mix = EvidenceMix(4, gold=(1.0, 0.0), distractors=(0.0, 0.5))
    assert [mix.at(progress).gold for progress in (0, 0.25, 1, 2)] == [1.0, 0.75, 0.0, 0.0]
    assert mix.at(0.5).distractors == 0.25
    assert draws(view, mix.at(0.3)) == draws(view, mix.at(0.3))
    # another share of one thing leaves the draws of another alone
    some, more = (draws(view, EvidenceMix(4, gold=0.5, noise=noise)) for noise in (0.0, 1.0))
    assert [3 in chosen for chosen in some] == [3 in chosen for chosen in more]


def test_impossible_shares_are_refused():
    for wrong in ({"gold": 1.5}, {"noise": (0.0, 0.1, 0.2)}, {"dropout": -0.1}, {"withheld": 2}, {"num_passages": -1}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            EvidenceMix(**wrong)
