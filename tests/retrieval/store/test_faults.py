"""What harms a stored knowledge base, at a size for every push: damage, kills, power cuts, a full disk, a crowd."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm.errors import KnowledgeBaseCorruptError, KnowledgeBaseNotFoundError, RavlmError
from hf_ravlm.retrieval import RavlmRetriever
from hf_ravlm.retrieval.passage import SCHEMA
from hf_ravlm.retrieval.store.manifest import StoredFile
from hf_ravlm.retrieval.store.row_files import read_passages, write_passages
from hf_ravlm.retrieval.store.versions import Commit, NewFile, read_version, update_version, verify_file, write_version
from hf_ravlm.saving import durable
from power_loss import Disk, RecordingOs


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@pytest.fixture
def memory_folder(tmp_path):
    """A folder in memory, where there is one: what these tests look for does not depend on the disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def start(task: str, folder: Path, *arguments: int) -> subprocess.Popen:
    program = Path(__file__).parent / "store_faults.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(program), task, str(folder), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return json.loads(out)


# --- Damage


@needs_fork
@pytest.mark.slow
def test_two_thousand_mutated_files_do_no_harm(memory_folder):
    processes = [start(task, memory_folder / task, seed, 1000) for seed, task in enumerate(("fuzz", "forge"))]
    for report in [finish(process) for process in processes]:
        assert report["crashes"] == []
        assert report["wrong"] == []
        assert report["megabytes"] < 256
        assert sum(report["counts"].values()) == 1000
        assert report["counts"]["refused"] > 250


# --- Kills, and a crowd


@needs_fork
@pytest.mark.slow
def test_a_kill_at_any_step_of_any_change_leaves_the_old_state_or_the_new_one(memory_folder):
    report = finish(start("kill", memory_folder))
    assert report["wrong"] == []
    assert report["num_points"] >= 150
    assert min(report["points"].values()) > 5


@needs_fork
@pytest.mark.slow
def test_four_writers_lose_nothing_and_readers_see_whole_states(memory_folder):
    report = finish(start("together", memory_folder))
    assert report["failed"] == [0] * 6, report["trouble"]
    assert report["passages"] == 12 + 60
    assert min(report["reads"]) > 0


# --- Power cuts


def commits(folder: Path, acknowledge) -> None:
    """Six commits: the first two new, then some that keep files of the one before."""

    def new_file(content: str, role: str) -> NewFile:
        return NewFile(role, "safetensors", 1, partial(write_text, content))

    for number in (1, 2):
        write_version(folder, {"tag": [number]}, [new_file(f"content {number} ", "passages")])
        acknowledge(number)
    for number in range(3, 7):

        def plan(current, number=number) -> Commit:
            kept: list[StoredFile] = [] if number == 5 else list(current.files)
            tags = [*current.manifest["tag"], number] if kept else [number]
            return Commit({"tag": tags}, [*kept, new_file(f"content {number} ", "passages")])

        update_version(folder, plan)
        acknowledge(number)


def write_text(content: str, path: Path) -> None:
    path.write_text(content * 20)


def simulate(folder: Path, states_per_step: int, omit: str | None = None) -> tuple[int, list[str]]:
    """Cuts the power after every step of six commits; returns the number of states, and what was wrong with some."""
    disk = Disk(folder / "live")
    (folder / "live").mkdir(parents=True)
    random = np.random.default_rng(0)
    seen: set[str] = set()
    wrong: list[str] = []
    counts = {"states": 0, "acknowledged": 0}

    def each_step() -> None:
        for _ in range(states_per_step):
            state = disk.after_power_cut(random)
            counts["states"] += 1
            digest = hashlib.sha256(repr((sorted(state.items()), counts["acknowledged"])).encode()).hexdigest()
            if digest not in seen:
                seen.add(digest)
                fault = fault_of(state, folder / "found", counts["acknowledged"])
                if fault:
                    wrong.append(fault)

    def acknowledge(number: int) -> None:
        counts["acknowledged"] = number
        each_step()

    recorder = RecordingOs(disk, each_step, omit)
    original = Path.unlink
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "os", recorder)
        patch.setattr(
            Path,
            "unlink",
            lambda path, missing_ok=False: (
                recorder.unlink(path) if disk.relative(path) else original(path, missing_ok=missing_ok)
            ),
        )
        commits(folder / "live", acknowledge)
    return counts["states"], wrong


