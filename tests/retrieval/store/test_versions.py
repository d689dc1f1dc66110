from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_ravlm.errors import (
    InvalidInputError,
    KnowledgeBaseCorruptError,
    KnowledgeBaseLockedError,
    KnowledgeBaseNotFoundError,
)
from hf_ravlm.retrieval import (
    KnowledgeBase,
    RavlmRetriever,
)
from hf_ravlm.retrieval.store import row_files, versions
from hf_ravlm.retrieval.store.leases import Lease
from hf_ravlm.retrieval.store.loading import OpenOptions, load_passages, open_state
from hf_ravlm.retrieval.store.manifest import FORMAT
from hf_ravlm.retrieval.store.versions import (
    NewFile,
    load_version,
    read_version,
    verify_file,
    write_version,
)
from hf_ravlm.saving import durable
from hf_ravlm.saving.durable import exclusive_lock


def new_file(content: str, role: str = "vectors", suffix: str = "safetensors") -> NewFile:
    return NewFile(role, suffix, 1, lambda path: path.write_text(content) and None)


def write(folder, content: str, **options) -> str:
    files = [new_file(content), new_file(f"{content}!", "passages")]
    return write_version(folder, {"tag": content}, files, **options).name


def read(folder) -> str:
    """The tag of the current version, after checking that all its files belong to it."""
    version = read_version(folder)
    for file in version.files:
        verify_file(file)
    contents = [file.path.read_text() for file in version.files]
    tag = version.manifest["tag"]
    assert contents == [tag, f"{tag}!"]
    return tag


def all_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(store):
    return open_state(store, OpenOptions()).knowledge


def paths_of(store, role: str) -> list[Path]:
    return [file.path for file in read_version(store).files_of(role)]


def texts_of(store) -> list[str]:
    return load_passages(store)["text"].to_pylist()


# --- What is written


def test_a_version_is_read_back_and_replaced(tmp_path):
    assert write(tmp_path / "kb", "one") == "gen-00000001"
    assert read(tmp_path / "kb") == "one"
    assert write(tmp_path / "kb", "two") == "gen-00000002"
    assert read(tmp_path / "kb") == "two"


def test_the_previous_version_is_kept_and_older_ones_are_removed(tmp_path):
    for tag in ("one", "two", "three"):
        write(tmp_path, tag)
    assert sorted(path.name for path in (tmp_path / "manifests").iterdir()) == [
        "gen-00000002.json",
        "gen-00000003.json",
    ]
    contents = {path.read_text() for path in (tmp_path / "objects").rglob("*") if path.is_file()}
    assert contents == {"two", "two!", "three", "three!"}


def test_equal_content_is_stored_once_and_named_by_its_hash(tmp_path):
    write(tmp_path, "one")
    before = all_files(tmp_path / "objects")
    write(tmp_path, "one")
    assert all_files(tmp_path / "objects") == before
    for name, content in before.items():
        assert Path(name).stem == hashlib.sha256(content).hexdigest()


def test_a_saved_knowledge_base_is_reproducible_and_says_nothing_about_its_maker(retriever, tmp_path):
    for name in ("one", "two"):
        retriever.save_pretrained(tmp_path / name)
    files = all_files(tmp_path / "one")
    assert files == all_files(tmp_path / "two")
    assert files["knowledge_base/LOCK"] == b""
    user = os.environ.get("USER", "root")
    for name, content in files.items():
        for secret in (str(tmp_path), os.uname().nodename):
            assert secret.encode() not in content, name
        if name.endswith(".json"):
            assert user.encode() not in content


def test_the_vectors_open_with_safetensors_alone(retriever, tmp_path):
    retriever.save_pretrained(tmp_path)
    (path,) = paths_of(tmp_path / "knowledge_base", "vectors")
    np.testing.assert_array_equal(load_file(path)["vectors"], retriever.vectors)


def test_a_large_knowledge_base_is_cut_into_files_and_joined_again(retriever_of, tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "_MAX_ROWS_PER_FILE", 7)
    retriever = retriever_of("tag", 20)
    retriever.save_pretrained(tmp_path / "rows")
    monkeypatch.setattr(row_files, "_MAX_BYTES_PER_FILE", 60)
    retriever.save_pretrained(tmp_path / "bytes")
    monkeypatch.setattr(row_files, "_MAX_BYTES_PER_FILE", 1)
    retriever.save_pretrained(tmp_path / "single")
    for name, num_files in (("rows", 3), ("bytes", 9), ("single", 20)):
        assert len(list((tmp_path / name).rglob("*.parquet"))) == num_files
        assert KnowledgeBase.load(tmp_path / name).table.equals(retriever.knowledge_base.table)


