"""The training programs as a user types them, at tiny size: from a file to a folder that loads."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoModelForObjectDetection, pipeline

import hf_ravlm
from detection.card import join_runs
from hf_ravlm.model.heads.object_detection import BoxFit
from labelled_world import KNOWN, coloured
from reading_world import COLOURS, THINGS, colour_retriever, rows
from tiny import picture, tiny_model, tiny_processor
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model
from tiny_detectors import scene, tiny_detector
from tiny_encoders import FAMILIES, save


EXAMPLES = Path(__file__).parents[2] / "examples"
FIT = BoxFit(1.0, 5.0, 0.0, -2.0, 1.0)
TRAINING = ["--use_cpu", "--max_steps", "2", "--save_strategy", "no"]
QUIET = [*TRAINING, "--report_to", "none", "--disable_tqdm", "true"]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by that name


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A reader, its processor and its knowledge base in one folder."""
    folder = tmp_path_factory.mktemp("model")
    model, processor = tiny_model(), tiny_processor()
    for part in (model, processor, colour_retriever(model, processor)):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """A file of questions whose columns have names of their own."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, row in enumerate(rows(8)):
        row["image"].save(folder / f"{number}.png")
        asked = {"photo": str(folder / f"{number}.png"), "asked": row["question"], "said": row["answer"]}
        lines.append(json.dumps({**asked, "passage": row["gold_ids"], "untouched": number}))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return str(folder / "questions.jsonl")


def run(monkeypatch, program: str, *options: str) -> None:
    """Runs an example as a program; what it needs lies beside it."""
    monkeypatch.setattr(sys, "argv", [program, *options])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    runpy.run_path(str(EXAMPLES / program), run_name="__main__")


def columns(questions: str) -> list[str]:
    named = {"image": "photo", "question": "asked", "answer": "said", "gold": "passage"}
    return ["--dataset", questions, *(part for key, name in named.items() for part in (f"--{key}_column", name))]


@pytest.mark.parametrize("adapters", [[], ["--use_lora", "--lora_rank", "2"]])
def test_a_reader_is_fine_tuned_and_answers_from_its_folder(
    adapters, model_folder, questions, tmp_path, monkeypatch, capsys
):
    out = str(tmp_path / "out")
    options = ["--model", model_folder, "--output_dir", out, "--eval_dataset", questions, "--max_new_tokens", "2"]
    run(monkeypatch, "train.py", *columns(questions), *options, *adapters, "--learning_rate", "1e-2", *QUIET)
    assert "eval_closed_book_exact_match" in capsys.readouterr().out
    trained, before = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (out, model_folder))
    names = {name for name, tensor in trained.state_dict().items() if not tensor.equal(before.state_dict()[name])}
    assert any(name.startswith("language_model.") for name in names)
    assert not any(name.startswith("model.") for name in names)  # the retriever's towers
    if adapters:
        assert all("q_proj" in name or "v_proj" in name or "image_projector" in name for name in names)
    (answer,) = pipeline("image-to-text", model=out, max_new_tokens=2)(picture(0), question="kite ?")
    assert len(answer["evidence"]) == before.config.num_passages


def test_a_reader_and_an_encoder_by_name_are_fine_tuned_and_answer_from_one_folder(questions, tmp_path, monkeypatch):
    for part in multimodal_model("llava"):
        part.save_pretrained(tmp_path / "reader")
    save(FAMILIES["SigLIP"], tmp_path / "encoder")
    known = tmp_path / "known.jsonl"
    known.write_text("\n".join(json.dumps({"id": thing, "text": f"{thing} : red"}) for thing in THINGS))
    parts = [
        "--model",
        str(tmp_path / "reader"),
        "--encoder",
        str(tmp_path / "encoder"),
        "--knowledge_base",
        str(known),
    ]
    size = ["--use_lora", "--lora_rank", "2", "--activation_checkpointing", "--bf16", "--max_steps", "1"]
    out = str(tmp_path / "out")
    run(monkeypatch, "train.py", *columns(questions), *parts, *QUIET, *size, "--output_dir", out)
    pipe = pipeline("image-to-text", model=out, encoder=str(tmp_path / "encoder"), max_new_tokens=2)
    (answer,) = pipe(picture(0), question="kite ?")
    assert len(answer["evidence"]) == pipe.model.config.num_passages


def test_mined_negatives_train_a_retriever(model_folder, questions, tmp_path, monkeypatch):
    negatives, out = str(tmp_path / "mined" / "negatives.jsonl"), str(tmp_path / "out")
    options = [*columns(questions), "--model", model_folder]
    mining = ["--output", negatives, "--num_negatives", "2", "--positive_ratio", "1000"]
    run(monkeypatch, "mine_hard_negatives.py", *options, *mining)
    mined = [json.loads(line) for line in Path(negatives).read_text().splitlines()]
    assert len(mined) == 8
    for row, asked in zip(mined, rows(8)):
        assert len(row["negative_ids"]) == 2
        assert not set(row["negative_ids"]) & set(asked["gold_ids"])
    objectives = ["--triplet_weight", "0.3", "--itm_weight", "0.5", "--per_device_train_batch_size", "4"]
    run(
        monkeypatch,
        "train_retriever.py",
        *options,
        *objectives,
        "--negatives",
        negatives,
        "--output_dir",
        out,
        *QUIET,
    )
    retriever = hf_ravlm.RavlmRetriever.from_pretrained(out)  # refuses vectors of other weights
    assert retriever.knowledge_base.ids == THINGS
    assert AutoModelForImageTextToText.from_pretrained(out).config.architectures == ["RavlmForConditionalGeneration"]


def test_towers_alone_learn_captions_from_a_folder_of_images(model_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    lines = []
    for number, colour in enumerate(COLOURS):
        picture(number).save(tmp_path / "images" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": f"it is {colour}"}))
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(lines))
    hf_ravlm.RavlmModel.from_pretrained(model_folder).save_pretrained(tmp_path / "towers")
    tiny_processor().save_pretrained(tmp_path / "towers")
    options = [
        "--model",
        str(tmp_path / "towers"),
        "--dataset",
        str(tmp_path / "images"),
        "--passage_column",
        "caption",
    ]
    options += ["--eval_split", "train", "--symmetric", "--output_dir", str(tmp_path / "out")]
    run(monkeypatch, "train_retriever.py", *options, *QUIET)
    assert "eval_recall@1" in capsys.readouterr().out
    assert hf_ravlm.RavlmModel.from_pretrained(tmp_path / "out").config.architectures == ["RavlmModel"]
    assert not (tmp_path / "out" / "knowledge_base").exists()


def test_reader_and_retriever_are_trained_together(model_folder, questions, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "out")
    options = ["--model", model_folder, "--output_dir", out, "--num_passages", "3", "--side", "passage"]
    run(monkeypatch, "train_joint.py", *columns(questions), *options, "--refresh_every", "1", *QUIET)
    assert "version 2 of the index" in capsys.readouterr().out
    (answer,) = pipeline("image-to-text", model=out, max_new_tokens=2)(picture(0), question="kite ?")
    assert len(answer["posterior"]) == len(answer["evidence"])


@pytest.mark.parametrize("kind", ["sees", "words"])
def test_a_reader_and_an_encoder_by_name_are_trained_together(kind, questions, tmp_path, monkeypatch):
    if kind == "sees":
        for part in multimodal_model("llava"):
            part.save_pretrained(tmp_path / "reader")
    else:
        causal_model("llama").save_pretrained(tmp_path / "reader")
        causal_tokenizer().save_pretrained(tmp_path / "reader")
    save(FAMILIES["SigLIP"], tmp_path / "encoder")
    known = tmp_path / "known.jsonl"
    known.write_text("\n".join(json.dumps({"id": thing, "text": f"{thing} : red"}) for thing in THINGS))
    parts = ["--model", str(tmp_path / "reader"), "--encoder", str(tmp_path / "encoder")]
    size = ["--use_lora", "--lora_rank", "2", "--activation_checkpointing", "--max_steps", "1"]
    size += ["--tokens_at_once", "64", "--side", "passage", "--learning_rate", "1e-2"]
    out = str(tmp_path / "out")
    options = [*parts, "--knowledge_base", str(known), *QUIET, *size, "--output_dir", out]
    run(monkeypatch, "train_joint.py", *columns(questions), *options)
    adapted = set(load_file(tmp_path / "out" / "adapters" / "adapter_model.safetensors"))
    assert any("language_model" in name and "lora_B" in name for name in adapted)
    assert any(".model.encoder." in name and "lora_B" in name for name in adapted)  # the dual encoder's
    assert not any("language_model" in name and "vision" in name for name in adapted)
    pipe = pipeline("image-to-text", model=out, max_new_tokens=2)  # the index is of the towers as they are now
    (answer,) = pipe(picture(0), question="kite ?")
    assert len(answer["evidence"]) == pipe.model.config.num_passages


def test_what_is_trained_is_reported_to_tensorboard_and_shown_with_the_time_that_remains(
    model_folder, questions, tmp_path, monkeypatch, capsys
):
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    options = ["--model", model_folder, "--output_dir", str(tmp_path / "out"), "--logging_steps", "1"]
    run(monkeypatch, "train.py", *columns(questions), *options, *TRAINING, "--report_to", "tensorboard")
    events = board.EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    shown = capsys.readouterr().err
    assert "1/2 [" in shown
    assert "<00:" in shown  # the time that remains


def test_a_column_that_is_not_there_is_named_with_those_that_are(model_folder, questions, monkeypatch):
    with pytest.raises(SystemExit, match="'picture'.*'photo'"):
        run(monkeypatch, "train.py", "--model", model_folder, "--dataset", questions, "--image_column", "picture")


@pytest.mark.parametrize("gold", ["nothing of that name", "", None])
def test_a_retriever_is_not_trained_without_its_gold_passages(gold, model_folder, tmp_path, monkeypatch):
    asked = [{"question": row["question"], "gold_ids": row["gold_ids"]} for row in rows(3)]
    asked[1]["gold_ids"] = [gold] if gold else []
    if gold is None:
        asked = [{"question": row["question"]} for row in asked]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    options = ["--dataset", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises((SystemExit, hf_ravlm.InvalidInputError), match="not in the knowledge base|no gold passage"):
        run(monkeypatch, "train_retriever.py", "--model", model_folder, *options, *QUIET)


@pytest.mark.parametrize("program", ["train.py", "train_joint.py"])
def test_negatives_that_would_not_be_read_are_refused(program, model_folder, monkeypatch):
    with pytest.raises(SystemExit, match="--negatives: "):
        run(monkeypatch, program, "--model", model_folder, "--negatives", "mined.jsonl", *QUIET)


def test_pictures_lie_beside_their_file_and_columns_that_are_not_read_are_told(tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from training_rows import DataOptions, training_rows

    picture(0).save(tmp_path / "kite.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "kite.png", "asked": "kite ?", "answers": "red"}))
    (row,) = training_rows(DataOptions(dataset=str(tmp_path / "rows.jsonl")))
    assert row == {"image": str(tmp_path / "kite.png"), "answers": "red", "row_number": 0}
    assert "['asked'] are not read" in caplog.text
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(SystemExit, match=r"none\.jsonl: expected rows"):
        training_rows(DataOptions(dataset=str(tmp_path / "none.jsonl")))


def test_the_flags_come_by_default(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from training_rows import DataOptions, evaluation_rows, training_rows

    train, dev = training_rows(DataOptions()), evaluation_rows(DataOptions(eval_split="dev", max_rows=5))
    assert len(train) > 600
    assert len(dev) == 5
    asked = {row["gold_ids"][0].split("/")[0] for row in train}
    assert not asked & {row["gold_ids"][0].split("/")[0] for row in dev}


def test_a_pretrained_encoder_learns_further_and_is_given_back_whole(questions, model_folder, tmp_path, monkeypatch):
    save(FAMILIES["CLIP"], tmp_path / "clip")
    out = str(tmp_path / "out")
    options = ["--encoder", str(tmp_path / "clip"), "--knowledge_base", model_folder, "--output_dir", out]
    cached = ["--grad_cache_chunk_size", "2", "--per_device_train_batch_size", "4", "--learning_rate", "1e-2"]
    run(monkeypatch, "train_retriever.py", *columns(questions), *options, *cached, *QUIET)
    retriever = hf_ravlm.RavlmRetriever.from_pretrained(out)
    assert retriever.knowledge_base.ids == THINGS
    assert retriever.encoder.model.config.encoder_config.model_type == "clip"
    before = hf_ravlm.from_encoder(tmp_path / "clip")[0].state_dict()
    after = retriever.encoder.model.state_dict()
    changed = {name.split(".")[1] for name, tensor in after.items() if "." in name and not tensor.equal(before[name])}
    assert {"text_model", "vision_model", "text_projection", "visual_projection"} <= changed


@pytest.mark.parametrize("options", [["--head", "images"], ["--use_lora", "--lora_rank", "2"]])
def test_a_classifier_is_trained_and_opens_from_its_folder(options, model_folder, tmp_path, monkeypatch, capsys):
    for label in KNOWN:
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(6):
            coloured(label, number).save(tmp_path / "images" / label / f"{number}.png")
    out = str(tmp_path / "out")
    data = ["--model", model_folder, "--dataset", str(tmp_path / "images"), "--num_neighbors", "3"]
    run(monkeypatch, "train_classifier.py", *data, "--output_dir", out, *options, *QUIET)
    assert "accuracy of the held-out images" in capsys.readouterr().out
    classify = pipeline("image-classification", model=out)
    assert len(classify.retriever) == 14
    assert {one["label"] for one in classify(coloured("red", 77))} == set(KNOWN)
    trained, before = classify.model, hf_ravlm.RavlmModel.from_pretrained(model_folder)
    changed = {n for n, w in trained.model.state_dict().items() if not w.equal(before.state_dict()[n])}
    assert all("vision_tower" in name for name in changed)
    assert bool(changed) == ("--use_lora" in options)


@pytest.mark.parametrize("options", [[], ["--use_lora", "--lora_rank", "2"], ["--no_head"]])
def test_a_closed_set_is_trained_measured_and_opens(options, model_folder, questions, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "out")
    data = [*columns(questions), "--model", model_folder, "--eval_dataset", questions, "--output_dir", out]
    run(monkeypatch, "train_vqa.py", *data, *options, *QUIET)
    told = capsys.readouterr().out
    assert all(f"{arm} {{'exact_match':" in told for arm in ("closed-book", "retrieved", "gold"))
    ask = pipeline("visual-question-answering", model=out, top_k=6)
    found = ask(picture(0), "kite ?")
    assert {row["answer"] for row in found} == set(COLOURS)
    assert (ask.model.answer_head is None) == ("--no_head" in options)


def test_a_detector_learns_composed_scenes_and_is_measured(model_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pycocotools", reason='pip install "hf_ravlm[detection]"')
    out = tmp_path / "out"
    sizes = ["--num_scenes", "4", "--num_tests", "8", "--num_base", "3", "--num_novel", "2"]
    monkeypatch.setattr("hf_ravlm.RavlmForObjectDetection.fit_neighbors", lambda *_, **__: FIT)
    monkeypatch.setattr("hf_ravlm.pipelines.object_detection.MIN_OVERLAP", 0.0)
    batch = ["--per_device_train_batch_size", "2", "--output_dir", str(out)]
    run(monkeypatch, "train_detector.py", *sizes, "--encoder", model_folder, *batch, *QUIET)
    report = json.loads((out / "report.json").read_text())
    assert set(report["arms"]) == {"detector alone", "with entries"}
    assert report["arms"]["detector alone"]["novel"]["map50"] == 0
    assert (report["base"], report["novel"], report["steps"]) == (3, 2, 2)
    join_runs([out, out], tmp_path)
    told = (tmp_path / "detection.md").read_text()
    assert "| detector alone | novel | 0.000 (0.000-0.000) |" in told
    assert "(detection.png)" in told
    assert (tmp_path / "detection.png").is_file()


def test_a_pretrained_detector_learns_annotated_images_and_opens(model_folder, tmp_path, monkeypatch):
    detector, processor = tiny_detector("detr")
    for part in (detector, processor):
        part.save_pretrained(tmp_path / "detector")
    (tmp_path / "images").mkdir()
    lines = []
    for number in range(4):
        scene("red", "white", number).save(tmp_path / "images" / f"{number}.png")
        objects = {"bbox": [[8, 8, 24, 24], [48, 8, 24, 24]], "category": ["red", "white"]}
        lines.append(json.dumps({"file_name": f"{number}.png", "objects": objects}))
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr("hf_ravlm.RavlmForObjectDetection.fit_neighbors", lambda *_, **__: FIT)
    monkeypatch.setattr("hf_ravlm.pipelines.object_detection.MIN_OVERLAP", 0.0)
    named = ["--detector", str(tmp_path / "detector"), "--dataset", str(tmp_path / "images"), "--use_lora"]
    where = ["--encoder", model_folder, "--held_out", "3", "--output_dir", str(tmp_path / "out")]
    run(monkeypatch, "train_detector.py", *named, *where, "--per_device_train_batch_size", "2", *QUIET)
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path / "out")
    assert loaded.config.id2label == {0: "red", 1: "white"}
    before = detector.state_dict()
    after = {name.removeprefix("detector."): one for name, one in loaded.state_dict().items()}
    changed = [name for name, one in before.items() if name in after and not one.equal(after[name])]
    assert any("q_proj" in name for name in changed)
    assert not any("backbone" in name or "fc1" in name for name in changed)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--matching_steps", "-2"], "--matching_steps -2: expected 0, which skips the stage, or more"),
        (["--leave_out", "cartoon"], "--leave_out cartoon: expected one of coreui, flagicons"),
        (["--start_from", "nowhere"], "--start_from nowhere: expected a folder that this program wrote"),
        (["--designs", "50"], "--designs 50: expected a multiple of 4, 32 or more"),
    ],
)
def test_training_the_flags_model_refuses_what_would_cost_an_hour_for_nothing(options, said, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=said):
        run(monkeypatch, "train_flags.py", "--out", str(tmp_path / "flags"), *options)
    assert not (tmp_path / "flags").exists()
