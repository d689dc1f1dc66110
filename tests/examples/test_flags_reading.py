"""The reader's tokenizer and batches: they are what the processor makes in use, and they repeat."""

from __future__ import annotations

import math
import re
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from flags import reading, shuffled, wordings
from flags.reading import (
    FIRST_TOKEN_WEIGHT,
    FORK_WEIGHT,
    IGNORED,
    SPECIAL_TOKENS,
    ReadingBatches,
    encode_examples,
    make_tokenizer,
    turn_mask,
)
from flags.recipe import ReadingTrainer
from flags.shuffled import ShuffledCountries
from flags.texts import passage_texts
from flags.world import load_world
from hf_ravlm import RavlmProcessor
from hf_ravlm.text import clean_text


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def countries(world):
    return world.train[:12]


@pytest.fixture(scope="module")
def rows(world, countries):
    return [world.entities[country] for country in countries]


@pytest.fixture(scope="module")
def tokenizer(rows):
    return make_tokenizer(rows, vocab_size=600)


@pytest.fixture(scope="module")
def processor(tokenizer, rows):
    return RavlmProcessor(
        image_processor=ViTImageProcessorPil(size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        text_tokenizer=make_tokenizer(rows, vocab_size=300),
        max_length=1536,
        max_passage_length=400,
    )


@pytest.fixture(scope="module")
def batches(processor, world, countries):
    return ReadingBatches(processor, world, countries, ("openmoji", "mledoze"), num_short_batches=3)


@pytest.mark.parametrize(
    "text",
    [
        "São Tomé and Príncipe",
        "中文 國家",
        "🇳🇱 orange 🦁",
        "N'Djamena's",
        "'s",
        "İstanbul ﷺ",
        "<eos> <answer>",
        "a  b",
        "",
    ],
)
def test_tokenizer_writes_any_string(tokenizer, tmp_path, text):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = loaded(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert not set(ids) & set(loaded.all_special_ids)
        assert loaded.decode(ids).removeprefix(" ") == text
        assert loaded.decode([1, *ids, 2], skip_special_tokens=True).strip() == text


def test_tokenizer_keeps_its_settings(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(8))
        assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)
        assert (loaded.padding_side, loaded.clean_up_tokenization_spaces, len(loaded)) == ("left", False, 600)


@pytest.mark.parametrize("value", ["Euro", "Zürq-Nhâ", "Port Louis", "中文"])
def test_a_value_looks_the_same_in_a_passage_and_as_an_answer(processor, value):
    whole, label, answer = processor.encode_text([f"Capital of Utopia: {value}", "Capital of Utopia:", value])
    assert whole == label + answer


@pytest.fixture(scope="module")
def whole_tokenizer(world):
    return make_tokenizer([world.entities[country] for country in world.train])


def test_what_questions_ask_for_is_whole_tokens(whole_tokenizer):
    """Split words share pieces with words that mean something else, and the reader took the one for the other."""
    nouns = {noun for of_kind in wordings.NOUNS.values() for noun in of_kind} - {"sub-region"}  # a hyphen parts words
    assert [noun for noun in nouns if len(whole_tokenizer.tokenize(noun)) != len(noun.split())] == []
    letters = {letter for of_kind in wordings.CHINESE_NOUNS.values() for noun in of_kind for letter in noun}
    known = {whole_tokenizer.decode([number]) for number in range(len(whole_tokenizer))}
    assert letters - known == set()
    assert [token for token in known if len(re.findall(r"[\u4e00-\u9fff]", token)) > 1] == []


def test_the_colon_before_a_value_is_a_token_of_its_own(tokenizer, rows):
    """The reader starts with `<answer>` and ":" alike; a merge such as "):" would part them."""
    sampler = ShuffledCountries(rows, 4)
    passages = [text for row in rows for _, text in passage_texts(row).values()]
    passages += [text for _ in range(200) for text in sampler.example().passages]
    for passage in passages:
        header = passage.split(": ")[0] + ":"
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (header, passage)]
        assert ids[0][-1] == tokenizer.convert_tokens_to_ids(":")
        assert ids[1][: len(ids[0])] == ids[0]


