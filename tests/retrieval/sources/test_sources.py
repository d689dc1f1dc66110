from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import tracemalloc
import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.sources.chunking import Chunking
from hf_ravlm.retrieval.sources.tables import rows_from_jsonl


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


def save_image(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


@pytest.fixture(params=sorted(READERS))
def table_format(request):
    return request.param


def read(table_format, path, **options):
    return READERS[table_format](path, **options)


def test_a_table_gives_its_standard_columns_and_the_rest_as_metadata(table_format, tmp_path):
    save_image(tmp_path / "images" / "a.png", "blue")
    rows = [
        {"id": "007", "text": "Zoë, the\nfirst", "image": "images/a.png", "license": "MIT", "family": "corvid"},
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
    rows = [{"key": "k1", "blob": "one", "notes": "n1", "junk": "x"}, {"key": "k2", "blob": "two", "notes": "n2"}]
    path = write_table(tmp_path / f"table.{table_format}", rows)
    named = read(table_format, path, id_column="key", text_column="blob", metadata_columns=["notes"])
    assert named.ids == ["k1", "k2"]
    assert named[0].metadata == {"notes": "n1"}
    numbered = read(table_format, path, id_column=None, text_column="blob")
    assert numbered.ids == ["0", "1"]
    assert numbered[0].metadata == {"key": "k1", "notes": "n1", "junk": "x"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"no column 'id' in .*\['key', 'blob'\].*`id_column=None` numbers the rows"),
        ({"id_column": "key", "text_column": "txt"}, r"no column 'txt' in .*\['key', 'blob'\].*`text_column=...`"),
        ({"id_column": "key"}, r"Neither text nor image .*\['key', 'blob'\]"),
        ({"id_column": "key", "text_column": "blob", "metadata_columns": ["x"]}, r"no columns \['x'\] .*'key'"),
    ],
)
def test_unknown_columns_are_answered_with_those_that_exist(table_format, tmp_path, options, message):
    path = write_table(tmp_path / f"table.{table_format}", [{"key": "k1", "blob": "one"}])
    with pytest.raises(InvalidInputError, match=message):
        read(table_format, path, **options)


def test_an_unknown_argument_is_answered_with_those_that_exist(table_format, tmp_path):
    path = write_table(tmp_path / f"table.{table_format}", [{"id": "a", "text": "t"}])
    with pytest.raises(TypeError, match="caption_column.*text_column"):
        read(table_format, path, caption_column="text")


@pytest.mark.parametrize("name", ["../secret.png", "{absolute}", "link.png", "a/../../secret.png"])
def test_an_image_path_never_leaves_the_folder_of_its_table(table_format, tmp_path, name):
    secret = save_image(tmp_path / "secret.png")
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
        (b"", "t.csv is empty. Expected names of columns"),
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
    data = save_image(tmp_path / "a.png", "blue").read_bytes()
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
    path = save_image(tmp_path / "a.jpg", "blue")
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
    paths = datasets.Dataset.from_dict({"id": ["a"], "image": ["/etc/hostname"]})
    with pytest.raises(InvalidInputError, match=r"cast_column\('image', datasets.Image\(\)\)"):
        KnowledgeBase.from_dataset(paths)


def test_a_streamed_data_set_gives_the_same_passages(dataset):
    loaded = KnowledgeBase.from_dataset(dataset, id_column="key")
    streamed = KnowledgeBase.from_dataset(dataset.to_iterable_dataset(num_shards=2), id_column="key")
    assert streamed.table.equals(loaded.table)