def fault_of(state: dict[str, bytes], folder: Path, acknowledged: int) -> str | None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in state.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    folder.mkdir(exist_ok=True)
    try:
        version = read_version(folder)
        for file in version.files:
            verify_file(file)
    except KnowledgeBaseNotFoundError:
        return None if acknowledged == 0 else f"nothing is left of version {acknowledged}"
    except KnowledgeBaseCorruptError as error:
        return f"after {acknowledged}: {error}"
    tags = version.manifest["tag"]
    if tags[-1] < acknowledged:
        return f"version {acknowledged} was lost, {tags[-1]} was found"
    contents = [file.path.read_text() for file in version.files]
    return None if contents == [f"content {tag} " * 20 for tag in tags] else f"a mixture: {tags}"


def test_no_power_cut_loses_what_was_acknowledged(tmp_path):
    num_states, wrong = simulate(tmp_path, states_per_step=4)
    assert wrong == []
    assert num_states > 500


@pytest.mark.slow
def test_no_power_cut_among_thousands_loses_what_was_acknowledged(tmp_path):
    num_states, wrong = simulate(tmp_path, states_per_step=40)
    assert wrong == []
    assert num_states > 5000


@pytest.mark.parametrize("omit", ["file", "folder"])
def test_the_simulator_notices_a_flush_that_is_left_out(tmp_path, omit):
    _, wrong = simulate(tmp_path, states_per_step=4, omit=omit)
    assert len(wrong) > 10


# --- A disk that refuses


CHANGES = {
    "add": lambda retriever: retriever.add(numbered([100])),
    "remove": lambda retriever: retriever.remove(["2"]),
    "update": lambda retriever: retriever.update(numbered([4], tag="second")),
    "compact": lambda retriever: retriever.compact(),
}


class FaultyOs:
    """Stands in for the `os` module: fails at the n-th step that changes the disk."""

    STEPS = ("mkdir", "write", "fsync", "replace", "open")

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at, self.log = fail_at, []

    def __getattr__(self, name):
        original = getattr(os, name)
        if name not in self.STEPS:
            return original

        def step(*arguments, **options):
            self.log.append((name, str(arguments[-1])))
            if len(self.log) == self.fail_at:
                raise OSError(errno.ENOSPC if self.fail_at % 2 else errno.EIO, "the disk refuses")
            return original(*arguments, **options)

        return step


@pytest.mark.parametrize("name", CHANGES)
def test_a_failure_at_any_step_of_a_change_leaves_one_whole_state(name, tmp_path):
    change = CHANGES[name]
    encoder = HashEncoder()
    retriever = built(numbered(range(8)), encoder)
    retriever.save_pretrained(tmp_path / "template")
    retriever.remove("7")

    def attempt(fail_at):
        folder = tmp_path / str(fail_at)
        shutil.copytree(tmp_path / "template", folder)
        opened = RavlmRetriever.from_pretrained(folder, encoder=encoder)
        disk = FaultyOs(fail_at)
        before = ids_and_texts(opened)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(durable, "os", disk)
            if fail_at is None:
                change(opened)
            else:
                with pytest.raises(OSError, match="the disk refuses"):
                    change(opened)
                assert ids_and_texts(opened) == before  # in memory as it was
        return folder, opened, disk, before

    folder, opened, disk, before = attempt(None)
    after = ids_and_texts(opened)
    commit = max(n for n, (step, _) in enumerate(disk.log, start=1) if step == "replace")
    for n in range(1, len(disk.log) + 1):
        folder, opened, _, _ = attempt(n)
        again = RavlmRetriever.from_pretrained(folder, encoder=encoder)
        assert ids_and_texts(again) == (after if n > commit else before), disk.log[n - 1]
        opened.add(numbered([50]))
        assert "50" in opened.knowledge_base
        assert not list(folder.rglob("*.tmp"))
        shutil.rmtree(folder)


def ids_and_texts(retriever: RavlmRetriever) -> list[tuple]:
    return [(passage.id, passage.text) for passage in retriever.knowledge_base]


def test_a_folder_that_may_not_be_written_is_searched_and_refuses_changes(tmp_path):
    retriever = built(numbered(range(8)), HashEncoder())
    retriever.save_pretrained(tmp_path)
    store = tmp_path / "knowledge_base"
    (store / "LOCK").unlink()
    opened = RavlmRetriever.from_pretrained(tmp_path, encoder=HashEncoder())
    before = sorted(path for path in store.rglob("*"))

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "read-only", str(store))

    with pytest.MonkeyPatch.context() as patch:
        disk = FaultyOs()
        disk.open = refuse
        patch.setattr(durable, "os", disk)
        with pytest.raises(OSError, match="read-only"):
            opened.remove("1")
    assert len(opened.retrieve(texts="topic1", k=20)[0]) == 8
    assert sorted(path for path in store.rglob("*")) == before


