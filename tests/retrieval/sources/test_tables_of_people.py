"""Tables as people and spreadsheets write them: marks, quotes, encodings, names of columns, numbers, image paths."""

from __future__ import annotations

import base64
import datetime
import io
import json
from decimal import Decimal
from uuid import UUID

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_ravlm import KnowledgeBase
from hf_ravlm.errors import InvalidInputError, UnsafeInputError
from hf_ravlm.retrieval.ranking.filters import matching_rows
from hf_ravlm.retrieval.sources.tables import csv_records


def read_csv(tmp_path, content, name="t.csv", **options):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return KnowledgeBase.from_csv(tmp_path / name, **options)


def texts(knowledge_base):
    return {passage.id: passage.text for passage in knowledge_base}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "id;text;place\na;red, with white;x\n"),
        ("t.csv", "id\ttext\tplace\na\tred, with white\tx\n"),
        ("t.csv", "id|text|place\na|red, with white|x\n"),
        ("t.csv", 'id,text,place\na,"red, with white",x\n'),
        ("t.csv", "sep=;\nid;text;place\na;red, with white;x\n"),
        ("t.tsv", "id;text;place\na;red, with white;x\n"),
        ("t.TSV", "id\ttext\tplace\na\tred, with white\tx\n"),
        ("t.csv", "id\ttext\tplace\na\tred, with white\tx\n".encode("utf-16")),
        ("t.csv", 'id,text,place\ra,"red, with white",x\r'),
        ("t.csv", "\ufeffid;text;place\ra;red, with white;x"),
    ],
)
def test_the_mark_between_values_is_found(tmp_path, name, content):
    knowledge_base = read_csv(tmp_path, content, name)
    assert texts(knowledge_base) == {"a": "red, with white"}
    assert knowledge_base[0].metadata == {"place": "x"}


def test_values_of_databases_become_plain_ones(tmp_path):
    values = {"price": Decimal("1.50"), "count": Decimal("3.00"), "day": datetime.date(2020, 2, 1)}
    pq.write_table(
        pa.table({"id": ["a"], "text": ["t"], **{k: [v] for k, v in values.items()}}), tmp_path / "t.parquet"
    )
    knowledge_base = KnowledgeBase.from_parquet(tmp_path / "t.parquet")
    assert knowledge_base[0].metadata == {"price": 1.5, "count": 3, "day": "2020-02-01"}
    assert matching_rows(knowledge_base.table, {"price": {"max": 2}}).tolist() == [True]
    key = UUID(int=7)
    assert KnowledgeBase.from_dicts([{"id": "a", "text": "t", "key": key}])[0].metadata == {"key": str(key)}


def test_a_wrong_delimiter_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="expected one character"):
        read_csv(tmp_path, "id;text\na;b\n", delimiter=";;")
    assert texts(read_csv(tmp_path, "id\ttext\na\tb\n", delimiter="\\t")) == {"a": "b"}


TSV = [
    ('a\t"The" bird\tx', ('"The" bird', "x")),
    ('b\t5" screen\tx', ('5" screen', "x")),
    ('c\t"open\tx', ('"open', "x")),
    ('d\tclosed"\tx', ('closed"', "x")),
    ('e\t"quoted ""so"""\tx', ('quoted "so"', "x")),
    ('f\t"two\nlines"\tx', ("two\nlines", "x")),
    ('g\t"a\ttab"\tx', ("a\ttab", "x")),
    ('h\tlast\t"open', ("last", '"open')),
    ('i\tlast\t"two\nlines"', ("last", "two\nlines")),
    ('j\t"\tx', ('"', "x")),
]


def test_quotes_in_a_tsv_file_lose_no_row_and_no_count(tmp_path):
    (tmp_path / "t.tsv").write_text("id\ttext\tplace\n" + "\n".join(line for line, _ in TSV) + "\n")
    records = list(csv_records(tmp_path / "t.tsv"))
    assert [(record.values["text"], record.values["place"]) for record in records] == [right for _, right in TSV]
    assert [record.where.split()[-1] for record in records] == ["2", "3", "4", "5", "6", "7", "9", "10", "11", "13"]


def test_rows_that_an_open_quote_swallows_are_named(tmp_path):
    knowledge_base = read_csv(tmp_path, 'id,text\na,t\nb,"open\nc,t\nd,t\n', on_error="skip")
    assert knowledge_base.ids == ["a"]
    assert "lines 3 to 5 were taken for one" in knowledge_base.skipped[0].reason


