"""Batches of questions and passages: who is whose positive, who is nobody's negative, and what each side may see."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from flags.questions import BACKGROUND, KINDS, NAMED, OFFICIAL, PARAPHRASES
from flags.text_pairs import OTHERS, TextPairs
from flags.world import drawing_group, load_world
from tiny import tiny_model, tiny_processor


COUNTRIES = ["no", "sj", "ad", "al", "ca", "jm", "ke"]  # the first two show one drawing
VIEWS = ("openmoji", "twemoji")


@pytest.fixture(scope="module")
def world():
    return load_world()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(max_passage_length=2000)


@pytest.fixture(scope="module")
def pairs(world, processor):
    return TextPairs(processor, world, COUNTRIES, VIEWS, seed=1, countries_per_batch=7)


@pytest.fixture(scope="module")
def batches(pairs):
    return list(islice(pairs, 16))


def written(pairs, ids, mask) -> list[str]:
    rows = [row[keep.bool()] for row, keep in zip(ids, mask)]
    return [text.strip() for text in pairs.processor.text_tokenizer.batch_decode(rows, skip_special_tokens=True)]


def queries(pairs, batch) -> list[str]:
    return written(pairs, batch["input_ids"], batch["attention_mask"])


def passages(pairs, batch) -> list[str]:
    return written(pairs, batch["passage_input_ids"], batch["passage_attention_mask"])


def kind_of(passage: str) -> str:
    starts = {
        "Country or territory with": "name",
        "Capital of": "capital",
        "Official language": "language",
        "Currency of": "currency",
        "Currencies of": "currency",
        "Part of the world": "subregion",
        "The flag of": "flag",
        "Meaning of the flag": "meaning",
        "More facts about": "facts",
        "Background of": "background",
    }
    (kind,) = [kind for start, kind in starts.items() if passage.startswith(start)]
    return kind


def name_of(passage: str) -> str:
    if kind_of(passage) == "name":
        return passage.split(": ", 1)[1].removesuffix(".")
    title = passage.split(":")[0].removeprefix("Meaning of ").removeprefix("Part of ")
    return title.split(" about " if kind_of(passage) == "facts" else " of ", 1)[1]


def asked_by_name(query: str) -> tuple[str, str] | None:
    """Kind and country of a question that names it."""
    templates = [(kind, template) for kind, questions in NAMED.items() for template in questions]
    for kind, template in sorted(templates, key=lambda pair: -len(pair[1])):
        head, tail = template.split("{name}")
        if query.startswith(head) and query.endswith(tail):
            return kind, query[len(head) : len(query) - len(tail)]
    return None


def test_batches_are_ready_for_the_model(pairs, batches):
    for number, batch in enumerate(batches):
        assert batch["pixel_values"].dtype == torch.float32
        assert batch["pixel_values"].shape == (7, 3, 16, 16)
        assert ("input_ids" in batch) == (number % 4 != 3)  # every fourth batch is pictures alone
        num_passages = len(batch["passage_labels"])
        assert num_passages == 7 if number % 4 == 3 else num_passages == 7 * (1 + OTHERS)
        for prefix, count in (("", 7), ("passage_", num_passages)):
            rows = [v for k, v in batch.items() if k.startswith("passage_") == bool(prefix)]
            assert {len(row) for row in rows} == {count}
        assert batch["passage_image_mask"].all()
        assert batch["passage_text_mask"].all()
        assert len(set(passages(pairs, batch))) == num_passages


def test_row_i_is_the_positive_of_query_i(pairs, batches):
    wordings = [(kind, (OFFICIAL[kind], *PARAPHRASES[kind])) for kind in KINDS] + [("background", BACKGROUND)]
    asked = {question.lower().rstrip("?."): kind for kind, questions in wordings for question in questions}
    kinds, understood = set(), 0
    for batch in batches:
        assert torch.equal(batch["query_labels"], batch["passage_labels"][:7])
        if "input_ids" not in batch:
            continue
        for query, seen, passage in zip(queries(pairs, batch), batch["image_mask"], passages(pairs, batch)):
            kinds.add(kind_of(passage))
            if not seen:
                kind, name = asked_by_name(query)
                assert name == name_of(passage)
                assert kind_of(passage) == ("flag" if kind == "describe" else kind)
            elif (kind := asked.get(query.lower().rstrip("?."))) is not None:  # some are asked with a greeting
                assert kind_of(passage) == ("flag" if kind == "describe" else kind)
                understood += 1
    assert len(kinds) > 6
    assert understood > 20


def test_everything_else_of_the_country_is_a_negative(pairs, batches):
    """A label that a query shares with a passage takes the passage out of the loss."""
    for batch in batches:
        if "input_ids" not in batch:
            continue
        texts, labels = passages(pairs, batch), batch["passage_labels"].tolist()
        pictures = batch["passage_pixel_values"]
        for i, label in enumerate(batch["query_labels"].tolist()):
            # No picture tells entries with the same drawing apart: they are one country here.
            own = [j for j in range(len(texts)) if torch.equal(pictures[j], pictures[i])]
            spared = [kind_of(texts[j]) for j in range(len(texts)) if labels[j] == label]
            assert {kind_of(texts[j]) for j in own if labels[j] == label} == set(spared)
            assert set(spared) == {kind_of(texts[i])}


def test_pictures_alone_carry_the_label_of_their_country(world, pairs, batches):
    alone = [batch for batch in batches if "input_ids" not in batch]
    assert len(alone) == 4
    for batch in alone:
        assert batch["image_mask"].all()
        assert "attention_mask" not in batch
        entities = [
            next(e for e in COUNTRIES for v in VIEWS if torch.equal(pixels, pairs.pictures[e, v]))
            for pixels in batch["pixel_values"]
        ]
        groups = [drawing_group(entity) for entity in entities]
        for i, one in enumerate(batch["query_labels"]):
            for j, other in enumerate(batch["passage_labels"]):
                assert (one == other) == (groups[i] == groups[j])


def test_questions_without_a_picture_say_so(batches):
    masks = []
    for batch in batches:
        blank = (batch["pixel_values"] == 0).flatten(1).all(dim=1)
        assert torch.equal(blank, ~batch["image_mask"])
        if "input_ids" in batch:
            masks.append(batch["image_mask"])
            assert batch["text_mask"].all()
    share = 1 - torch.cat(masks).float().mean().item()
    assert 0.15 < share < 0.45


def test_invented_names_stand_in_the_query_and_in_all_passages_alike(world, pairs, batches):
    real = {world.entities[entity]["name"] for entity in COUNTRIES}
    invented = []
    for batch in batches:
        names = [name_of(text) for text in passages(pairs, batch)]
        of_country = {}
        for name, pixels in zip(names, batch["passage_pixel_values"]):
            of_country.setdefault(pixels.numpy().tobytes(), set()).add(name)
        assert max(map(len, of_country.values())) <= 2  # two only for Norway and Svalbard, whose picture is the same
        assert sum(map(len, of_country.values())) == 7
        invented += [name not in real for name in set(names)]
        if "input_ids" in batch:
            for query, seen, name in zip(queries(pairs, batch), batch["image_mask"], names):
                assert seen or asked_by_name(query)[1] == name
    assert 0.2 < sum(invented) / len(invented) < 0.5


def test_the_seed_decides_every_batch(world, processor, batches):
    def made(seed):
        return list(islice(TextPairs(processor, world, COUNTRIES, VIEWS, seed=seed, countries_per_batch=7), 4))

    def same(one, other):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    assert all(map(same, made(1), batches))
    assert not any(map(same, made(2), batches))


def test_only_the_countries_and_styles_given_are_seen(world, pairs, batches):
    allowed = {pairs.pictures[entity, view].numpy().tobytes() for entity in COUNTRIES for view in VIEWS}
    for batch in batches:
        shown = batch["pixel_values"][batch["image_mask"]]
        assert {pixels.numpy().tobytes() for pixels in shown} <= allowed
    assert {entity for entity, _ in pairs.pictures} == set(pairs.passages) == set(COUNTRIES)


# --- What spares work


def test_same_kind_marks_the_passages_that_tell_what_is_asked_for_whatever_the_country(pairs, batches):
    for batch in batches:
        assert ("same_kind" in batch) == ("input_ids" in batch)
        if "same_kind" not in batch:
            continue
        kinds = [kind_of(passage) for passage in passages(pairs, batch)]
        for i, (row, label) in enumerate(zip(batch["same_kind"].tolist(), batch["query_labels"].tolist())):
            own = {kinds[j] for j, other in enumerate(batch["passage_labels"].tolist()) if other == label}
            marked = {kind for kind, same in zip(kinds, row) if same}
            assert own == marked
            assert row == [kind in marked for kind in kinds]
            assert kinds[i] in marked


def test_vectors_take_the_place_of_pictures_and_nothing_else_changes(world, processor, batches):
    model = tiny_model().model.eval()
    encoded = TextPairs(processor, world, COUNTRIES, VIEWS, seed=1, countries_per_batch=7).encode(model)
    for batch, plain in zip(encoded, batches[:4]):
        for prefix in ("", "passage_"):
            seen = plain[f"{prefix}image_mask"]
            with torch.no_grad():
                expected = model.get_image_features(plain[f"{prefix}pixel_values"][seen]).pooler_output
            torch.testing.assert_close(batch[f"{prefix}image_embeds"][seen], expected)
            assert not batch[f"{prefix}image_embeds"][~seen].any()
        rest = {name for name in plain if not name.endswith("pixel_values")}
        assert all(torch.equal(batch[name], plain[name]) for name in rest)
        assert set(batch) == rest | {"image_embeds", "passage_image_embeds"}


def test_most_batches_read_the_beginnings_of_passages_only(world, processor):
    pairs = TextPairs(processor, world, COUNTRIES, VIEWS, seed=1, countries_per_batch=7, beginning=5)
    shapes = [
        (batch["passage_input_ids"].shape, batch["passage_attention_mask"].shape)
        for batch in islice(pairs, 24)
        if "same_kind" in batch
    ]
    assert all(ids == mask for ids, mask in shapes)
    cut = sum(ids[1] == 5 for ids, _ in shapes)
    assert len(shapes) / 2 < cut < len(shapes)