# --- Interruptions


class FaultyDisk:
    """Stands in for the `os` module: counts the steps that change the disk, and fails at the n-th."""

    STEPS = ("mkdir", "open", "write", "fsync", "replace")

    def __init__(self, fail_at: int | None = None, error: int = errno.ENOSPC) -> None:
        self.fail_at, self.error, self.log = fail_at, error, []
        self.names: dict[int, str] = {}

    def __getattr__(self, name):
        original = getattr(os, name)
        if name not in self.STEPS:
            return original

        def step(*args, **kwargs):
            self.log.append((name, self._describe(name, args)))
            if len(self.log) == self.fail_at:
                if name == "write":
                    original(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(self.error, os.strerror(self.error))
            result = original(*args, **kwargs)
            if name == "open":
                self.names[result] = str(args[0])
            return result

        return step

    def _describe(self, name, args):
        if name in ("write", "fsync"):
            return self.names[args[0]]
        return tuple(map(str, args[:2])) if name == "replace" else str(args[0])


def save_on(disk: FaultyDisk, retriever: RavlmRetriever, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "os", disk)
        retriever.save_pretrained(folder)


@pytest.mark.parametrize("existing", [False, True], ids=["first", "over-an-existing-one"])
def test_a_failure_at_any_step_leaves_the_previous_state(retriever_of, tmp_path, existing):
    old, new, other = retriever_of("old"), retriever_of("new"), retriever_of("other")
    template = tmp_path / "template"
    template.mkdir()
    if existing:
        old.save_pretrained(template)
    dry = FaultyDisk()
    shutil.copytree(template, tmp_path / "dry")
    save_on(dry, new, tmp_path / "dry")
    commit = max(n for n, (name, _) in enumerate(dry.log, start=1) if name == "replace")
    assert dry.log[commit - 1][1][1].endswith("CURRENT")
    assert len(dry.log) > 20
    for n in range(1, len(dry.log) + 1):
        folder, error = tmp_path / str(n), errno.ENOSPC if n % 2 else errno.EIO
        shutil.copytree(template, folder)
        with pytest.raises(OSError, match=os.strerror(error)):
            save_on(FaultyDisk(fail_at=n, error=error), new, folder)
        if n > commit:
            expected = "new"
        elif existing:
            expected = "old"
        else:
            with pytest.raises(KnowledgeBaseNotFoundError):
                KnowledgeBase.load(folder)
            expected = None
        if expected:
            assert texts_of(folder / "knowledge_base")[0].startswith(expected), dry.log[n - 1]
        other.save_pretrained(folder)  # the folder is usable again, and the remains are gone
        assert texts_of(folder / "knowledge_base")[0].startswith("other")
        assert not list(folder.rglob("*.tmp"))
        shutil.rmtree(folder)


@pytest.mark.parametrize(("module", "writer"), [(row_files, "write_passages"), (row_files, "write_arrays")])
def test_a_failure_while_a_file_is_filled_leaves_the_previous_state(
    retriever_of, tmp_path, monkeypatch, module, writer
):
    retriever_of("old").save_pretrained(tmp_path)
    before = all_files(tmp_path)

    def fail(*arguments):
        path = next(argument for argument in arguments if isinstance(argument, Path))
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(module, writer, fail)
    with pytest.raises(OSError, match="disk full"):
        retriever_of("new").save_pretrained(tmp_path)
    assert texts_of(tmp_path / "knowledge_base")[0].startswith("old")
    assert {name: content for name, content in all_files(tmp_path).items() if name in before} == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_everything_is_flushed_before_it_is_referred_to(retriever, tmp_path):
    disk = FaultyDisk()
    save_on(disk, retriever, tmp_path / "new")
    commit = max(n for n, (name, _) in enumerate(disk.log) if name == "replace")
    for n, (name, subject) in enumerate(disk.log[: commit + 1]):
        if name == "replace":
            source, target = subject
            assert ("fsync", source) in disk.log[:n]
            assert ("write", source) not in disk.log[disk.log.index(("fsync", source)) : n]
        elif name == "mkdir":
            target = subject
        elif name == "write" and subject.endswith(".json"):
            target = subject
            assert ("fsync", subject) in disk.log[n:commit]
        else:
            continue
        until = len(disk.log) if n == commit else commit
        assert ("fsync", str(Path(target).parent)) in disk.log[n:until], f"{target} is not flushed in its folder"


def test_of_two_that_save_into_one_new_folder_the_second_is_told(tmp_path):
    assert write(tmp_path, "first", overwrite=False) == "gen-00000001"
    with pytest.raises(InvalidInputError, match=r"another knowledge base has been saved here .*overwrite=True"):
        write(tmp_path, "second", overwrite=False)
    assert read(tmp_path) == "first"
    write(tmp_path, "third")
    assert read(tmp_path) == "third"


KILL_DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
from hf_ravlm.retrieval.store.versions import NewFile, read_version, verify_file, write_version

folder, num_kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)

