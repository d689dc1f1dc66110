"""`pipeline("image-classification")` with labelled images: what it says, on what that rests, what comes and goes."""

from __future__ import annotations

import pytest
import torch
from transformers import ImageClassificationPipeline, ViTConfig, ViTForImageClassification, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from bird_world import ToyEncoder
from hf_ravlm import KnowledgeBase, RavlmRetriever
from hf_ravlm.errors import InvalidInputError, RavlmError
from hf_ravlm.pipelines import RavlmImageClassificationPipeline
from labelled_world import KNOWN, coloured, entries, tiny_classifier
from tiny import tiny_model, tiny_processor


@pytest.fixture
def parts():
    model, processor, retriever = tiny_classifier()
    model.neighbors.set(50.0, 50.0)
    return model, processor, retriever


@pytest.fixture
def classify(parts):
    model, processor, retriever = parts
    return pipeline("image-classification", model=model, processor=processor, retriever=retriever)


def test_neighbours_decide_and_each_class_brings_those_it_rests_on(classify):
    assert type(classify) is RavlmImageClassificationPipeline
    for label in KNOWN:
        told = classify(coloured(label, 99), k=5)
        assert told[0]["label"] == label
        assert sum(one["score"] for one in told) == pytest.approx(1)
        assert told[0]["evidence"]
        assert {entry["metadata"]["label"] for entry in told[0]["evidence"]} == {label}
        assert {"id", "image", "score", "licence"} <= set(told[0]["evidence"][0])
    alone = classify(coloured("red", 99), k=0)
    assert all(one["evidence"] == [] for one in alone)


def test_batches_lists_and_other_ways_of_searching_say_the_same(classify, parts):
    model, processor, retriever = parts
    images = [coloured(label, 40 + n) for n, label in enumerate(KNOWN)]
    each = [classify(image) for image in images]
    as_batch = classify(images, batch_size=2)
    plain = lambda told: [(one["label"], round(one["score"], 4), [e["id"] for e in one["evidence"]]) for one in told]  # noqa: E731
    assert list(map(plain, as_batch)) == list(map(plain, each))
    assert plain(classify(images[0], where={"label": KNOWN})) == plain(each[0])
    other = RavlmRetriever.build(retriever.knowledge_base, ToyEncoder())  # which the model's own towers did not make
    assert classify(images[1], retriever=other)[0]["label"] == "green"
    assert classify([]) == []
    assert len(classify(images[0], top_k=2)) == 2
    raw = classify(images[0], k=0, function_to_apply="none")
    logits = model(pixel_values=processor.for_retrieval(images=images[:1])["pixel_values"]).logits[0]
    assert raw[0]["score"] == pytest.approx(logits.max().item(), abs=1e-4)


@pytest.mark.parametrize("from_names", [True, False])
def test_a_new_class_comes_with_its_images_and_goes_with_them(from_names):
    means = None if from_names else torch.from_numpy(tiny_classifier()[2].labels().means)
    model, processor, retriever = tiny_classifier(class_embeds=means)
    model.neighbors.set(50.0, 50.0)
    classify = pipeline("image-classification", model=model, processor=processor, retriever=retriever)
    before = {label: classify(coloured(label, 70))[0]["label"] for label in KNOWN}
    retriever.add(entries(["white"], 5))
    assert classify(coloured("white", 99))[0]["label"] == "white"
    assert {label: classify(coloured(label, 70))[0]["label"] for label in KNOWN} == before
    retriever.remove([f"white-{n}" for n in range(5)])
    assert all(one["label"] != "white" for one in classify(coloured("white", 99)))


def test_saved_and_opened_again_it_is_the_same(classify, tmp_path):
    classify.save_pretrained(tmp_path)
    again = pipeline("image-classification", model=str(tmp_path))
    image = coloured("blue", 99)
    first, second = classify(image), again(image)
    assert [one["label"] for one in first] == [one["label"] for one in second]
    assert [one["score"] for one in first] == pytest.approx([one["score"] for one in second], abs=1e-5)
    assert len(again.retriever) == 9


