from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm.errors import (
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseNotFoundError,
)
from hf_ravlm.retrieval import (
    RavlmRetriever,
    repair_store,
    store_info,
    verify_store,
)
from hf_ravlm.retrieval.store import loading, row_files
from hf_ravlm.retrieval.store.manifest import Version
from hf_ravlm.retrieval.store.versions import Commit, NewFile, read_version, update_version, verify_file
from hf_ravlm.saving.arrays import open_arrays, write_arrays


FLAGS = Path(__file__).parents[3] / "examples" / "flags" / "checkpoint" / "knowledge_base"
LENGTHS = {"lengths": np.array([7, 8])}


@pytest.fixture
def encoder():
    return HashEncoder()


@pytest.fixture
def store(encoder, tmp_path, monkeypatch):
    """A folder of 160 passages in 8 shards of passages and 8 blocks of vectors, with an HNSW index."""
    monkeypatch.setattr(row_files, "_MAX_ROWS_PER_FILE", 20)
    monkeypatch.setattr(row_files, "_ROWS_PER_BLOCK", 20)
    built(numbered(range(160)), encoder, index="hnsw").save_pretrained(tmp_path)
    return tmp_path / "knowledge_base"


def path_of(store, role: str, number: int = 0) -> Path:
    return read_version(store).files_of(role)[number].path


def flip(path: Path, at: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 4
    path.write_bytes(bytes(data))


def opened(store, encoder, **options) -> RavlmRetriever:
    return RavlmRetriever.from_pretrained(store, encoder=encoder, **options)


def ids_found(retriever: RavlmRetriever) -> set[str]:
    texts = [f"topic{n % 7} number {n} first" for n in range(160)]
    return {item.id for found in retriever.retrieve(texts=texts, k=3) for item in found}


# --- Damage


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_damaged_shard_costs_its_own_passages_and_says_how_many(store, encoder, damage, caplog):
    opened(store, encoder).remove(["41", "2"])
    damage(path_of(store, "passages", 2))
    for on_error in ("raise", "rebuild"):
        with pytest.raises(KnowledgeBaseCorruptError):
            opened(store, encoder, on_error=on_error)
    with caplog.at_level(logging.WARNING, logger="hf_ravlm"):
        retriever = opened(store, encoder, on_error="skip_shard")
    assert retriever.num_missing == 19
    assert "19 of 158 passages are lost" in caplog.text
    right = {str(n) for n in range(160) if not 40 <= n < 60} - {"2"}
    assert set(retriever.knowledge_base.ids) == ids_found(retriever) == right
    with pytest.raises(KnowledgeBaseCorruptError, match="19 passages could not be read.*[Rr]epair"):
        retriever.add(numbered([500]))
    report = verify_store(store)
    assert (report["ok"], report["missing"], report["passages"]) == (False, 19, 139)
    assert [file["role"] for file in report["files"] if file["problem"]] == ["passages"]


def test_a_damaged_block_of_vectors_costs_its_own_passages(store, encoder):
    flip(path_of(store, "vectors"), at=0.4)
    retriever = opened(store, encoder, on_error="skip_shard")
    assert retriever.num_missing == 20
    assert (
        set(retriever.knowledge_base.ids) == ids_found(retriever) == {str(n) for n in range(160) if not 60 <= n < 80}
    )
    path = path_of(store, "vectors")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert opened(store, encoder, on_error="skip_shard").num_missing == 20 + 80
    path.unlink()
    with pytest.raises(KnowledgeBaseCorruptError, match="none of its 160 passages"):
        opened(store, encoder, on_error="skip_shard")


def test_a_damaged_index_is_built_again_from_the_vectors(store, encoder, caplog):
    whole = opened(store, encoder)
    expected = ids_found(whole)
    del whole
    flip(path_of(store, "index"))
    with pytest.raises(KnowledgeBaseCorruptError, match="checksum"):
        opened(store, encoder)
    with caplog.at_level(logging.WARNING, logger="hf_ravlm"):
        retriever = opened(store, encoder, on_error="rebuild")
    assert "built from the vectors" in caplog.text
    assert retriever.index.spec["kind"] == "hnsw"
    assert ids_found(retriever) == expected
    retriever.add(numbered([900]))  # stores the new index
    assert opened(store, encoder).index.spec["kind"] == "hnsw"


def test_a_missing_index_is_no_damage(store, encoder):
    path_of(store, "index").unlink()
    assert opened(store, encoder).index.spec["kind"] == "hnsw"


def test_wrong_choices_are_listed(store, encoder):
    with pytest.raises(InvalidInputError, match='"raise", "rebuild" or "skip_shard"'):
        opened(store, encoder, on_error="ignore")
    with pytest.raises(InvalidInputError, match='"full" or "size"'):
        opened(store, encoder, verify="no")


def test_sizes_alone_are_compared_when_asked_for(store, encoder):
    flip(path_of(store, "index"), at=0.9)
    path = path_of(store, "passages", 3)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(KnowledgeBaseCorruptError, match="bytes instead of"):
        opened(store, encoder, verify="size")


# --- Indexes of others


def test_an_index_that_somebody_else_wrote_is_not_loaded_unless_allowed(
    store, encoder, own_cache, monkeypatch, caplog
):
    calls = []
    original = loading.open_index
    monkeypatch.setattr(loading, "open_index", lambda *args, **kw: calls.append(1) or original(*args, **kw))
    opened(store, encoder)
    assert calls == [1]
    shutil.rmtree(own_cache / "hf_ravlm")  # as on another machine
    with caplog.at_level(logging.WARNING, logger="hf_ravlm"):
        retriever = opened(store, encoder)
    assert calls == [1]
    assert "allow_foreign_index=True" in caplog.text
    assert retriever.index.spec["kind"] == "hnsw"
    opened(store, encoder, allow_foreign_index=True)
    assert calls == [1, 1]
    retriever.add(numbered([900]))  # writes an index of our own
    opened(store, encoder)
    assert calls == [1, 1, 1]


def test_a_cache_that_cannot_be_written_makes_everything_foreign(encoder, own_cache, tmp_path, monkeypatch):
    (own_cache / "hf_ravlm").write_text("a file in the way")
    built(numbered(range(120)), encoder, index="hnsw").save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "open_index", None)
    assert len(opened(tmp_path, encoder)) == 120


