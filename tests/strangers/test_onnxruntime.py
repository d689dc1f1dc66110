"""ONNX Runtime gives the vectors of the model, alone and as the encoder of a retriever."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hf_ravlm import InvalidInputError, KnowledgeBase, RavlmEncoder, RavlmRetriever
from tiny import picture, tiny_model, tiny_processor


for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason='needs: pip install "hf_ravlm[onnx]"')

from hf_ravlm.cli import main  # noqa: E402
from hf_ravlm.hub.export import export_towers  # noqa: E402
from hf_ravlm.integrations.onnxruntime import load_onnx_encoder  # noqa: E402


pytestmark = pytest.mark.slow  # the exporter takes most of the time, once
TEXTS = ["red", None, "the capital of Norway is Oslo and of Chad N'Djamena", "what is the capital of this country ?"]
PICTURES = [picture(0), picture(1), None, picture(3)]


@pytest.fixture(scope="module")
def encoder():
    """A raster of cells that does not divide that of the patches; other weights of image and text than at first."""
    model = tiny_model(pooling_grid=3).model
    with torch.no_grad():
        model.modality_log_weight.copy_(torch.tensor([0.3, -0.4]))
    return RavlmEncoder(model, tiny_processor(), batch_size=3)


@pytest.fixture(scope="module")
def folder(encoder, tmp_path_factory):
    saved, exported = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("exported")
    encoder.model.save_pretrained(saved)
    encoder.processor.save_pretrained(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter
        assert main(["export", str(saved), str(exported), "--quiet"]) == 0
    return exported


def test_the_files_alone_give_the_vectors_for_batches_of_any_size(encoder, folder):
    import onnxruntime

    towers = {
        kind: onnxruntime.InferenceSession(folder / f"{kind}_tower.onnx", providers=["CPUExecutionProvider"])
        for kind in ("image", "text")
    }
    for number in (1, 2, 5):
        images = encoder.processor.for_retrieval(images=[picture(n) for n in range(number)])["pixel_values"]
        texts = encoder.processor.for_retrieval(texts=["red white " * (n + 1) for n in range(number)])
        tensors = {name: texts[name].numpy() for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            expected = encoder.model.get_image_features(images).pooler_output.numpy()
            np.testing.assert_allclose(
                towers["image"].run(None, {"pixel_values": images.numpy()})[0], expected, atol=1e-4
            )
            expected = encoder.model.get_text_features(texts["input_ids"], texts["attention_mask"]).pooler_output
            np.testing.assert_allclose(towers["text"].run(None, tensors)[0], expected.numpy(), atol=1e-4)


@pytest.mark.parametrize(("images", "texts"), [(PICTURES, TEXTS), (PICTURES, None), (None, TEXTS)])
def test_as_an_encoder_it_gives_the_vectors_of_ours(encoder, folder, images, texts):
    keep = [row for row in range(4) if (images and images[row]) or (texts and texts[row])]
    images, texts = (None if items is None else [items[row] for row in keep] for items in (images, texts))
    exported = load_onnx_encoder(folder, batch_size=3)
    expected = encoder.encode_queries(images, texts)
    np.testing.assert_allclose(exported.encode_queries(images, texts), expected, atol=1e-5)
    nothing = [None] * len(keep)
    np.testing.assert_allclose(exported.encode_passages(texts or nothing, images or nothing), expected, atol=1e-5)


def test_it_asks_a_knowledge_base_that_the_model_built(encoder, folder, tmp_path):
    rows = [{"id": str(n), "text": f"red {n}", "image": picture(n)} for n in range(6)]
    built = RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder)
    built.save_pretrained(tmp_path)
    opened = RavlmRetriever.from_pretrained(tmp_path, load_onnx_encoder(folder))
    ours, theirs = (r.retrieve([picture(2), picture(4)], ["red ?", "white ?"], k=3) for r in (built, opened))
    assert [[p.id for p in row] for row in ours] == [[p.id for p in row] for row in theirs]
    assert [p.score for p in ours[0]] == pytest.approx([p.score for p in theirs[0]], abs=1e-5)


def test_what_is_not_whole_is_refused(encoder, folder, tmp_path):
    with pytest.raises(InvalidInputError, match="no export was finished here"):
        load_onnx_encoder(tmp_path)
    for file in folder.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "text_tower.onnx").write_bytes((folder / "image_tower.onnx").read_bytes())
    with pytest.raises(InvalidInputError, match="text_tower.onnx: the file is missing or not the one"):
        load_onnx_encoder(tmp_path)
    with pytest.raises(InvalidInputError, match="a Linear came, expected a RavlmModel"):
        export_towers(torch.nn.Linear(1, 1), encoder.processor, tmp_path)