# --- Hostile manifests


HOSTILE_NAMES = [
    "../../../etc/passwd",
    "/etc/passwd",
    "objects/../../x.parquet",
    "objects\\..\\..\\x.parquet",
    "C:\\x.parquet",
    "C:x.parquet",
    "\\\\server\\share\\x.parquet",
    "objects/ab/ab.parquet\0",
    "objects/ab/" + "a" * 4000 + ".parquet",
    "file:///etc/passwd",
    "https://example.org/x.parquet",
    "~/x.parquet",
    "$HOME/x.parquet",
    "CON",
    "objects/ab/NUL.parquet",
    "objects/ab/" + "ab" * 32 + ".pkl",
    "objects/ab/" + "ab" * 32 + ".parquet/../../x",
    "objects//" + "ab" * 32 + ".faiss",
    "OBJECTS/ab/" + "ab" * 32 + ".parquet",
    "objects/ac/" + "ab" * 32 + ".parquet",
    " objects/ab/" + "ab" * 32 + ".parquet",
    "objects/ab/" + "ab" * 32 + ".parquet\n",
    "objects/ab/" + "AB" * 32 + ".parquet",
    "CURRENT",
    "LOCK",
    ".",
    "..",
    "",
    "manifests/gen-00000001.json",
    None,
    7,
    1.5,
    True,
    [],
    {},
    ["objects"],
    {"name": "x"},
    "\u202egnp.x",
    "objects/ab/\udcff",
]
HOSTILE_FIELDS = [
    {"rows": 10**18},
    {"rows": -1},
    {"rows": 1e9},
    {"rows": True},
    {"rows": "7"},
    {"rows": None},
    {"bytes": 2**63},
    {"bytes": -1},
    {"bytes": "x"},
    {"sha256": "0" * 64},
    {"sha256": None},
    {"sha256": 5},
    {"role": None},
    {"role": {}},
    {"role": "passages"},
    {"role": "vectors"},
    {"role": "tombstones"},
    {"role": "probe"},
    {"role": "os.system"},
]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    retriever = built(numbered(range(120)), HashEncoder(), index="ivf_flat")
    retriever.save_pretrained(folder)
    retriever.remove("3")
    return folder / "knowledge_base"


def rewrite_manifest(store: Path, change) -> None:
    name = (store / "CURRENT").read_text().split()[0]
    path = store / "manifests" / f"{name}.json"
    manifest = json.loads(path.read_text())
    changed = change(manifest)
    data = changed if isinstance(changed, bytes) else json.dumps(manifest).encode()
    path.write_bytes(data)
    (store / "CURRENT").write_text(f"{name} {hashlib.sha256(data).hexdigest()}\n")


def open_hostile(template: Path, folder: Path, change, **options) -> RavlmRetriever:
    shutil.copytree(template, folder)
    rewrite_manifest(folder, change)
    return RavlmRetriever.from_pretrained(folder, encoder=HashEncoder(), **options)


@pytest.mark.parametrize("on_error", ["raise", "skip_shard"])
def test_hostile_names_and_numbers_are_refused_with_one_class_of_errors(template, tmp_path, on_error, monkeypatch):
    opened = []
    monkeypatch.setattr(durable, "open", lambda *a, **k: opened.append(a[0]) or open(*a, **k), raising=False)
    cases = [{"name": name} for name in HOSTILE_NAMES] + HOSTILE_FIELDS
    accepted = []
    for number, fields in enumerate(cases):
        folder = tmp_path / str(number)
        for place in (0, 1):
            shutil.rmtree(folder, ignore_errors=True)
            try:
                open_hostile(template, folder, lambda m: m["files"][place].update(fields), on_error=on_error)  # noqa: B023
                accepted.append((fields, place))
            except RavlmError:
                pass
    # The role that an entry has already changes nothing.
    assert [case for case in accepted if case not in [({"role": "passages"}, 0), ({"role": "vectors"}, 1)]] == []
    assert all(Path(path).resolve().is_relative_to(tmp_path.resolve()) for path in opened)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"7", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 2}', b"{" * 7_000_000]
    + [b'{"format": 2, "files": ' + b"[{}" + b",{}" * 2_000_000 + b"]}", b" " * 9_000_000, b'{"format": NaN}'],
    ids=range(13),
)
def test_a_manifest_that_is_a_bomb_is_refused(template, tmp_path, data):
    with pytest.raises(KnowledgeBaseCorruptError):
        open_hostile(template, tmp_path / "kb", lambda manifest: data)


