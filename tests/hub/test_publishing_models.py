"""Models, processors and pipelines published to a Hub of our own with the real client, and what comes back."""

from __future__ import annotations

import json
import struct

import pytest
import yaml


PARTS = """
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.utils import logging as transformers_logging
transformers_logging.disable_progress_bar()
import hf_ravlm
from hf_ravlm import RavlmRetriever
from tiny import picture
from tiny_folder import PASSAGES, tiny_parts
def push_all(repo_id="me/model", parts=None, **options):
    for part in parts or tiny_parts():
        part.push_to_hub(repo_id, **options)
def asked(revision=None, **options):
    ask = pipeline("visual-question-answering", model="me/model", revision=revision, max_new_tokens=3, **options)
    answer = ask(image=picture(1), question="what is the capital ?")[0]
    return [answer["answer"], [item["text"] for item in answer["evidence"]], answer["scores"]]
"""
OTHER = '[{**row, "text": row["text"] + " indeed"} for row in PASSAGES]'


@pytest.fixture
def ask(hub, client):
    client.do(PARTS)
    return client


def edited(hub, name: str, change) -> None:
    """Changes a file of the repository as somebody with access to its page could."""
    repository = hub.repository("me/model", "model")
    (path,) = [path for path in repository.files() if path.endswith(name)]
    repository.refs["main"] = hub._keep(repository, {**repository.files(), path: change(repository.files()[path])})


def with_weight(name: str, data: bytes) -> bytes:
    """A safetensors file with the first bytes of one tensor replaced."""
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    return data[:start] + struct.pack("<f", 0.5) + data[start + 4 :]


def assert_alike(seen: list, expected: list) -> None:
    """The same but for the scores, which come last: where weights lie in memory may move their last bits."""
    assert seen[:-1] == expected[:-1]
    assert seen[-1] == pytest.approx(expected[-1], abs=1e-5)


def test_what_comes_back_equals_what_went(hub, ask, tmp_path):
    ask.do(f"model, processor, retriever = tiny_parts()\nfolder = {str(tmp_path)!r}\nmodel.save_pretrained(folder)")
    ask.do("push_all(parts=(model, processor, retriever))")
    repository = hub.repository("me/model", "model")
    assert repository.messages == ["Upload model", "Upload processor", "Upload knowledge base"]
    files = repository.files()
    assert files["model.safetensors"] == (tmp_path / "model.safetensors").read_bytes()
    assert files["ravlm_hub.py"] == (tmp_path / "ravlm_hub.py").read_bytes()
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads(files[name])["auto_map"]["AutoProcessor"] == "ravlm_hub.RavlmProcessor", name
    assert {name.split("/")[0] for name in files if "/" in name} == {"knowledge_base", "text_tokenizer"}
    assert ask.do(
        "again = AutoModelForImageTextToText.from_pretrained('me/model')\n"
        "dual = AutoModel.from_pretrained('me/model')\n"
        "ids = AutoProcessor.from_pretrained('me/model')(text=['what is the capital ?'])\n"
        "same = all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))\n"
        "same_dual = all(torch.equal(b, dual.state_dict()[n]) for n, b in model.model.state_dict().items())\n"
        "result = [type(again).__name__, same, same_dual, ids['input_ids'].tolist() == "
        "processor(text=['what is the capital ?'])['input_ids'].tolist()]"
    ) == ["RavlmForConditionalGeneration", True, True, True]
    found = "[[p.id for p in row], [p.score for p in row]]"
    asked_for = "row = {}.retrieve([picture(1)], ['of Chad ?'], k=3)[0]\nresult = " + found
    assert_alike(
        ask.do(asked_for.format("RavlmRetriever.from_pretrained('me/model')")), ask.do(asked_for.format("retriever"))
    )
    from_folder = ask.do(
        "processor.save_pretrained(folder); retriever.save_pretrained(folder)\n"
        "ask = pipeline('visual-question-answering', model=folder, max_new_tokens=3)\n"
        "answer = ask(image=picture(1), question='what is the capital ?')[0]\n"
        "result = [answer['answer'], [item['text'] for item in answer['evidence']], answer['scores']]"
    )
    assert_alike(ask.do("result = asked()"), from_folder)


def test_a_pinned_pipeline_takes_its_knowledge_from_the_pinned_commit(hub, ask):
    ask.do("push_all()")
    first = hub.repository("me/model", "model").refs["main"]
    before = ask.do("result = asked()")
    ask.do(f"push_all(parts=tiny_parts(seed=1, passages={OTHER}))")
    after = ask.do("result = asked()")
    assert "the capital of Chad is N'Djamena" in before[1]
    assert "the capital of Chad is N'Djamena indeed" in after[1]
    assert_alike(ask.do(f"result = asked(revision={first!r})"), before)
    assert ask.do(f"result = asked(revision={first!r}, dtype=torch.bfloat16)")[1] == before[1]
    by_object = (
        f"model = AutoModelForImageTextToText.from_pretrained('me/model', revision={first!r})\n"
        "ask = pipeline('image-text-to-text', model=model, max_new_tokens=3)\n"
        "answer = ask(images=[picture(1)], text=['what is the capital ?'])[0]\n"
        "answer = answer[0] if isinstance(answer, list) else answer\n"
        "result = [item['text'] for item in answer['evidence']]"
    )
    assert ask.do(by_object) == before[1]