# --- Care


def test_info_and_verify_describe_a_whole_store_in_json(store, encoder):
    opened(store, encoder).remove("7")
    info, report = store_info(store), verify_store(store)
    json.dumps([info, report])
    assert (info["generation"], info["format"], info["passages"], info["removed"]) == ("gen-00000002", 2, 159, 1)
    assert info["index"] == {"kind": "hnsw", "indexed_rows": 160, "written_here": True}
    assert info["encoder"] == {"name": "HashEncoder", "fingerprint": "a" * 64, "dim": 32, "has_probe": True}
    assert info["files"]["passages"]["files"] == 8
    assert info["bytes"] == sum(file["bytes"] for file in report["files"])
    assert info["generations"] == ["gen-00000001", "gen-00000002"]
    assert (report["ok"], report["passages"], report["missing"], report["problems"]) == (True, 159, 0, [])
    assert all(file["problem"] is None for file in report["files"])


def test_reports_do_not_say_where_the_folder_lies(store):
    flip(path_of(store, "passages"))
    (store / "manifests" / "gen-00000009.json").write_text("{}")
    assert str(store.parent) not in json.dumps([verify_store(store), store_info(store)])
    (store / "CURRENT").write_text("garbage")
    report = verify_store(store)
    assert str(store.parent) not in json.dumps(report)
    assert report["generation"] is None
    assert "CURRENT" in report["problems"][0]


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("gen-1 x\n")])
def test_repair_finds_the_newest_version_that_is_whole(store, encoder, damage):
    retriever = opened(store, encoder)
    retriever.add(numbered([500]))
    retriever.remove("500")
    (store / "manifests" / "gen-00000007.json").write_text("junk")
    damage(store / "CURRENT")
    report = repair_store(store)
    assert report["ok"]
    assert report["generation"] == "gen-00000003"
    assert "made gen-00000003 the current version" in report["actions"]
    assert len(opened(store, encoder)) == 160
    report = repair_store(store, to="gen-00000002")
    assert len(opened(store, encoder)) == 161
    with pytest.raises(KnowledgeBaseNotFoundError, match="no version gen-00000044"):
        repair_store(store, to="gen-00000044")