def test_how_much_neighbours_count_is_fitted_on_images_of_ones_own(classify, parts):
    images = [coloured(label, 200 + n) for label in KNOWN for n in range(3)]
    labels = [label for label in KNOWN for _ in range(3)]
    found = classify.fit_neighbors(images, labels, k=3)
    assert found.accuracy == 1.0
    assert parts[0].neighbors.log_weight.exp().item() == pytest.approx(found.weight, rel=1e-4)
    with pytest.raises(InvalidInputError, match="'violet' is no class"):
        classify.fit_neighbors(images[:1], ["violet"])
    with pytest.raises(InvalidInputError, match="1 images came with 0 labels"):
        classify.fit_neighbors(images[:1], [])


def rebuilt(parts, rows):
    return RavlmRetriever.build(KnowledgeBase.from_dicts(rows), parts[2].encoder)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "text": "Oslo"}], "has 'label' in its metadata: it seems to be made of passages"),
        ([*entries(["red"]), {"id": "odd", "text": "Oslo"}], "1 of 4 entries have no 'label': 'odd'"),
        ([{"id": "1", "text": "Oslo", "label": [1, 2]}], "holds values of the type list"),
    ],
)
def test_an_index_without_labels_is_refused(classify, parts, rows, message):
    with pytest.raises(InvalidInputError, match=message):
        classify(coloured("red", 1), retriever=rebuilt(parts, rows))


def test_an_empty_index_is_refused(classify, parts):
    with pytest.raises(InvalidInputError, match="No labelled entry is left"):
        classify(coloured("red", 1), retriever=RavlmRetriever.build(KnowledgeBase(), parts[2].encoder))


def test_conditions_leave_out_what_has_no_label(classify, parts):
    mixed = rebuilt(parts, [*entries(), {"id": "odd", "text": "Oslo", "source": "an atlas"}])
    told = classify(coloured("red", 5), retriever=mixed, where={"source": None}, k=2)
    assert told[0]["label"] == "red"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 3}, "takes no topk="),
        ({"top_k": 0}, "top_k=0: expected a whole number of at least 1"),
        ({"top_k": "2"}, "top_k='2': expected a whole number of at least 1"),
        ({"k": "3"}, "k='3': expected a whole number of at least 0"),
        ({"function_to_apply": "relu"}, "function_to_apply='relu'"),
        ({"label_key": "species"}, "has 'species' in its metadata"),
    ],
)
def test_what_cannot_be_applied_is_refused(classify, options, message):
    with pytest.raises(InvalidInputError, match=message):
        classify(coloured("red", 1), **options)


def test_a_broken_image_is_named_or_passed_over(classify, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [coloured("red", 5), str(broken), coloured("blue", 5)]
    with pytest.raises(RavlmError, match="input 1"):
        classify(images)
    for size in (1, 3):
        told = classify(images, on_error="skip", batch_size=size)
        assert [row[0]["label"] for row in told] == ["red", None, "blue"]
        assert told[1][0]["error"]


def test_without_knowledge_the_head_answers_and_says_so(parts):
    model, processor, _ = parts
    classify = pipeline("image-classification", model=model, processor=processor)
    assert len(classify(coloured("red", 1))) == 3
    with pytest.raises(InvalidInputError, match="there is nothing to search"):
        classify(coloured("red", 1), where={"label": "red"})
    with pytest.raises(InvalidInputError, match="nothing to classify"):
        classify()


def test_a_reader_is_no_classifier(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="has no classes: put some on its dual encoder"):
        pipeline("image-classification", model=str(tmp_path))


def test_other_classifiers_are_served_as_before(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    classify = pipeline("image-classification", model=str(tmp_path))
    assert type(classify) is ImageClassificationPipeline
    assert set(classify(coloured("red", 1))[0]) == {"label", "score"}
    with pytest.raises(InvalidInputError, match="whose scores know no neighbours"):
        pipeline("image-classification", model=str(tmp_path), knowledge="somewhere")