def test_a_pipeline_is_published_whole(hub, ask):
    ask.do(
        "from hf_ravlm.pipelines import AnswerPolicy\n"
        "model, processor, retriever = tiny_parts()\n"
        "parts = {'processor': processor, 'retriever': retriever, 'policy': AnswerPolicy(answer_threshold=1.0)}\n"
        "pipeline('visual-question-answering', model=model, **parts).push_to_hub('me/model', private=True)\n"
        "again = pipeline('visual-question-answering', model='me/model', max_new_tokens=3)\n"
        "result = [len(again.retriever), again.policy.answer_threshold]"
    )
    assert ask.do("result = [len(again.retriever), again.policy.answer_threshold]") == [3, 1.0]
    assert hub.repository("me/model", "model").private
    assert len(hub.repository("me/model", "model").messages) == 1


def test_branches_and_pull_requests_leave_the_main_branch_alone(hub, ask):
    ask.do("model, processor, _ = tiny_parts()\nmodel.push_to_hub('me/model')")
    main = dict(hub.repository("me/model", "model").files())
    ask.do("tiny_parts(seed=1)[0].push_to_hub('me/model', revision='next', commit_message='Better')")
    ask.do("info = processor.push_to_hub('me/model', create_pr=True)")
    repository = hub.repository("me/model", "model")
    assert repository.files() == main
    assert repository.files("next")["model.safetensors"] != main["model.safetensors"]
    assert "processor_config.json" in repository.files("refs/pr/1")
    assert repository.messages[1:] == ["Better", "Upload processor"]


def test_an_interrupted_push_changes_nothing_and_the_next_sends_the_rest(hub, ask):
    ask.do("model = tiny_parts()[0]; model.push_to_hub('me/model')")
    before = dict(hub.repository("me/model", "model").files())
    hub.uploads.clear()
    hub.uploads_before_failure = 1
    error = ask.error("other = tiny_parts(seed=1)[0]; other.push_to_hub('me/model', max_shard_size='100KB')")
    assert error.startswith(
        "HubUnavailableError: publishing to the model repository me/model: the Hub did not deliver ("
    )
    assert "Nothing was changed there" in error
    assert hub.repository("me/model", "model").files() == before
    hub.uploads_before_failure = None
    ask.do("other.push_to_hub('me/model', max_shard_size='100KB')")
    assert len(hub.uploads) == len(set(hub.uploads)) > 1  # nothing was sent twice
    assert ask.do(
        "again = AutoModelForImageTextToText.from_pretrained('me/model')\n"
        "result = all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), other.state_dict().values()))"
    )


def test_a_push_of_other_shards_leaves_no_weights_that_would_be_read_instead(hub, ask):
    ask.do("parts = tiny_parts()\nparts[0].push_to_hub('me/model')")
    files = hub.repository("me/model", "model").files
    ask.do("parts[0].push_to_hub('me/model', max_shard_size='100KB')")
    assert "model.safetensors" not in files()
    ask.do("tiny_parts(seed=1)[0].push_to_hub('me/model')")
    assert [name for name in files() if "safetensors" in name] == ["model.safetensors"]


def test_a_private_repository_is_private_from_the_first_byte(hub, ask):
    ask.do("push_all(private=True)")
    assert hub.repository("me/model", "model").private
    assert "Norway" in json.dumps(ask.do("result = asked(token='hf_owner')"))
    assert ask.error("AutoModel.from_pretrained('me/model', token='hf_stranger')").startswith("OSError")
    ask.do("tiny_parts()[0].push_to_hub('me/open')")
    error = ask.error("tiny_parts(seed=1)[0].push_to_hub('me/open', private=True)")
    assert error.startswith("InvalidInputError: me/open: private=True, but this repository exists and is public")
    assert len(hub.repository("me/open", "model").messages) == 1


def test_a_hub_that_is_down_is_named_and_what_is_here_stays(hub, ask, tmp_path):
    ask.do("push_all()")
    before = ask.do("result = asked()")
    hub.is_down = True
    error = ask.error("model = tiny_parts(seed=1)[0]; model.push_to_hub('me/model')")
    assert error.startswith(
        "HubUnavailableError: publishing to the model repository me/model: the Hub did not deliver ("
    )
    error = ask.error(f"model.save_pretrained({str(tmp_path)!r}, push_to_hub=True, repo_id='me/model')")
    assert error.startswith("HubUnavailableError")
    assert ask.do(
        f"again = AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})\n"
        "result = all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))"
    )
    assert_alike(ask.do("result = asked()"), before)  # from the cache, its knowledge too
    assert ask.error("AutoModel.from_pretrained('me/other')").startswith("OSError")


