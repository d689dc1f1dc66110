"""A reader, an encoder and a folder of one's own, all by name: asked, saved, and opened again whole."""

from __future__ import annotations

import json
import re

import pytest
from peft import LoraConfig, get_peft_model
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, set_seed

from tiny import picture
from tiny_backbones import causal_model, causal_tokenizer, multimodal_model, saved_parts


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by that name

WORLD = """
from transformers import pipeline
from transformers.utils import logging as transformers_logging
transformers_logging.disable_progress_bar()
import hf_ravlm
from tiny import picture
def door(model="org/qwen-vl", encoder="org/clip", knowledge=None, **options):
    return pipeline("image-to-text", model=model, encoder=encoder, knowledge=knowledge or folder, max_new_tokens=4,
                    with_posterior=False, device="cpu", **options)
def again():
    return pipeline("image-to-text", model=system, max_new_tokens=4, device="cpu", with_posterior=False)
def told(answers):
    return [[answer["generated_text"], [one["id"] for one in answer["evidence"]]] for answer in answers]
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of the parts, by their names on the Hub."""
    set_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**tower, "image_size": 32, "patch_size": 16}
    text = {**tower, "vocab_size": len(causal_tokenizer()), "eos_token_id": causal_tokenizer().eos_token_id}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    generator, processor = multimodal_model("qwen2_5_vl")
    parts = {
        "org/qwen-vl": (generator, processor),
        "org/llama": (causal_model("llama"), causal_tokenizer()),
        "org/clip": (clip, CLIPProcessor(image_processor=images, tokenizer=causal_tokenizer())),
    }
    tuned = get_peft_model(causal_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = "org/llama"
    root = tmp_path_factory.mktemp("published")
    tuned.save_pretrained(root / "org/tuned")
    return {**saved_parts(root, parts), "org/tuned": root / "org/tuned"}


@pytest.fixture
def ask(hub, running, published, tmp_path):
    """The client, with parts on the Hub and a folder of images and texts."""
    for name, folder in published.items():
        hub.put(name, folder)
    mine = tmp_path / "mine"
    mine.mkdir()
    for number, words in enumerate(["the capital of Norway is Oslo", "the capital of Chad is big"]):
        picture(number).save(mine / f"{number}.png")
        (mine / f"{number}.txt").write_text(words)
    client = running[1]
    client.do(f"{WORLD}\nfolder, system = {str(mine)!r}, {str(tmp_path / 'system')!r}")
    return client


@pytest.mark.parametrize("model", ["org/qwen-vl", "org/llama"])
def test_by_name_it_answers_with_evidence_and_opens_again_whole_also_without_the_hub(hub, ask, tmp_path, model):
    asked = "told(ask(picture(1), question='what is the capital ?'))"
    first, encoder = ask.do(
        f"ask = door({model!r})\nask.save_pretrained(system)\nresult = [{asked}, ask.retriever.encoder.name]"
    )
    assert sorted(first[0][1]) == ["0", "1"]
    config = json.loads((tmp_path / "system" / "config.json").read_text())
    assert config["references"]["generator"]["name"] == model
    size = sum(path.stat().st_size for path in (tmp_path / "system").glob("*"))
    assert size < 1_000_000, "beyond the knowledge base there are names alone"
    assert not list((tmp_path / "system").rglob("tokenizer.json"))  # those of large vocabularies have ten megabytes
    hub.is_down = True
    again = ask.do(f"ask = again()\nresult = [{asked}, ask.retriever.encoder.name]")
    assert again == [first, encoder]


def test_questions_have_one_image_several_or_none_and_words_to_search_with(ask):
    found = ask.do(
        """
ask = door()
rows = [{"image": [picture(0), picture(1)], "question": "what ?"}, {"image": None, "question": "what ?"},
        {"image": picture(1), "question": "what ?"}]
result = {
    "batch": told([answers[0] for answers in ask(rows, batch_size=3)]),
    "alone": told([ask(row)[0] for row in rows]),
    "words": told(ask(question="what ?", query="the capital of Chad is big", k=1)),
    "image": told(ask(picture(0), question="the capital of Chad is big", query="", k=1)),
    "where": told(ask(picture(0), question="what ?", where={"source": ["1.png"]})),
    "closed": told(ask(picture(0), question="what ?", k=0)),
}
"""
    )
    assert found["batch"] == found["alone"]
    assert found["words"][0][1] == ["1"]
    assert found["image"][0][1] == ["0"]
    assert found["where"][0][1] == ["1"]
    assert found["closed"][0][1] == []


def test_a_folder_is_encoded_once_and_follows_what_changes_in_it(ask, tmp_path):
    found = ask.do(
        """
import os
from hf_ravlm.retrieval.encoding.dual_encoder import DualEncoder
seen, plain = [], DualEncoder.encode_passages
DualEncoder.encode_passages = lambda self, texts, images: (seen.extend(texts), plain(self, texts, images))[1]
ids = lambda: sorted(door().retriever.knowledge_base.ids)
steps = []
steps.append([ids(), len(set(seen))]); seen.clear()
steps.append([ids(), [text for text in seen if text]]); seen.clear()
open(os.path.join(folder, "2.txt"), "w").write("Oslo is big")
open(os.path.join(folder, "1.txt"), "w").write("the capital of Chad is what")
steps.append([ids(), sorted({text for text in seen if text})]); seen.clear()
os.remove(os.path.join(folder, "0.png")); os.remove(os.path.join(folder, "0.txt"))
steps.append([ids(), [text for text in seen if text]])
DualEncoder.encode_passages = plain
result = steps
"""
    )
    probes = found[0][1] - 2  # texts that the encoder is probed with
    assert probes >= 0
    assert [ids for ids, _ in found] == [["0", "1"], ["0", "1"], ["0", "1", "2"], ["1", "2"]]
    encoded = [{text for text in texts if "Oslo is big" in text or "Chad is what" in text} for _, texts in found[1:]]
    assert encoded == [set(), {"Oslo is big", "the capital of Chad is what"}, set()]


def test_adapters_by_name_are_a_reader_with_the_base_that_they_name(hub, ask, tmp_path):
    weight = "ask.model.language_model.model.layers[0].self_attn.q_proj.weight"
    found = ask.do(
        f"""
import torch
from hf_ravlm.pipelines.opening import open_pipeline
ask = door("org/llama")
plain = {weight}.clone()
ask = open_pipeline("org/tuned", folder, "org/clip", "cpu")
tuned = {weight}.clone()
ask.save_pretrained(system)
first = told(ask(picture(1), question="what ?", max_new_tokens=4))
result = [torch.equal(plain, tuned), first]
"""
    )
    assert found[0] is False
    commit = {name: hub.repository(f"org/{name}", "model").refs["main"] for name in ("tuned", "llama")}
    assert json.loads((tmp_path / "system" / "config.json").read_text())["references"]["generator"] == {
        **{"name": "org/tuned", "revision": commit["tuned"]},
        **{"base_name": "org/llama", "base_revision": commit["llama"]},
    }
    assert sum(path.stat().st_size for path in (tmp_path / "system").glob("*")) < 1_000_000
    hub.is_down = True
    again = f"ask = again()\nresult = [torch.equal({weight}, tuned), told(ask(picture(1), question='what ?'))]"
    assert ask.do(again) == [True, found[1]]


def test_adapters_in_a_folder_lie_in_the_system_beside_the_name_of_their_base(hub, ask, published, tmp_path):
    same = "all(torch.equal(one, other) for one, other in zip(weights, ask.model.state_dict().values()))"
    ask.do(
        f"import torch\nask = door({str(published['org/tuned'])!r})\nweights = list(ask.model.state_dict().values())\n"
        "ask.save_pretrained(system)"
    )
    commit = hub.repository("org/llama", "model").refs["main"]
    reference = json.loads((tmp_path / "system" / "config.json").read_text())["references"]["generator"]
    assert reference == {"name": "org/llama", "revision": commit, "adapters": "reader_adapters"}
    assert {path.name for path in (tmp_path / "system" / "reader_adapters").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert ask.do(f"ask = again()\nask.save_pretrained(system + '2')\nresult = {same}")
    ask.do("ask.push_to_hub('me/system', allow_missing_licence=True)")
    assert ask.do(f"ask = pipeline('image-to-text', model='me/system', device='cpu')\nresult = {same}")
    hub.is_down = True
    assert ask.do(f"system += '2'\nask = again()\nresult = {same}")
    ask.do("ask.save_pretrained(system + '3', base='copy')")
    assert json.loads((tmp_path / "system23" / "config.json").read_text())["references"] is None


@pytest.mark.parametrize("model", ["org/qwen-vl", "org/llama"])
def test_chat_messages_are_answered_by_readers_by_name_which_are_saved_by_name(ask, tmp_path, model):
    found = ask.do(
        f"""
ask = pipeline("image-text-to-text", model={model!r}, encoder="org/clip", knowledge=folder, device="cpu")
parts = [{{"type": "image", "image": picture(1)}}, {{"type": "text", "text": "what ?"}}]
message = {{"role": "user", "content": parts}}
result = [passage["id"] for passage in ask(text=[message], max_new_tokens=2)[0]["evidence"]]
ask.save_pretrained(system)
"""
    )
    assert len(found) == 2
    assert json.loads((tmp_path / "system" / "config.json").read_text())["references"]["generator"]["name"] == model


def test_a_reader_by_name_has_the_tokenizer_of_its_own_commit(hub, ask, published):
    first = hub.repository("org/llama", "model").refs["main"]
    settings = json.loads((published["org/llama"] / "tokenizer_config.json").read_text())
    moved = json.dumps({**settings, "chat_template": "{{ messages[0]['content'] }} moved"}).encode()
    hub.edit("org/llama", "model", tokenizer_config__json=moved)
    template = "'moved' in str(door('org/llama'{}).processor.tokenizer.chat_template)"
    pinned = template.format(f", revision={first!r}")
    assert ask.do(f"result = [{pinned}, {template.format('')}]") == [False, True]


def test_a_tilde_is_the_home_folder_in_every_part(ask, published, tmp_path):
    (tmp_path / "reader").symlink_to(published["org/llama"])
    (tmp_path / "encoder").symlink_to(published["org/clip"])
    found = ask.do(
        f"""
import os
home, os.environ["HOME"] = os.environ.get("HOME", "/"), {str(tmp_path)!r}
try:
    first = told(door("~/reader", "~/encoder", "~/mine")(picture(1), question="what ?"))
    door("org/llama", "org/clip", "~/mine").save_pretrained("~/system")
    tasks = [("image-to-text", {{"inputs": picture(1), "question": "what ?"}}),
             ("visual-question-answering", {{"image": picture(1), "question": "what ?"}})]
    second = [pipeline(task, model="~/system", device="cpu")(**given, max_new_tokens=2) for task, given in tasks]
    built = hf_ravlm.from_backbones(generator="~/reader", encoder="~/encoder")[0].reads_images
finally:
    os.environ["HOME"] = home
result = [len(first[0][1]), [len(one[0]["evidence"]) for one in second], built, os.path.exists("~")]
"""
    )
    assert found == [2, [2, 2], False, False]


def test_the_card_names_reader_and_encoder_with_their_licences(hub, ask, tmp_path):
    hub.edit("org/clip", "model", README__md=b"---\nlicense: mit\n---\n# An encoder\n")
    ask.do("ask = door('org/llama')\nask.push_to_hub('me/system', allow_missing_licence=True)")
    ask.do("ask.save_pretrained(system)")
    card = hub.repository("me/system", "model").files()["README.md"].decode()
    for line in (
        "base_model:\n- org/llama\n- org/clip\n",
        "| [org/llama](https://huggingface.co/org/llama) | unknown | reader |",
        "| [org/clip](https://huggingface.co/org/clip) | mit | encoder, which finds the passages |",
    ):
        assert line in card
    hub.is_down = True
    ask.do("from hf_ravlm.cli import main\nresult = main(['card', system, '--quiet'])")
    card = (tmp_path / "system" / "README.md").read_text()
    assert "holds 0.0 million parameters of its own. `org/llama`, `org/clip` are loaded by name." in card
    assert "| [org/clip](https://huggingface.co/org/clip) | mit | encoder, which finds the passages |" in card


def test_a_reader_and_what_it_reads_are_served_by_name(ask):
    pytest.importorskip("uvicorn")
    served = ask.do(
        """
import json, time, urllib.request
from hf_ravlm.integrations.transformers_serve import serve
server = serve("org/llama", knowledge=folder, encoder="org/clip", host="127.0.0.1", port=0, device="cpu", k=1,
               non_blocking=True)
until = time.monotonic() + 300
while not server.server.started and time.monotonic() < until:
    time.sleep(0.05)
port = server.server.servers[0].sockets[0].getsockname()[1]
messages = [{"role": "system", "content": "be quick"}, {"role": "user", "content": "the capital of Chad is big"}]
body = {"model": "org/llama", "messages": messages, "max_tokens": 3}
request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
result = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["evidence"]
server.kill_server()
"""
    )
    assert [passage["id"] for passage in served] == ["1"]


@pytest.mark.parametrize(
    ("part", "what", "message"),
    [
        ("model", "gated", "its owner asks for consent first"),
        ("model", "private", "there is no such repository, or it is private"),
        ("model", "away", "the Hub did not deliver"),
        ("encoder", "gated", "its owner asks for consent first"),
        ("encoder", "away", "the Hub did not deliver"),
    ],
)
def test_what_the_hub_does_not_give_is_said_in_one_line(hub, ask, published, part, what, message):
    name = f"org/{what}-{part}"
    hub.put(name, published["org/llama" if part == "model" else "org/clip"])
    if what == "gated":
        hub.gated.add(name)
    hub.repository(name, "model").private, hub.is_down = what == "private", what == "away"
    error = ask.error(f"result = door({part}={name!r}{', token=False' if part == 'model' else ''})")
    assert re.fullmatch(f"HubUnavailableError: .*{name}.*{message}.*", error), error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("door(encoder=None)", "has to be encoded: name an encoder"),
        ("door(knowledge=folder + '/nothing')", "there is no such file or folder"),
        ("door(knowledge=7)", "knowledge= came as int"),
        ("door(encoder=7)", "encoder= came as int"),
        ("door(encoder='org/nothing')", "org/nothing"),
        ("door('org/nothing')", "the model 'org/nothing' .* there is no such repository, or it is private"),
        ("door('org/clip')", "a 'clip' model, which neither generates text nor reads images"),
        ("door(knowledge='http://localhost:19530')", "MilvusRetriever.build"),
        ("door()(picture(0), question='what ?', channels=['smell'])", "smell"),
        ("door()()", "nothing to answer"),
        ("door()(picture(0), question='what ?', query=7)", "query= came as int"),
        (
            "pipeline('image-to-text', model='org/qwen-vl', encoder='org/clip')",
            "encoder= came without anything to search",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(ask, call, message):
    error = ask.error(f"result = {call}")
    assert re.search(message, error), error
    assert "\n" not in error
    assert "Traceback" not in error
