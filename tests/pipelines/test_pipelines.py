"""`pipeline(...)` after `import hf_ravlm`: our tasks, the folder's knowledge, everybody else's models untouched."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    ImageTextToTextPipeline,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    pipeline,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.pipelines.pt_utils import KeyDataset

from hf_ravlm import InvalidInputError, KnowledgeBase, RavlmRetriever, UnsafeInputError
from hf_ravlm.integrations.milvus import MilvusRetriever
from hf_ravlm.pipelines import ImageCaptionPipeline, RavlmImageTextToTextPipeline, RavlmImageToTextPipeline
from tiny import picture, tiny_model, tiny_processor
from tiny_folder import PASSAGES, save_everything


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_everything(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def describe(folder):
    return pipeline("image-to-text", model=str(folder), max_new_tokens=5)


def test_a_picture_gives_words_with_evidence_and_posterior(describe):
    assert type(describe) is RavlmImageToTextPipeline
    assert describe.task == "image-to-text"
    (answer,) = describe(picture(1))
    assert isinstance(answer["generated_text"], str)
    assert [item["id"] for item in answer["evidence"]][0] == "1"  # its own picture stands in the base
    assert answer["evidence"][0] | {"image": None} == {
        "id": "1",
        "text": "the capital of Chad is N'Djamena",
        "image": None,
        "score": answer["evidence"][0]["score"],
        "rank": 1,
        "source": "the almanac",
        "licence": "CC0-1.0",
        "url": None,
        "revision": None,
        "title": None,
        "metadata": {},
    }
    assert answer["evidence"][0]["image"].size == (24, 16)
    assert len(answer["posterior"]) == len(answer["evidence"]) == 3  # asked for 4, the base has 3
    assert sum(answer["posterior"]) == pytest.approx(1.0, abs=1e-5)


def test_question_changes_what_is_asked_and_zero_passages_is_closed_book(describe):
    asked = describe(picture(0), question="what is the capital ?", k=2)[0]
    assert len(asked["evidence"]) == 2
    closed = describe(picture(0), question="what is the capital ?", k=0)[0]
    assert closed["evidence"] == closed["posterior"] == []


@pytest.mark.parametrize("fusion", [{}, {"fusion": "gated"}], ids=["in_context", "gated"])
def test_batches_lists_generators_and_datasets_agree(fusion, tmp_path):
    pipe = pipeline("image-to-text", model=str(save_everything(tmp_path, **fusion)), max_new_tokens=5)
    pictures = [picture(n, size=(20 + n, 16)) for n in range(5)]
    one_by_one = [pipe(image) for image in pictures]
    data = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))
    ways = {
        "list": pipe(pictures),
        "batched list": pipe(pictures, batch_size=2),
        "generator": list(pipe((image for image in pictures), batch_size=3)),
        "dataset": list(pipe(KeyDataset(data, "image"), batch_size=2)),
    }
    for name, got in ways.items():
        assert [answer[0]["generated_text"] for answer in got] == [
            answer[0]["generated_text"] for answer in one_by_one
        ], name
        for answer, expected in zip(got, one_by_one):
            assert [item["id"] for item in answer[0]["evidence"]] == [item["id"] for item in expected[0]["evidence"]]
            assert answer[0]["posterior"] == pytest.approx(expected[0]["posterior"], abs=1e-4)


def test_the_posterior_is_bayes_over_single_passages(describe):
    from hf_ravlm.pipelines.answer import Answer
    from hf_ravlm.pipelines.answering import add_attributions

    answer = describe(picture(1), question="what ?")[0]
    evidence = describe.retriever.retrieve([picture(1)], ["what ?"], k=3)[0]
    likelihood = []
    for passage in evidence:  # by hand: token by token, one passage at a time
        inputs = describe.processor(
            images=[picture(1)], text=["what ?"], evidence=[[passage]], answers=[answer["generated_text"]]
        )
        labels = inputs.pop("labels")
        with torch.no_grad():
            log_probs = describe.model(**inputs).logits[0].double().log_softmax(-1)
        kept = (labels[0] != -100).nonzero().flatten().tolist()
        likelihood.append(sum(float(log_probs[t - 1, labels[0, t]]) for t in kept))
    scale = float(describe.model.model.logit_scale.detach().exp())
    joint = torch.tensor([a + scale * p.score for a, p in zip(likelihood, evidence)], dtype=torch.float64)
    filled = Answer(answer["generated_text"], evidence)
    add_attributions(describe.model, describe.processor, [picture(1)], ["what ?"], [filled])
    assert filled.posterior == pytest.approx(joint.softmax(-1).tolist(), abs=1e-4)


def test_several_answers_per_picture(describe):
    torch.manual_seed(0)
    answers = describe([picture(0), picture(1)], batch_size=2, do_sample=True, num_return_sequences=3)
    assert [len(row) for row in answers] == [3, 3]
    assert all(len(answer["posterior"]) == 3 for row in answers for answer in row)


def test_model_objects_find_their_own_processor_and_knowledge(folder, describe):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    pipe = pipeline("image-to-text", model=model, max_new_tokens=5)
    assert pipe(picture(2))[0]["evidence"][0]["id"] == "2"
    with pytest.raises(InvalidInputError, match="pass processor="):
        pipeline("image-to-text", model=tiny_model())
    given = pipeline("image-to-text", model=tiny_model(), processor=tiny_processor(), max_new_tokens=5)
    assert given(picture(0))[0]["evidence"] == []
    borrowed = given(picture(2), retriever=describe.retriever)
    assert len(borrowed[0]["evidence"]) == 3


def test_a_retriever_given_at_the_start_replaces_the_folders_own(folder, describe):
    encoder = describe.retriever.encoder
    one = RavlmRetriever.build(KnowledgeBase.from_dicts(PASSAGES[2:]), encoder)
    none = RavlmRetriever.build(KnowledgeBase(), encoder)
    for retriever, ids in ((one, ["2"]), (none, [])):
        pipe = pipeline("image-to-text", model=str(folder), retriever=retriever, max_new_tokens=3)
        (answer,) = pipe(picture(0))
        assert [item["id"] for item in answer["evidence"]] == ids
        assert len(answer["posterior"]) == len(ids)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"question": "  "}, "question 0 is empty; give words, or none at all"),
        ({"question": "what is red ? " * 400}, "the question is too long"),
        ({"question": "red ?", "system_message": "what is red ? " * 400}, "the system message is too long"),
        ({"question": "red ?", "system_message": 5}, "system_message=5: expected text or None"),
        ({"qestion": "red ?"}, "there is no qestion=; did you mean question="),
    ],
)
def test_questions_that_cannot_be_asked_are_explained(describe, asked, message):
    with pytest.raises(InvalidInputError, match=message):
        describe(picture(0), **asked)


def test_an_image_under_another_name_is_not_passed_over(describe):
    for row in ({"img": picture(0), "question": "red ?"}, {"file": "photo.JPG", "question": "red ?"}):
        with pytest.raises(InvalidInputError, match="holds an image, and only 'image' and 'images' are looked at"):
            describe(row)
    (answer,) = describe({"question": "red ?", "answer": "yes", "id": "photo 3", "image": None, "logo": "logo.png"})
    assert answer["generated_text"] == describe(None, question="red ?")[0]["generated_text"]


def test_pictures_that_cannot_be_used_are_named(describe, tmp_path):
    broken = tmp_path / "flag.jpg"
    broken.write_bytes(b"<html>not found</html>")
    for source in (str(broken), str(tmp_path / "missing.png")):
        with pytest.raises(UnsafeInputError, match=source.split("/")[-1]):
            describe(source)


def test_dtype_and_saving_again(folder, tmp_path):
    pipe = pipeline("image-to-text", model=str(folder), dtype=torch.bfloat16, max_new_tokens=3)
    assert pipe(picture(1))[0]["evidence"][0]["id"] == "1"
    whole = pipeline("image-to-text", model=str(folder), max_new_tokens=3)
    whole.save_pretrained(tmp_path / "copy")
    shutil.move(tmp_path / "copy", tmp_path / "moved")
    again = pipeline("image-to-text", model=str(tmp_path / "moved"), max_new_tokens=3)
    first, second = whole(picture(1))[0], again(picture(1))[0]
    assert first["generated_text"] == second["generated_text"]
    assert [item["score"] for item in first["evidence"]] == [item["score"] for item in second["evidence"]]


def test_image_text_to_text_answers_chats_with_evidence(folder):
    pipe = pipeline("image-text-to-text", model=str(folder), max_new_tokens=4)
    assert type(pipe) is RavlmImageTextToTextPipeline
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "red ?"}]}]
    (answer,) = pipe(text=chat)
    assert answer["generated_text"][-1]["role"] == "assistant"
    assert answer["evidence"][0]["id"] == "1"
    plain = pipe(images=[picture(1), picture(2)], text=["red ?", "white ?"], return_full_text=False)
    assert [record["evidence"][0]["id"] for record in plain] == ["1", "2"]
    assert plain[0]["generated_text"] == answer["generated_text"][-1]["content"]


def test_other_models_keep_the_built_in_pipelines(tmp_path):
    tokenizer = tiny_processor().tokenizer
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0, "encoder_hidden_size": 16}
    config = BlipConfig(
        vision_config={**vision, "intermediate_size": 16},
        text_config={**text, **special, "intermediate_size": 16, "max_position_embeddings": 64},
    )
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)
    BlipForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    processor.save_pretrained(tmp_path / "blip")
    captions = pipeline("image-to-text", model=str(tmp_path / "blip"), max_new_tokens=4)
    assert type(captions) is ImageCaptionPipeline
    assert captions(picture(0))[0].keys() == {"generated_text"}
    assert len(captions([picture(0), picture(1)], prompt="what is red")) == 2
    assert type(pipeline("image-text-to-text", model=str(tmp_path / "blip"))) is ImageTextToTextPipeline


def test_vision_encoder_decoders_caption_as_they_did(tmp_path):
    vit = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1}
    tokenizer, images = tiny_processor().tokenizer, tiny_processor().image_processor
    gpt2 = {"model_type": "gpt2", "vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = VisionEncoderDecoderConfig(
        encoder={**vit, "num_attention_heads": 2, "intermediate_size": 16},
        decoder={**gpt2, "add_cross_attention": True, "is_decoder": True},
        decoder_start_token_id=1,
        pad_token_id=0,
    )
    VisionEncoderDecoderModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    images.save_pretrained(tmp_path)
    captions = pipeline("image-to-text", model=str(tmp_path), max_new_tokens=4)
    assert isinstance(captions([picture(0)])[0][0]["generated_text"], str)
    with pytest.raises(InvalidInputError, match="takes no prompt"):
        captions(picture(0), prompt="red")


def test_the_bare_line_works_in_a_new_process_without_a_word_on_stderr(folder, tmp_path):
    picture(1).save(tmp_path / "flag.png")
    program = (
        "import hf_ravlm, transformers, json\n"
        f"pipe = transformers.pipeline('image-to-text', model={str(folder)!r}, max_new_tokens=3)\n"
        f"print(pipe({str(tmp_path / 'flag.png')!r})[0]['evidence'][0]['id'])\n"
        "assert transformers.pipeline.__module__ == 'transformers.pipelines'\n"
        "try:\n    transformers.pipeline('summarization')\n"
        "except KeyError as error:\n    assert 'removed' in str(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "1", done.stderr
    noise = [line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line]
    assert noise == []


def test_chats_and_dictionaries_in_batches_answer_as_alone(folder):
    pipe = pipeline("image-text-to-text", model=str(folder), max_new_tokens=4)
    asked = [{"type": "text", "text": "red ?"}]
    chats = [[{"role": "user", "content": [{"type": "image", "image": picture(n)}, *asked]}] for n in range(3)]
    chats.append([{"role": "user", "content": "red ?"}])  # without a picture, in one batch with the others
    alone, batched = pipe(text=chats), pipe(text=chats, batch_size=4)
    assert [row[0]["evidence"][0]["id"] for row in batched[:3]] == ["0", "1", "2"]
    for one, other in zip(alone, batched):
        assert one[0]["generated_text"][-1] == other[0]["generated_text"][-1]
    rows = ({"images": picture(n), "text": "red ?"} for n in range(3))
    assert [row[0]["evidence"][0]["id"] for row in pipe(rows, batch_size=2)] == ["0", "1", "2"]
    nested = pipe(images=[[picture(1)], [picture(2)]], text=["red ?", "white ?"])
    assert [record["evidence"][0]["id"] for record in nested] == ["1", "2"]


def test_pictures_of_a_chat_come_in_every_usual_form(folder, tmp_path):
    pipe = pipeline("image-text-to-text", model=str(folder), max_new_tokens=2)
    picture(1).save(tmp_path / "flag.png")
    path, encoded = str(tmp_path / "flag.png"), base64.b64encode((tmp_path / "flag.png").read_bytes()).decode()
    forms = [{"path": path}, {"base64": encoded}, {"url": f"data:image/png;base64,{encoded}"}]
    parts = [{"type": "image", **form} for form in forms]
    parts.append({"type": "image_url", "image_url": {"url": path}})
    for part in parts:
        (answer,) = pipe(text=[{"role": "user", "content": [part, {"type": "text", "text": "red ?"}]}])
        assert answer["evidence"][0]["id"] == "1"
    with pytest.raises(UnsafeInputError, match="cannot be decoded"):
        pipe({"images": "data:image/png;base64,abcde", "text": "red ?"})
    with pytest.raises(InvalidInputError, match="image part of the conversation has no image"):
        pipe(text=[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "red ?"}]}])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_models_with_adapters_answer_with_evidence(folder):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForImageTextToText.from_pretrained(folder)
    adapted = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*\.(q_proj|v_proj)"))
    answer = pipeline("image-to-text", model=adapted, max_new_tokens=3)(picture(2))[0]
    assert answer["evidence"][0]["id"] == "2"
    assert sum(answer["posterior"]) == pytest.approx(1.0, abs=1e-5)


def test_an_answer_longer_than_the_context_is_still_attributed(describe):
    small = tiny_processor(max_length=30)
    pipe = RavlmImageToTextPipeline(tiny_model(), small, retriever=describe.retriever, max_new_tokens=40)
    answer = pipe(picture(0), question="red red red", return_dict_in_generate=True)[0]
    assert len(small.encode_text([answer["generated_text"]])[0]) > 20
    assert sum(answer["posterior"]) == pytest.approx(1.0, abs=1e-5)


def test_a_list_of_questions_is_explained(describe):
    with pytest.raises(InvalidInputError, match="expected one string, which is asked about every image"):
        describe([picture(0), picture(1)], question=["red ?", "white ?"])


def test_a_data_set_of_pictures_is_described_row_by_row(describe):
    rows = datasets.Dataset.from_dict({"image": [picture(1), picture(2)]}).cast_column("image", datasets.Image())
    expected = [describe(picture(n))[0]["generated_text"] for n in (1, 2)]
    assert [answers[0]["generated_text"] for answers in describe(rows)] == expected


def test_an_address_that_does_not_answer_is_named(describe):
    with pytest.raises(InvalidInputError, match=r"http://127\.0\.0\.1:9/bird\.png: the image could not be fetched"):
        describe("http://127.0.0.1:9/bird.png", timeout=5)


def test_saving_does_not_publish_a_part(describe, tmp_path):
    with pytest.raises(InvalidInputError, match="takes the knowledge base along"):
        describe.save_pretrained(tmp_path / "saved", push_to_hub=True)
    assert not (tmp_path / "saved").exists()


def test_a_pipeline_over_a_server_is_not_half_saved(describe, tmp_path):
    encoder = describe.retriever.encoder
    collection = SimpleNamespace(encoder_fingerprint=encoder.fingerprint)
    pipe = RavlmImageToTextPipeline(describe.model, describe.processor, MilvusRetriever(collection, encoder))
    for write in (lambda: pipe.save_pretrained(tmp_path / "saved"), lambda: pipe.push_to_hub("me/birds")):
        with pytest.raises(InvalidInputError, match=r"MilvusRetriever.* live on a server\. Nothing was written"):
            write()
    assert not (tmp_path / "saved").exists()
