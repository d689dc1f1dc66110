"""Makes the compact copy of the flags data that this repository ships: `examples/flags/data/`.

    python examples/flags/prepare_data.py --source FOLDER --out examples/flags/data

`FOLDER` holds `<iso>__<view>.png`, `metadata.jsonl` (one row per picture), `kb.jsonl` (one row per country) and
`vqa.jsonl` (one row per question). The pictures are recoded without loss (every pixel is compared) into one Parquet
file; columns that nothing reads are dropped; licences go along as a page for people and a file for programs. The same
source gives the same bytes with the same versions of Pillow and pyarrow: nothing written knows the time or the place.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands beside, not in, `flags`
from flags.attribution import LICENCES, render_readme


# Read by world.py; the rest of the source's columns is left behind. `None` where the source has no value.
ENTITY_COLUMNS = [
    "id",
    "name",
    "official",
    "capital",
    "region",
    "subregion",
    "languages",
    "currency",
    "borders",
    "demonym",
    "calling",
    "area",
    "independence",
    "national_symbol",
    "national_colors",
    "flag_desc",
    "flag_meaning",
    "background",
    "factbook",
]
QUESTION_COLUMNS = ["entity", "type", "question", "answer"]
IMAGE_COLUMNS = ["entity", "view", "role", "split"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="folder with metadata.jsonl, kb.jsonl, vqa.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its files of the same names go")
    options = parser.parse_args(arguments)
    try:
        prepare(options.source, options.out)
    except (OSError, ValueError) as error:
        sys.exit(f"prepare_data.py: {error}")
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size:>10,}  {path}")


def prepare(source: Path, out: Path) -> None:
    """Write `images.parquet`, `kb.jsonl`, `vqa.jsonl`, `licences.json` and `README.md` into `out`."""
    pictures = read_rows(source / "metadata.jsonl")
    entities = read_rows(source / "kb.jsonl")
    questions = read_rows(source / "vqa.jsonl")
    check(pictures, entities, questions)

    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        image_table(source, sorted(pictures, key=lambda row: row["file_name"])),
        out / "images.parquet",
        compression={"image.bytes": "none"},  # already compressed; the short columns are smaller as dictionaries
        write_page_checksum=True,
    )
    write_rows(out / "kb.jsonl", [{name: row.get(name) for name in ENTITY_COLUMNS} for row in entities])
    write_rows(out / "vqa.jsonl", [{name: row[name] for name in QUESTION_COLUMNS} for row in questions])
    views = Counter(row["view"] for row in pictures)
    licences = {**LICENCES, "images": {view: LICENCES["images"][view] for view in sorted(views)}}
    write_text(out / "licences.json", json.dumps(licences, indent=2, ensure_ascii=False) + "\n")
    write_text(out / "README.md", render_readme(dict(views), len(entities), len(questions)))


def check(pictures: list[dict], entities: list[dict], questions: list[dict]) -> None:
    """Raise `ValueError` where the three tables do not fit together or a drawing style has no known licence."""
    known = {row["id"] for row in entities}
    if len(known) < len(entities):
        raise ValueError("kb.jsonl names an id twice")
    if strangers := {row["entity"] for row in pictures + questions} - known:
        raise ValueError(f"metadata.jsonl or vqa.jsonl speak of entities that kb.jsonl lacks: {sorted(strangers)}")
    if unlicensed := {row["view"] for row in pictures} - set(LICENCES["images"]):
        raise ValueError(
            f"no licence is known for the views {sorted(unlicensed)}; add them to LICENCES in attribution.py"
        )
    if len({row["file_name"] for row in pictures}) < len(pictures):
        raise ValueError("metadata.jsonl names a file twice")


def image_table(source: Path, pictures: list[dict]) -> pa.Table:
    """One row per picture; `image` is the struct that `datasets.Image` reads and writes."""
    names = [Path(row["file_name"]).with_suffix(".webp").name for row in pictures]
    encoded = [recode(source / row["file_name"]) for row in pictures]
    columns = {"file_name": names, **{name: [row[name] for row in pictures] for name in IMAGE_COLUMNS}}
    image = pa.array(
        [{"bytes": data, "path": name} for data, name in zip(encoded, names, strict=True)],
        type=pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )
    features = {name: {"dtype": "string", "_type": "Value"} for name in columns} | {"image": {"_type": "Image"}}
    table = pa.table({**{name: pa.array(values, pa.string()) for name, values in columns.items()}, "image": image})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def recode(path: Path) -> bytes:
    """The picture as lossless WebP, about half of its PNG; raises `ValueError` unless every pixel is the same."""
    with Image.open(path) as picture:
        picture.load()
    if picture.mode != "RGB":
        raise ValueError(f"{path.name} has the mode {picture.mode}; expected RGB on white")
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=80, method=4)
    with Image.open(io.BytesIO(buffer.getvalue())) as again:
        if again.size != picture.size or ImageChops.difference(picture, again.convert("RGB")).getbbox() is not None:
            raise ValueError(f"{path.name} changed in recoding")
    return buffer.getvalue()


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_rows(path: Path, rows: list[dict]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