def test_a_stream_that_does_not_know_its_columns_is_read_by_its_first_row():
    rows = [{"id": "a", "text": "t", "image": Image.new("RGB", (2, 2)), "year": 1999}, {"id": "b", "text": "u"}]
    rows.append({"id": "c", "text": "v", "image": "/etc/hostname"})
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    assert stream.features is None
    with pytest.raises(InvalidInputError, match="row 2: the image is a string"):
        KnowledgeBase.from_dataset(stream)
    knowledge_base = KnowledgeBase.from_dataset(stream, on_error="skip")
    assert [(passage.id, passage.image is None, passage.metadata) for passage in knowledge_base] == [
        ("a", False, {"year": 1999}),
        ("b", True, {}),
    ]
    assert knowledge_base.skipped[0][0] == "c"


def test_a_stream_may_name_images_inside_an_archive(tmp_path):
    data = save_image(tmp_path / "a.png", "blue").read_bytes()
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.png", data)
    paths = [f"zip://a.png::{tmp_path}/images.zip", f"zip://gone.png::{tmp_path}/images.zip"]
    types = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()})
    rows = [{"id": str(number), "image": path} for number, path in enumerate(paths)]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows), features=types)
    knowledge_base = KnowledgeBase.from_dataset(stream, on_error="skip")
    assert [passage.image_bytes for passage in knowledge_base] == [data]
    assert "cannot be read (gone.png)" in knowledge_base.skipped[0].reason


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, bytes])
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_compressed_tables_are_known_by_their_content(tmp_path, suffix, compress):
    plain = write_table(tmp_path / f"plain.{suffix}", [{"id": "a", "text": "Zoë"}, {"id": "b", "text": "u"}])
    path = tmp_path / f"table.{suffix}.gz"
    path.write_bytes(compress(b"\xef\xbb\xbf" + plain.read_bytes()))
    assert [passage.text for passage in read(suffix, path)] == ["Zoë", "u"]


def test_a_cut_archive_stops_even_when_items_may_be_skipped(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"id,text\n" + b"".join(b"%d,t\n" % row for row in range(5000)))[:-20])
    with pytest.raises(InvalidInputError, match="t.csv.gz: the file cannot be read to its end"):
        KnowledgeBase.from_csv(path, on_error="skip")


def test_values_are_parted_by_tabs_in_tsv_files_or_as_one_says(tmp_path):
    (tmp_path / "t.tsv").write_text("id\ttext\na\tone, two\n")
    (tmp_path / "t.csv").write_text("id;text\na;one, two\n")
    assert KnowledgeBase.from_csv(tmp_path / "t.tsv")[0].text == "one, two"
    assert KnowledgeBase.from_csv(tmp_path / "t.csv", delimiter=";")[0].text == "one, two"


def test_every_broken_item_of_a_jsonl_file_is_left_out_and_reported(tmp_path):
    lines = [
        b'{"id": "a", "text": "t", "image": "a.png"}',
        b'{"id": "b"',
        b"[1]",
        b'{"text": "no id"}',
        b'{"id": "e", "text": "\xff"}',
        b'{"id": "f", "text": 5}',
        b'{"id": "g", "text": "' + b"x" * 70_000 + b'"}',
        b'{"id": "h", "text": "t", "image": "../a.png"}',
        b'{"id": "i", "text": "t", "image": "broken.png"}',
        b'{"id": "a", "text": "again"}',
        b'{"id": "z", "text": "t"}',
    ]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "broken.png").write_bytes(b"no image")
    save_image(tmp_path / "a.png")
    with pytest.raises(InvalidInputError, match="t.jsonl line 2 is not JSON.*on_error"):
        KnowledgeBase.from_jsonl(tmp_path / "t.jsonl")
    report = tmp_path / "report.jsonl"
    knowledge_base = KnowledgeBase.from_jsonl(tmp_path / "t.jsonl", on_error="skip", report_file=report)
    assert knowledge_base.ids == ["a", "z"]
    reported = [json.loads(line) for line in report.read_text().splitlines()]
    assert [item["id"] for item in reported] == [None, None, None, None, "f", "g", "h", "i", "a"]
    assert reported[0]["where"] == "t.jsonl line 2"
    assert all(item["reason"] for item in reported)
    assert [(item.where, item.id, item.reason) for item in knowledge_base.skipped] == [
        (item["where"], item["id"], item["reason"]) for item in reported
    ]


