"""Model cards: figures as the evaluator gave them, knowledge with its licences, a head that the Hub accepts."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import ModelCard

from hf_ravlm import InvalidInputError, KnowledgeBase
from hf_ravlm.cli import main
from hf_ravlm.evaluation import Evaluator, Question, Reply
from hf_ravlm.hub.card import CardFacts, check_card, count_parameters, model_card, read_report, write_card
from tiny import tiny_config, tiny_model
from tiny_folder import save_everything


FACTS = CardFacts(
    "me/birds", "apache-2.0", command="python train.py", limits="It knows birds.", questions="bird questions"
)


@pytest.fixture(scope="module")
def report():
    """Of ten questions: two known by heart, one of which the evidence spoils; five more found."""
    questions = [Question(str(n), f"{n}?", (str(n),), kind="odd" if n % 2 else "even") for n in range(10)]
    by_heart = {"0", "1"}
    arms = {
        "closed_book": lambda batch: [q.id if q.id in by_heart else "no" for q in batch],
        "retrieved": lambda batch: [Reply(q.id if q.id in set("123456") else "no", num_retrievals=1) for q in batch],
        "gold": lambda batch: [q.id for q in batch],
    }
    return Evaluator(arms).run(questions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_everything(tmp_path_factory.mktemp("birds"))


def test_the_three_ways_and_what_evidence_did_stand_in_text_and_head(report):
    card = model_card(tiny_config(), 1234567, FACTS, report.to_dict())
    assert "10 bird questions" in card
    for line in ("| closed-book | 20.0 (", "| retrieved | 60.0 (", "| gold passage | 100.0 ("):
        assert line in card
    assert "| retrieved | 50.0 (" in card  # rescued
    assert "10.0 (" in card.split("| retrieved | 50.0 (")[1].splitlines()[0]  # harmed
    for words in ("1.2 million parameters", "python train.py", "It knows birds.", 'model="me/birds"'):
        assert words in card
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("hf_ravlm", "image-text-to-text", "apache-2.0")
    results = {result.metric_name: result.metric_value for result in data.eval_results}
    assert results == {
        "exact match, closed-book": 0.2,
        "exact match, retrieved": 0.6,
        "rescue rate, retrieved": 0.5,
        "harm rate, retrieved": 0.1,
        "exact match, gold passage": 1.0,
        "rescue rate, gold passage": 0.8,
        "harm rate, gold passage": 0.0,
    }


def test_a_folder_says_what_lies_in_it(folder, report, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(report.to_dict()))
    path, card = write_card(folder, FACTS, read_report(tmp_path / "report.json"))
    assert path.read_text() == card
    assert "3 passages (3 with text, 3 with image)" in card
    assert "| CC0-1.0 | 3 |" in card
    assert "| the almanac | 3 |" in card
    assert count_parameters(folder) == tiny_model().num_parameters()
    (folder / "model.fp16.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert count_parameters(folder) == tiny_model().num_parameters()
    without = model_card(tiny_config(), 1, FACTS, None, KnowledgeBase().table)
    assert "Not evaluated yet." in without
    assert "0 passages" in without
    assert ModelCard(without).data.eval_results is None


def test_what_is_loaded_by_name_is_not_counted_and_the_offline_encoder_is_told():
    parts = {"org/llama": "reader", "offline": "encoder, which finds the passages"}
    card = model_card(tiny_config(), 0, CardFacts("birds"), referred=parts)
    assert "holds 0.0 million parameters of its own. `org/llama` is loaded by name." in card
    assert "EfficientNet-Lite0 and all-MiniLM-L6-v2 (both Apache-2.0)" in card
    assert ModelCard(card).data.base_model == ["org/llama"]


def test_words_of_people_stay_and_ours_are_written_anew(report):
    first = model_card(tiny_config(), 1, CardFacts("birds"))
    edited = (
        first.replace("# birds", "# My birds").replace("tags:", "thumbnail: wren.png\ntags:\n- garden") + "\nWrite!"
    )
    second = model_card(tiny_config(), 2, FACTS, report.to_dict(), earlier=edited)
    assert "# My birds" in second
    assert second.rstrip().endswith("Write!")
    assert "Not evaluated yet" not in second
    head = ModelCard(second).data.to_dict()
    assert (head["thumbnail"], head["license"]) == ("wren.png", "apache-2.0")
    assert "garden" in head["tags"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": "my-own"}, "license 'my-own' is none of the Hub's names"),
        ({"language": ["English!"]}, "language 'English!' is no code"),
        ({"base_models": ["/home/me/model"]}, "'/home/me/model' is no id of the Hub"),
    ],
)
def test_a_head_that_the_hub_would_refuse_is_not_written(change, message):
    with pytest.raises(InvalidInputError, match=message):
        model_card(tiny_config(), 1, CardFacts(**{"name": "birds", **change}))


def test_figures_that_are_no_numbers_are_found():
    head = "library_name: hf_ravlm\npipeline_tag: image-text-to-text\nmodel-index:\n- name: x\n  results:\n  - task:\n"
    head += (
        "      type: a\n    dataset:\n      type: b\n      name: b\n    metrics:\n    - type: c\n      value: .nan\n"
    )
    with pytest.raises(InvalidInputError, match="the value of c is nan, expected a number"):
        check_card(f"---\n{head}---\n")
    with pytest.raises(InvalidInputError, match="not valid"):
        check_card(f"---\n{head.split('    dataset')[0]}---\n")


def test_the_command_writes_and_says_where(folder, report, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(report.to_dict()))
    (tmp_path / "limits.md").write_text("Owls are hard.\n")
    line = ["card", str(folder), "--report", str(tmp_path / "report.json"), "--limits", str(tmp_path / "limits.md")]
    options = ["--licence", "mit", "--base_model", "me/first", "--copy_to", str(tmp_path / "copy.md"), "--json"]
    assert main([*line, *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(folder / "README.md"), str(tmp_path / "copy.md")]
    assert (tmp_path / "copy.md").read_text() == (folder / "README.md").read_text() == told["card"]
    assert "Owls are hard." in told["card"]
    assert ModelCard(told["card"]).data.base_model == ["me/first"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["card", "nowhere"], "there is no model"),
        (["card", "FOLDER", "--limits", "nowhere.md"], "no such file"),
        (["card", "FOLDER", "--report", "LISTED"], "not the report of an evaluation: its arms hold no metrics"),
        (["card", "FOLDER", "--report", "BROKEN"], "this is not the report of an evaluation: accuracy, arms"),
    ],
)
def test_mistakes_are_explained(folder, tmp_path, capsys, arguments, message):
    (tmp_path / "broken.json").write_text('{"num_questions": 3}')
    (tmp_path / "listed.json").write_text('{"num_questions": 3, "accuracy": "exact_match", "arms": ["gold"]}')
    places = {"FOLDER": str(folder)} | {name.upper(): str(tmp_path / f"{name}.json") for name in ("broken", "listed")}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    assert message in capsys.readouterr().err