@pytest.mark.parametrize(
    ("header", "text", "title", "metadata"),
    [
        ("ID, Text ,TITLE", "one", "two", {}),
        ("id,Caption,Name", "one", "two", {"Name": "two"}),
        ("id,page_content,source", "one", None, {}),
        ("id,Description,colour", "one", None, {"colour": "two"}),
        ("_id,body,title", "one", "two", {}),
        ("\ufeffid,content,label", "one", "two", {"label": "two"}),
        ("id,text,caption", "one", None, {"caption": "two"}),
        ("id,te\u200bxt,Title", "one", "two", {}),
    ],
)
def test_columns_are_found_by_what_people_call_them(tmp_path, header, text, title, metadata):
    passage = read_csv(tmp_path, f"{header}\nx,one,two\n")[0]
    assert (passage.id, passage.text, passage.title, passage.metadata) == ("x", text, title, metadata)


@pytest.mark.parametrize("key", ["text", "Text", "caption", "page_content", "content", "body"])
def test_dictionaries_are_read_like_tables(key):
    passage = KnowledgeBase.from_dicts([{"id": "a", key: "words", "name": "n"}])[0]
    assert (passage.text, passage.metadata) == ("words", {"name": "n"})


def test_two_columns_of_one_name_are_refused_with_both(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["id", "text", "text"]), tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match=r"\['text'\] occur twice \('text' as columns 2 and 3\)"):
        KnowledgeBase.from_parquet(tmp_path / "t.parquet")
    with pytest.raises(InvalidInputError, match=r"'Text', 'TEXT'"):
        read_csv(tmp_path, "id,Text,TEXT\na,b,c\n")
    (tmp_path / "t.jsonl").write_text('{"id": "a", "text": "b"}\n{"id": "b", "text": "c", "text": "d"}\n')
    with pytest.raises(InvalidInputError, match=r"t.jsonl line 2 .*\['text'\] come twice"):
        KnowledgeBase.from_jsonl(tmp_path / "t.jsonl")


def test_columns_of_numbers_can_be_asked_for(tmp_path):
    content = "id,text,year,mass\na,t,1900,1.5\nb,t,2000,\u22122e3\nc,t,,\n"
    plain = read_csv(tmp_path, content)
    assert plain[0].metadata == {"year": "1900", "mass": "1.5"}
    knowledge_base = read_csv(tmp_path, content, numeric_columns=["year", "mass"])
    assert [passage.metadata for passage in knowledge_base] == [
        {"year": 1900, "mass": 1.5},
        {"year": 2000, "mass": -2000.0},
        {},
    ]
    assert matching_rows(knowledge_base.table, {"year": {"min": 1950}}).tolist() == [False, True, False]
    assert matching_rows(knowledge_base.table, {"metadata.mass": {"max": 0}}).tolist() == [False, True, False]


@pytest.mark.parametrize("cell", ["3,5", "many", "1_000", "nan", "0x10"])
def test_what_is_no_number_is_refused_with_its_line(tmp_path, cell):
    content = f'id;text;mass\na;t;1\nb;t;"{cell}"\n'
    with pytest.raises(InvalidInputError, match=f"t.csv line 3: 'mass' holds '{cell}', which is no number"):
        read_csv(tmp_path, content, numeric_columns=["mass"])
    assert read_csv(tmp_path, content, numeric_columns=["mass"], on_error="skip").ids == ["a"]
    with pytest.raises(InvalidInputError, match=r"no columns \['weight'\]"):
        read_csv(tmp_path, content, numeric_columns=["weight"])


def test_jsonl_of_other_programs(tmp_path):
    lines = '{"id": "a", "text": "Zoë"}\n{"id": "b", "text": "u\u2028v"}\n'
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "t.jsonl").write_bytes(lines.encode(encoding))
        assert texts(KnowledgeBase.from_jsonl(tmp_path / "t.jsonl")) == {"a": "Zoë", "b": "u\nv"}
    (tmp_path / "t.jsonl").write_bytes((lines + "\ufeff" + '{"id": "c", "text": "w"}').encode())
    assert KnowledgeBase.from_jsonl(tmp_path / "t.jsonl").ids == ["a", "b", "c"]
    (tmp_path / "t.jsonl").write_bytes(lines.encode("utf-16-le"))
    with pytest.raises(InvalidInputError, match="NUL bytes.*Save it as UTF-8"):
        KnowledgeBase.from_jsonl(tmp_path / "t.jsonl", on_error="skip")


