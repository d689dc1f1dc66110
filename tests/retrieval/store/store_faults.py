"""A program that harms stored knowledge bases and watches what becomes of them; run by `test_faults`.

    python store_faults.py fuzz FOLDER SEED NUM_CASES     mutated files: refused, or read as if nothing were wrong
    python store_faults.py forge FOLDER SEED NUM_CASES    the same with checksums made to fit, as a stranger could
    python store_faults.py kill FOLDER                    killed at every step of every change
    python store_faults.py together FOLDER                four writers and two readers at once

It prints one JSON object. Children are forked, so that a crash, a hang or a greedy read is seen from outside.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).parents[2]))
from huggingface_hub import constants

from hash_encoder import HashEncoder, built, numbered
from hf_ravlm.errors import KnowledgeBaseCorruptError, RavlmError
from hf_ravlm.retrieval import KnowledgeBase, RavlmRetriever
from hf_ravlm.retrieval.store import current as current_knowledge
from hf_ravlm.retrieval.store.versions import read_version


SECONDS_PER_CASE = 20
EXTREMES = [0, 1, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One of fourteen kinds of damage."""
    new, size = bytearray(data), len(data)
    place = int(random.integers(size))
    head = int(random.integers(min(size, 256)))
    length = int(random.integers(1, 512))
    match int(random.integers(14)):
        case 0:  # a small change of a number near the head
            width = int(random.choice([1, 4, 8]))
            value = int.from_bytes(new[head : head + width], "little")
            changes = [value + 1, value - 1, value * 2, value // 2, value + 8, value ^ 1, value + 256]
            value = changes[int(random.integers(7))] % 256**width
            new[head : head + width] = value.to_bytes(width, "little")
        case 1:
            del new[place:]
        case 2:
            del new[max(size - length, 0) :]
        case 3:
            new[place] ^= 1 << int(random.integers(8))
        case 4:
            new[int(random.integers(min(size, 128)))] ^= 1 << int(random.integers(8))
        case 5 | 6:
            new[head : head + 8] = EXTREMES[int(random.integers(len(EXTREMES)))].to_bytes(8, "little")
        case 7:
            new[place : place + 8] = EXTREMES[int(random.integers(len(EXTREMES)))].to_bytes(8, "little")
        case 8:
            block = int(random.choice([16, 64, 512, 4096]))
            new[place : place + block] = bytes(len(new[place : place + block]))
        case 9:
            new[place:] = bytes(size - place)
        case 10:
            new += random.bytes(int(random.integers(1, 1024)))
        case 11:
            new[place:place] = new[place : place + length]
        case 12:
            del new[place : place + length]
        case 13:
            for _ in range(int(random.integers(4, 65))):
                new[int(random.integers(size))] ^= 1 << int(random.integers(8))
    return bytes(new)


def state_of(folder: Path, **options) -> tuple:
    """All that a reader sees."""
    retriever = RavlmRetriever.from_pretrained(folder, encoder=HashEncoder(), **options)
    passages = retriever.knowledge_base.table.to_pylist()
    scores, rows = retriever.search_vectors(retriever.vectors[:5], 4) if len(retriever) else ([], [])
    return repr(passages), retriever.vectors.tobytes(), repr(rows), repr(np.round(scores, 5))


def forked(work, report_to: Path) -> int:
    """Runs `work` in a child; returns its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            report_to.write_text(traceback.format_exc())
            os._exit(1)
    return os.waitpid(child, 0)[1]


def fuzz(folder: Path, seed: int, num_cases: int, forge: bool) -> dict:
    """Mutates one file of a store at a time and opens it."""
    store = folder / "knowledge_base"
    retriever = built(numbered(range(130)), HashEncoder(), index="hnsw")
    retriever.save_pretrained(folder)
    retriever.add(numbered(range(130, 140)))
    retriever.remove(["3", "135"])
    del retriever
    expected = state_of(folder)
    log, trouble = folder / "log.jsonl", folder / "trouble.txt"
    done = 0
    crashes: list[str] = []
    while done < num_cases:
        cases = range(done, num_cases)
        status = forked(lambda cases=cases: fuzz_cases(store, seed, cases, expected, log, forge), trouble)
        done = len(log.read_text().splitlines()) if log.exists() else 0
        if status != 0:
            crashes.append(f"case {done}: status {status} {trouble.read_text() if trouble.exists() else ''}")
            with log.open("a") as file:
                file.write(json.dumps({"case": done, "outcome": "crash"}) + "\n")
            done += 1
    outcomes = [json.loads(line) for line in log.read_text().splitlines()]
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome["outcome"]] = counts.get(outcome["outcome"], 0) + 1
    wrong = [outcome for outcome in outcomes if outcome["outcome"] not in ("refused", "same", "other")]
    memory = max((outcome["megabytes"] for outcome in outcomes if "megabytes" in outcome), default=0)
    seconds = max((outcome["seconds"] for outcome in outcomes if "seconds" in outcome), default=0)
    return {
        "counts": counts,
        "crashes": crashes[:5],
        "wrong": wrong[:5],
        "megabytes": memory,
        "seconds": seconds,
    }


def fuzz_cases(store: Path, seed: int, cases: range, expected: tuple, log: Path, forge: bool) -> None:
    names = read_version(store).file_names()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in cases:
        random = np.random.default_rng([seed, case])
        harmed = store.parent / "harmed"
        shutil.rmtree(harmed, ignore_errors=True)
        shutil.copytree(store, harmed)
        name = names[case % len(names)]
        original = (harmed / name).read_bytes()
        data = mutated(original, random)
        (harmed / name).write_bytes(data)
        if forge:
            forge_checksums(harmed, name, data)
        options = {"allow_foreign_index": False, "on_error": ["raise", "rebuild", "skip_shard"][case % 3]}
        signal.alarm(SECONDS_PER_CASE)
        begun = time.monotonic()
        result = {"case": case, "file": name, "options": options["on_error"]}
        try:
            found = state_of(harmed, **options)
            is_right = found == expected or is_part(found, expected, options)
            result["outcome"] = "same" if is_right else "other" if forge else "silently wrong"
        except RavlmError:
            result["outcome"] = "refused"
        except Exception as error:
            result["outcome"] = f"another error: {error!r}"[:300]
        signal.alarm(0)
        result["seconds"] = round(time.monotonic() - begun, 3)
        result["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        with log.open("a") as file:
            file.write(json.dumps(result) + "\n")


def is_part(found: tuple, expected: tuple, options: dict) -> bool:
    """Whether some passages are left out, which was agreed to, and the others are what they were."""
    if options["on_error"] == "raise":
        return False
    # A rebuilt graph may find others; passages and vectors may only be fewer.
    wanted, rows = eval_rows(expected), eval_rows(found)
    return all(rows[key] == wanted.get(key) for key in rows) and (
        options["on_error"] == "skip_shard" or len(rows) == len(wanted)
    )


def eval_rows(state: tuple) -> dict[str, tuple[str, bytes]]:
    import ast

    passages, vectors = ast.literal_eval(state[0]), state[1]
    width = len(vectors) // max(len(passages), 1)
    return {
        passage["id"]: (passage["text"], vectors[place * width : (place + 1) * width])
        for place, passage in enumerate(passages)
    }


def forge_checksums(store: Path, name: str, data: bytes) -> None:
    """Makes names, manifest and pointer fit a changed file."""
    pointer = (store / "CURRENT").read_bytes()
    if name == "CURRENT":
        return
    version = pointer.split()[0].decode()
    manifest = store / "manifests" / f"{version}.json"
    if name.startswith("objects"):
        sha256 = hashlib.sha256(data).hexdigest()
        new_name = f"objects/{sha256[:2]}/{sha256}{Path(name).suffix}"
        (store / new_name).parent.mkdir(exist_ok=True)
        (store / name).rename(store / new_name)
        fields = json.loads(manifest.read_text())
        for entry in fields["files"]:
            if entry["name"] == name:
                entry.update(name=new_name, sha256=sha256, bytes=len(data))
            entry["built_from"] = [
                sha256 if old == Path(name).stem else old for old in entry.get("built_from", [])
            ] or entry.get("built_from")
        manifest.write_text(json.dumps(fields))
    sha256 = hashlib.sha256(manifest.read_bytes()).hexdigest()
    (store / "CURRENT").write_text(f"{version} {sha256}\n")


# --- Kills


CHANGES = {
    "add": lambda retriever: retriever.add(numbered([100])),
    "remove": lambda retriever: retriever.remove(["2", "9"]),
    "update": lambda retriever: retriever.update(numbered([4, 5], tag="second")),
    "compact": lambda retriever: retriever.compact(),
    "purge": lambda retriever: retriever.compact(purge=True),
    "save": lambda retriever: retriever.save_pretrained(retriever.folder),
    "add many": lambda retriever: retriever.add(numbered(range(200, 230)), batch_size=1),
}


class StepCounter:
    """Counts what changes the disk, by Python's audit events and `fsync`, and kills the process at the n-th step."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.folder, self.kill_at, self.count, self.active = str(folder), kill_at, 0, True
        original = os.fsync

        def fsync(descriptor):
            self.step()
            original(descriptor)

        os.fsync = fsync
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if changes and str(arguments[0]).startswith(self.folder):
            self.step()

    def step(self):
        if self.active:
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def kill(folder: Path) -> dict:
    """Kills every change at every step and looks at what is left."""
    current_knowledge._MIN_STAGED_PASSAGES = 20
    template = folder / "template"
    retriever = built(numbered(range(20)), HashEncoder())
    retriever.save_pretrained(template)
    retriever.remove(["7"])
    del retriever
    before = state_of(template)
    report: dict = {"points": {}, "wrong": []}
    for name, change in CHANGES.items():
        place = folder / "place"

        def run(kill_at=None, change=change, place=place):
            retriever = RavlmRetriever.from_pretrained(place, encoder=HashEncoder())
            retriever.folder = place
            steps = StepCounter(place, kill_at)
            change(retriever)
            steps.active = False
            (folder / "acknowledged").write_text(str(steps.count))

        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(template, place)
        if forked(run, folder / "trouble") != 0:
            raise RuntimeError((folder / "trouble").read_text())
        after = state_of(place)
        num_steps = int((folder / "acknowledged").read_text())
        report["points"][name] = num_steps
        for step in range(1, num_steps + 1):
            shutil.rmtree(place)
            shutil.copytree(template, place)
            (folder / "acknowledged").unlink(missing_ok=True)
            status = forked(lambda step=step, run=run: run(step), folder / "trouble")
            if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
                report["wrong"].append(f"{name} {step}: not killed ({status})")
            check_remains(place, name, step, before, after, change, report["wrong"])
    report["num_points"] = sum(report["points"].values())
    return report


def check_remains(place: Path, name: str, step: int, before, after, change, wrong: list[str]) -> None:
    try:
        found = state_of(place)
        if found not in (before, after):
            wrong.append(f"{name} {step}: neither the old state nor the new one")
        retriever = RavlmRetriever.from_pretrained(place, encoder=HashEncoder())
        retriever.folder = place
        if found == before and before != after:
            change(retriever)
        retriever.add([{"id": "next", "text": "topic1 next"}])
        retriever.compact(purge=True)
        retriever.remove(["next"])
        retriever.compact()
        if sorted(KnowledgeBase.load(place).table["text"].to_pylist()) != sorted(texts_of(after)):
            wrong.append(f"{name} {step}: the next changes went wrong")
        if list(place.rglob("*.tmp")) or list(place.rglob("staging/*")):
            wrong.append(f"{name} {step}: remains {list(place.rglob('*.tmp'))}")
    except Exception as error:
        wrong.append(f"{name} {step}: {error!r}")


def texts_of(state: tuple) -> list[str]:
    return [text for text, _ in eval_rows(state).values()]


# --- Together


def together(folder: Path) -> dict:
    """Four writers append and update while two readers ask."""
    pair = [{"id": name, "text": f"topic0 {name} state 0"} for name in ("left", "right")]
    built([*pair, *numbered(range(10))], HashEncoder()).save_pretrained(folder)
    children, trouble = [], folder / "trouble"

    def write(writer):
        retriever = RavlmRetriever.from_pretrained(folder, encoder=HashEncoder())
        for n in range(15):
            retriever.add([{"id": f"{writer}-{n}", "text": f"topic{writer} appended {n}"}])
            if n % 5 == 4:
                state = f"{writer}.{n}"
                retriever.update([{"id": name, "text": f"topic0 {name} state {state}"} for name in ("left", "right")])
                retriever.compact()

    def read(reader):
        retriever = RavlmRetriever.from_pretrained(folder, encoder=HashEncoder())
        num_reads = 0
        while not (folder / "stop").exists():
            if reader == 0:
                retriever.refresh()
            else:
                retriever = RavlmRetriever.from_pretrained(folder, encoder=HashEncoder())
            found = {item.id: item for item in retriever.retrieve(texts="topic0 state", k=100)[0]}
            states = {found[name].text.split()[-1] for name in ("left", "right")}
            if len(states) != 1 or len(found) != len(retriever) or not {str(n) for n in range(10)} <= set(found):
                raise AssertionError(f"a mixture: {states}, {len(found)} of {len(retriever)}")
            num_reads += 1
        (folder / f"reads-{reader}").write_text(str(num_reads))

    for work, count in ((write, 4), (read, 2)):
        for number in range(count):
            child = os.fork()
            if child == 0:
                try:
                    work(number)
                    os._exit(0)
                except BaseException:
                    trouble.write_text(traceback.format_exc())
                    os._exit(1)
            children.append(child)
    failed = [os.waitpid(child, 0)[1] for child in children[:4]]
    (folder / "stop").touch()
    failed += [os.waitpid(child, 0)[1] for child in children[4:]]
    return {
        "failed": failed,
        "trouble": trouble.read_text() if trouble.exists() else "",
        "passages": len(KnowledgeBase.load(folder)),
        "reads": [int((folder / f"reads-{reader}").read_text()) for reader in range(2) if not any(failed)],
    }


def main() -> None:
    logging.disable(logging.CRITICAL)
    task, folder = sys.argv[1], Path(sys.argv[2])
    constants.HF_HOME = str(folder / "cache")
    folder = folder / "work"
    folder.mkdir(parents=True)
    numbers = [int(number) for number in sys.argv[3:]]
    tasks = {
        "fuzz": lambda: fuzz(folder, *numbers, forge=False),
        "forge": lambda: fuzz(folder, *numbers, forge=True),
        "kill": lambda: kill(folder),
        "together": lambda: together(folder),
    }
    sys.stdout.write(json.dumps(tasks[task]()))


if __name__ == "__main__":
    assert issubclass(KnowledgeBaseCorruptError, RavlmError)
    main()
