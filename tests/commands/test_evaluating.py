"""`hf-ravlm evaluate`: from paths to tables, and what it says about mistakes."""

from __future__ import annotations

import json

import pytest

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmRetriever
from hf_ravlm.cli import main
from hf_ravlm.evaluation import evaluate_model
from hf_ravlm.pipelines import AnswerPolicy
from tiny import picture, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model with three passages beside it, and four questions about them."""
    folder = tmp_path_factory.mktemp("world")
    model, processor = tiny_model(fusion="in_context"), tiny_processor()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    passages = KnowledgeBase.from_dicts(
        [{"id": f"p{n}", "text": f"the {w}"} for n, w in enumerate(["red", "is", "of"])]
    )
    RavlmRetriever.build(passages, RavlmEncoder(model.model, processor)).save_pretrained(folder / "model")
    rows = []
    for n in range(4):
        picture(n).save(folder / f"{n}.png")
        rows.append({"id": str(n), "q": "what is this?", "answers": ["red"], "image": f"{n}.png"})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def command(world, output, *words):
    paths = [world / "model", world / "questions.jsonl", output]
    return ["evaluate", *map(str, paths), "--columns", "question=q", "--max_new_tokens", "2", *words]


def test_tables_and_files_are_those_of_the_library(world, tmp_path, capsys):
    assert main(command(world, tmp_path / "out", "--limit", "3", "-k", "2")) == 0
    out = capsys.readouterr().out
    options = {"columns": {"question": "q"}, "limit": 3, "k": 2, "max_new_tokens": 2}
    again = evaluate_model(world / "model", world / "questions.jsonl", tmp_path / "out", **options)
    assert out.startswith(again.report.to_markdown())  # the seconds too: the library went on with the kept replies
    assert out.splitlines()[-3:] == [f"  {path}" for path in again.files]


def test_what_the_reader_is_told_first_reaches_it(world, tmp_path, capsys):
    words = ("--limit", "1", "--arms", "closed_book", "--json", "--quiet")
    assert main(command(world, tmp_path / "out", *words, "--system_message", "One word.")) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["settings"]["options"]["prompt"] == {"system_message": "One word."}
    classes = ("--task", "image-classification", "--system_message", "One word.")
    assert main(command(world, tmp_path / "out", *words, *classes)) == 2


def test_a_policy_adds_its_arm(world, tmp_path, capsys):
    AnswerPolicy(answer_threshold=1.1).save_pretrained(tmp_path / "policy")
    words = ("--limit", "2", "--policy", str(tmp_path / "policy"), "--json", "--quiet")
    assert main(command(world, tmp_path / "out", *words)) == 0
    arms = json.loads(capsys.readouterr().out)["report"]["arms"]
    assert list(arms) == ["closed_book", "retrieved", "guarded"]
    assert arms["guarded"]["policy"]["abstention"]["coverage"] == 0


def test_distractors_are_looked_for_before_anything_is_asked(world, tmp_path, capsys):
    assert main(command(world, tmp_path / "out", "--distractors", str(tmp_path / "nowhere.jsonl"))) == 2
    assert "there are no distractors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_json_is_one_document_with_letters_as_they_are(world, tmp_path, capsys):
    distractors = tmp_path / "more.jsonl"
    distractors.write_text("\n".join(json.dumps({"id": n, "text": f"gloss {n}"}) for n in range(9)))
    words = ("--distractors", str(distractors), "--factors", "1,2", "--arms", "closed_book,retrieved")
    assert main(command(world, tmp_path / "ö", "--metrics", "token_f1", *words, "--json", "--quiet")) == 0
    out = capsys.readouterr().out
    assert "ö" in out
    record = json.loads(out, parse_constant=pytest.fail)
    assert record["report"]["accuracy"] == "token_f1"
    assert list(record["report"]["arms"]) == ["closed_book", "retrieved"]
    assert [point["num_passages"] for point in record["growth"]["points"]] == [3, 6]
    assert str(tmp_path / "ö" / "report.md") in record["files"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--columns", "answers"], "--columns answers: expected NAME=COLUMN"),
        (["--columns", "place=x"], "columns names place; a question has"),
        (["--arms", "open_book"], "no arm open_book"),
        (["--arms", "gold"], "has no gold_ids"),
        (["--metrics", "luck"], "luck"),
        (["--knowledge", "{tmp}"], "there is nothing in it that could be read"),
    ],
)
def test_a_mistake_is_one_line(words, message, world, tmp_path, capsys):
    filled = [word.format(tmp=tmp_path) for word in words]
    assert main(command(world, tmp_path / "out", *filled, "--quiet", "--json")) == 2
    written = capsys.readouterr()
    assert written.err.splitlines()[-1].startswith("error: ")
    assert message in json.loads(written.out)["error"]["message"]


def test_a_model_of_another_kind_is_refused_before_it_is_loaded(world, tmp_path, capsys):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for folder, message in (
        ("bert", "a model of the type 'bert'"),
        ("none", "this is no name on the Hub"),
    ):
        paths = [tmp_path / folder, world / "questions.jsonl", tmp_path / "out"]
        assert main(["evaluate", *map(str, paths), "--quiet"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--limit", "0"], "at least 1"), (["--factors", "1,x"], "at least 1"), (["--arms", ","], "names")],
)
def test_wrong_usage_ends_with_2(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "model", "questions.jsonl", "out", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_benchmark_is_judged_by_its_own_metric_and_splits(world, tmp_path, capsys):
    rows = [
        {"data_id": f"v{n}", "image_id": str(n), "question": "what is this?", "answer_eval": ["red"]} for n in range(4)
    ]
    for n, row in enumerate(rows):
        row["data_split"] = ("val_unseen_question", "val_unseen_entity")[n % 2]
    (tmp_path / "infoseek_val.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kinds = [{"data_id": row["data_id"], "question_type": "String"} for row in rows]
    (tmp_path / "infoseek_val_qtype.jsonl").write_text("\n".join(map(json.dumps, kinds)))
    words = ["evaluate", str(world / "model"), str(tmp_path), str(tmp_path / "out"), "--max_new_tokens", "2"]
    words += ["--json", "--quiet", "--benchmark", "infoseek"]
    assert main([*words, "--images", str(world)]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["accuracy"] == "infoseek"
    assert set(report["arms"]["retrieved"]["by_split"]) == {"unseen_entity", "unseen_question"}
    assert 0 <= report["arms"]["retrieved"]["harmonic_mean"] <= 1
    assert main([*words[:-2], "--images", str(world)]) == 2
    assert "images= belongs to benchmark=" in capsys.readouterr().err
    assert main([*words, "--images", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err