@pytest.fixture
def catalogue(tmp_path):
    """A table whose images lie in a folder of their own, by four ways of naming them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "data").mkdir()
    for name in ("a", "b", "c", "d", "outside"):
        Image.new("RGB", (6, 4), "red").save((tmp_path if name == "outside" else photos) / f"{name}.png")
    (tmp_path / "data" / "link.png").symlink_to(photos / "c.png")
    images = ["a.png", str(photos / "b.png"), "link.png", "../photos/d.png"]
    rows = [{"id": str(row), "text": "t", "image": image} for row, image in enumerate(images)]
    (tmp_path / "data" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_images_of_another_folder_are_taken_where_it_is_allowed(catalogue):
    with pytest.raises(UnsafeInputError, match="gone|no such file"):
        KnowledgeBase.from_jsonl(catalogue / "data" / "t.jsonl")
    strict = KnowledgeBase.from_jsonl(catalogue / "data" / "t.jsonl", on_error="keep_text")
    assert len(strict) == 4
    assert strict.table["image"].null_count == 4
    assert [item.where for item in strict.skipped] == [f"t.jsonl line {number}" for number in (1, 2, 3, 4)]
    assert all("image_root=" in item.reason for item in strict.skipped[1:])
    free = KnowledgeBase.from_jsonl(catalogue / "data" / "t.jsonl", image_root=catalogue / "photos")
    assert free.table["image"].null_count == 0


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.png", "{root}/photos/../outside.png", "a\0b.png"])
def test_what_lies_under_no_root_is_refused_with_its_line(catalogue, name):
    row = {"id": "x", "text": "t", "image": name.format(root=catalogue)}
    (catalogue / "data" / "u.jsonl").write_text("\n" + json.dumps(row))
    with pytest.raises(UnsafeInputError, match="u.jsonl line 2.*not a safe file name.*image_root="):
        KnowledgeBase.from_jsonl(catalogue / "data" / "u.jsonl", image_root=[catalogue / "photos"])
    with pytest.raises(InvalidInputError, match="no such folder"):
        KnowledgeBase.from_jsonl(catalogue / "data" / "u.jsonl", image_root=catalogue / "gone")


def test_a_broken_image_may_cost_the_image_alone(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    content = "id,text,image\na,t,broken.png\nb,t,gone.png\nc,,gone.png\nd,t,\n"
    knowledge_base = read_csv(tmp_path, content, on_error="keep_text")
    assert knowledge_base.ids == ["a", "b", "d"]
    assert [item.id for item in knowledge_base.skipped] == ["a", "b", "c"]
    assert "The text was kept." in knowledge_base.skipped[0].reason


ADDRESSES = ["https://example.org/a.png", "HTTP://example.org/a.png?size=9", "s3://shop/a.png", "file:///tmp/a.png"]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_address_of_an_image_is_told_as_one_and_never_fetched(tmp_path, suffix, address):
    file = tmp_path / f"shop{suffix}"
    table = pa.table({"id": ["a", "b"], "text": ["a lamp", "a bowl"], "image": [address, None]})
    if suffix == ".parquet":
        pq.write_table(table, file)
    elif suffix == ".csv":
        file.write_text(f"id,text,image\na,a lamp,{address}\nb,a bowl,\n")
    else:
        file.write_text("\n".join(map(json.dumps, table.to_pylist())))
    read = getattr(KnowledgeBase, f"from_{suffix[1:]}")
    with pytest.raises(
        UnsafeInputError, match=r"this is an address.*never fetched.*Download it.*on_error=\"keep_text\""
    ):
        read(file)
    kept = read(file, on_error="keep_text")
    assert (kept.ids, kept.table["image"].null_count) == (["a", "b"], 2)
    assert read(file, on_error="skip").ids == ["b"]


def test_an_address_in_the_metadata_of_a_folder_is_told_as_one(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,text\nhttps://example.org/a.png,a lamp\n")
    with pytest.raises(UnsafeInputError, match="this is an address"):
        KnowledgeBase.from_folder(tmp_path)


def test_an_image_in_the_cell_itself_is_read(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), "red").save(buffer, "PNG")
    row = {"id": "a", "image": f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert KnowledgeBase.from_jsonl(tmp_path / "t.jsonl")[0].image.size == (6, 4)


def test_names_of_classes_stay(tmp_path):
    kinds = datasets.ClassLabel(names=["robin", "wren"])
    features = datasets.Features(
        {"id": datasets.Value("string"), "text": datasets.Value("string"), "kind": kinds, "kinds": [kinds]}
    )
    dataset = datasets.Dataset.from_dict({"id": ["a"], "text": ["t"], "kind": [1], "kinds": [[0, 1]]}, features)
    for source in (dataset, dataset.to_iterable_dataset()):
        assert KnowledgeBase.from_dataset(source)[0].metadata == {"kind": "wren", "kinds": ["robin", "wren"]}


def test_an_empty_number_is_left_out_and_an_infinite_one_refused():
    row = {"id": "a", "text": "a kite", "price": float("nan")}
    assert KnowledgeBase.from_dicts([row])["a"].metadata == {}
    for infinite in (float("inf"), -np.float32("inf")):
        with pytest.raises(InvalidInputError, match="row 0.*the metadata cannot be written as JSON"):
            KnowledgeBase.from_dicts([{**row, "price": infinite}])
