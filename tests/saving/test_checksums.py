"""A saved folder is what was saved: altered, missing and mixed files are noticed, a killed save is old or new."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from hf_ravlm import (
    InvalidInputError,
    RavlmConfig,
    RavlmForConditionalGeneration,
    RavlmModel,
    RavlmProcessor,
    UnsafeInputError,
)
from hf_ravlm.errors import StorageError
from hf_ravlm.pipelines.policy.answer_policy import AnswerPolicy
from hf_ravlm.saving import checksums, folders
from hf_ravlm.saving.bounds import check_sizes, check_tokenizer
from hf_ravlm.saving.checksums import MANIFEST, SWITCH, accept_changes, joined_manifest, manifest_text, read_entries
from hf_ravlm.saving.folders import SAVED, STAGING_PREFIX
from tiny import assert_same_weights, tiny_model, tiny_processor
from tiny_folder import save_everything


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = save_everything(tmp_path_factory.mktemp("system"))
    AnswerPolicy(similarity_floor=0.1).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "system")
    return tmp_path / "system"


READERS = {
    "config.json": RavlmForConditionalGeneration,
    "generation_config.json": RavlmForConditionalGeneration,
    "model.safetensors": RavlmForConditionalGeneration,
    "processor_config.json": RavlmProcessor,
    "tokenizer.json": RavlmProcessor,
    "tokenizer_config.json": RavlmProcessor,
    "chat_template.jinja": RavlmProcessor,
    "text_tokenizer/tokenizer.json": RavlmProcessor,
    "answer_policy.json": AnswerPolicy,
    "answer_policy.safetensors": AnswerPolicy,
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes() + b"\n")])
def test_a_file_that_is_not_as_it_was_written_is_named(folder, name, harm):
    harm(folder / name)
    error = InvalidInputError if READERS[name] is AnswerPolicy else UnsafeInputError
    with pytest.raises(error, match=name.replace(".", r"\.")) as caught:
        READERS[name].from_pretrained(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_every_way_of_loading_compares(folder):
    flip(folder / "model.safetensors")
    for load in (RavlmModel.from_pretrained, AutoModelForImageTextToText.from_pretrained):
        with pytest.raises(UnsafeInputError, match=r"model.safetensors\) is damaged"):
            load(folder)
    with pytest.raises(Exception, match=r"model.safetensors\) is damaged"):
        pipeline("image-to-text", model=str(folder))


def test_who_edits_a_file_can_say_so(folder, monkeypatch):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": 7}))
    with pytest.raises(UnsafeInputError, match="accept_changes"):
        RavlmForConditionalGeneration.from_pretrained(folder)
    loaded = RavlmForConditionalGeneration.from_pretrained(folder, verify=False)
    assert loaded.generation_config.max_new_tokens == 7
    assert AutoModelForImageTextToText.from_pretrained(folder, verify=False) is not None
    assert AutoProcessor.from_pretrained(folder, verify=False) is not None
    monkeypatch.setenv(SWITCH, "0")
    RavlmForConditionalGeneration.from_pretrained(folder)
    monkeypatch.delenv(SWITCH)
    assert accept_changes(folder) == ["generation_config.json"]
    assert RavlmForConditionalGeneration.from_pretrained(folder).generation_config.max_new_tokens == 7


def test_saving_a_part_again_and_other_peoples_files_are_no_alarm(folder):
    tiny_model(seed=3).save_pretrained(folder)
    (folder / "README.md").write_text("a card of other hands")
    (folder / "notes.txt").write_text("notes")
    tiny_model(seed=4).config.save_pretrained(folder)
    tiny_processor(max_length=99).save_pretrained(folder)
    assert RavlmProcessor.from_pretrained(folder).max_length == 99
    assert_same_weights(RavlmForConditionalGeneration.from_pretrained(folder), tiny_model(seed=3))
    tiny_model(seed=5).save_pretrained(folder, max_shard_size="100KB")  # shards instead of one file
    assert_same_weights(RavlmForConditionalGeneration.from_pretrained(folder), tiny_model(seed=5))
    tiny_model(seed=6).save_pretrained(folder, variant="fp16")
    assert_same_weights(RavlmForConditionalGeneration.from_pretrained(folder, variant="fp16"), tiny_model(seed=6))
    flip(next(folder.glob("model.fp16*")))  # which is read by those alone that ask for it
    assert_same_weights(RavlmForConditionalGeneration.from_pretrained(folder), tiny_model(seed=5))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_adapters_come_and_go(folder):
    from peft import LoraConfig, PeftModel, get_peft_model

    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=r".*language_model.*\.q_proj"))
    adapted.save_pretrained(folder / "adapter")
    adapted.save_pretrained(folder)
    base = RavlmForConditionalGeneration.from_pretrained(folder)
    assert PeftModel.from_pretrained(base, folder / "adapter") is not None


def test_a_folder_without_a_manifest_opens_as_before_and_a_damaged_one_is_refused(folder):
    (folder / MANIFEST).write_text("{")
    with pytest.raises(UnsafeInputError, match="manifest.json is damaged"):
        RavlmProcessor.from_pretrained(folder)
    (folder / MANIFEST).write_text(manifest_text({"../secret": {"part": "model", "bytes": 1, "xxh3_128": "0" * 32}}))
    with pytest.raises(UnsafeInputError, match="manifest.json is damaged"):
        RavlmForConditionalGeneration.from_pretrained(folder)
    (folder / MANIFEST).unlink()
    flip(folder / "generation_config.json")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_passages": 2}))
    assert RavlmForConditionalGeneration.from_pretrained(folder).config.num_passages == 2


# --- Kills


def test_a_save_that_is_killed_at_any_step_leaves_the_old_model_or_the_new_one(tmp_path):
    old, new = tiny_model(seed=0), tiny_model(seed=1, projection_dim=24)
    template = tmp_path / "template"
    old.save_pretrained(template, max_shard_size="100KB")
    before = sorted(path.name for path in template.iterdir())
    outcomes, step = [], 0
    while not outcomes or outcomes[-1] != "finished":
        step += 1
        place = tmp_path / str(step)
        shutil.copytree(template, place)
        outcomes.append(_save_and_die(new, place, step))
        for load in (AutoModelForImageTextToText, RavlmForConditionalGeneration):
            copy = tmp_path / "copy"
            shutil.copytree(place, copy)
            loaded = load.from_pretrained(copy)
            assert_same_weights(loaded, new if loaded.config.projection_dim == 24 else old)
            shutil.rmtree(copy)
        old.save_pretrained(place, max_shard_size="100KB")  # the remains are gone
        assert sorted(path.name for path in place.iterdir()) == before
        shutil.rmtree(place)
    assert step > 8


def _save_and_die(model, place: Path, step: int) -> str:
    """Saves in a child that is killed before its n-th rename or removal."""
    child = os.fork()
    if child == 0:
        count = 0

        def dying(function):
            def wrapped(*arguments, **options):
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return wrapped

        for name in ("replace", "rename", "unlink", "fsync", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            model.save_pretrained(place)
        finally:
            os._exit(0)
    return "finished" if os.WIFEXITED(os.waitpid(child, 0)[1]) else "killed"


def test_a_folder_that_may_not_be_written_says_that_a_save_waits(folder, monkeypatch):
    (folder / SAVED).mkdir()
    (folder / SAVED / "config.json").write_text("{}")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.os, "replace", refuse)
    with pytest.raises(UnsafeInputError, match="a save was interrupted here"):
        RavlmProcessor.from_pretrained(folder)


def test_loading_while_somebody_saves_gives_a_whole_model(tmp_path):
    models = [tiny_model(seed=seed) for seed in range(2)]
    models[0].save_pretrained(tmp_path)
    stop = threading.Event()

    def save():
        turn = 0
        while not stop.wait(0.2):
            turn += 1
            models[turn % 2].save_pretrained(tmp_path)

    writer = threading.Thread(target=save)
    writer.start()
    try:
        for _ in range(8):
            weight = RavlmForConditionalGeneration.from_pretrained(tmp_path).image_projector.weight
            assert any(torch.equal(weight, model.image_projector.weight) for model in models)
    finally:
        stop.set()
        writer.join()
    assert not list(tmp_path.glob(f"{STAGING_PREFIX}*"))


def test_a_full_disk_leaves_the_old_model(folder):
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large.*Make room"):
            tiny_model(seed=9).save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert_same_weights(RavlmForConditionalGeneration.from_pretrained(folder), tiny_model())


# --- The checksum, and manifests of repositories


def test_a_checksum_sees_every_byte_of_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "_BLOCK", size := mmap.ALLOCATIONGRANULARITY)
    path = tmp_path / "data"
    seen = set()
    for place in (-1, 0, 1, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 99):
        data = bytearray(2 * size + 100)
        if place >= 0:
            data[place] = 1
        path.write_bytes(data)
        seen.add(checksums.checksums([path])[path])
    path.write_bytes(bytes(2 * size + 101))
    seen.add(checksums.checksums([path])[path])
    assert len(seen) == 10


def test_weights_that_were_found_whole_are_not_read_again_until_somebody_writes_to_them(folder, tmp_path, monkeypatch):
    from huggingface_hub import constants

    def check() -> list[str]:
        """The names of the weights whose bytes were read."""
        read.clear()
        checksums.check_files(folder, ("model",), which="weights")
        return list(read)

    read: list[str] = []
    checksum = checksums.checksums
    monkeypatch.setattr(
        checksums, "checksums", lambda paths: read.extend(path.name for path in paths) or checksum(paths)
    )
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    assert check() == check() == ["model.safetensors"]  # small files are read always
    monkeypatch.setattr(checksums, "_NOTED_BYTES", 0)
    assert check() == check() == ["model.safetensors"]  # written just now
    monkeypatch.setattr(checksums, "_SETTLED_SECONDS", -1e9)
    assert (check(), check()) == (["model.safetensors"], [])
    monkeypatch.setenv(SWITCH, "always")
    assert check() == ["model.safetensors"]
    monkeypatch.delenv(SWITCH)
    path = folder / "model.safetensors"
    before, status = path.read_bytes(), path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a tool that keeps times
    for _ in range(2):
        with pytest.raises(UnsafeInputError, match=r"model.safetensors\) is damaged"):
            check()
    path.write_bytes(before)
    assert (check(), check()) == (["model.safetensors"], [])
    for note in (tmp_path / "cache").rglob("found_whole/*"):
        os.utime(note, (0, 0))  # many days ago
    assert check() == ["model.safetensors"]
    assert len(list((tmp_path / "cache").rglob("found_whole/*"))) == 1  # what no longer holds is gone
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder can be made here")
    assert check() == check() == ["model.safetensors"]


def test_a_commit_that_brings_a_part_keeps_what_is_said_of_the_others():
    def entry(part, letter):
        return {"part": part, "bytes": 1, "xxh3_128": letter * 32}

    before = {"config.json": entry("model", "a"), "tokenizer.json": entry("processor", "b")}
    after = {"config.json": entry("model", "c")}
    both = joined_manifest(
        manifest_text(before).encode(), {"config.json": "", MANIFEST: manifest_text(after).encode()}, []
    )
    assert json.loads(both)["files"] == {**before, **after}
    foreign = joined_manifest(manifest_text(before).encode(), {"tokenizer.json": "somebody's"}, [])
    assert list(json.loads(foreign)["files"]) == ["config.json"]
    assert (
        joined_manifest(None, {"x": ""}, []) is joined_manifest(manifest_text(before).encode(), {"x": ""}, []) is None
    )


def test_entries_name_the_part_that_wrote_them(saved):
    parts = {name: entry["part"] for name, entry in read_entries(saved).items()}
    assert parts["model.safetensors"] == parts["config.json"] == "model"
    assert parts["tokenizer.json"] == "processor"
    assert parts["answer_policy.json"] == "policy"
    assert "README.md" not in parts


# --- Sizes that would hang or abort


@pytest.mark.parametrize(
    ("part", "key"), [("generator_config", "num_hidden_layers"), ("vision_config", "hidden_size")]
)
def test_a_config_of_impossible_size_is_refused_before_it_is_built(folder, part, key):
    path = folder / "config.json"
    record = json.loads(path.read_text())
    record[part][key] = 2**31
    path.write_text(json.dumps(record))
    accept_changes(folder)
    with pytest.raises(UnsafeInputError, match=f"{key}=2147483648"):
        RavlmConfig.from_pretrained(folder)
    check_sizes({"rope_theta": 10**12, "hidden_size": 16384, "num_hidden_layers": 126, "eos_token_id": [1, 2]})
    check_sizes(
        {"max_position_embeddings": 10_485_760, "vocab_size": 1_000_000, "head_dim": 12_000, "layer_types": ["x"]}
    )


@pytest.mark.parametrize(
    "forge",
    [
        lambda settings: settings["added_tokens"][0].update(id=2**32 - 1),
        lambda settings: settings["model"]["vocab"].update(zz=2**31),
        lambda settings: settings.update(padding={"strategy": {"Fixed": 2**40}}),
    ],
)
def test_a_tokenizer_with_a_forged_number_is_refused_before_compiled_code_reads_it(folder, forge):
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"]["vocab"]["123456789 123456789"] = 299
    path.write_text(json.dumps(settings))
    check_tokenizer(path)
    forge(settings)
    path.write_text(json.dumps(settings))
    accept_changes(folder)
    with pytest.raises(UnsafeInputError, match="no vocabulary is that large"):
        RavlmProcessor.from_pretrained(folder)


def test_weights_load_as_they_were_saved(folder):
    assert torch.equal(
        RavlmForConditionalGeneration.from_pretrained(folder).image_projector.weight,
        tiny_model().image_projector.weight,
    )


def test_weights_in_memory_need_no_folder():
    model = tiny_model()
    again = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert_same_weights(again, model)


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"vision_config": '])
def test_a_model_without_its_config_is_not_one_of_defaults(folder, content):
    (folder / MANIFEST).unlink()
    path = folder / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UnsafeInputError, match=r"config\.json"):
        RavlmForConditionalGeneration.from_pretrained(folder)


def _edited(path: Path, edit) -> None:
    settings = json.loads(path.read_text())
    edit(settings)
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("reader", "name", "edit"),
    [
        (RavlmProcessor, "tokenizer.json", lambda settings: settings.update(post_processor=1)),
        (RavlmProcessor, "tokenizer.json", lambda settings: settings.update(added_tokens=7)),
        (RavlmProcessor, "tokenizer.json", lambda settings: settings["model"].pop("merges")),
        (RavlmProcessor, "text_tokenizer/tokenizer_config.json", lambda settings: settings.update(eos_token=[[]])),
        (RavlmProcessor, "tokenizer_config.json", lambda settings: settings.update(tokenizer_class=1.5)),
        (RavlmProcessor, "tokenizer_config.json", lambda settings: settings.update(extra_special_tokens=3)),
        (RavlmForConditionalGeneration, "config.json", lambda settings: settings.update(num_memory_tokens=[])),
        (RavlmForConditionalGeneration, "config.json", lambda settings: settings["text_config"].pop("vocab_size")),
        (
            RavlmForConditionalGeneration,
            "config.json",
            lambda settings: settings["text_config"].update(hidden_act="no"),
        ),
        (RavlmForConditionalGeneration, "generation_config.json", lambda settings: settings.update(pad_token_id="x")),
        (
            RavlmForConditionalGeneration,
            "generation_config.json",
            lambda settings: settings.update(eos_token_id=[2, 1e9]),
        ),
        (
            RavlmForConditionalGeneration,
            "generation_config.json",
            lambda settings: settings.update(output_scores="no"),
        ),
        (
            RavlmProcessor,
            "processor_config.json",
            lambda settings: settings["image_processor"].update(rescale_factor=""),
        ),
        (
            RavlmProcessor,
            "processor_config.json",
            lambda settings: settings["image_processor"].update(image_std=["x"]),
        ),
        (
            RavlmProcessor,
            "processor_config.json",
            lambda settings: settings["image_processor"]["size"].update(width="x"),
        ),
        (RavlmProcessor, "tokenizer_config.json", lambda settings: settings.update(model_max_length={})),
    ],
)
def test_without_a_manifest_a_damaged_file_is_told_in_one_line(folder, reader, name, edit):
    (folder / MANIFEST).unlink()
    _edited(folder / name, edit)
    with pytest.raises(UnsafeInputError, match="(?i)take it from a copy") as caught:
        reader.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json", "chat_template.jinja", "config.json"])
@pytest.mark.parametrize("harm", [lambda data: data[: len(data) // 2], lambda data: b"\xff" + data])
def test_without_a_manifest_a_cut_file_is_told_in_one_line(folder, name, harm):
    (folder / MANIFEST).unlink()
    (folder / name).write_bytes(harm((folder / name).read_bytes()))
    if name == "chat_template.jinja" and harm(b"ab") == b"a":
        pytest.skip("half a template may be one")
    with pytest.raises(UnsafeInputError) as caught:
        (RavlmForConditionalGeneration if name == "config.json" else RavlmProcessor).from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_has_lost_its_marks_is_told(folder):
    (folder / MANIFEST).unlink()
    _edited(folder / "tokenizer_config.json", lambda settings: settings.update(bos_token="no such token"))
    model, processor = RavlmForConditionalGeneration.from_pretrained(folder), RavlmProcessor.from_pretrained(folder)
    with pytest.raises(InvalidInputError, match="the processor is that of another model"):
        model.generate(**processor(text=["what ?"], evidence=[["red"]], return_tensors="pt"), max_new_tokens=2)
    _edited(
        folder / "tokenizer_config.json", lambda settings: [settings.pop(name) for name in ("pad_token", "eos_token")]
    )
    with pytest.raises(InvalidInputError, match="neither a pad_token nor an eos_token"):
        RavlmProcessor.from_pretrained(folder)


def test_a_wrong_argument_is_still_a_wrong_argument(folder):
    with pytest.raises(TypeError, match="no_such_argument"):
        RavlmForConditionalGeneration.from_pretrained(folder, no_such_argument=1)


def test_what_lies_beside_a_model_is_looked_for_where_it_was_loaded(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "elsewhere" / "system")
    monkeypatch.chdir(tmp_path)
    model = RavlmForConditionalGeneration.from_pretrained("system")
    monkeypatch.chdir(tmp_path / "elsewhere")
    ask = pipeline("image-to-text", model=model)
    assert ask.retriever._current.stored.version.folder == folder / "knowledge_base"
    ask.save_pretrained("saved")
    written = [path.read_bytes() for path in Path("saved").rglob("*.json")]
    assert not any(os.fsencode(tmp_path) in data for data in written)
