"""The command line as people and programs use it: results on stdout, messages on stderr, exit codes, interruptions."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import BertConfig, BertModel

from hf_ravlm import KnowledgeBase, RavlmRetriever, load_encoder
from hf_ravlm.cli import main
from hf_ravlm.commands import building
from hf_ravlm.commands.command_line import make_parser
from hf_ravlm.commands.index_line import INDEX_EXAMPLES
from hf_ravlm.retrieval.store.versions import read_version
from pdf_files import manual
from tiny import WIDTHS, picture, tiny_model, tiny_processor, tiny_tokenizer


ROOT = Path(__file__).parents[1]
BIRDS = {"robin": "an orange breast", "wren": "small and loud", "swan": "white, with a long neck"}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text_model")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tiny_tokenizer()), **WIDTHS)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def own_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_model")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What is noted about index files stays among the tests."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "birds.jsonl"
    rows = [{"id": name, "text": text, "licence": "CC0-1.0", "n": n} for n, (name, text) in enumerate(BIRDS.items())]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def run(capsys):
    """Runs a command; returns its exit code, what it wrote to stdout, and what to stderr."""

    def run(*words) -> tuple[int, str, str]:
        code = main(["index", *map(str, words)])
        written = capsys.readouterr()
        return code, written.out, written.err

    return run


@pytest.fixture
def record_of(run):
    """Runs a command with `--json` that must succeed; returns the one document on stdout."""

    def record_of(*words) -> dict:
        code, out, err = run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return record_of


@pytest.fixture
def built(tmp_path, source, text_model, record_of):
    record_of("build", source, tmp_path / "out", "--model", text_model)
    return tmp_path / "out"


# --- Building


def test_what_was_built_is_what_the_library_builds(tmp_path, source, text_model, run):
    code, out, err = run("build", source, tmp_path / "out", "--model", text_model)
    assert code == 0
    assert out.startswith(f"3 passages in {tmp_path / 'out'} (32 dimensions, flat index, encoder 'BertModel")
    assert "3 passages of 32 numbers, flat index: 0 MB of memory, 0 MB on disk beside 0 MB of vectors" in err
    encoder = load_encoder(text_model)
    opened = RavlmRetriever.from_pretrained(tmp_path / "out", encoder)
    same = RavlmRetriever.build(KnowledgeBase.from_jsonl(source), encoder)
    assert opened.knowledge_base.table.equals(same.knowledge_base.table)
    assert np.array_equal(opened.vectors, same.vectors)
    assert not (tmp_path / "out" / "knowledge_base" / "staging" / "build").exists()


def test_a_build_says_why_few_passages_have_no_index(tmp_path, source, text_model, run):
    _, told, _ = run("build", source, tmp_path / "out", "--model", text_model, "--index", "ivf_pq")
    assert "flat index: few passages are searched exactly," in told


def test_the_record_of_a_build(tmp_path, source, text_model, record_of):
    record = record_of("build", source, tmp_path / "out", "--model", text_model, "--index", "hnsw_sq8")
    assert (record["passages"], record["skipped"], record["dim"]) == (3, 0, 32)
    assert record["estimate"]["index"] == "hnsw_sq8"
    assert record["estimate"]["vector_bytes"] == 3 * 32 * 4
    assert record["encoder"]["fingerprint"] == load_encoder(text_model).fingerprint


def test_a_folder_is_built_beside_the_model_that_searches_it(tmp_path, own_model, record_of):
    shutil.copytree(own_model, tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for n, (name, text) in enumerate(BIRDS.items()):
        picture(n).save(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(text)
    model = tmp_path / "model"
    record_of("build", tmp_path / "pictures", model, "--model", model, "--licence", "CC0-1.0")
    found = record_of("search", model, "--image", tmp_path / "pictures" / "swan.png", "--k", "1")["results"]
    assert [(one["id"], one["licence"], one["has_image"]) for one in found] == [("swan", "CC0-1.0", True)]
    # The knowledge base in the folder of a model finds that model, too.
    assert record_of("search", model / "knowledge_base", "an orange breast")["results"][0]["rank"] == 1


def test_columns_chunks_and_faults_of_a_table(tmp_path, text_model, record_of):
    table = tmp_path / "birds.csv"
    table.write_text('caption,year,place\n"One. Two. Three.",1999,here\n,2000,there\nFour.,2001,here\n')
    words = ("--columns", "id=", "text=caption", "metadata=year", "--chunk", "6", "--on_error", "skip")
    report = tmp_path / "skipped.jsonl"
    record = record_of("build", table, tmp_path / "out", "--model", text_model, *words, "--report", report)
    assert (record["passages"], record["skipped"]) == (4, 1)
    knowledge_base = KnowledgeBase.load(tmp_path / "out")
    assert knowledge_base.ids == ["0-0", "0-1", "0-2", "2-0"]
    assert knowledge_base["0-1"].metadata["year"] == "1999"
    assert "place" not in knowledge_base["0-1"].metadata
    assert json.loads(report.read_text())["where"].startswith("birds.csv")


def test_pdf_files_by_themselves_and_in_a_folder(tmp_path, text_model, record_of):
    file = manual(tmp_path / "manuals" / "kettle.pdf")
    words = ("--model", text_model, "--pages", "text", "--chunk", "40")
    alone = record_of("build", file, tmp_path / "a", *words)
    among = record_of("build", file.parent, tmp_path / "b", *words, "--on_error", "skip")
    assert alone["passages"] == among["passages"] > 2
    assert KnowledgeBase.load(tmp_path / "b")["kettle.pdf#page=2-0"].text.startswith("Kettle Manual > 2 Care")
    both = record_of("build", file, tmp_path / "c", "--model", text_model)
    assert both["passages"] == 6
    assert record_of("search", tmp_path / "c", "rinse", "--model", text_model)["results"][0]["id"].startswith(
        "kettle.pdf"
    )


def test_wordnet_and_conceptnet_are_known_by_their_names(tmp_path, text_model, record_of):
    (tmp_path / "wordnet").mkdir()
    line = "02084071 05 n 02 dog 0 domestic_dog 0 000 | a member of the genus Canis  \n"
    (tmp_path / "wordnet" / "data.noun").write_text("  1 This software\n" + line)
    words = ("--parts_of_speech", "noun", "--model", text_model)
    assert record_of("build", tmp_path / "wordnet", tmp_path / "a", *words)["passages"] == 1
    assertion = "/a/[/r/IsA/,/c/en/dog/,/c/en/animal/]\t/r/IsA\t/c/en/dog\t/c/en/animal\t"
    file = tmp_path / "conceptnet-assertions-5.7.0.csv"
    file.write_text(assertion + '{"dataset": "/d/x", "license": "cc:by/4.0", "weight": 2.0}\n')
    assert record_of("build", file, tmp_path / "b", "--min_weight", "1", "--model", text_model)["passages"] == 1


def test_an_existing_knowledge_base_is_replaced_only_when_told(built, source, text_model, run):
    words = ("build", source, built, "--model", text_model)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith(f"error: {built} holds a knowledge base already. Add to it with `hf-ravlm")
    assert run(*words, "--overwrite")[0] == 0
    assert "is itself a knowledge base" in run("build", source, built / "knowledge_base", "--model", text_model)[2]


def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, text_model, run, monkeypatch):
    source = tmp_path / "many.jsonl"
    source.write_text("\n".join(json.dumps({"id": n, "text": f"bird {n}"}) for n in range(40)))
    calls: list[int] = []
    real = building.chosen_encoder

    def encoder_that_stops(arguments, stop_after):
        encoder = real(arguments)
        encode = encoder.encode_passages

        def encode_passages(texts, images):
            if len(texts) == 2:  # not the one that is tried for its width, nor the probes of the encoder
                calls.append(len(texts))
                if len(calls) == stop_after:
                    raise KeyboardInterrupt
            return encode(texts, images)

        encoder.encode_passages = encode_passages
        return encoder

    monkeypatch.setattr("hf_ravlm.retrieval.encoding.corpus._TEXT_BATCHES_PER_CALL", 2)
    monkeypatch.setattr(building, "chosen_encoder", lambda arguments: encoder_that_stops(arguments, 13))
    words = ("build", source, tmp_path / "out", "--model", text_model, "--batch_size", "1")
    code, out, err = run(*words)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "Stopped. Finished work is kept: the same command goes on where it stopped."
    assert not (tmp_path / "out" / "knowledge_base" / "CURRENT").exists()
    calls.clear()
    monkeypatch.setattr(building, "chosen_encoder", lambda arguments: encoder_that_stops(arguments, None))
    assert run(*words)[0] == 0
    assert sum(calls) == 40 - 3 * 8  # three shards of four calls of two rows were finished
    assert len(KnowledgeBase.load(tmp_path / "out")) == 40


# --- Asking


def test_searching_by_words_filters_and_several_channels(built, text_model, run, record_of):
    found = record_of("search", built, "orange", "--channels", "bm25")["results"]  # without any model
    assert [(one["id"], one["rank"], one["score"]) for one in found] == [("robin", 1, None)]
    words = ("--where", '{"metadata.n": {"min": 1}}', "--channels", "dense", "bm25", "--model", text_model)
    record = record_of("search", built, "white", *words)
    assert {one["id"] for one in record["results"]} == {"wren", "swan"}
    assert record["results"][0]["metadata"]["n"] in (1, 2)
    assert -1 <= record["results"][0]["score"] <= 1
    code, out, _ = run("search", built, "orange", "--channels", "bm25")
    assert code == 0
    assert [line.strip() for line in out.splitlines()][1:] == ["an orange breast", "[CC0-1.0]"]
    assert run("search", built, "zebra", "--channels", "bm25")[1] == "Nothing was found.\n"


# --- Looking after


def test_adding_updating_removing_and_compacting(built, tmp_path, text_model, record_of, run):
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "owl", "text": "big eyes"}\n{"id": "wren", "text": "tiny"}\n')
    code, _, err = run("add", built, more, "--model", text_model)
    assert code == 2
    assert "error: 1 of 2 passages have ids that are in the knowledge base already: 'wren'." in err
    record = record_of("add", built, more, "--model", text_model, "--update")
    assert (record["passages_before"], record["passages"]) == (3, 4)
    (tmp_path / "ids.txt").write_text("swan\n")
    assert record_of("remove", built, "robin", "--ids_file", tmp_path / "ids.txt")["passages"] == 2
    assert run("remove", built, "dodo")[0] == 2
    info = record_of("info", built)
    assert (info["passages"], info["removed"]) == (2, 3)
    record_of("compact", built, "--purge")
    info = record_of("info", built)
    assert (info["passages"], info["removed"], len(info["generations"])) == (2, 0, 1)
    files = [path for path in (built / "knowledge_base").rglob("*") if path.is_file()]
    assert not any(b"orange breast" in path.read_bytes() for path in files)
    assert "passages    2\n" in run("info", built)[1]


def test_damage_is_found_and_repaired(built, record_of, run):
    assert run("verify", built)[1].endswith("of 3 passages are as they were written.\n")
    (index,) = (file.path for file in read_version(built / "knowledge_base").files_of("passages"))
    content = index.read_bytes()
    index.write_bytes(content[:-1] + b"?")
    code, out, _ = run("verify", built, "--json")
    assert code == 1
    assert json.loads(out)["ok"] is False
    assert "damaged passages" in run("repair", built)[1]
    index.write_bytes(content)
    (built / "knowledge_base" / "CURRENT").write_text("what?")
    assert run("info", built)[0] == 1
    record = record_of("repair", built)
    assert record["ok"]
    assert "made gen-00000001 the current version" in record["actions"]


def test_where_vectors_alone_are_damaged_it_is_told_how_the_passages_are_kept(
    built, run, text_model, tmp_path, monkeypatch
):
    (vectors,) = (file.path for file in read_version(built / "knowledge_base").files_of("vectors"))
    vectors.write_bytes(vectors.read_bytes()[:-10])
    monkeypatch.chdir(built.parent)  # paths in a report begin in the knowledge base, however it is named
    for action in ("verify", "repair"):
        code, out, _ = run(action, built.name)
        assert code == 1
        assert "damaged vectors: objects/" in out
        assert f"`hf-ravlm index build {built.name} NEW_FOLDER --model NAME` encodes them anew" in out
        assert "RavlmRetriever" not in out
        assert str(tmp_path) not in out
    assert run("build", built.name, "new", "--model", text_model)[0] == 0
    assert run("verify", "new")[0] == 0


def test_passages_without_a_licence_are_not_pushed(tmp_path, text_model, run):
    (tmp_path / "a.jsonl").write_text('{"id": "owl", "text": "big eyes"}\n')
    assert run("build", tmp_path / "a.jsonl", tmp_path / "out", "--model", text_model)[0] == 0
    code, _, err = run("push", tmp_path / "out", "me/birds")
    assert code == 2
    assert "error: 1 of 1 passages say nothing about their licence: 'owl'." in err
    code, _, err = run("push", tmp_path / "out", "me/birds", "--allow_missing_licence")
    assert code == 1  # HF_HUB_OFFLINE=1
    assert "error: publishing to the dataset repository me/birds: the Hub did not deliver" in err


# --- Folders of others, terminals, and several spellings


@pytest.fixture
def strange(tmp_path):
    """Passages whose signs steer terminals, in a file whose name says nothing."""
    path = tmp_path / "birds.dat"
    rows = [{"id": "owl\u202e", "text": "big \u202eeyes"}, {"id": "möwe", "text": "große Augen, eyes too"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_folder_for_unfinished_work_keeps_what_others_put_there(tmp_path, strange, own_model, run):
    staging = tmp_path / "scratch"
    (staging / "build").mkdir(parents=True)
    (staging / "notes.txt").write_text("mine")
    words = ("--model", own_model, "--kind", "jsonl", "--staging", staging, "--quiet")
    assert run("build", strange, tmp_path / "out", *words)[0] == 0
    assert sorted(path.name for path in staging.iterdir()) == ["build", "notes.txt"]


def test_passages_cannot_steer_the_terminal_and_channels_may_have_commas(tmp_path, strange, own_model, run):
    out, model = tmp_path / "out", ("--model", own_model, "--quiet")
    assert run("build", strange, out, "--format", "jsonl", *model)[0] == 0
    with strange.open("a") as file:
        file.write("\n" + json.dumps({"id": "emu\x1b]0;x\x07", "text": "tall"}))
    code, _, said = run("build", strange, tmp_path / "more", "--format", "jsonl", *model)
    assert (code, "control character U+001B" in said) == (2, True)
    assert all(letter.isprintable() for letter in said.replace("\n", ""))
    words = (*model, "--channels", "dense,bm25", "-k", "2")
    code, shown, _ = run("search", out, "eyes", *words)
    assert code == 0
    assert "big eyes" in shown
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    _, written, _ = run("search", out, "eyes", *words, "--json")
    assert "möwe" in written
    assert "\u202e" not in written
    record = json.loads(written)
    assert record["channels"] == ["dense", "bm25"]
    assert {one["id"] for one in record["results"]} == {"möwe", "owl"}


# --- Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "{built}", "x"], "no model lies here (no config.json). Name the one that built"),
        (
            ["search", "{built}", "x", "--model", "{tmp}/none"],
            "there is no such folder, and this is no name on the Hub",
        ),
        (["search", "{built}", "x", "--channels", "bm25", "--where", "{{'a': 1}}"], "not JSON"),
        (["search", "{built}", "x", "--channels", "bm25", "--where", '{{"a": 1}}'], "There is no column 'a'"),
        (["search", "{built}", "x", "--channels", "bm25", "--k", "0"], "k=0: expected a whole number"),
        (["search", "{built}", "--channels", "bm25"], "There is nothing to search for"),
        (["search", "{built}", "--image", "{tmp}/none.png"], "none.png: there is no such file"),
        (["info", "{tmp}"], "there is no knowledge base here"),
        (["build", "{tmp}/none", "{tmp}/new", "--model", "{model}"], "there is no such file or folder"),
        (["build", "{tmp}/a.txt", "{tmp}/new", "--model", "{model}"], "its name does not say what it is"),
        (["build", "{tmp}/birds.jsonl", "{tmp}/a.txt", "--model", "{model}"], "is a file. Name a folder"),
        (["build", "{tmp}/birds.jsonl", "{tmp}", "--model", "{model}"], "holds other files (a.txt) and no model"),
        (["build", "{tmp}/empty.csv", "{tmp}/new", "--model", "{model}"], "empty.csv is empty. Expected names of"),
        (["build", "{tmp}/bare", "{tmp}/new", "--model", "{model}"], "no other row was found. Check the source."),
        (
            ["build", "{tmp}/birds.jsonl", "{tmp}/new", "--model", "{model}", "--chunk", "3", "--overlap", "3"],
            "--chunk 3",
        ),
        (
            ["build", "{tmp}/birds.csv", "{tmp}/new", "--model", "{model}", "--delimiter", ";;"],
            "--delimiter ';;': exp",
        ),
        (["add", "{built}", "{tmp}/birds.jsonl", "--model", "{model}"], "Use --update to change passages, or give"),
        (["build", "{tmp}/birds.jsonl", "{tmp}/new", "--model", "{model}", "--columns", "word=a"], "--columns word=a"),
        (
            ["build", "{tmp}/birds.jsonl", "{tmp}/new", "--model", "{model}", "--languages", "en"],
            "--languages is not an option of the format 'jsonl'",
        ),
        (
            [
                "build",
                "{tmp}/birds.jsonl",
                "{tmp}/new",
                "--model",
                "{model}",
                "--index",
                "flat",
                "--memory_budget",
                "9",
            ],
            "memory_budget=9 bytes is too little",
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(words, message, built, tmp_path, text_model, run):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "bare").mkdir()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "birds.csv").write_text("id;text\n1;A robin\n")
    filled = [word.format(built=built, tmp=tmp_path, model=text_model) for word in words]
    code, out, err = run(*filled)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    code, out, _ = run(*filled, "--json")
    assert code == 2
    assert message in json.loads(out)["error"]["message"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: hf-ravlm index"),
        (["build", "a"], "usage: hf-ravlm index"),
        (["build", "a", "b", "--model", "m", "--memory_budget", "x"], "'x' is not a size"),
        (["search", "out", "eyes", "--channels", "dense,smell"], "there is no smell; choose from dense"),
    ],
)
def test_a_command_line_that_is_not_understood_ends_with_2(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["index", *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def shown_commands(text: str) -> list[list[str]]:
    """The words after `hf-ravlm` of every command that a text shows."""
    lines = [line for line in text.splitlines() if line.strip().startswith("hf-ravlm ")]
    parts = [part for line in lines for part in re.split(r" (?:&&|\|\|) ", line)]
    return [shlex.split(part, comments=True)[1:] for part in parts]


def test_every_example_of_the_help_is_understood():
    commands = shown_commands(INDEX_EXAMPLES)
    assert len(commands) > 9
    for words in commands:
        assert make_parser("1").parse_args(words).run


def test_what_the_readme_shows_works(tmp_path, own_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").symlink_to(own_model)
    (tmp_path / "my_folder").mkdir()
    picture(0).save(tmp_path / "my_folder" / "kite.png")
    (tmp_path / "more_birds.csv").write_text("name,caption\nowl,big eyes\n")
    commands = shown_commands((ROOT / "README.md").read_text())
    assert commands == shown_commands((ROOT / "README.zh.md").read_text())
    codes = {" ".join(words[:2]): main(words) for words in commands if words[0] == "index"}
    assert codes.pop("index push") == 2
    assert "'owl'" in capsys.readouterr().err  # more_birds.csv states no licence
    assert codes == dict.fromkeys(["index build", "index search", "index add", "index verify", "index repair"], 0)


@pytest.mark.slow
def test_the_readme_measures_and_explains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copytree(ROOT / "examples" / "flags" / "checkpoint", tmp_path / "my_model")
    flag = os.fspath(ROOT / "examples" / "flags" / "unseen" / "is__circleflags.png")
    asked = {"question": "What is the capital?", "answers": ["Reykjavik"], "image": flag, "gold_ids": ["is/capital"]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(asked))
    commands = shown_commands((ROOT / "README.md").read_text())
    codes = {words[0]: main(words) for words in commands if words[0] in ("evaluate", "card", "explain")}
    assert codes == {"evaluate": 0, "card": 0, "explain": 0}
    assert "1 questions" in (tmp_path / "my_model" / "README.md").read_text()
    assert (tmp_path / "explained.png").stat().st_size > 10_000


# --- As a process


def start(*words, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hf_ravlm", "index", *map(str, words)]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores Ctrl-C, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.slow
def test_a_process_writes_one_document_and_resumes_after_ctrl_c(tmp_path, text_model):
    source = tmp_path / "many.jsonl"
    source.write_text("\n".join(json.dumps({"id": n, "text": f"bird {n} " * 30}) for n in range(3000)))
    words = ("build", source, tmp_path / "out", "--model", text_model, "--batch_size", "1", "--json")
    process = start(*words)
    staging = tmp_path / "out" / "knowledge_base" / "staging" / "build"
    deadline = time.monotonic() + 300
    while len(list(staging.glob("*/shard-*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "Stopped. Finished work is kept: the same command goes on where it stopped."
    process = start(*words)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["passages"] == 3000
    assert "shards are finished already" in err


def test_a_catalogue_as_people_have_it_is_built_and_encoded_anew(tmp_path, text_model, run):
    (tmp_path / "photos").mkdir()
    picture(0).save(tmp_path / "photos" / "mug.png")
    (tmp_path / "shop").mkdir()
    rows = (
        f"sku;description;picture;price\nM-1;a red mug;{tmp_path}/photos/mug.png;12.5\nB-7;a blue bowl;lost.png;18\n"
    )
    (tmp_path / "shop" / "products.csv").write_text(rows)
    read = ["--columns", "id=sku", "--numeric_columns", "price", "--image_root", str(tmp_path / "photos")]
    places = [str(tmp_path / "shop" / "products.csv"), str(tmp_path / "kb"), "--model", str(text_model)]
    assert run("build", *places, *read)[0] == 2, "an image is missing"
    assert not (tmp_path / "kb" / "knowledge_base" / "CURRENT").exists()
    assert run("build", *places, *read, "--on_error", "keep_text")[0] == 0
    asked = [
        "search",
        str(tmp_path / "kb"),
        "a blue bowl",
        "--channels",
        "bm25",
        "--where",
        '{"price": {"min": 15}}',
        "--json",
    ]
    before = [found["id"] for found in json.loads(run(*asked)[1])["results"]]
    assert before == ["B-7"]
    other = tmp_path / "other_model"
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=len(tiny_tokenizer()), **WIDTHS)).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    again = ["build", str(tmp_path / "kb"), str(tmp_path / "kb"), "--model", str(other), "--overwrite"]
    assert run(*again)[0] == 0
    assert [found["id"] for found in json.loads(run(*asked)[1])["results"]] == before
    assert len(RavlmRetriever.from_pretrained(tmp_path / "kb", load_encoder(other))) == 2
