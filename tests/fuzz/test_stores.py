"""Knowledge bases with any damage are refused or read as they were; changes that are killed are done or not done."""

from __future__ import annotations

import os
import shutil
import signal
import time
import traceback

import numpy as np
import pytest
from damage import harm
from fuzzing import choose, run_cases

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm.errors import RavlmError
from hf_ravlm.retrieval import RavlmRetriever, repair_store, store_info, verify_store
from hf_ravlm.retrieval.store import current


def opened(folder, **options) -> RavlmRetriever:
    return RavlmRetriever.from_pretrained(folder, encoder=HashEncoder(), **options)


def contents(retriever) -> dict[str, tuple[str, bytes]]:
    rows = retriever.knowledge_base.table.select(["id", "text"]).to_pylist()
    return {row["id"]: (row["text"], vector.tobytes()) for row, vector in zip(rows, retriever.vectors)}


@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_damaged_stores(index, tmp_path):
    template = tmp_path / "template"
    retriever = built(numbered(range(110)), HashEncoder(), index=index)
    retriever.save_pretrained(template)
    retriever.add(numbered(range(110, 115)))
    retriever.remove(["3"])
    expected = contents(retriever)
    del retriever

    def case(random):
        place = tmp_path / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        name = harm(place, random)
        on_error = choose(random, ["raise", "rebuild", "skip_shard"])
        try:
            found = contents(opened(place, on_error=on_error))
        except RavlmError:
            pass
        else:
            assert all(expected[key] == value for key, value in found.items()), name
            assert on_error == "skip_shard" or found == expected, name
        for look in (store_info, verify_store, repair_store):
            try:
                look(place / "knowledge_base")
            except (RavlmError, IsADirectoryError):
                pass

    run_cases(f"test_damaged_stores[{index}]", case, 50, tmp_path)


def test_killed_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(current, "_MIN_STAGED_PASSAGES", 20)
    template = tmp_path / "template"
    built(numbered(range(30)), HashEncoder()).save_pretrained(template)

    def case(random):
        place, acknowledged = tmp_path / "place", tmp_path / "acknowledged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        acknowledged.write_text("")
        seed = int(random.integers(2**31))
        child = os.fork()
        if child == 0:
            try:
                _change(opened(place), seed, 25, lambda: acknowledged.open("a").write("x"))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        time.sleep(float(random.uniform(0, 0.35)))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] in (0, signal.SIGKILL)
        done = len(acknowledged.read_text())
        found = {key: text for key, (text, _) in contents(opened(place)).items()}
        assert found in (_expected(seed, done), _expected(seed, done + 1)), done
        assert verify_store(place / "knowledge_base")["ok"]
        retriever = opened(place)
        retriever.add([{"id": "next", "text": "topic1 next"}])
        retriever.compact(purge=True)
        assert len(opened(place)) == len(found) + 1
        assert not list(place.rglob("*.tmp")) + list(place.rglob("staging/*/*"))

    run_cases("test_killed_changes", case, 12, tmp_path)


def _change(retriever, seed: int, number: int, acknowledge) -> None:
    for step in range(number):
        kind, ids = _step(seed, step)
        if kind == "add":
            retriever.add(numbered(ids))
        elif kind == "update":
            retriever.update(numbered(ids, tag=f"step{step}"))
        elif kind == "remove":
            retriever.remove([str(n) for n in ids])
        else:
            retriever.compact(purge=kind == "purge")
        acknowledge()


def _step(seed: int, step: int) -> tuple[str, list[int]]:
    random = np.random.default_rng([seed, step])
    kind = choose(random, ["add", "add many", "update", "remove", "compact", "purge"])
    first = 1000 * (step + 1)
    if kind.startswith("add"):
        return "add", list(range(first, first + (30 if kind == "add many" else 2)))
    if kind == "update":
        return kind, [0, 1, first]
    return (kind, [2 + step]) if kind == "remove" else (kind, [])


def _expected(seed: int, number: int) -> dict[str, str]:
    state = {row["id"]: row["text"] for row in numbered(range(30))}
    for step in range(number):
        kind, ids = _step(seed, step)
        rows = numbered(ids, **({"tag": f"step{step}"} if kind == "update" else {}))
        if kind == "remove":
            state = {key: text for key, text in state.items() if key not in {row["id"] for row in rows}}
        else:
            state |= {row["id"]: row["text"] for row in rows}
    return state
