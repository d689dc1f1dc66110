"""What becomes of a knowledge base whose folder is moved away from under it, half made, shared, or on a full disk."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm.cli import main
from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError, KnowledgeBaseNotFoundError, StorageError
from hf_ravlm.pipelines.model_folder import _has_knowledge
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever, embed_corpus
from hf_ravlm.retrieval.store import current as current_knowledge
from hf_ravlm.retrieval.store import trust
from hf_ravlm.retrieval.store.versions import store_state
from hf_ravlm.saving import notes
from hf_ravlm.saving.arrays import write_arrays
from hf_ravlm.saving.durable import disk_errors, temporary_folder


needs_posix = pytest.mark.skipif(os.name == "nt", reason="pipes, links and owners of POSIX")


@pytest.fixture
def store(tmp_path):
    built(numbered(range(8)), HashEncoder()).save_pretrained(tmp_path)
    return tmp_path / "knowledge_base"


def opened(folder) -> RavlmRetriever:
    return RavlmRetriever.from_pretrained(folder, encoder=HashEncoder())


class Interrupted(HashEncoder):
    """Stops after some calls, as a kill would."""

    calls = 4

    def encode_passages(self, texts, images):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode_passages(texts, images)


def lost(store):
    (store / "CURRENT").unlink()


def dangling(store):
    lost(store)
    (store / "CURRENT").symlink_to("gone")


def circle(store):
    lost(store)
    (store / "CURRENT").symlink_to("CURRENT")


def pipe(store):
    lost(store)
    os.mkfifo(store / "CURRENT")


def folder(store):
    lost(store)
    (store / "CURRENT").mkdir()


@needs_posix
@pytest.mark.parametrize("harm", [lost, dangling, circle, pipe, folder])
def test_a_pointer_that_is_gone_is_never_taken_for_no_knowledge(store, harm, capsys):
    harm(store)
    assert store_state(store) == "broken"
    assert _has_knowledge(str(store.parent), {})
    with pytest.raises(KnowledgeBaseCorruptError, match="damaged"):
        opened(store.parent)
    with pytest.raises(KnowledgeBaseCorruptError, match="damaged"):
        KnowledgeBase.from_pretrained(store.parent)
    assert main(["index", "verify", str(store.parent)]) == 1
    assert capsys.readouterr().err == ""
    if harm in (lost, dangling):
        assert main(["index", "repair", str(store.parent)]) == 0
        assert len(opened(store.parent)) == 8


@needs_posix
@pytest.mark.parametrize("place", ["manifests/gen-00000001.json", "LOCK"])
@pytest.mark.parametrize("kind", ["pipe", "circle"])
def test_pipes_and_links_in_a_circle_neither_block_nor_raise_anything_raw(store, place, kind):
    path = store / place
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(path.name)
    signal.alarm(30)
    try:
        if place == "LOCK" and kind == "pipe":  # which does the duty of a lock
            opened(store.parent).add([{"id": "new", "text": "topic1 new"}])
            return
        with pytest.raises(OSError, match="damaged|symbolic links"):
            opened(store.parent).add([{"id": "new", "text": "topic1 new"}])
    finally:
        signal.alarm(0)


def test_changes_go_to_the_folder_that_was_opened_wherever_the_process_goes(store, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    built(numbered(range(3)), HashEncoder()).save_pretrained(tmp_path / "elsewhere" / "base")
    (tmp_path / "base").mkdir()
    store.rename(tmp_path / "base" / "knowledge_base")
    monkeypatch.chdir(tmp_path)
    by_path, made = opened("base"), built(numbered(range(4)), HashEncoder())
    made.save_pretrained("made")
    monkeypatch.chdir(tmp_path / "elsewhere")
    by_path.add(numbered([50]))
    made.add(numbered([60, 61]))
    assert [len(opened(tmp_path / place)) for place in ("base", "elsewhere/base", "made")] == [9, 3, 6]
    assert not by_path.refresh()


def test_a_stopped_build_says_how_far_it_came_and_what_to_do(tmp_path, capsys):
    store = tmp_path / "knowledge_base"
    passages = KnowledgeBase.from_dicts(numbered(range(200)))
    with pytest.raises(KeyboardInterrupt):
        embed_corpus(passages, Interrupted(), batch_size=1, shard_rows=32, staging=store / "staging" / "build")
    assert store_state(store) == "unfinished"
    for command in ("info", "verify"):
        assert main(["index", command, str(tmp_path)]) == 1
        assert "was stopped at 57%" in (said := capsys.readouterr().err)
        assert "Run the same command again" in said
        assert len(said.splitlines()) == 1
    with pytest.raises(KnowledgeBaseCorruptError, match="stopped"):
        opened(tmp_path)
    built(numbered(range(3)), HashEncoder()).save_pretrained(tmp_path)  # and another one may take the place
    assert not list((store / "staging").glob("*/*"))


def test_a_mistyped_folder_is_bad_input_not_damage(tmp_path, capsys):
    for words in (["verify", "nope"], ["info", str(tmp_path)], ["remove", "nope", "a"], ["compact", "nope"]):
        assert main(["index", *words]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_a_killed_addition_left_goes_with_the_next_change(store, monkeypatch):
    monkeypatch.setattr(current_knowledge, "_MIN_STAGED_PASSAGES", 20)
    interrupted = Interrupted()
    retriever = RavlmRetriever.from_pretrained(store.parent, encoder=interrupted)
    interrupted.calls = 5  # the last of which is for the second shard
    with pytest.raises(KeyboardInterrupt):
        retriever.add(numbered(range(100, 400)), batch_size=1)
    assert list((store / "staging").glob("add-*/*/shard-*.json"))
    opened(store.parent).add(numbered([50]))
    assert not list((store / "staging").glob("*/*"))


@needs_posix
def test_an_idle_forked_worker_does_not_keep_old_versions(store):
    retriever = opened(store.parent)
    inside, outside = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(outside)
        os.read(inside, 1)  # until the parent closes its end
        os._exit(0 if len(retriever.vectors) == 8 else 1)
    try:
        retriever.remove(["3"])
        retriever.compact(purge=True)  # waits 30 seconds for readers, and then gives up
        assert not list(store.rglob("gen-00000001.json"))
    finally:
        os.close(outside)
        os.close(inside)
        assert os.waitpid(child, 0)[1] == 0


@needs_posix
def test_a_cache_that_somebody_else_owns_locks_nobody_out(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "shared"))
    theirs, mine = (tmp_path / "shared" / name for name in ("hf_ravlm", f"hf_ravlm-{os.geteuid()}"))
    (theirs / "written_here").mkdir(parents=True)
    (theirs / "written_here" / ("b" * 64)).touch()
    is_ours = notes._is_ours
    monkeypatch.setattr(notes, "_is_ours", lambda place: is_ours(place) and theirs not in place.parents)
    trust.trust_file("a" * 64)
    assert trust.is_trusted("a" * 64)
    assert not trust.is_trusted("b" * 64)  # what another user put there is not believed
    assert stat.S_IMODE((mine / "written_here").stat().st_mode) == 0o700
    built(numbered(range(130)), HashEncoder(), index="hnsw").save_pretrained(tmp_path / "base")
    assert len(opened(tmp_path / "base")) == 130


@needs_posix
@pytest.mark.parametrize("index", ["flat", "hnsw"])
def test_a_disk_without_room_is_an_oserror_and_leaves_what_was_there(store, index):
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    new = built(numbered(range(1500)), HashEncoder(), index=index)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            new.save_pretrained(store.parent)
        with pytest.raises(OSError, match="File too large") as alone:
            write_arrays(store / "x.safetensors", {"a": np.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert caught.value.errno == alone.value.errno == errno.EFBIG
    assert len(opened(store.parent)) == 8
    assert not list(store.glob("objects/*.tmp"))


def test_only_the_words_of_a_disk_are_errors_of_a_disk():
    with pytest.raises(RuntimeError, match="shape"), disk_errors("x"):
        raise RuntimeError("wrong shape")


@needs_posix
def test_a_killed_process_leaves_nothing_in_the_temporary_folder(tmp_path):
    program = (
        "import os, signal\nfrom hf_ravlm.saving.durable import temporary_folder\n"
        "with temporary_folder() as folder:\n    (folder / 'secret').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    deadline = time.monotonic() + 60
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.iterdir()) == []
    with temporary_folder() as folder:
        (folder / "file").touch()
    assert not folder.exists()


def test_nothing_of_a_knowledge_base_is_not_there(tmp_path):
    (tmp_path / "objects").mkdir()  # somebody's own folder of that name
    assert store_state(tmp_path) == "none"
    with pytest.raises(KnowledgeBaseNotFoundError):
        opened(tmp_path)


@needs_posix
def test_a_folder_whose_name_is_not_utf8_is_refused_in_words(tmp_path, capsys):
    odd = tmp_path / os.fsdecode(b"b\xffd")
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        built(numbered(range(3)), HashEncoder()).save_pretrained(odd)
    os.mkdir(odd)
    assert main(["index", "verify", str(odd)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_mistyped_name_is_no_failure_of_the_hub(capsys):
    with pytest.raises(KnowledgeBaseNotFoundError, match="no such folder here"):
        opened("my_foldr")
    assert main(["index", "search", "my_foldr", "x", "--channels", "bm25"]) == 2
    assert "my_foldr: there is no such folder here" in capsys.readouterr().err


# --- What the disk refuses


@pytest.fixture
def refusing(monkeypatch):
    """A folder in which nothing can be written from now on, for want of rights or of room."""

    def refuse(folder, number: int) -> None:
        opened_before, made_before = os.open, os.mkdir

        def checked(function, is_change):
            def call(path, *arguments, **options):
                inside = isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(str(folder))
                has_room = number == errno.ENOSPC and os.path.basename(path) == "LOCK"  # which is there already
                if inside and is_change(*arguments) and not has_room:
                    raise OSError(number, os.strerror(number), os.fspath(path))
                return function(path, *arguments, **options)

            return call

        changes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
        monkeypatch.setattr(os, "open", checked(opened_before, lambda flags, *_: bool(flags & changes)))
        monkeypatch.setattr(os, "mkdir", checked(made_before, lambda *_: True))

    return refuse


REFUSALS = {errno.EACCES: "Ask its owner", errno.EROFS: "Ask its owner", errno.ENOSPC: "Make room on this disk"}


@pytest.mark.parametrize("number", REFUSALS)
def test_a_disk_that_refuses_is_told_in_one_line_and_nothing_changes(tmp_path, refusing, number, capsys):
    folder = tmp_path / "base"
    built(numbered(range(9)), HashEncoder()).save_pretrained(folder)
    retriever = opened(folder)
    refusing(folder, number)
    changes = [
        lambda: retriever.add(numbered([20])),
        lambda: retriever.update(numbered([3], tag="other")),
        lambda: retriever.remove(["3"]),
        lambda: retriever.save_pretrained(folder),
        lambda: retriever.save_pretrained(folder / "deep" / "below"),
    ]
    for change in changes:
        with pytest.raises(StorageError, match=f"{os.strerror(number)}.*{REFUSALS[number]}") as caught:
            change()
        assert "\n" not in str(caught.value)
        assert caught.value.errno == number
    for words in (["remove", str(folder), "3"], ["compact", str(folder)], ["compact", str(folder), "--purge"]):
        if number == errno.ENOSPC and "compact" in words:
            continue  # which has nothing to write here
        capsys.readouterr()
        assert main(["index", *words]) == 1
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert REFUSALS[number] in said[0]
    assert len(opened(folder)) == 9
    assert main(["index", "verify", str(folder)]) == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_may_not_be_read_is_told_in_one_line(tmp_path, monkeypatch, number, capsys):
    built(numbered(range(9)), HashEncoder()).save_pretrained(tmp_path)

    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(StorageError, match="CURRENT.*Ask its owner"):
        opened(tmp_path)
    for command in ("info", "verify", "repair"):
        assert main(["index", command, str(tmp_path)]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for source in (tmp_path / "file", str(tmp_path / "file")):
        with pytest.raises(KnowledgeBaseNotFoundError, match="this is a file. Expected the folder"):
            opened(source)
    assert main(["index", "info", str(tmp_path / "file")]) == 2
    assert "this is a file" in capsys.readouterr().err