def test_repair_gives_up_passages_only_when_told_to(store, encoder):
    flip(path_of(store, "passages", 7))
    flip(path_of(store, "vectors"), at=0.1)
    report = repair_store(store)
    assert not report["ok"]
    assert report["missing"] == 40
    report = repair_store(store, drop_damaged=True)
    assert report["actions"] == ["gave up 40 passages and kept 120"]
    assert (report["ok"], report["passages"]) == (True, 120)
    retriever = opened(store, encoder)
    assert retriever.index.spec["kind"] == "hnsw"
    assert ids_found(retriever) == {str(n) for n in range(20, 140)}


def test_repair_builds_a_damaged_or_foreign_index(store, own_cache):
    flip(path_of(store, "index"))
    report = repair_store(store)
    assert report["ok"]
    assert report["actions"] == ["built the index of 160 rows from the vectors"]
    shutil.rmtree(own_cache / "hf_ravlm")
    assert not store_info(store)["index"]["written_here"]
    repair_store(store)
    assert store_info(store)["index"]["written_here"]
    assert repair_store(store)["actions"] == []


def test_there_is_nothing_to_look_at_in_an_empty_folder(tmp_path):
    for look in (store_info, verify_store, repair_store):
        with pytest.raises(KnowledgeBaseNotFoundError):
            look(tmp_path)
    assert not list(tmp_path.iterdir())


# --- Files made from others


def attach(store: Path, made_from: str = "passages", number: int = 8) -> None:
    """Commits a file of the role `"lengths"`, made from the first files of a role."""

    def plan(current: Version) -> Commit:
        sources = current.files_of(made_from)[:number]
        rows = sum(file.rows for file in sources)
        origin = {"made_from": made_from, "first_row": 0, "built_from": [file.sha256 for file in sources]}
        lengths = NewFile("lengths", "safetensors", rows, lambda path: write_arrays(path, LENGTHS), origin)
        return Commit(current.fields, [*current.files, lengths])

    update_version(store, plan)


def test_a_derived_file_holds_as_long_as_its_sources_stand_first(store, encoder):
    retriever = opened(store, encoder)
    attach(store)
    retriever.remove("3")
    retriever.add(numbered([500]))
    (file,) = read_version(store).derived_files("lengths")
    verify_file(file)
    assert file.rows == 160  # not the one that was added
    assert open_arrays(file.path)[0]["lengths"].tolist() == [7, 8]
    retriever.compact()
    assert read_version(store).derived_files("lengths") == []
    assert opened(store, encoder).knowledge_base.ids == retriever.knowledge_base.ids


@pytest.mark.parametrize(
    "fields", [{"first_row": 20}, {"made_from": ["passages"]}, {"made_from": "tokens"}, {"built_from": "all"}, {}]
)
def test_a_derived_file_of_other_rows_is_ignored(store, fields):
    attach(store)
    version = read_version(store)
    (file,) = version.files_of("lengths")
    other = replace(file, rows=140) if not fields else replace(file, fields={**file.fields, **fields})
    files = tuple(other if one is file else one for one in version.files)
    assert version.derived_files("lengths") == [file]
    assert replace(version, files=files).derived_files("lengths") == []


def test_a_damaged_derived_file_is_dropped_by_repair(store, encoder):
    attach(store)
    flip(path_of(store, "lengths"))
    assert len(opened(store, encoder)) == 160  # nobody asked for it
    assert not verify_store(store)["ok"]
    assert repair_store(store)["actions"] == ["dropped a damaged file of the role 'lengths'"]
    assert verify_store(store)["ok"]


# --- Formats


def test_the_shipped_store_opens():
    report = verify_store(FLAGS)
    assert report["ok"]
    assert report["passages"] == store_info(FLAGS)["passages"] > 2000
