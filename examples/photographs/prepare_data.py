"""Makes the photographs data out of two Debian packages: pictures with captions, and entries of WordNet.

    apt-get download tuxpaint-stamps-default wordnet-base
    python examples/photographs/prepare_data.py --packages . --out runs/photographs/data

Without Debian, take both files from https://deb.debian.org/debian/pool/main/t/tuxpaint-stamps/ (161 MB) and
https://deb.debian.org/debian/pool/main/w/wordnet/ (7 MB). The pictures and captions of Tux Paint are under the GPL,
version 2, so this repository does not hold them; WordNet's text is under the WordNet licence. Written are
`stamps.parquet` (picture, caption, synset) and `knowledge.jsonl` (the 1,000 synsets of ImageNet and those of the
captions).
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers import HfArgumentParser


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands in, not beside, the rest
from hf_ravlm.images import safe_image
from photographs.debian import files_in_package
from photographs.nouns import FILES, Nouns, caption_entity, read_nouns


CLASSES = Path(__file__).resolve().parent / "classes.txt"
MISREAD = Path(__file__).resolve().parent / "misread.txt"  # captions that the rule gets wrong, as a person read them
STAMPS = "usr/share/tuxpaint/stamps/"
SIZE = 224
NUM_KINDS_NAMED = 4
# Folder of the stamps → what its captions may be about. Letters, numbers, coins and road signs are left out.
CATEGORIES = {
    "animals": "animal",
    "food": "food plant",
    "plants": "plant food",
    "people": "body artifact person",
    "space": "object artifact",
    "seasonal": "animal artifact food plant object body",
    "medical": "artifact body",
    "naturalforces": "phenomenon event",
    **dict.fromkeys(("clothes", "hobbies", "household", "military", "sports", "town", "vehicles"), "artifact"),
}
LEFT_OUT = ("roadsigns", "flags")


@dataclass
class Options:
    """What can be chosen on the command line."""

    packages: str = field(default=".", metadata={"help": "folder with the two .deb files"})
    out: str = field(default="runs/photographs/data", metadata={"help": "folder to write"})


def main(options: Options) -> None:
    """Reads both packages, writes both files, says what came of it."""
    stamps_package, wordnet_package = (
        find_package(options.packages, name) for name in ("tuxpaint-stamps-default", "wordnet-base")
    )
    nouns = read_nouns(
        {Path(name).name: data for name, data in files_in_package(wordnet_package, lambda n: n.endswith(FILES))}
    )
    classes = CLASSES.read_text(encoding="utf-8").split()
    rows = stamp_rows(stamps_package, nouns, classes)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), out / "stamps.parquet")
    entries = knowledge_rows(nouns, classes, {row["synset"] for row in rows})
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    (out / "knowledge.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} pictures of {len({row['synset'] for row in rows})} things, {len(entries)} entries in {out}")


def find_package(folder: str, name: str) -> Path:
    """The newest file of a Debian package in a folder; without one, says how to get it."""
    found = sorted(Path(folder).glob(f"{name}_*.deb"))
    if not found:
        sys.exit(f"{folder} holds no {name}_*.deb; `apt-get download {name}` there, or see the top of this program.")
    return found[-1]


def stamp_rows(package: Path, nouns: Nouns, classes: list[str]) -> list[dict]:
    """One row per picture whose caption WordNet understands."""
    files = dict(files_in_package(package, lambda name: name.startswith(STAMPS) and name.endswith((".png", ".txt"))))
    left_out = set(MISREAD.read_text(encoding="utf-8").split())
    rows = []
    for name in sorted(files):
        stem = PurePosixPath(name.removeprefix(STAMPS)).with_suffix("")
        text = files.get(str(PurePosixPath(name).with_suffix(".txt")))
        known = CATEGORIES.get(stem.parts[0])
        if not name.endswith(".png") or text is None or known is None or set(stem.parts) & set(LEFT_OUT):
            continue
        if str(stem) in left_out:
            continue
        caption = " ".join(text.decode("utf-8").split("\n")[0].split())
        found = caption_entity(caption, nouns, {f"noun.{category}" for category in known.split()}, set(classes))
        if found is not None:
            synset, words = found
            row = {"id": str(stem), "caption": caption, "synset": synset, "words": words}
            rows.append({**row, "drawn": "cartoon" in stem.parts, "image": square(files[name])})
    return rows


def square(data: bytes) -> bytes:
    """The picture without its empty margin, in the middle of a white square, as lossless WebP."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    picture = safe_image(picture.crop(picture.getchannel("A").getbbox()))
    side = max(picture.size) * 9 // 8 + 1
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    buffer = io.BytesIO()
    canvas.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def knowledge_rows(nouns: Nouns, classes: list[str], synsets: set[str]) -> list[dict]:
    """One entry per synset of ImageNet and of the captions.

    `classes` of an entry are the numbers of the ImageNet classes that are it or a kind of it: where a picture of it
    is to be found by an image classifier. Those that have none can be found by their words only.
    """
    kinds: dict[str, list[int]] = {}
    class_ids = set(classes)
    number_of = {synset: number for number, synset in enumerate(classes)}
    for number, synset in enumerate(classes):
        for ancestor in {synset, *nouns.all_ancestors(synset)}:
            kinds.setdefault(ancestor, []).append(number)
    rows = []
    for synset in [*classes, *sorted(synsets - class_ids)]:
        entry = nouns.synsets[synset]
        above = [nouns.synsets[ancestor]["words"][0] for ancestor in nouns.ancestors(synset)[:NUM_KINDS_NAMED]]
        rows.append(
            {
                "id": synset,
                "title": entry["words"][0],
                "text": f"{', '.join(entry['words'][:3])} (a kind of {', '.join(above)}): {entry['gloss']}",
                "words": entry["words"],
                "classes": kinds.get(synset, []),
                "own_class": number_of.get(synset),
            }
        )
    return rows


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
