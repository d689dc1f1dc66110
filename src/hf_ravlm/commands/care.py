"""`hf-ravlm index info`, `verify`, `repair`, `remove`, `compact` and `push`; none of them loads a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from ..retrieval import repair_store, store_info, verify_store
from ..retrieval.encoding.reference import describe_reference
from ..retrieval.hub.upload import publish
from ..retrieval.store.current import CurrentKnowledge
from ..retrieval.store.loading import OpenOptions, open_state
from ..retrieval.store.saving import find_store
from ..saving.commit import Destination
from .building import SUBFOLDER, passages_now
from .outcome import Outcome, in_words_of_the_command_line, size


def info(arguments: argparse.Namespace) -> Outcome:
    """`index info`: what the manifest says."""
    record = store_info(find_store(arguments.folder, SUBFOLDER))
    encoder, index = record["encoder"], record["index"]
    lines = [
        f"passages    {record['passages']:,}"
        + (f" ({record['removed']:,} removed ones take room)" * bool(record["removed"])),
        f"encoder     {encoder['name']} ({encoder['dim']} dimensions, fingerprint {str(encoder['fingerprint'])[:12]})",
        *([f"loaded by   {describe_reference(encoder['reference'])}"] if "reference" in encoder else []),
        f"index       {index['kind']}"
        + ("" if index["indexed_rows"] or index["kind"] == "flat" else " (few passages: searched exactly)")
        + ("" if index["written_here"] else ", written elsewhere: built again when opened"),
        f"version     {record['generation']} (format {record['format']}; there are {len(record['generations'])})",
        f"size        {size(record['bytes'])}",
        *(
            f"  {role:<12}{counts['files']:>6} files  {counts['rows']:>12,} rows  {size(counts['bytes']):>12}"
            for role, counts in record["files"].items()
        ),
    ]
    if record["staging"]:
        lines.append(f"unfinished  {', '.join(record['staging'])} (run the same command again to go on)")
    return Outcome(record, "\n".join(lines))


def verify(arguments: argparse.Namespace) -> Outcome:
    """`index verify`: reads every byte; the exit code says whether all are right."""
    return _verdict(verify_store(find_store(arguments.folder, SUBFOLDER)), arguments.folder)


def repair(arguments: argparse.Namespace) -> Outcome:
    """`index repair`: makes a damaged knowledge base usable again."""
    places = [place for place in (arguments.folder / SUBFOLDER, arguments.folder) if (place / "manifests").is_dir()]
    store = places[0] if places else find_store(arguments.folder, SUBFOLDER)
    return _verdict(repair_store(store, to=arguments.to, drop_damaged=arguments.drop_damaged), arguments.folder)


def _verdict(record: dict[str, Any], folder: Path) -> Outcome:
    damaged = [file for file in record["files"] if file["problem"] is not None]
    lines = [*record.get("actions", []), *record["problems"]]
    lines += [f"damaged {file['role']}: {file['problem']}" for file in damaged]
    if record["ok"]:
        lines.append(f"All {len(record['files'])} files of {record['passages']:,} passages are as they were written.")
    else:
        missing = f"; {record['missing']:,} are lost" if record["missing"] else ""
        lines.append(f"{record['passages']:,} passages can be searched{missing}. See `hf-ravlm index repair --help`.")
        if damaged and not any(file["role"] in ("passages", "tombstones") for file in damaged):
            again = f"`hf-ravlm index build {folder} NEW_FOLDER --model NAME`"
            lines.append(f"The passages themselves are whole: {again} encodes them anew.")
    return Outcome(record, in_words_of_the_command_line("\n".join(lines)), exit_code=0 if record["ok"] else 1)


def remove(arguments: argparse.Namespace) -> Outcome:
    """`index remove`: takes passages out by their ids.

    Raises:
        InvalidInputError: No id is given, or the file of ids is not UTF-8.
    """
    ids, source = list(arguments.ids), arguments.ids_file
    if source is not None:
        try:
            lines = (sys.stdin.read() if str(source) == "-" else source.read_text(encoding="utf-8")).splitlines()
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"{source} is not UTF-8 ({error}). Expected one id per line.") from error
        ids += filter(None, lines)
    if not ids:
        raise InvalidInputError("There are no ids. Name some, or a file that lists them with --ids_file.")
    current = _current(arguments.folder)
    before = len(current.knowledge)
    current.change(lambda knowledge: knowledge.removed(ids))
    done = passages_now(arguments.folder, before, len(current.knowledge))
    hint = "`hf-ravlm index compact --purge` erases the bytes of those removed."
    return Outcome(done.record, f"{done.text} {hint}")


def compact(arguments: argparse.Namespace) -> Outcome:
    """`index compact`: rewrites without what was removed."""
    current = _current(arguments.folder)
    store = find_store(arguments.folder, SUBFOLDER)
    before = _bytes_in(store)
    current.change(lambda knowledge: knowledge.compacted())
    if arguments.purge:
        current.purge(30.0)  # seconds to wait for readers
    after = _bytes_in(store)
    record = {"folder": str(arguments.folder), "passages": len(current.knowledge), "purged": arguments.purge}
    record |= {"bytes_before": before, "bytes": after}
    text = f"{len(current.knowledge):,} passages in {arguments.folder}: {size(after)} on disk, {size(before)} before."
    return Outcome(record, text)


def push(arguments: argparse.Namespace) -> Outcome:
    """`index push`: publishes on the Hub."""
    current = _current(arguments.folder)
    assert current.stored is not None
    destination = Destination(
        arguments.repo,
        arguments.message,
        repo_type=arguments.repo_type,
        subfolder=SUBFOLDER if arguments.repo_type == "model" else None,
        private=True if arguments.private else None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
    )
    knowledge, parts = current.knowledge, list(arguments.parts)
    commit = publish(knowledge, current.stored.encoder, destination, parts, arguments.allow_missing_licence)
    record = {"repo": arguments.repo, "repo_type": arguments.repo_type, "parts": parts, "passages": len(knowledge)}
    record |= {"commit": commit.oid, "url": commit.pr_url or commit.commit_url}
    return Outcome(record, f"{len(knowledge):,} passages ({', '.join(parts)}): {record['url']}")


def _current(folder: Path) -> CurrentKnowledge:
    state = open_state(find_store(folder, SUBFOLDER), OpenOptions())
    return CurrentKnowledge(state.knowledge, state)


def _bytes_in(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
