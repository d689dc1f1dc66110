from __future__ import annotations

import csv
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.retrieval import KnowledgeBase


READERS = {"jsonl": KnowledgeBase.from_jsonl, "csv": KnowledgeBase.from_csv, "parquet": KnowledgeBase.from_parquet}


def write_table(path, rows):
    """Writes rows of strings in the format that the suffix says."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), path)
    return path


def save_picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


@pytest.fixture(params=sorted(READERS))
def table_format(request):
    return request.param


def read(table_format, path, **options):
    return READERS[table_format](path, **options)


def test_a_table_gives_its_standard_columns_and_the_rest_as_metadata(table_format, tmp_path):
    save_picture(tmp_path / "pictures" / "a.png", "blue")
    rows = [
        {"id": "007", "text": "Zoë, the\nfirst", "image": "pictures/a.png", "license": "MIT", "family": "corvid"},
        {"id": "b", "text": "second", "title": "T"},
    ]
    knowledge_base = read(table_format, write_table(tmp_path / f"birds.{table_format}", rows))
    first, second = knowledge_base
    assert (first.id, first.text, first.licence, first.metadata) == (
        "007",
        rows[0]["text"],
        "MIT",
        {"family": "corvid"},
    )
    assert first.image.getpixel((0, 0)) == (0, 0, 255)
    assert (second.id, second.image, second.title, second.metadata) == ("b", None, "T", {})


def test_columns_can_be_named_left_out_and_numbered(table_format, tmp_path):
    rows = [{"key": "k1", "body": "one", "notes": "n1", "junk": "x"}, {"key": "k2", "body": "two", "notes": "n2"}]
    path = write_table(tmp_path / f"table.{table_format}", rows)
    named = read(table_format, path, id_column="key", text_column="body", metadata_columns=["notes"])
    assert named.ids == ["k1", "k2"]
    assert named[0].metadata == {"notes": "n1"}
    numbered = read(table_format, path, id_column=None, text_column="body")
    assert numbered.ids == ["0", "1"]
    assert numbered[0].metadata == {"key": "k1", "notes": "n1", "junk": "x"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no column 'id' in .*\['key', 'body'\].*`id_column=None` numbers the rows"),
        ({"id_column": "key", "text_column": "txt"}, r"no column 'txt' in .*\['key', 'body'\].*`text_column=...`"),
        ({"id_column": "key"}, r"Neither text nor image .*\['key', 'body'\]"),
        ({"id_column": "key", "text_column": "body", "metadata_columns": ["x"]}, r"no columns \['x'\] .*'key'"),
    ],
)
def test_unknown_columns_are_answered_with_those_that_exist(table_format, tmp_path, options, message):
    path = write_table(tmp_path / f"table.{table_format}", [{"key": "k1", "body": "one"}])
    with pytest.raises(InvalidInputError, match=message):
        read(table_format, path, **options)


def test_an_unknown_argument_is_answered_with_those_that_exist(table_format, tmp_path):
    path = write_table(tmp_path / f"table.{table_format}", [{"id": "a", "text": "t"}])
    with pytest.raises(TypeError, match="caption_column.*text_column"):
        read(table_format, path, caption_column="text")


@pytest.mark.parametrize("name", ["../secret.png", "{absolute}", "link.png", "a/../../secret.png"])
def test_an_image_path_never_leaves_the_folder_of_its_table(table_format, tmp_path, name):
    secret = save_picture(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link.png").symlink_to(secret)
    rows = [{"id": "a", "text": "t", "image": name.format(absolute=secret)}]
    with pytest.raises(UnsafeInputError, match="not a safe file name|leads out of the folder"):
        read(table_format, write_table(tmp_path / "data" / f"t.{table_format}", rows))


def test_a_missing_image_is_named_or_skipped(table_format, tmp_path):
    rows = [{"id": "a", "text": "t", "image": "gone.png"}, {"id": "b", "text": "t"}]
    path = write_table(tmp_path / f"table.{table_format}", rows)
    with pytest.raises(UnsafeInputError, match=r"passage 'a' .*gone\.png: there is no such file"):
        read(table_format, path)
    assert read(table_format, path, on_error="skip").ids == ["b"]


def test_a_missing_table_is_named(table_format, tmp_path):
    with pytest.raises(InvalidInputError, match=f"no-such.{table_format}: there is no such file"):
        read(table_format, tmp_path / f"no-such.{table_format}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"id": "a", "text": "t"}\n{"id": ', "t.jsonl line 2 is not JSON"),
        (b'{"id": "a", "text": "t"}\n\n[1, 2]\n', "t.jsonl line 3 is a list"),
        (b'{"id": "a", "text": "\xff"}', "not UTF-8"),
        (b'{"id": "a", "text": "t", "image": 5}', "image is of type int"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path, content, message):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        KnowledgeBase.from_jsonl(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,text\na,one,two\n", "t.csv line 2 has more values"),
        (b"id,text,text\na,one,two\n", r"\['text'\] occur twice"),
        (b"id,text\na,\xff\n", "not UTF-8"),
        (b"", r"no column 'id' .*\[\]"),
        (b"id,text\n", "no passage"),
    ],
)
def test_a_broken_csv_file_is_described(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InvalidInputError, match=message):
        KnowledgeBase.from_csv(tmp_path / "t.csv")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfid,text\na,t\n")
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "t"}\n')
    assert (
        KnowledgeBase.from_csv(tmp_path / "t.csv").ids == KnowledgeBase.from_jsonl(tmp_path / "t.jsonl").ids == ["a"]
    )


def test_parquet_may_hold_the_images_themselves(tmp_path):
    data = save_picture(tmp_path / "a.png", "blue").read_bytes()
    for cell in (data, {"bytes": data, "path": None}, {"bytes": None, "path": "a.png"}):
        pq.write_table(pa.table({"id": [1], "image": [cell]}), tmp_path / "t.parquet")
        passage = KnowledgeBase.from_parquet(tmp_path / "t.parquet")[0]
        assert passage.id == "1"
        assert passage.image_bytes == data
    pq.write_table(pa.table({"id": [1], "image": [{"bytes": None, "path": "../a.png"}]}), tmp_path / "t.parquet")
    with pytest.raises(UnsafeInputError, match="safe file name"):
        KnowledgeBase.from_parquet(tmp_path / "t.parquet")


def test_a_broken_parquet_file_is_named(tmp_path):
    path = write_table(tmp_path / "t.parquet", [{"id": "a", "text": "t"}])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InvalidInputError, match="t.parquet: this is not a sound Parquet file"):
        KnowledgeBase.from_parquet(path)


@pytest.fixture
def dataset(tmp_path):
    path = save_picture(tmp_path / "a.jpg", "blue")
    second = tmp_path / "b.png"
    Image.new("RGB", (3, 2), "green").save(second)
    images = [str(path), {"bytes": second.read_bytes(), "path": None}]
    columns = {"key": [1, 2], "image": images, "text": ["one", None], "label": [5, 6]}
    types = {"key": datasets.Value("int64"), "image": datasets.Image(), "text": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, datasets.Features({**types, "label": datasets.Value("int64")}))


def test_a_data_set_gives_its_images_undecoded(dataset, tmp_path):
    knowledge_base = KnowledgeBase.from_dataset(dataset, id_column="key")
    assert knowledge_base.ids == ["1", "2"]
    assert knowledge_base[0].image_bytes == (tmp_path / "a.jpg").read_bytes()
    assert knowledge_base[1].image.getpixel((0, 0)) == (0, 128, 0)
    assert knowledge_base[0].metadata == {"label": 5}


def test_a_formatted_and_shuffled_data_set_keeps_its_rows_together(dataset):
    knowledge_base = KnowledgeBase.from_dataset(dataset.select([1, 0]).with_format("numpy"), id_column="key")
    assert [(passage.id, passage.text) for passage in knowledge_base] == [("2", None), ("1", "one")]


def test_a_data_set_of_another_kind_is_refused_with_the_way_out(dataset):
    with pytest.raises(InvalidInputError, match=r"no column 'id' in the data set.*'key', 'image', 'text', 'label'"):
        KnowledgeBase.from_dataset(dataset)
    with pytest.raises(InvalidInputError, match=r"Pick one of its splits \['train'\]"):
        KnowledgeBase.from_dataset(datasets.DatasetDict({"train": dataset}))
    with pytest.raises(InvalidInputError, match="without streaming"):
        KnowledgeBase.from_dataset(dataset.to_iterable_dataset())
    paths = datasets.Dataset.from_dict({"id": ["a"], "image": ["/etc/hostname"]})
    with pytest.raises(InvalidInputError, match=r"cast_column\('image', datasets.Image\(\)\)"):
        KnowledgeBase.from_dataset(paths)


def test_a_folder_gives_images_with_the_texts_beside_them_and_texts_alone(tmp_path):
    save_picture(tmp_path / "birds" / "robin.png", "orange")
    save_picture(tmp_path / "fish.JPG")
    (tmp_path / "birds" / "robin.txt").write_text("A robin.\n")
    (tmp_path / "notes.md").write_text("Notes.")
    (tmp_path / "ignored.bin").write_bytes(b"\0")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    knowledge_base = KnowledgeBase.from_folder(tmp_path)
    assert knowledge_base.ids == ["birds/robin", "fish", "notes"]
    assert [passage.text for passage in knowledge_base] == ["A robin.", None, "Notes."]
    assert [passage.source for passage in knowledge_base] == ["birds/robin.png", "fish.JPG", "notes.md"]
    assert [passage.image is None for passage in knowledge_base] == [False, False, True]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_metadata_file_describes_the_images_of_its_folder(tmp_path, suffix):
    for name in ("a.png", "sub/b.png", "c.png"):
        save_picture(tmp_path / "train" / name)
    (tmp_path / "train" / "c.txt").write_text("sidecar")
    rows = [
        {"file_name": "a.png", "text": "An a.", "license": "MIT", "colour": "red"},
        {"file_name": "sub/b.png", "text": "A b.", "id": "bee", "url": "https://example.org/b"},
    ]
    write_table(tmp_path / "train" / f"metadata.{suffix}", rows)
    knowledge_base = KnowledgeBase.from_folder(tmp_path)
    assert knowledge_base.ids == ["train/a", "train/c", "bee"]
    assert [passage.text for passage in knowledge_base] == ["An a.", "sidecar", "A b."]
    assert (knowledge_base[0].licence, knowledge_base[0].metadata) == ("MIT", {"colour": "red"})
    assert (knowledge_base["bee"].url, knowledge_base["bee"].source) == ("https://example.org/b", "train/sub/b.png")


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"file_name": "gone.png"}, InvalidInputError, "names 'gone.png', and no such image"),
        ({"text": "t"}, InvalidInputError, r"no `file_name`; its columns are \['text'\]"),
        ({"file_name": "../secret.png"}, UnsafeInputError, "not a safe file name"),
    ],
)
def test_a_metadata_row_that_fits_no_file_is_named(tmp_path, row, error, message):
    save_picture(tmp_path / "secret.png")
    save_picture(tmp_path / "data" / "a.png")
    write_table(tmp_path / "data" / "metadata.jsonl", [row])
    with pytest.raises(error, match=message):
        KnowledgeBase.from_folder(tmp_path / "data")


def test_a_folder_does_not_show_what_lies_outside(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    save_picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UnsafeInputError, match="a.txt.*leads out of the folder"):
        KnowledgeBase.from_folder(tmp_path / "data")


def test_images_with_one_stem_and_empty_or_missing_folders_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no such folder"):
        KnowledgeBase.from_folder(tmp_path / "gone")
    with pytest.raises(InvalidInputError, match="no passage"):
        KnowledgeBase.from_folder(tmp_path)
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "a.jpg")
    with pytest.raises(InvalidInputError, match="more than once: 'a'"):
        KnowledgeBase.from_folder(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"broken")
    assert KnowledgeBase.from_folder(tmp_path, on_error="skip").skipped[0][0] == "a"