def test_every_broken_row_of_a_csv_file_is_left_out(tmp_path):
    content = b'id,text\na,t\nb,t,more\nc,"open\nd,t"x\ne,\xff\nf\ng,"two\nlines"\n'
    (tmp_path / "t.csv").write_bytes(content)
    knowledge_base = KnowledgeBase.from_csv(tmp_path / "t.csv", on_error="skip")
    assert [(passage.id, passage.text) for passage in knowledge_base] == [("a", "t"), ("g", "two\nlines")]
    assert [item.where for item in knowledge_base.skipped] == [f"t.csv line {number}" for number in (3, 4, 6, 7)]


def test_a_quote_that_is_never_closed_does_not_swallow_rows_in_silence(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'id,text\na,t\nb,"open\nc,t\n')
    with pytest.raises(InvalidInputError, match="t.csv line 3 is not CSV"):
        KnowledgeBase.from_csv(tmp_path / "t.csv")


def test_a_long_document_may_stand_in_one_cell(tmp_path):
    (tmp_path / "t.csv").write_text(f"id,text\na,{'A sentence. ' * 20_000}\n")
    assert len(KnowledgeBase.from_csv(tmp_path / "t.csv", chunking=Chunking(4000))) == 61


def test_files_are_read_in_bounded_memory(tmp_path):
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        for row in range(2_000):
            file.write(json.dumps({"id": row, "text": "x" * 5_000}) + "\n")
    tracemalloc.start()
    num_rows = sum(1 for _ in rows_from_jsonl(tmp_path / "t.jsonl.gz", {}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_rows == 2_000
    assert peak < 1_000_000  # of 10 MB


def test_a_folder_gives_images_with_the_texts_beside_them_and_texts_alone(tmp_path):
    save_image(tmp_path / "birds" / "robin.png", "orange")
    save_image(tmp_path / "fish.JPG")
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
        save_image(tmp_path / "train" / name)
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
    save_image(tmp_path / "secret.png")
    save_image(tmp_path / "data" / "a.png")
    write_table(tmp_path / "data" / "metadata.jsonl", [row])
    with pytest.raises(error, match=message):
        KnowledgeBase.from_folder(tmp_path / "data")


def test_a_folder_does_not_show_what_lies_outside(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    save_image(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(UnsafeInputError, match="a.txt.*leads out of the folder"):
        KnowledgeBase.from_folder(tmp_path / "data")


def test_images_with_one_stem_and_empty_or_missing_folders_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no such folder"):
        KnowledgeBase.from_folder(tmp_path / "gone")
    with pytest.raises(InvalidInputError, match="no passage"):
        KnowledgeBase.from_folder(tmp_path)
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "a.jpg")
    with pytest.raises(InvalidInputError, match="more than once: 'a'"):
        KnowledgeBase.from_folder(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"broken")
    assert KnowledgeBase.from_folder(tmp_path, on_error="skip").skipped[0][0] == "a"


def test_every_broken_item_of_a_folder_is_left_out(tmp_path):
    save_image(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "b.png").write_bytes(b"broken")
    (tmp_path / "data" / "c.txt").write_bytes(b"\xff")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "data" / "d.txt").symlink_to(tmp_path / "secret.txt")
    rows = [{"file_name": "a.png", "text": "An a."}, {"file_name": "gone.png"}, {"file_name": "../secret.txt"}]
    write_table(tmp_path / "data" / "metadata.jsonl", rows)
    knowledge_base = KnowledgeBase.from_folder(tmp_path / "data", on_error="skip")
    assert [(passage.id, passage.text) for passage in knowledge_base] == [("a", "An a.")]
    assert [item.id for item in knowledge_base.skipped] == [None, None, "b", "c", "d"]