def test_a_sequence_is_written_as_it_should_be(processor):
    turns = [("name", "Whose flag is this?", "Xo"), ("capital", "Capital?", "Ümé"), ("meaning", "Why?", "a; b, c")]
    passages = ["Capital of Xo: Ümé.", "The flag of Xo: b."]  # best first; it is written last
    (sequence,) = encode_examples(processor, [shuffled.Example(passages, turns)])
    assert processor.tokenizer.decode(sequence.input_ids) == (
        "<bos><image><image><image><image><passage> The flag of Xo: b.<passage> Capital of Xo: Ümé."
        "<question> Whose flag is this?<answer> Xo<eos><question> Capital?<answer> Ümé<eos>"
        "<question> Why?<answer> a; b, c<eos>"
    )


def test_labels_are_the_answers_and_nothing_else(processor, rows):
    sampler = ShuffledCountries(rows, 1)
    examples = [sampler.example() for _ in range(60)]
    sequences = encode_examples(processor, examples)
    assert sum(sequence is None for sequence in sequences) < 15
    for example, sequence in zip(examples, sequences):
        if sequence is None:
            continue
        learned = [label for label in sequence.labels if label != IGNORED]
        answers = processor.tokenizer.decode(learned).split("<eos>")
        assert [answer.strip() for answer in answers] == [clean_text(answer) for _, _, answer in example.turns] + [""]
        assert all(label in (IGNORED, token) for token, label in zip(sequence.input_ids, sequence.labels))
        assert [weight > 0 for weight in sequence.weights] == [label != IGNORED for label in sequence.labels]


def test_training_starts_as_the_processor_does_in_use(processor, rows, world):
    sampler = ShuffledCountries(rows, 2)
    for example in (sampler.example() for _ in range(20)):
        (sequence,) = encode_examples(processor, [example])
        if sequence is not None:
            picture = world.images["ad", "openmoji"]
            used = processor(images=picture, text=example.turns[0][1], evidence=[example.passages])["input_ids"][0]
            assert sequence.input_ids[: len(used)] == used.tolist()
            assert sequence.labels[: len(used)] == [IGNORED] * len(used)
            assert sequence.labels[len(used)] != IGNORED


def test_an_answer_weighs_the_root_of_its_length_and_more_where_it_could_go_on_otherwise(processor):
    told = "Currency of Fiji: Fijian dollar, Tuvaluan dollar."
    turns = [("currency", "Currency?", "Fijian dollar, Tuvaluan dollar"), ("name", "Whose?", "Fiji")]
    (sequence,) = encode_examples(processor, [shuffled.Example([told], turns)])
    answers = [[]]
    for label, weight in zip(sequence.labels, sequence.weights):
        if label != IGNORED:
            answers[-1].append((label, weight))
            answers += [[]] if label == processor.tokenizer.eos_token_id else []
    currency, name, _ = answers
    shown = processor.encode_text([told])[0]
    share = len(currency) ** -0.5
    for place, (token, weight) in enumerate(currency[:-1]):
        two_before = [label for label, _ in currency[max(place - 2, 0) : place]]
        goes_on = {shown[at + 2] for at in range(len(shown) - 2) if shown[at : at + 2] == two_before}
        falling = max(FIRST_TOKEN_WEIGHT - place, 1) * share
        assert weight == (falling if goes_on == {token} else max(falling, FORK_WEIGHT))
    assert min(weight for _, weight in currency) < FORK_WEIGHT <= min(currency[-1][1], name[-1][1])


def test_the_mark_of_an_answer_takes_nothing_from_the_colon_that_it_is_like():
    """Their embeddings are one: among all tokens a colon could have half of the share, and no more."""
    colon, mark = 9, 7
    logits = torch.zeros(1, 2, 20).index_fill(2, torch.tensor([colon, mark]), 30.0)
    losses = []
    for never in ([mark], []):

        class Writer:
            generation_config = SimpleNamespace(suppress_tokens=never)

            def __call__(self, **asked):
                return SimpleNamespace(logits=logits)

        inputs = {"labels": torch.tensor([[IGNORED, colon]]), "token_weights": torch.ones(1, 2)}
        inputs |= dict.fromkeys(("input_ids", "pixel_values", "position_ids"))
        trainer = SimpleNamespace(accelerator=SimpleNamespace(unwrap_model=lambda model: model))
        losses.append(ReadingTrainer.compute_loss(trainer, Writer(), {**inputs, "turns": torch.zeros(1, 2)}).item())
    assert losses == pytest.approx([0, math.log(2)], abs=1e-5)