def test_knowledge_that_cannot_be_looked_for_is_not_missed_in_silence(hub, ask):
    ask.do(
        "push_all()\n"
        "model = AutoModelForImageTextToText.from_pretrained('me/model', cache_dir=cache)\n"
        "processor, said = AutoProcessor.from_pretrained('me/model', cache_dir=cache), []\n"
        "class Listener(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        said.append(record.getMessage())\n"
        "logging.getLogger('hf_ravlm').addHandler(Listener())"
    )
    hub.is_down = True
    ask.do("ask = pipeline('image-to-text', model=model, processor=processor, max_new_tokens=2)")
    assert ask.do("result = ask(picture(1))[0]['evidence']") == []
    (line,) = [line for line in ask.do("result = said") if "knowledge base" in line]
    assert line.startswith("me/model: whether a knowledge base lies beside this model could not be found out")


def test_tampered_files_are_refused(hub, ask):
    ask.do("push_all()")
    repository = hub.repository("me/model", "model")
    good = repository.refs["main"]
    edited(hub, ".parquet", lambda data: data[:-1] + b"?")
    assert ask.error("asked()").startswith("KnowledgeBaseCorruptError")
    repository.refs["main"] = good
    edited(hub, "model.safetensors", lambda data: with_weight("model.image_projection.weight", data))
    assert "model.safetensors) is damaged" in ask.error("asked()")
    edited(hub, "ravlm_manifest.json", lambda data: b'{"format": 1, "files": {}}')
    assert ask.error("asked()").startswith("KnowledgeBaseMismatchError")
    repository.refs["main"] = good
    edited(hub, "model.safetensors", lambda data: data[:-100])
    error = ask.error("AutoModelForImageTextToText.from_pretrained('me/model')")
    assert error.startswith("UnsafeInputError: ")
    assert "me/model" in error
    assert "damaged" in error


def test_a_loaded_model_is_pushed_again_with_its_shim(hub, ask, tmp_path):
    ask.do("push_all()")
    ask.do(
        "model = AutoModelForImageTextToText.from_pretrained('me/model')\n"
        "processor = AutoProcessor.from_pretrained('me/model')\n"
        "for part in (model, processor):\n"
        "    part.push_to_hub('me/second')\n"
        f"    part.save_pretrained({str(tmp_path)!r})"
    )
    first, second = (hub.repository(name, "model").files() for name in ("me/model", "me/second"))
    for name in ("ravlm_hub.py", "model.safetensors", "tokenizer.json"):
        assert second[name] == first[name], name
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert json.loads(second[name])["auto_map"] == json.loads(first[name])["auto_map"], name
    assert [path.name for path in tmp_path.glob("*.py")] == ["ravlm_hub.py"]
    assert (tmp_path / "config.json").read_bytes() == second["config.json"]


def test_the_card_of_a_dual_encoder_promises_no_answers(hub, ask):
    ask.do("tiny_parts()[0].model.push_to_hub('me/model')")
    card = hub.repository("me/model", "model").files()["README.md"].decode()
    assert "pipeline_tag" not in card
    assert "pipeline(" not in card
    assert 'hf_ravlm.RavlmModel.from_pretrained("me/model")' in card


def test_a_card_comes_with_the_first_push_and_is_left_alone_after(hub, ask, tmp_path):
    ask.do("model, processor, _ = tiny_parts(); processor.push_to_hub('me/model')")
    files = hub.repository("me/model", "model").files
    assert "README.md" not in files()  # it is no model yet
    ask.do("model.push_to_hub('me/model', tags=['flags'])")
    head = yaml.safe_load(files()["README.md"].decode().split("---")[1])
    assert (head["library_name"], head["pipeline_tag"]) == ("hf_ravlm", "image-text-to-text")
    assert {"flags", "retrieval-augmented"} <= set(head["tags"])
    assert b"Not evaluated yet" in files()["README.md"]
    hub.edit("me/model", "model", README__md=b"My own words.")
    ask.do("model.push_to_hub('me/model')")
    assert files()["README.md"] == b"My own words."
    ask.do(
        f"folder = {str(tmp_path)!r}\nmodel.save_pretrained(folder)\nopen(folder + '/README.md', 'w').write('Kept.')\n"
        "AutoModelForImageTextToText.from_pretrained(folder).push_to_hub('me/third')"
    )
    assert hub.repository("me/third", "model").files()["README.md"] == b"Kept."
