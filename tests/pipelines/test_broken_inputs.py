"""One input among many that cannot be used: it is named by its place, or passed over, and the others are answered."""

from __future__ import annotations

import io

import datasets
import pytest
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_ravlm import InvalidInputError, UnsafeInputError
from tiny import picture
from tiny_folder import save_everything


BROKEN = b"\x89PNG\r\n\x1a\n and nothing more"
TASKS = ["image-to-text", "visual-question-answering", "image-text-to-text"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_everything(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module", params=TASKS)
def ask(request, folder):
    """A pipeline, and what it takes for an image and a question."""
    pipe = pipeline(request.param, model=str(folder), max_new_tokens=4)

    def given(image, question):
        if request.param != "image-text-to-text":
            return {"image": image, "question": question}
        part = {"type": "image", "image": image}
        return [{"role": "user", "content": [part, {"type": "text", "text": question}]}]

    return pipe, given


def words_of(records) -> list:
    key = next(name for name in ("answer", "generated_text") if name in records[0][0])
    return [row[0][key] if isinstance(row[0][key], str) else row[0][key][-1]["content"] for row in records]


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_place_is_named_and_the_others_are_answered(ask, batch_size):
    pipe, given = ask
    good = [given(picture(n), "what is red ?") for n in range(3)]
    rows = [good[0], good[1], given(BROKEN, "what is white ?"), good[2]]
    with pytest.raises(UnsafeInputError, match=r"input 2 \(the first is 0\).*on_error=\"skip\""):
        pipe(rows, batch_size=batch_size)
    found = pipe(rows, batch_size=batch_size, on_error="skip")
    assert len(found) == 4
    (record,) = found.pop(2)
    assert "image" in record["error"]
    assert words_of([[record]]) == [""]
    assert record["evidence"] == []
    assert words_of(found) == words_of(pipe(good))
    assert all("error" not in row[0] for row in found)


def test_streams_go_on_behind_it(ask):
    pipe, given = ask
    rows = [given(BROKEN, "red ?"), given(picture(1), "red ?")]
    found = list(pipe((row for row in rows), on_error="skip"))
    assert ["error" in row[0] for row in found] == [True, False]
    (alone,) = pipe(rows[0], on_error="skip")
    assert alone["error"] == found[0][0]["error"]


def test_questions_and_choices_are_checked(ask):
    pipe, given = ask
    with pytest.raises(InvalidInputError, match="expected one of"):
        pipe([given(picture(0), "red ?")], on_error="ignore")
    rows = [given(picture(0), "red ?"), given(picture(1), 7)]
    with pytest.raises(InvalidInputError, match="input 1 "):
        pipe(rows)
    assert "error" in pipe(rows, on_error="skip")[1][0]


def test_images_of_a_data_set_are_decoded_by_us(folder):
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG")
    images = [{"bytes": data, "path": None} for data in (buffer.getvalue(), BROKEN, buffer.getvalue())]
    data = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
    describe = pipeline("image-to-text", model=str(folder), max_new_tokens=4)
    vqa = pipeline("vqa", model=str(folder), max_new_tokens=4)
    ways = [
        describe(KeyDataset(data, "image"), batch_size=2, on_error="skip"),
        describe(data, on_error="skip"),
        vqa(KeyDataset(data, "image"), "red ?", on_error="skip"),
    ]
    for way in ways:
        assert ["error" in row[0] for row in way] == [False, True, False]