def repeated_text(num_rows: int) -> pa.Table:
    """One text in every row, as a dictionary of one entry."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_rows, np.int32)), pa.array(["x" * 60_000]))
    columns = {name: pa.nulls(num_rows, SCHEMA.field(name).type) for name in SCHEMA.names}
    return pa.table({**columns, "id": pa.array(map(str, range(num_rows))), "text": text})


@pytest.mark.parametrize("plain", [False, True], ids=["by-a-dictionary", "by-compression"])
def test_a_small_file_that_unfolds_into_gigabytes_is_refused_unread(tmp_path, plain):
    bomb = tmp_path / "bomb"
    if plain:
        columns = {name: pa.nulls(5_000, SCHEMA.field(name).type) for name in SCHEMA.names}
        table = pa.table({**columns, "id": pa.array(map(str, range(5_000))), "text": pa.array(["x" * 60_000] * 5_000)})
        pq.write_table(table, bomb, compression="zstd", use_dictionary=False)
    else:
        pq.write_table(repeated_text(50_000), bomb, compression="zstd", store_schema=False)
    assert bomb.stat().st_size < 1_000_000
    rows = pq.read_metadata(bomb).num_rows
    before = pa.default_memory_pool().bytes_allocated()
    with pytest.raises(KnowledgeBaseCorruptError, match="unfold into|encoded as"):
        read_passages(StoredFile("passages", bomb, rows, num_bytes=bomb.stat().st_size))
    assert pa.default_memory_pool().bytes_allocated() - before < 10_000_000


def test_what_repeats_honestly_is_stored_so_that_it_can_be_read(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, 60_000, dtype=np.uint8).tobytes()
    columns = {name: pa.nulls(4_000, SCHEMA.field(name).type) for name in SCHEMA.names}
    columns = {
        **columns,
        "id": pa.array(map(str, range(4_000))),
        "image": pa.array([image] * 4_000, pa.large_binary()),
    }
    table = pa.table(columns, schema=SCHEMA)
    write_passages(table, tmp_path / "passages")
    assert read_passages(StoredFile("passages", tmp_path / "passages", 4_000)).equals(table)


def test_links_out_of_the_folder_show_nothing_of_what_they_point_to(template, tmp_path):
    (tmp_path / "secret").write_text("secret content")
    shutil.copytree(template, tmp_path / "kb")
    for path in (tmp_path / "kb" / "objects").rglob("*.*"):
        path.unlink()
        path.symlink_to(tmp_path / "secret")
    with pytest.raises(KnowledgeBaseCorruptError) as caught:
        RavlmRetriever.from_pretrained(tmp_path / "kb", encoder=HashEncoder())
    assert "secret content" not in str(caught.value)


def test_a_pickle_in_the_place_of_any_file_is_never_run(template, tmp_path):
    import pickle

    class Canary:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    content = pickle.dumps(Canary())
    names = ["CURRENT", *json.loads(next((template / "manifests").glob("*2.json")).read_text())["files"]]
    for number, name in enumerate(entry if isinstance(entry, str) else entry["name"] for entry in names):
        folder = tmp_path / str(number)
        shutil.copytree(template, folder)
        (folder / name).write_bytes(content)
        if name != "CURRENT":
            sha256 = hashlib.sha256(content).hexdigest()
            new_name = f"objects/{sha256[:2]}/{sha256}{Path(name).suffix}"
            (folder / new_name).parent.mkdir(exist_ok=True)
            (folder / name).rename(folder / new_name)

            def change(manifest, name=name, new_name=new_name, sha256=sha256):
                entry = next(entry for entry in manifest["files"] if entry["name"] == name)
                entry.update(name=new_name, sha256=sha256, bytes=len(content))

            rewrite_manifest(folder, change)
        try:
            RavlmRetriever.from_pretrained(folder, encoder=HashEncoder(), allow_foreign_index=True)
        except RavlmError:
            continue
        pytest.fail(f"{name} was accepted")
    assert not (tmp_path / "executed").exists()
