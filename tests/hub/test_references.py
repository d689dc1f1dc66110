"""Readers assembled by name over a Hub of our own, saved by reference, and opened again with and without that Hub."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tiny_backbones import causal_model, causal_tokenizer, multimodal_model, saved_parts, text_model, vision_model


WORLD = """
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging as transformers_logging
transformers_logging.disable_progress_bar()
import hf_ravlm
from hf_ravlm import RavlmModel, from_backbones
from tiny import assert_same_weights, picture
ASKED = {"images": [picture(0)], "text": ["what ?"], "evidence": [["the capital of Norway is Oslo"]]}
TOWERS = {"vision": "org/vit", "text": "org/bert", "fusion": "gated", "projection_dim": 16}
def save(folder, base="reference", **given):
    global model, processor
    model, processor = from_backbones(**given)
    model.save_pretrained(folder, base=base)
    processor.save_pretrained(folder, base=base)
def reopened(folder, **loading):
    again = AutoModelForImageTextToText.from_pretrained(folder, **loading)
    reread = AutoProcessor.from_pretrained(folder, **{k: v for k, v in loading.items() if k in ("cache_dir", "token")})
    if not loading:
        assert_same_weights(again, model)
        with torch.no_grad():
            torch.testing.assert_close(again(**reread(**ASKED)).logits, model(**processor(**ASKED)).logits)
    return again, reread
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of the backbones, by their names on the Hub."""
    generator, processor = multimodal_model("qwen2_5_vl")
    images = ViTImageProcessorPil(size={"height": 16, "width": 16})
    parts = {
        "org/qwen-vl": (generator, processor),
        "org/llama": (causal_model("llama"), causal_tokenizer()),
        "org/vit": (vision_model("vit"), images),
        "org/bert": (text_model("bert"), causal_tokenizer()),
    }
    return saved_parts(tmp_path_factory.mktemp("published"), parts)


@pytest.fixture
def ask(hub, running, published, tmp_path):
    """The client, in whose world the backbones are published, with an empty cache of its own."""
    for name, folder in published.items():
        hub.put(name, folder)
    client = running[1]
    client.do(f"{WORLD}\nfolder = {str(tmp_path / 'system')!r}\nempty = {str(tmp_path / 'empty')!r}")
    return client


def read(tmp_path, name="config.json"):
    return json.loads((tmp_path / "system" / name).read_text())


@pytest.mark.parametrize(
    ("given", "references", "of_processor"),
    [
        ("generator='org/qwen-vl'", {"generator"}, {"generator_processor"}),
        ("generator='org/llama'", {"generator"}, {"tokenizer"}),
        ("generator='org/llama', **TOWERS", {"generator", "vision", "text"}, {"tokenizer", "text_tokenizer"}),
    ],
)
def test_what_the_hub_has_is_named_and_not_copied(hub, ask, tmp_path, given, references, of_processor):
    ask.do(f"save(folder, {given})")
    system = tmp_path / "system"
    config = read(tmp_path)
    assert set(config["references"]) == references
    assert (
        config["references"]["generator"]["revision"]
        == hub.repository(config["references"]["generator"]["name"], "model").refs["main"]
    )
    assert set(read(tmp_path, "processor_config.json")["references"]) == of_processor
    assert sum(path.stat().st_size for path in system.rglob("*")) < 500_000
    assert not list(system.rglob("tokenizer.json"))
    assert config["auto_map"]["AutoProcessor"] == "ravlm_hub.RavlmProcessor"
    assert (system / "ravlm_hub.py").is_file()
    assert str(tmp_path) not in (system / "config.json").read_text()
    assert ask.do(
        "again, reread = reopened(folder)\nagain.save_pretrained(folder + '2', base='reference')\nresult = 1"
    )
    assert (tmp_path / "system2" / "config.json").read_text() == (system / "config.json").read_text()
    # With the weights inside, nobody needs the Hub.
    ask.do("again.save_pretrained(folder + '3')\nreread.save_pretrained(folder + '3')")
    hub.is_down = True
    ask.do("reopened(folder + '3')")


def test_the_cache_is_enough_and_how_to_load_is_still_asked_for(hub, ask):
    ask.do("save(folder, generator='org/llama', **TOWERS)")
    hub.is_down = True
    assert ask.do(
        "reopened(folder)\n"
        "again = reopened(folder, dtype=torch.bfloat16, attn_implementation='eager', device_map='cpu')[0]\n"
        "dual = RavlmModel.from_pretrained(folder)\n"
        "assert_same_weights(dual, model.model)\n"
        "types = sorted({str(tensor.dtype) for tensor in again.parameters()})\n"
        "result = [types, again.language_model.config._attn_implementation]"
    ) == [["torch.bfloat16"], "eager"]


@pytest.mark.parametrize(
    ("change", "copied", "left"),
    [
        ("model.language_model.lm_head.weight[0, 0] += 1", "generator", {"vision", "text"}),
        ("next(model.model.text_encoder.parameters())[-1, -1] *= 2", "text", {"generator", "vision"}),
        ("model.image_projector.weight += 1", None, {"generator", "vision", "text"}),
    ],
)
def test_a_part_that_changed_is_copied_and_named(ask, tmp_path, change, copied, left):
    ask.do(
        "model, processor = from_backbones(generator='org/llama', **TOWERS)\n"
        f"with torch.no_grad():\n    {change}\n"
        "import hf_ravlm.model.parts.references as module\n"
        "said = []\nmodule.logger.warning = lambda text, *values: said.append(text % values)\n"
        "model.save_pretrained(folder, base='reference')\nprocessor.save_pretrained(folder)\nreopened(folder)"
    )
    assert set(read(tmp_path)["references"]) == left
    said = ask.do("result = said")
    assert len(said) == (copied is not None)
    assert all(f"The {copied} has changed since it was loaded" in line for line in said)


def test_folders_are_copied_and_a_tokenizer_with_new_words_too(ask, published, tmp_path):
    ask.do(f"save(folder, generator={str(published['org/llama'])!r})")
    assert not read(tmp_path)["references"]
    assert "references" not in read(tmp_path, "processor_config.json")
    ask.do(
        "model, processor = from_backbones(generator='org/llama')\nprocessor.tokenizer.add_tokens(['zebra'])\n"
        "processor.save_pretrained(folder, base='reference')\n"
        "result = len(AutoProcessor.from_pretrained(folder).tokenizer) == len(processor.tokenizer)"
    )
    assert ask.do("result = len(AutoProcessor.from_pretrained(folder).tokenizer) == len(processor.tokenizer)")
    assert "references" not in read(tmp_path, "processor_config.json")


def test_a_reader_stays_at_its_commit_when_the_name_moves_on(hub, ask, published, tmp_path):
    ask.do("save(folder, generator='org/llama')")
    other = tmp_path / "other"
    shutil.copytree(published["org/llama"], other)
    causal_model("llama", seed=5).save_pretrained(other)
    hub.put("org/llama", other)
    ask.do("reopened(folder)")  # compares its weights
    first = read(tmp_path)["references"]["generator"]["revision"]
    assert ask.do(
        f"first = from_backbones(generator='org/llama', revision={first!r})[0]\n"
        "newest = from_backbones(generator='org/llama')[0]\nassert_same_weights(first, model)\n"
        "result = not torch.equal(newest.language_model.lm_head.weight, model.language_model.lm_head.weight)"
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gone", "there is no such repository, or it is private"),
        ("private", "there is no such repository, or it is private"),
        ("gated", "its owner asks for consent first"),
        ("away", "the Hub did not deliver"),
        ("revision", "it has no such revision"),
    ],
)
def test_a_part_that_the_hub_does_not_give_is_said_in_one_line(hub, ask, tmp_path, what, message):
    ask.do("save(folder, generator='org/llama')")
    repository = hub.repository("org/llama", "model")
    if what == "gone":
        del hub.repositories["model", "org/llama"]
    elif what == "private":
        repository.private = True
    elif what == "gated":
        hub.gated.add("org/llama")
    elif what == "away":
        hub.is_down = True
    else:
        repository.commits = {"1" * 40: repository.files()}
        repository.refs["main"] = "1" * 40
    for part in ("AutoModelForImageTextToText", "AutoProcessor"):
        error = ask.error(f"{part}.from_pretrained(folder, cache_dir=empty, token=False)")
        assert re.fullmatch(rf"HubUnavailableError: the .* 'org/llama' .*{message}.*", error), error
    if what != "revision":  # the name itself has another commit
        error = ask.error("from_backbones(generator='org/llama', cache_dir=empty, token=False)")
        assert re.fullmatch(rf"HubUnavailableError: the generator 'org/llama' .*{message}.*", error), error


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"name": "/etc", "revision": "0" * 40}, "a name on the Hub"),
        ({"name": "../x", "revision": "0" * 40}, "expected name and revision"),
        ({"name": "org/llama", "revision": "main"}, "a commit of 40 hexadecimal digits"),
        ({"name": "org/llama"}, "expected name and revision"),
        ("org/llama", "expected name and revision"),
        ({"name": "org/llama", "revision": "0" * 40, "trust_remote_code": True}, "expected name and revision"),
    ],
)
def test_a_reference_that_was_tampered_with_opens_nothing(ask, tmp_path, reference, message):
    ask.do("save(folder, generator='org/llama')")
    for name, role in (("config.json", "generator"), ("processor_config.json", "tokenizer")):
        content = read(tmp_path, name)
        content["references"] = {role: reference}
        (tmp_path / "system" / name).write_text(json.dumps(content))
    (tmp_path / "system" / "ravlm_manifest.json").unlink()  # as somebody who can write one would
    for part in ("AutoModelForImageTextToText", "AutoProcessor"):
        error = ask.error(f"{part}.from_pretrained(folder)")
        assert re.fullmatch(f"InvalidInputError: .*{message}.*", error), error


def test_an_unknown_base_is_refused_before_anything_is_written(ask, tmp_path):
    for part in ("model", "processor"):
        error = ask.error(
            f"model, processor = from_backbones(generator='org/llama')\n{part}.save_pretrained(folder, base='link')"
        )
        assert re.search("base='link': expected 'copy'.*'reference'", error), error
    assert not (tmp_path / "system").exists()


def test_a_system_of_references_is_published_and_opened_by_name(hub, ask):
    ask.do("model, processor = from_backbones(generator='org/qwen-vl')")
    ask.do("for part in (model, processor):\n    part.push_to_hub('me/system', base='reference')")
    files = hub.repository("me/system", "model").files()
    assert sum(map(len, files.values())) < 100_000
    ask.do("reopened('me/system')")


def test_a_system_is_one_commit_and_its_card_names_parts_and_licences(hub, ask):
    hub.edit("org/qwen-vl", "model", README__md=b"---\nlicense: apache-2.0\n---\n# A reader\n")
    ask.do("model, processor = from_backbones(generator='org/qwen-vl')")
    ask.do("model.push_to_hub('me/system', base='reference', beside=[processor], commit_message='All of it')")
    repository = hub.repository("me/system", "model")
    assert repository.messages == ["All of it"]
    assert set(repository.files()) >= {"config.json", "processor_config.json", "model.safetensors", "ravlm_hub.py"}
    card = repository.files()["README.md"].decode()
    assert "base_model:\n- org/qwen-vl" in card
    assert "| [org/qwen-vl](https://huggingface.co/org/qwen-vl) | apache-2.0 |" in card
    ask.do("reopened('me/system')")
    ask.do("save(folder, generator='org/llama')\nmodel.push_to_hub('me/other')")  # whose card says nothing
    assert "org/llama) | unknown |" in hub.repository("me/other", "model").files()["README.md"].decode()
