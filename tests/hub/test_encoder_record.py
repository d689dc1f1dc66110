"""A knowledge base keeps the name and commit of its encoder, and loads it again, over a Hub of our own."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tiny_backbones import VISION_WIDTHS, WIDTHS, causal_model, causal_tokenizer, text_model


BUILD = """
from hf_ravlm import KnowledgeBase, RavlmRetriever, load_encoder
from tiny import picture
ROWS = [{"id": "a", "text": "Oslo", "image": picture(1)}, {"id": "b", "text": "red white", "image": picture(2)}]
ROWS = [{**row, "licence": "CC0-1.0"} for row in ROWS]
def build(name, **options):
    encoder = load_encoder(name, **options)
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(ROWS), encoder)
    retriever.save_pretrained(folder)
    return retriever
def first(retriever):
    return [[found.id, round(found.score, 5)] for found in retriever.retrieve(texts="Oslo", k=2)[0]]
"""


def clip(seed: int):
    torch.manual_seed(seed)
    text = {"vocab_size": len(causal_tokenizer()), "eos_token_id": 2, "max_position_embeddings": 32, **WIDTHS}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=VISION_WIDTHS, projection_dim=16))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    processor = CLIPProcessor(CLIPImageProcessorPil(**sides), causal_tokenizer())
    for name, seed in (("first", 0), ("second", 1)):
        clip(seed).save_pretrained(root / name)
        processor.save_pretrained(root / name)
    causal_model("llama").save_pretrained(root / "llama")
    causal_tokenizer().save_pretrained(root / "llama")
    text_model("bert").save_pretrained(root / "e5")
    causal_tokenizer().save_pretrained(root / "e5")
    prompts = {"prompts": {"search_query": "ask: ", "search_document": "know: "}, "default_prompt_name": None}
    kinds = [("0", "Transformer", ""), ("1", "Pooling", "1_Pooling")]
    modules = [
        {"idx": int(n), "name": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, kind, path in kinds
    ]
    (root / "e5" / "1_Pooling").mkdir()
    for file, content in {
        "modules.json": modules,
        "config_sentence_transformers.json": prompts,
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    }.items():
        (root / "e5" / file).write_text(json.dumps(content))
    return root


@pytest.fixture
def ask(hub, running, published, tmp_path):
    client = running[1]
    client.do(f"{BUILD}\nfolder, cache = {str(tmp_path / 'kb')!r}, {str(tmp_path / 'cache')!r}")
    return client


def test_the_encoder_of_a_knowledge_base_is_loaded_again_at_its_commit(hub, ask, published):
    commit = hub.put("org/clip", published / "first")
    found = ask.do("result = first(build('org/clip', query_prompt='a photo of '))")
    hub.put("org/clip", published / "second")  # the branch has moved on; the commit is still there
    again = ask.do(
        "again = RavlmRetriever.from_pretrained(folder)\nresult = [first(again), again.encoder.reference, repr(again)]"
    )
    expected = {"name": "org/clip", "revision": commit, "kind": "dual", "query_prompt": "a photo of "}
    assert again[0] == found
    assert again[1] == {**expected, "passage_prompt": None, "dtype": None}
    hub.is_down = True  # what lies in the cache is enough
    assert ask.do("result = first(RavlmRetriever.from_pretrained(folder))") == found
    error = ask.error("RavlmRetriever.from_pretrained(folder, cache_dir=cache)")
    assert error.startswith("HubUnavailableError")
    assert f"built by org/clip at {commit[:7]} (dual, query_prompt='a photo of ')" in error
    assert "\n" not in error


def test_a_collection_of_milvus_loads_the_encoder_that_it_records(hub, ask, published, tmp_path):
    pytest.importorskip("milvus_lite", reason='pip install "hf_ravlm[test]"')
    hub.put("org/clip", published / "first")
    found = ask.do(
        f"""
