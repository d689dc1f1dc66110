from __future__ import annotations

import hashlib
import json
import os
import signal

import numpy as np
import pyarrow as pa
import pytest

from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError, UnsafeInputError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.retrieval.encoding import corpus as corpus_module
from hf_ravlm.retrieval.encoding.corpus import embed_corpus
from hf_ravlm.retrieval.passage import input_digest


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child, and this system has no fork")


class CountingEncoder:
    """A vector from the letters of a text; remembers what it was asked, and how the rows came."""

    name = "letters"

    def __init__(self, fingerprint: str = "a" * 64):
        self.fingerprint = fingerprint
        self.calls: list[list[str]] = []

    def encode_passages(self, texts, images):
        self.calls.append(list(texts))
        return np.stack([self._vector(text) for text in texts])

    @staticmethod
    def _vector(text):
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return np.random.default_rng(seed).normal(size=5).astype(np.float32)


def corpus(n: int = 23) -> KnowledgeBase:
    lengths = np.random.default_rng(0).integers(1, 40, n)
    return KnowledgeBase.from_dicts(
        [{"id": f"p{row}", "text": f"{row} {'x' * length}"} for row, length in enumerate(lengths)]
    )


SMALL = {"batch_size": 1, "shard_rows": 4, "process": (0, 1)}


@pytest.fixture(autouse=True)
def small_calls(monkeypatch):
    """Two passages in a call of the encoder, so that small corpora have many."""
    monkeypatch.setattr(corpus_module, "_TEXT_BATCHES_PER_CALL", 2)