def write(n):
    files = [NewFile(role, "parquet", n, lambda path, role=role: path.write_text(f"{role} {n} " * 2000) and None)
             for role in ("passages", "vectors")]
    write_version(folder, {"tag": n}, files)

begun = time.monotonic()
write(0)
pace = 5 * (time.monotonic() - begun)
last = in_doubt = 0
for _ in range(num_kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        n = last
        while True:
            n += 1
            write(n)
            os.write(writer, b"%12d" % n)
    os.close(writer)
    time.sleep(random.uniform(0.0, pace))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged = [last, *map(int, os.fdopen(reader, "rb").read().split())]
    version = read_version(folder)
    n = version.manifest["tag"]
    assert n in (acknowledged[-1], acknowledged[-1] + 1), (n, acknowledged)
    for file in version.files:
        verify_file(file)
        assert file.path.read_text() == f"{file.role} {n} " * 2000
    in_doubt += len(list(folder.rglob("*.tmp")))
    last = n
print(last, in_doubt)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_kill_9_at_random_points_loses_nothing_that_was_acknowledged(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    driver = [sys.executable, "-c", KILL_DRIVER, str(tmp_path / "kb"), "60"]
    run = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    num_commits, num_remains = map(int, run.stdout.split())
    assert num_commits > 10
    assert num_remains > 0  # some kills came in the middle of a commit
    write(tmp_path / "kb", "after")
    assert read(tmp_path / "kb") == "after"
    assert not list(tmp_path.rglob("*.tmp"))


# --- Writers and readers together


def test_a_second_writer_waits_and_then_gives_up(tmp_path):
    write(tmp_path, "one")
    with exclusive_lock(tmp_path / "LOCK", 0), pytest.raises(KnowledgeBaseLockedError, match="another process"):
        write(tmp_path, "two", lock_timeout_seconds=0.1)
    assert read(tmp_path) == "one"
    write(tmp_path, "two", lock_timeout_seconds=0)
    assert read(tmp_path) == "two"


def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(KnowledgeBaseLockedError, match="no file locks"):
        write(tmp_path, "one")


def test_writers_and_readers_together_see_whole_versions_only(tmp_path):
    write(tmp_path, "start")
    names, wrong, stop = [], [], threading.Event()

    def keep_writing(writer):
        for n in range(6):
            names.append(write(tmp_path, f"{writer} {n}"))

    def keep_reading():
        while not stop.is_set():
            try:
                tag, contents = load_version(
                    tmp_path,
                    lambda version: (
                        version.manifest["tag"],
                        [file.path.read_text() for file in version.files],
                    ),
                )
                if contents != [tag, f"{tag}!"]:
                    wrong.append((tag, contents))
            except Exception as error:
                wrong.append(error)

    writers = [threading.Thread(target=keep_writing, args=(n,)) for n in range(3)]
    readers = [threading.Thread(target=keep_reading) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not wrong
    assert sorted(names) == [f"gen-{n:08d}" for n in range(2, 20)]


@pytest.mark.parametrize("locks", [True, False], ids=["with-leases", "on-a-disk-without-locks"])
def test_a_reader_that_is_overtaken_by_two_writers_sees_one_whole_state(tmp_path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(versions, "take_lease", lambda path: Lease())
    write(tmp_path, "one")
    seen = []

    def load(version):
        seen.append(version.manifest["tag"])
        if len(seen) == 1:
            write(tmp_path, "two")
            write(tmp_path, "three")  # removes the files of the first, unless it is leased
        return version.files[0].path.read_text()

    assert load_version(tmp_path, load) == ("one" if locks else "three")
    assert seen == (["one"] if locks else ["one", "three"])
    write(tmp_path, "four")
    assert len(list((tmp_path / "manifests").iterdir())) == 2  # the lease ended with the reader


# --- Damage


@pytest.fixture
def store(retriever, tmp_path):
    retriever.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved" / "knowledge_base"


def flip(data: bytes, at: float) -> bytes:
    place = int(at * (len(data) - 1))
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


DAMAGE = {
    "first byte flipped": lambda data: flip(data, 0),
    "middle byte flipped": lambda data: flip(data, 0.5),
    "last byte flipped": lambda data: flip(data, 1),
    "truncated": lambda data: data[: len(data) // 2],
    "last byte lost": lambda data: data[:-1],
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "zero tail": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "appended": lambda data: data + b"\0",
}


FILES = ["CURRENT", "manifests/gen-00000002.json", "passages", "vectors", "tombstones", "probe"]


@pytest.fixture
def store_with_gap(store, encoder):
    """A store from which a passage was removed: its current version has files of all roles but an index."""
    RavlmRetriever.from_pretrained(store, encoder=encoder).remove("wren")
    return store


def path_of(store, kind: str) -> Path:
    """A file of a store, by its name or by its role."""
    return store / kind if (store / kind).exists() else paths_of(store, kind)[0]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_file_is_refused_by_name(store_with_gap, encoder, kind, damage):
    path = path_of(store_with_gap, kind)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(KnowledgeBaseCorruptError) as caught:
        RavlmRetriever.from_pretrained(store_with_gap.parent, encoder=encoder)
    if kind == "CURRENT":
        assert "CURRENT" in str(caught.value) or "gen-" in str(caught.value)
    else:
        assert path.name in str(caught.value)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("kind", FILES[1:])
def test_a_missing_or_irregular_file_is_named(store_with_gap, kind):
    path = path_of(store_with_gap, kind)
    path.unlink()
    with pytest.raises(KnowledgeBaseCorruptError, match=f"{path.name}.*missing"):
        load(store_with_gap)
    path.mkdir()
    with pytest.raises(KnowledgeBaseCorruptError, match=f"{path.name}.*not a regular file"):
        load(store_with_gap)


def test_random_damage_is_never_read_silently(store_with_gap):
    store = store_with_gap
    random = np.random.default_rng(0)
    files = [store / name for name in read_version(store).file_names()]
    for case in range(240):
        path = files[case % len(files)]
        original = path.read_bytes()
        data = bytearray(original)
        place, length = int(random.integers(len(data))), int(random.integers(1, 64))
        match case // len(files) % 4:
            case 0:
                data[place] ^= 1 << int(random.integers(8))
            case 1:
                data[place : place + length] = bytes(len(data[place : place + length]))
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = random.bytes(length)
        path.write_bytes(bytes(data))
        if bytes(data) != original:
            with pytest.raises(KnowledgeBaseCorruptError):
                load(store)
        path.write_bytes(original)
    load(store)


def test_passages_can_be_rescued_when_only_the_vectors_are_damaged(store, knowledge_base):
    (path,) = paths_of(store, "vectors")
    path.write_bytes(b"")
    assert KnowledgeBase.load(store).table.equals(knowledge_base.table)


def test_saving_again_heals_damaged_objects_but_never_guesses_at_a_damaged_pointer(store, retriever):
    for path in (store / "objects").rglob("*.*"):
        path.write_bytes(b"damaged")
    retriever.save_pretrained(store.parent)
    assert len(load(store).table) == len(retriever)
    (store / "CURRENT").write_text("garbage")
    before = all_files(store)
    with pytest.raises(KnowledgeBaseCorruptError, match="CURRENT"):
        retriever.save_pretrained(store.parent)
    assert all_files(store) == before


def rewrite_manifest(store: Path, change) -> None:
    """A manifest as a stranger could have made it: wrong, with a right checksum."""
    (path,) = (store / "manifests").iterdir()
    manifest = json.loads(path.read_text())
    changed = change(manifest)
    data = json.dumps(manifest if changed is None else changed).encode()
    path.write_bytes(data)
    (store / "CURRENT").write_text(f"{path.stem} {hashlib.sha256(data).hexdigest()}\n")


@pytest.mark.parametrize(
    "name",
    ["../../../etc/passwd", "/etc/passwd", "objects/ab/../../x.parquet", "objects/ab/abcd.parquet", "", None, 5],
)
def test_a_manifest_cannot_name_files_elsewhere(store, name):
    rewrite_manifest(store, lambda manifest: manifest["files"][0].update(name=name))
    with pytest.raises(KnowledgeBaseCorruptError, match="gen-00000001.json"):
        load(store)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest.update(format=FORMAT + 1),
            f"format {FORMAT + 1}, .*format {FORMAT}.*[Uu]pgrade",
        ),
        (lambda manifest: manifest.update(format="2"), "format 2, .*[Uu]pgrade"),
        (lambda manifest: manifest.pop("format") and None, "not a manifest"),
        (lambda manifest: manifest.pop("files") and None, "not a manifest"),
        (lambda manifest: [1, 2], "not a manifest"),
        (lambda manifest: manifest.pop("encoder") and None, "names no encoder"),
        (lambda manifest: manifest.update(rows={"passages": 3, "tombstones": 0}), "lists 3 passages and holds 7"),
        (lambda manifest: manifest.update(rows={"passages": 7, "tombstones": 1}), "lists 1 as removed and names 0"),
        (lambda manifest: manifest.update(rows=[]), "lists .* passages and holds 7"),
        (lambda manifest: manifest.update(index={"kind": "os.system"}), "asks for the index"),
        (lambda manifest: manifest.update(index={"kind": "hnsw", "recall": 7}), "asks for the index"),
        (lambda manifest: manifest["files"].pop(1) and None, "7 passages and 0 vectors"),
        (lambda manifest: manifest["files"].pop(0) and None, "0 passages and 7 vectors"),
        (lambda manifest: manifest["files"][0].update(rows=6), "7 rows instead of 6"),
        (lambda manifest: manifest["files"][0].update(rows=-1), "with the sizes"),
        (lambda manifest: manifest["files"][0].update(rows=10**30), "more than 100,000,000 passages"),
        (lambda manifest: manifest["files"][0].update(role="vectors"), "0 passages and 14 vectors"),
        (lambda manifest: manifest["files"][0].update(role=["passages"]), "lists a file under the name"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(store, change, message):
    rewrite_manifest(store, change)
    with pytest.raises(KnowledgeBaseCorruptError, match=message):
        load(store)


def test_vectors_of_other_passages_are_refused_even_with_right_checksums(retriever_of, rows, encoder, tmp_path):
    retriever_of("a", 7).save_pretrained(tmp_path / "one")
    RavlmRetriever.build(KnowledgeBase.from_dicts(rows), encoder).save_pretrained(tmp_path / "two")
    one, two = tmp_path / "one" / "knowledge_base", tmp_path / "two" / "knowledge_base"
    other = next(file for file in read_version(two).files if file.role == "vectors")
    (one / other.fields["name"]).parent.mkdir(exist_ok=True)
    shutil.copy(other.path, one / other.fields["name"])
    rewrite_manifest(one, lambda manifest: manifest["files"].__setitem__(1, dict(other.fields)))
    with pytest.raises(KnowledgeBaseCorruptError, match="made for other passages, or for these in another order"):
        load(one)


# --- Where it may lie


def test_junk_in_the_folder_has_no_effect(store, retriever):
    junk = [
        "gen-99999999.json.tmp",
        "notes.txt",
        "manifests/gen-00000009.json",
        "objects/ab/x.tmp",
        "objects/zz.parquet",
    ]
    for name in junk:
        (store / name).parent.mkdir(exist_ok=True)
        (store / name).write_text("junk")
    assert len(load(store).table) == len(retriever)
    retriever.save_pretrained(store.parent)
    assert (store / "CURRENT").read_text().startswith("gen-00000010 ")
    assert len(load(store).table) == len(retriever)
    assert [(store / name).exists() for name in junk] == [False, True, False, False, True]


def test_a_read_only_folder_opens_and_nothing_is_written(store, encoder):
    (store / "LOCK").unlink()  # as after a download
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    for folder in folders:
        folder.chmod(0o555)
    try:
        retriever = RavlmRetriever.from_pretrained(store, encoder=encoder)
        assert retriever.retrieve(texts="swan", k=1)[0][0].id == "swan"
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before


def test_a_snapshot_of_links_to_blobs_opens(store, encoder, tmp_path):
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / ("a" * 40)
    blobs.mkdir(parents=True)
    for name, content in all_files(store).items():
        blob = blobs / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / "knowledge_base" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert len(RavlmRetriever.from_pretrained(snapshot, encoder=encoder)) == 7


def test_a_folder_without_a_knowledge_base_is_no_damage(tmp_path):
    with pytest.raises(KnowledgeBaseNotFoundError, match="no knowledge base here"):
        KnowledgeBase.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_version(tmp_path)