from hf_ravlm.integrations.milvus import MilvusRetriever
place = {{"uri": {str(tmp_path / "birds.db")!r}, "collection": "birds"}}
made = MilvusRetriever.build(KnowledgeBase.from_dicts(ROWS), load_encoder("org/clip", query_prompt="see "), **place)
again = MilvusRetriever.open(**place)
result = [again.encoder.reference["query_prompt"], first(made), first(again)]
"""
    )
    assert found[0] == "see "
    assert found[1] == found[2]


def test_a_command_names_the_encoder_and_needs_no_model(hub, ask, published):
    commit = hub.put("org/clip", published / "first")
    found = ask.do("result = first(build('org/clip'))")[0][0]
    ask.do("from hf_ravlm.cli import main\nimport contextlib, io")
    run = "out = io.StringIO()\nwith contextlib.redirect_stdout(out):\n    code = main({})\n"
    run += "result = [code, out.getvalue()]"
    code, told = ask.do(run.format("['index', 'info', folder]"))
    assert code == 0
    assert f"loaded by   org/clip at {commit[:7]} (dual)" in told
    code, told = ask.do(run.format("['index', 'search', folder, 'Oslo', '--json']"))
    assert code == 0
    assert json.loads(told)["results"][0]["id"] == found


@pytest.mark.parametrize("case", ["gone", "gated", "revision"])
def test_an_encoder_that_is_not_there_any_more_is_told_in_one_line(hub, ask, published, case):
    commit = hub.put("org/clip", published / "first")
    ask.do("build('org/clip')")
    if case == "gated":
        hub.gated.add("org/clip")
    elif case == "gone":
        del hub.repositories["model", "org/clip"]
    else:
        del hub.repositories["model", "org/clip"].commits[commit]
        hub.put("org/clip", published / "second")
    error = ask.error("RavlmRetriever.from_pretrained(folder, cache_dir=cache)")
    assert f"org/clip at {commit[:7]}" in error
    words = {"gone": "no such repository", "gated": "consent", "revision": "no such revision"}[case]
    assert words in error
    assert "encoder=" in error
    assert "\n" not in error


def test_a_published_knowledge_base_needs_no_encoder(hub, ask, published):
    hub.put("org/clip", published / "first")
    found = ask.do(
        "retriever = build('org/clip')\nretriever.push_to_hub('me/kb', repo_type='dataset')\nresult = first(retriever)"
    )
    assert ask.do("result = first(RavlmRetriever.from_pretrained('me/kb', repo_type='dataset'))") == found
    card = hub.repository("me/kb").files()["README.md"].decode()
    assert "`org/clip at " in card
    assert 'RavlmRetriever.from_pretrained("me/kb", repo_type="dataset")' in card


def test_a_folder_leaves_no_path_behind_and_is_named_when_it_is_missed(ask, published, tmp_path):
    ask.do(f"build({str(published / 'first')!r})")
    manifest = next((tmp_path / "kb").rglob("gen-*.json")).read_text()
    assert str(published) not in manifest
    assert "reference" not in json.loads(manifest)["encoder"]
    error = ask.error("RavlmRetriever.from_pretrained(folder)")
    assert "CLIPModel (of the folder first)" in error


def test_prompts_of_the_model_are_applied_and_can_be_replaced(hub, ask, published):
    hub.put("org/e5", published / "e5")
    told = ask.do(
        "import numpy as np\n"
        "own, plain = load_encoder('org/e5'), load_encoder('org/e5', query_prompt='', passage_prompt='x ')\n"
        "same = lambda a, b: bool(np.allclose(a, b, atol=1e-6))\n"
        "prompts = lambda one: [one.query_prompt, one.passage_prompt]\n"
        "result = [own.reference['kind'], *prompts(own), *prompts(plain),\n"
        "    same(own.encode_queries(None, ['Oslo']), plain.encode_queries(None, ['ask: Oslo'])),\n"
        "    own.fingerprint == plain.fingerprint]"
    )
    assert told == ["text", "ask: ", "know: ", "", "x ", True, False]


def test_a_reader_that_holds_an_encoder_refers_to_it(hub, ask, published, tmp_path):
    commit = hub.put("org/clip", published / "first")
    hub.put("org/llama", published / "llama")
    told = ask.do(
        "import torch\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "from hf_ravlm import from_backbones\n"
        "model, processor = from_backbones(encoder='org/clip', generator='org/llama')\n"
        "model.save_pretrained(folder, base='reference')\n"
        "processor.save_pretrained(folder, base='reference')\n"
        "again, reread = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)\n"
        "features = lambda m, p: m.model.get_query_features(**p.for_retrieval(texts=['Oslo'], images=[picture(1)]))\n"
        "with torch.no_grad():\n"
        "    result = float((features(again, reread) - features(model, processor)).abs().max())"
    )
    assert told < 1e-6
    config = json.loads((tmp_path / "kb" / "config.json").read_text())
    assert config["references"]["encoder"] == {"name": "org/clip", "revision": commit}
    assert (tmp_path / "kb" / "model.safetensors").stat().st_size < 50_000


def test_a_reference_of_a_stranger_names_nothing_on_this_machine(hub, ask, published, tmp_path):
    from hf_ravlm.errors import InvalidInputError
    from hf_ravlm.retrieval.encoding.reference import checked_reference

    good = {"name": "org/clip", "revision": "0" * 40, "kind": "dual"}
    for change in (
        {"name": "/etc"},
        {"name": "../clip"},
        {"name": 3},
        {"revision": "main"},
        {"kind": "code"},
        {"dtype": 1},
    ):
        with pytest.raises(InvalidInputError):
            checked_reference({**good, **change})
    with pytest.raises(InvalidInputError):
        checked_reference("org/clip")
