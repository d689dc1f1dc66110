"""`hf-ravlm compress`: a smaller copy of a saved system that opens and answers; what cannot be done is refused."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import pipeline

from hf_ravlm.cli import main
from hf_ravlm.errors import InvalidInputError
from hf_ravlm.hub.compressing import compress
from hf_ravlm.model.parts.pruning import keep_zeros, prunable, prune_layers, share_of_zeros
from hf_ravlm.training.recovering import Recovery
from tiny import picture, tiny_config, tiny_model
from tiny_folder import PASSAGES, save_everything, tiny_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A system, which is as it was after all that was made of it."""
    same = [{**PASSAGES[0], "id": "again"}]
    folder = save_everything(tmp_path_factory.mktemp("whole"), passages=[*PASSAGES, *same])
    before = content_of(folder)
    yield folder
    assert content_of(folder) == before


def content_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answer(place, **options):
    return pipeline("image-to-text", model=str(place))(picture(0), question="what ?", max_new_tokens=2, k=2, **options)


@pytest.mark.parametrize(("amount", "zeros"), [("0.3", 0.3), ("2:4", 0.5)])
def test_pruned_weights_are_zeros_in_a_copy_that_answers(folder, tmp_path, amount, zeros, capsys):
    assert main(["compress", str(folder), str(tmp_path / "out"), "--prune", amount, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["zeros"] == pytest.approx(zeros, abs=0.01)
    opened = pipeline("image-to-text", model=str(tmp_path / "out"))
    assert share_of_zeros(opened.model.language_model) == pytest.approx(zeros, abs=0.01)
    assert answer(tmp_path / "out")[0]["evidence"]
    for _, layer in prunable(opened.model.language_model):
        if amount == "2:4":
            fours = layer.weight.detach().unflatten(-1, (-1, 4))
            assert ((fours != 0).sum(dim=-1) <= 2).all()


def test_the_smallest_go_and_masks_hold_in_training():
    reader = tiny_model().language_model
    before = {name: layer.weight.detach().clone() for name, layer in prunable(reader)}
    prune_layers(reader, 0.5)
    optimizer = torch.optim.SGD(reader.parameters(), lr=0.1)
    reader(input_ids=torch.tensor([[7, 8, 9]]), labels=torch.tensor([[7, 8, 9]])).loss.backward()
    optimizer.step()
    keep_zeros(reader)
    for name, layer in prunable(reader):
        gone = layer.weight == 0
        assert before[name][gone].abs().max() <= before[name][~gone].abs().min()
        assert not torch.equal(layer.weight[~gone], before[name][~gone])


def test_what_is_said_twice_goes_and_the_index_is_another(folder, tmp_path):
    found = compress(folder, tmp_path / "out", drop_duplicates=0.999, index="binary")
    assert found.passages == (4, 3)
    assert found.index[0] == 4 * 4 * 16  # numbers of four bytes
    opened = pipeline("image-to-text", model=str(tmp_path / "out"))
    assert opened.retriever.options.kind == "binary"  # of so few vectors an index is flat all the same
    assert sorted(opened.retriever.knowledge_base.ids) == ["0", "1", "2"]


def write_questions(path, questions):
    picture(0).save(path.parent / "flag.png")
    rows = [{"id": str(n), "image": "flag.png", **row} for n, row in enumerate(questions)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_pruned_reader_learns_again_and_what_is_gone_stays_gone(folder, tmp_path):
    data = write_questions(tmp_path / "train.jsonl", [{"question": "what ?", "answers": ["Oslo"]}] * 4)
    command = ["compress", str(folder), "--prune", "2:4", "--json"]
    assert main([*command[:2], str(tmp_path / "plain"), *command[2:]]) == 0
    learned = ["--recover", str(data), "--epochs", "2"]
    assert main([*command[:2], str(tmp_path / "learned"), *command[2:], *learned]) == 0
    plain, again = (pipeline("image-to-text", model=str(tmp_path / name)).model for name in ("plain", "learned"))
    changed = 0
    for (name, before), (_, after) in zip(prunable(plain.language_model), prunable(again.language_model), strict=True):
        assert torch.equal(before.weight == 0, after.weight == 0), name
        changed += int(not torch.equal(before.weight, after.weight))
    assert changed > 0
    for name, weight in plain.model.state_dict().items():  # the towers made the index
        assert torch.equal(weight, again.model.state_dict()[name]), name


def test_passages_that_are_read_for_no_question_go(folder, tmp_path):
    opened = pipeline("image-to-text", model=str(folder))
    opened.model.config.num_passages = 1
    opened.save_pretrained(tmp_path / "one")
    (first,) = opened.retriever.retrieve(images=[picture(0)], texts=["what ?"], k=1)[0]
    gold = next(id for id in opened.retriever.knowledge_base.ids if id != first.id)
    data = write_questions(
        tmp_path / "asked.jsonl", [{"question": "what ?", "answers": ["Oslo"], "gold_ids": [gold]}] * 2
    )
    assert main(["compress", str(tmp_path / "one"), str(tmp_path / "out"), "--questions", str(data)]) == 0
    kept = pipeline("image-to-text", model=str(tmp_path / "out")).retriever.knowledge_base.ids
    assert sorted(kept) == sorted({first.id, gold})
    assert len(pipeline("image-to-text", model=str(tmp_path / "one")).retriever) == 4


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """A system whose reader has layers that four bits take, and one that they do not, whose inputs are 96."""
    wide = tiny_config().generator_config.to_dict() | {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}
    model, (_, processor, retriever) = tiny_model(generator_config=wide), tiny_parts()
    for part in (model, processor, retriever):  # the towers are those of `tiny_parts`
        part.save_pretrained(place := tmp_path_factory.getbasetemp() / "wide")
    return place


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_a_quantized_copy_is_smaller_and_answers(wide_folder, tmp_path, bits):
    pytest.importorskip("torchao" if bits == "int8" else "bitsandbytes")
    found = compress(wide_folder, tmp_path / "out", quantize=bits, prune=0.3)
    assert found.weights[1] < found.weights[0]
    opened = pipeline("image-to-text", model=str(tmp_path / "out"))
    assert opened.model.is_quantized
    assert answer(tmp_path / "out")[0]["evidence"]
    if bits == "int4":
        layer = opened.model.language_model.model.layers[0]
        assert type(layer.mlp.up_proj).__name__ == "Linear4bit"
        assert type(layer.mlp.down_proj) is torch.nn.Linear


def test_a_reader_too_narrow_for_four_bits_is_refused_quantized(folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(InvalidInputError, match="this reader has none: choose int8"):
        compress(folder, tmp_path / "out", quantize="int4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "there is nothing to do"),
        ({"prune": 1.0}, "expected a share above 0 and below 1"),
        ({"prune": "1:4"}, "or '2:4'"),
        ({"quantize": "int3"}, "expected one of int8, int4"),
        ({"drop_duplicates": 2.0}, "expected a cosine above 0"),
        ({"quantize": "int8", "recover": Recovery("nowhere.jsonl")}, "`recover=` is of pruned weights"),
        ({"prune": 0.3, "recover": Recovery("nowhere.jsonl")}, "nowhere.jsonl"),
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_written(folder, tmp_path, options, message):
    with pytest.raises(InvalidInputError, match=message):
        compress(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(folder, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["compress", str(folder), str(tmp_path), "--prune", "0.3"]) == 2
    assert "something lies there" in capsys.readouterr().err
    assert main(["compress", str(folder), str(tmp_path / "out"), "--prune", "much"]) == 2
    assert "expected a share such as 0.3, or 2:4" in capsys.readouterr().err