def test_batches_are_ready_for_the_model(batches):
    for batch in islice(batches, 12):
        size, length = batch["input_ids"].shape
        assert length % 16 == 0
        assert size * (length - 15) <= 2048 or size == 1
        assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
            "input_ids": (torch.int64, (size, length)),
            "turns": (torch.int64, (size, length)),
            "position_ids": (torch.int64, (size, length)),
            "labels": (torch.int64, (size, length)),
            "token_weights": (torch.float32, (size, length)),
            "pixel_values": (torch.float32, (size, 3, 64, 64)),
        }
        padding = batch["turns"] < 0
        assert (padding.int().diff(dim=1) >= 0).all()
        assert (batch["input_ids"][padding] == 0).all()
        assert (batch["labels"][padding] == IGNORED).all()
        assert torch.equal(batch["token_weights"] > 0, batch["labels"] != IGNORED)
        assert ((batch["input_ids"] == 3).sum(1) == 4).all()  # <image>


def test_turns_about_a_whole_country_are_asked_as_if_alone(processor):
    """Each question stands, and sees, as it would if the processor had written it alone."""
    turns = [("name", "Whose flag is this?", "Xo"), ("capital", "首都?", "Ümé")]
    example = shuffled.Example(["Capital of Xo: Ümé.", "The flag of Xo: b."], turns)
    (sequence,) = encode_examples(processor, [example], apart=True)
    seen = turn_mask(torch.tensor([sequence.turns]))[0, 0]
    ids, positions = torch.tensor(sequence.input_ids), torch.tensor(sequence.positions)
    picture = Image.new("RGB", (64, 64), "red")
    for _, question, answer in turns:
        alone = processor(images=picture, text=question, evidence=[example.passages], answers=[answer])
        ends = (ids == processor.tokenizer.eos_token_id).nonzero().flatten().tolist()
        (end,) = [end for end in ends if torch.equal(ids[seen[end]], alone["input_ids"][0])]
        assert positions[seen[end]].tolist() == list(range(alone["input_ids"].shape[1]))


def test_whole_countries_are_batched(processor, world, countries):
    batches = ReadingBatches(processor, world, countries, ("openmoji",), tokens_per_batch=3072, whole=True)
    some = list(islice(batches, 4))
    assert max(batch["turns"].amax() for batch in some) > 3
    assert all(batch["position_ids"].amax() < processor.max_length for batch in some)


def test_the_seed_decides_every_batch(batches, processor, world, countries, monkeypatch):
    first, second = list(islice(batches, 6)), list(islice(batches, 6))
    for one, other in zip(first, second):
        assert all(torch.equal(one[name], other[name]) for name in one)
    monkeypatch.setattr(reading, "get_worker_info", lambda: SimpleNamespace(id=1))
    of_worker = next(iter(batches))
    assert not torch.equal(of_worker["input_ids"][:, :99], first[0]["input_ids"][:, :99])


def test_short_contexts_come_first(batches):
    num_passages = [(batch["input_ids"] == 5).sum(1).max().item() for batch in islice(batches, 20)]
    assert max(num_passages[:3]) <= 3 < max(num_passages[3:])


def test_missing_pictures_and_memory_tokens_are_refused(processor, world, countries, tokenizer):
    with pytest.raises(ValueError, match=world.held_out[0]):
        ReadingBatches(processor, world, [*countries, world.held_out[0]], ("openmoji",))
    with_memory = RavlmProcessor(processor.image_processor, tokenizer, processor.text_tokenizer, fusion="gated")
    with pytest.raises(ValueError, match="fusion"):
        ReadingBatches(with_memory, world, countries, ("openmoji",))