def run_in_child(work) -> int:
    """Runs something in a forked child; returns its exit code, negative for the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def bits(vectors) -> bytes:
    return np.ascontiguousarray(vectors).tobytes()


def test_staging_changes_no_bit_and_every_row_is_encoded_once(tmp_path):
    knowledge_base, plain, staged = corpus(), CountingEncoder(), CountingEncoder()
    in_memory = embed_corpus(knowledge_base, plain, batch_size=1)
    on_disk = embed_corpus(knowledge_base, staged, staging=tmp_path, **SMALL)
    assert in_memory.shape == (23, 5)
    assert in_memory.dtype == on_disk.dtype == np.float32
    assert bits(in_memory) == bits(on_disk)
    np.testing.assert_allclose(np.linalg.norm(on_disk, axis=1), 1, atol=1e-6)
    for encoder in (plain, staged):
        assert sorted(text for call in encoder.calls for text in call) == sorted(p.text for p in knowledge_base)
    first = CountingEncoder._vector(knowledge_base[0].text)
    np.testing.assert_allclose(on_disk[0], first / np.linalg.norm(first), rtol=1e-5)


def test_rows_of_a_shard_are_encoded_from_the_longest_to_the_shortest(tmp_path):
    encoder = CountingEncoder()
    embed_corpus(corpus(8), encoder, staging=tmp_path, **SMALL)
    lengths = [len(text) for call in encoder.calls for text in call]
    assert [len(call) for call in encoder.calls] == [2] * 4
    assert lengths[:4] == sorted(lengths[:4], reverse=True)
    assert lengths[4:] == sorted(lengths[4:], reverse=True)


def test_a_finished_job_is_opened_and_not_run_again(tmp_path):
    knowledge_base = corpus()
    first = embed_corpus(knowledge_base, CountingEncoder(), staging=tmp_path, **SMALL)
    encoder = CountingEncoder()
    again = embed_corpus(knowledge_base, encoder, staging=tmp_path, **SMALL)
    assert encoder.calls == []
    assert bits(again) == bits(first)
    assert not again.flags.writeable


@needs_fork
def test_a_kill_at_any_call_of_the_encoder_costs_one_shard_and_changes_no_bit(tmp_path):
    knowledge_base = corpus()
    expected = bits(embed_corpus(knowledge_base, CountingEncoder(), staging=tmp_path / "whole", **SMALL))
    num_calls = 12  # six shards of two calls, the last one of 3 rows
    for killed_at in range(1, num_calls + 1):
        staging = tmp_path / str(killed_at)

        class Mortal(CountingEncoder):
            def encode_passages(self, texts, images):
                vectors = super().encode_passages(texts, images)
                if len(self.calls) == killed_at:  # noqa: B023
                    os.kill(os.getpid(), signal.SIGKILL)
                return vectors

        code = run_in_child(lambda: embed_corpus(knowledge_base, Mortal(), staging=staging, **SMALL))  # noqa: B023
        assert code == -signal.SIGKILL
        encoder = CountingEncoder()
        assert bits(embed_corpus(knowledge_base, encoder, staging=staging, **SMALL)) == expected
        finished_shards = (killed_at - 1) // 2
        assert len(encoder.calls) == num_calls - 2 * finished_shards


@needs_fork
def test_a_kill_at_any_step_on_the_disk_loses_no_finished_shard_and_changes_no_bit(tmp_path):
    knowledge_base = corpus(7)
    expected = bits(embed_corpus(knowledge_base, CountingEncoder(), staging=tmp_path / "whole", **SMALL))
    steps = ["fsync", "replace", "open", "mkdir"]

    def die_at(step_to_die_at, real, count):
        def step(*args, **kwargs):
            count[0] += 1
            if count[0] == step_to_die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return step

    def embed_until(staging, step_to_die_at):
        count = [0]
        for name in steps:
            setattr(os, name, die_at(step_to_die_at, getattr(os, name), count))
        embed_corpus(knowledge_base, CountingEncoder(), staging=staging, **SMALL)

    killed = 0
    while True:
        staging = tmp_path / str(killed)
        if run_in_child(lambda: embed_until(staging, killed + 1)) == 0:  # noqa: B023
            break
        finished = {path.stem for path in staging.glob("*/shard-*.json")}
        encoder = CountingEncoder()
        assert bits(embed_corpus(knowledge_base, encoder, staging=staging, **SMALL)) == expected
        assert len(encoder.calls) <= 4 - 2 * len(finished)
        assert not list(staging.glob("*/*.tmp"))
        killed += 1
    assert killed > 30  # two shards and their records, the plan and the merge take about this many steps


@needs_fork
def test_processes_share_the_shards_and_all_get_the_whole(tmp_path):
    knowledge_base = corpus()
    expected = embed_corpus(knowledge_base, CountingEncoder(), batch_size=1)

    def worker(rank):
        encoder = CountingEncoder()
        options = {**SMALL, "process": (rank, 3)}
        vectors = embed_corpus(knowledge_base, encoder, staging=tmp_path / "job", timeout_seconds=30, **options)
        result = {"bits": bits(vectors).hex(), "texts": [text for call in encoder.calls for text in call]}
        (tmp_path / f"{rank}.json").write_text(json.dumps(result))

    children = []
    for rank in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                worker(rank)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert all(bytes.fromhex(result["bits"]) == bits(expected) for result in results)
    texts = [text for result in results for text in result["texts"]]
    assert sorted(texts) == sorted(passage.text for passage in knowledge_base)
    assert all(result["texts"] for result in results)


def test_the_launcher_says_which_process_this_is(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    encoder = CountingEncoder()
    options = {"batch_size": 1, "shard_rows": 4, "staging": tmp_path, "timeout_seconds": 0.3}
    with pytest.raises(TimeoutError, match="rank 0 has not joined the shards within 0.3 s"):
        embed_corpus(corpus(8), encoder, **options)
    assert [text.split()[0] for call in encoder.calls for text in sorted(call)] != []
    assert {int(text.split()[0]) for call in encoder.calls for text in call} == {4, 5, 6, 7}


def test_a_missing_process_is_named_and_what_is_finished_is_kept(tmp_path):
    knowledge_base = corpus(12)
    options = {"batch_size": 1, "shard_rows": 4, "staging": tmp_path}
    with pytest.raises(TimeoutError, match=r"1 of 3 shards are missing.*rank \[1\] of 2.*run again"):
        embed_corpus(knowledge_base, CountingEncoder(), process=(0, 2), timeout_seconds=0.3, **options)
    encoder = CountingEncoder()
    embed_corpus(knowledge_base, encoder, process=(0, 1), **options)
    assert len(encoder.calls) == 2


def test_a_process_with_another_encoder_is_suspected(tmp_path):
    options = {"batch_size": 1, "shard_rows": 4, "staging": tmp_path, "timeout_seconds": 0.3}
    for rank, fingerprint in ((1, "b" * 64), (0, "a" * 64)):
        with pytest.raises(TimeoutError) as error:
            embed_corpus(corpus(8), CountingEncoder(fingerprint), process=(rank, 2), **options)
    assert "same encoder in the same number type" in str(error.value)


@pytest.mark.parametrize("change", ["encoder", "text", "order", "shard_rows", "batch_size"])
def test_another_encoder_input_or_boundary_is_another_job(tmp_path, change):
    knowledge_base, options = corpus(), dict(SMALL)
    embed_corpus(knowledge_base, CountingEncoder(), staging=tmp_path, **options)
    encoder = CountingEncoder("b" * 64 if change == "encoder" else "a" * 64)
    rows = [{"id": passage.id, "text": passage.text} for passage in knowledge_base]
    if change == "text":
        rows[3]["text"] += "!"
    elif change == "order":
        rows = rows[::-1]
    elif change in options:
        options[change] += 1
    vectors = embed_corpus(KnowledgeBase.from_dicts(rows), encoder, staging=tmp_path, **options)
    assert sum(map(len, encoder.calls)) == 23
    assert bits(vectors) == bits(embed_corpus(KnowledgeBase.from_dicts(rows), encoder, batch_size=1))


def test_the_input_digest_sees_what_is_embedded_and_nothing_else():
    rows = [{"id": "1", "text": "ab"}, {"id": "2", "text": "c"}]
    digest = input_digest(KnowledgeBase.from_dicts(rows).table)
    assert digest == input_digest(
        KnowledgeBase.from_dicts([{**row, "title": "x", "id": row["id"] * 2} for row in rows]).table
    )
    assert digest != input_digest(
        KnowledgeBase.from_dicts([{"id": "1", "text": "a"}, {"id": "2", "text": "bc"}]).table
    )
    one_by_one = pa.concat_tables(KnowledgeBase.from_dicts([row]).table for row in rows)
    assert one_by_one["text"].num_chunks == 2
    assert digest == input_digest(one_by_one)


@pytest.mark.parametrize("damage", ["flip", "cut", "record", "no record", "no shard"])
def test_a_damaged_shard_does_not_count(tmp_path, damage):
    knowledge_base = corpus()
    expected = bits(embed_corpus(knowledge_base, CountingEncoder(), staging=tmp_path, **SMALL))
    job = next(tmp_path.iterdir())
    for name in ("vectors.json", "vectors.safetensors"):
        (job / name).unlink()
    shard, record = job / "shard-00002.safetensors", job / "shard-00002.json"
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-4])
    elif damage == "record":
        record.write_text("{")
    else:
        (record if damage == "no record" else shard).unlink()
    encoder = CountingEncoder()
    assert bits(embed_corpus(knowledge_base, encoder, staging=tmp_path, **SMALL)) == expected
    assert len(encoder.calls) == 2


def test_a_damaged_result_is_joined_again_without_encoding(tmp_path):
    knowledge_base = corpus()
    expected = bits(embed_corpus(knowledge_base, CountingEncoder(), staging=tmp_path, **SMALL))
    merged = next(tmp_path.iterdir()) / "vectors.safetensors"
    content = bytearray(merged.read_bytes())
    content[-1] ^= 4
    merged.write_bytes(content)
    encoder = CountingEncoder()
    assert bits(embed_corpus(knowledge_base, encoder, staging=tmp_path, **SMALL)) == expected
    assert encoder.calls == []


def test_a_damaged_plan_is_refused(tmp_path):
    embed_corpus(corpus(), CountingEncoder(), staging=tmp_path, **SMALL)
    (next(tmp_path.iterdir()) / "plan.json").write_text("{}")
    with pytest.raises(KnowledgeBaseCorruptError, match="Delete"):
        embed_corpus(corpus(), CountingEncoder(), staging=tmp_path, **SMALL)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_vector_without_direction_names_its_passage_and_keeps_the_shards_before(tmp_path, value):
    class Faulty(CountingEncoder):
        def encode_passages(self, texts, images):
            vectors = super().encode_passages(texts, images)
            vectors[[text.startswith("13 ") for text in texts]] = value
            return vectors

    with pytest.raises(UnsafeInputError, match="'p13'"):
        embed_corpus(corpus(), Faulty(), staging=tmp_path, **SMALL)
    encoder = CountingEncoder()
    embed_corpus(corpus(), encoder, staging=tmp_path, **SMALL)
    assert len(encoder.calls) == 12 - 2 * 3


def test_a_full_memory_halves_the_batch_inside_its_boundaries(tmp_path):
    class Small(CountingEncoder):
        def encode_passages(self, texts, images):
            if len(texts) > 1:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().encode_passages(texts, images)

    vectors = embed_corpus(corpus(), Small(), staging=tmp_path, **SMALL)
    assert bits(vectors) == bits(embed_corpus(corpus(), CountingEncoder(), batch_size=1))


def test_images_are_decoded_a_batch_at_a_time(knowledge_base, encoder, tmp_path):
    vectors = embed_corpus(knowledge_base, encoder, batch_size=3, staging=tmp_path, process=(0, 1))
    assert [size for _, size in encoder.calls] == [3, 3, 1]
    np.testing.assert_array_equal(vectors, embed_corpus(knowledge_base, encoder, batch_size=3))


def test_an_empty_knowledge_base_has_no_vectors(tmp_path):
    assert embed_corpus(KnowledgeBase(), CountingEncoder(), staging=tmp_path).shape == (0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"shard_rows": 0}, "shard_rows=0"),
        ({"process": (2, 2)}, r"process=\(2, 2\)"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(InvalidInputError, match=message):
        embed_corpus(corpus(), CountingEncoder(), **{"staging": tmp_path, **options})


def test_vectors_of_a_wrong_number_or_width_are_refused():
    class Forgetful(CountingEncoder):
        def encode_passages(self, texts, images):
            return super().encode_passages(texts, images)[:-1]

    class Growing(CountingEncoder):
        def encode_passages(self, texts, images):
            vectors = super().encode_passages(texts, images)
            return np.pad(vectors, ((0, 0), (0, len(self.calls))))

    with pytest.raises(InvalidInputError, match="returned 1 vectors for 2 passages"):
        embed_corpus(corpus(), Forgetful(), batch_size=1)
    with pytest.raises(InvalidInputError, match="7 wide"):
        embed_corpus(corpus(), Growing(), batch_size=1)
