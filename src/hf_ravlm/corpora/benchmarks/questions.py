"""Questions of the benchmarks of knowledge-based visual question answering, as their official files hold them.

| name | files | metric |
|---|---|---|
| `okvqa` | `OpenEnded_mscoco_val2014_questions.json`, `mscoco_val2014_annotations.json` | VQA accuracy |
| `aokvqa` | `aokvqa_v1p0_val.json`, direct answers; `aokvqa_choices` for the four choices | the official one |
| `infoseek` | `infoseek_val.jsonl`, `infoseek_val_qtype.jsonl`; for gold `infoseek_val_withkb.jsonl` | InfoSeek's |
| `encyclopedic_vqa` | `test.csv` | exact match, where BEM is not there |
| `viquae` | `test.jsonl` | exact match and F1 of SQuAD |
| `m2kr` | `..._data` as Parquet or JSON lines | recall of the gold passages |

The formats are those of the public repositories that the files come from; `docs/benchmarks.md` names them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InvalidInputError
from .files import Files, ImageFolder, json_value, named_files, records_of


Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        read: Makes rows of its files and its images.
        metrics: Of `hf_ravlm.evaluation.scoring.ANSWER_METRICS`; the first is the official one.
        files: What its files are called, for messages.
    """

    read: Callable[[list[Path], ImageFolder], Iterable[Row]]
    metrics: tuple[str, ...]
    files: str


def benchmark_questions(name: str, files: Files, images: str | os.PathLike[str] | None = None) -> list[Row]:
    """The questions of a benchmark: rows for `hf_ravlm.evaluation.questions_from`.

    A row has `id`, `question`, `answers` and, where the files tell them, `image` (a path), `gold_ids`, `kind`,
    `cluster` and `split`.

    Args:
        name: One of `BENCHMARKS`.
        files: Its files, or the folder with them.
        images: The folder of its images, by default none: questions are then asked without.

    Raises:
        InvalidInputError: If the name is not known, a file is missing or damaged, or no question is there.

    Example:

    ```python
    >>> from hf_ravlm.corpora import benchmark_questions
    >>> rows = benchmark_questions("infoseek", "infoseek_data", images="oven_images")  # doctest: +SKIP
    >>> rows[0]["split"], rows[0]["kind"]  # doctest: +SKIP
    ('unseen_question', 'time')

    ```
    """
    if name not in BENCHMARKS:
        raise InvalidInputError(f"There is no benchmark {name!r} here. Choose of {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    try:
        rows = list(benchmark.read(named_files(files), ImageFolder(images)))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InvalidInputError(
            f"These are not the files of {name}: a record has no {error}. Expected {benchmark.files}."
        ) from error
    if not rows:
        raise InvalidInputError(f"No question with an answer was found. Expected {benchmark.files}.")
    return rows


def _okvqa(files: list[Path], images: ImageFolder) -> Iterable[Row]:
    questions: dict[Any, Row] = {}
    answers: dict[Any, Row] = {}
    kinds: Mapping[str, str] = {}
    subset = ""
    for file in files:
        value = json_value(file) if file.suffix == ".json" else None
        if isinstance(value, dict) and isinstance(value.get("questions"), list):
            questions |= {row["question_id"]: row for row in value["questions"]}
            subset = value.get("data_subtype", subset)
        elif isinstance(value, dict) and isinstance(value.get("annotations"), list):
            answers |= {row["question_id"]: row for row in value["annotations"]}
            kinds = value.get("question_types", kinds)
    if not questions or not answers:
        raise InvalidInputError(f"Questions or annotations are missing. Expected {BENCHMARKS['okvqa'].files}.")
    for question_id, row in questions.items():
        if question_id not in answers:
            continue
        said = [entry["answer"] if isinstance(entry, dict) else entry for entry in answers[question_id]["answers"]]
        number = int(row["image_id"])
        name = f"COCO_{subset}_{number:012}.jpg"
        kind = str(answers[question_id].get("question_type", ""))
        yield {
            "id": str(question_id),
            "question": row["question"],
            "answers": said * 2 if len(said) == 5 else said,  # the official files count each of five people twice
            "image": images.find(f"{subset}/{name}", name, f"{number:012}.jpg"),
            "kind": kinds.get(kind, kind),
            "cluster": str(number),
        }


def _aokvqa(files: list[Path], images: ImageFolder, with_choices: bool = False) -> Iterable[Row]:
    for file in files:
        for row in records_of(file) if file.suffix == ".json" else []:
            number, split = int(row["image_id"]), row["split"]
            question, answers = row["question"], row.get("direct_answers")
            if with_choices:
                choices = row["choices"]
                place = row.get("correct_choice_idx")
                answers = None if place is None else [choices[place]]
                question = f"{question} Choose one: {', '.join(choices)}."
            elif row.get("difficult_direct_answer"):
                continue  # as the official script does
            if answers is None:  # the test set keeps them
                continue
            yield {
                "id": str(row["question_id"]),
                "question": question,
                "answers": list(answers),
                "image": images.find(f"{split}2017/{number:012}.jpg", f"{number:012}.jpg"),
                "cluster": str(number),
            }


def _aokvqa_choices(files: list[Path], images: ImageFolder) -> Iterable[Row]:
    return _aokvqa(files, images, with_choices=True)


def _infoseek(files: list[Path], images: ImageFolder) -> Iterable[Row]:
    rows: dict[str, Row] = {}
    for file in files:
        for row in records_of(file) if ".json" in file.suffixes or file.suffix == ".jsonl" else []:
            rows.setdefault(str(row["data_id"]), {}).update(row)
    for data_id, row in rows.items():
        if "question" not in row or "answer_eval" not in row:
            continue
        kind = str(row.get("question_type", "string")).lower()
        answers = row["answer_eval"]
        if kind == "numerical" or (isinstance(answers, list) and answers and isinstance(answers[0], dict)):
            entry = answers[0] if isinstance(answers, list) else answers
            answers = [str(end) for end in entry["range"][:2]] if isinstance(entry, dict) else answers
            kind = "numerical"
        image_id = str(row["image_id"])
        split = str(row.get("data_split", ""))
        yield {
            "id": data_id,
            "question": row["question"],
            "answers": list(map(str, answers)),
            "image": images.find(image_id),
            "gold_ids": [row["entity_id"]] if row.get("entity_id") else [],
            "kind": kind,
            "cluster": image_id,
            "split": next((name for name in ("unseen_question", "unseen_entity") if split.endswith(name)), split),
        }


def _encyclopedic_vqa(files: list[Path], images: ImageFolder) -> Iterable[Row]:
    tables = [file for file in files if file.suffix == ".csv"]
    names = _names_of_inaturalist(images)
    for file in tables:
        for number, row in enumerate(records_of(file)):
            gold = _gold_sections(row["wikipedia_url"] or "", row.get("evidence_section_id"))
            for place, image_id in enumerate((row["dataset_image_ids"] or "").split("|")):
                yield {
                    "id": f"{file.stem}-{number}-{place}",
                    "question": row["question"],
                    "answers": [answer.strip() for answer in (row["answer"] or "").split("|") if answer.strip()],
                    "image": images.find(*_image_names(row["dataset_name"], image_id, names)),
                    "gold_ids": gold,
                    "kind": row["question_type"],
                    "cluster": f"{file.stem}-{number}",
                    "split": _seen(row.get("wikipedia_url_used_in_train")),
                }


def _gold_sections(urls: str, sections: str | None) -> list[str]:
    """The ids of the sections with the evidence, as of `from_encyclopedic_vqa`; of the articles, without sections."""
    pages, places = urls.split("|"), (sections or "").split("|")
    if len(pages) != len(places) or not all(place.strip().isdecimal() for place in places):
        return [page for page in pages if page]
    return [f"{page}#{int(place)}" for page, place in zip(pages, places, strict=True)]


def _seen(used_in_train: Any) -> str:
    return {"true": "seen_entity", "false": "unseen_entity"}.get(str(used_in_train).strip().lower(), "")


def _names_of_inaturalist(images: ImageFolder) -> dict[str, str]:
    """The files of iNaturalist 2021 by their ids, from the `train.json` and `val.json` beside the images."""
    names: dict[str, str] = {}
    if images.folder is not None:
        for file in sorted(images.folder.rglob("*.json"))[:20]:
            value = json_value(file)
            if isinstance(value, dict) and isinstance(value.get("images"), list):
                names |= {str(entry["id"]): entry["file_name"] for entry in value["images"] if "file_name" in entry}
    return names


def _image_names(data_set: str, image_id: str, names: Mapping[str, str]) -> tuple[str, ...]:
    if data_set == "landmarks" and len(image_id) > 2:
        path = "/".join([*image_id[:3], image_id])
        return image_id, *(f"{folder}{path}" for folder in ("", "train/", "landmarks/", "google-landmark/train/"))
    known = names.get(image_id)
    return (known, image_id) if known else (image_id,)


def _viquae(files: list[Path], images: ImageFolder) -> Iterable[Row]:
    for file in files:
        for row in records_of(file) if file.suffix in (".jsonl", ".gz", ".json", ".parquet") else []:
            output = row["output"]
            accepted = [output.get("original_answer"), *(output.get("answer") or [])]
            answers = list(dict.fromkeys(answer for answer in accepted if answer))
            if answers:
                yield {
                    "id": str(row["id"]),
                    "question": row["input"],
                    "answers": answers,
                    "image": images.find(row["image"]) if row.get("image") else None,
                    "gold_ids": [row["wikidata_id"]] if row.get("wikidata_id") else [],
                    "cluster": row.get("image"),
                }


def _m2kr(files: list[Path], images: ImageFolder) -> Iterable[Row]:
    for file in files:
        for row in records_of(file):
            if "question_id" not in row:  # passages, in the same folder
                continue
            instruction = str(row.get("instruction") or "").strip()
            question = " ".join(part for part in (instruction, row.get("question") or "") if part)
            gold = list(map(str, row["pos_item_ids"]))
            yield {
                "id": str(row["question_id"]),
                "question": question,
                # Tasks that only search have no answer; the text of a gold passage stands for it.
                "answers": list(row.get("answers") or row.get("pos_item_contents") or gold),
                "image": images.find(row["img_path"]) if row.get("img_path") else None,
                "gold_ids": gold,
                "kind": str(row.get("question_type") or ""),
            }


BENCHMARKS: dict[str, Benchmark] = {
    "okvqa": Benchmark(
        _okvqa,
        ("vqa_accuracy",),
        "OpenEnded_mscoco_val2014_questions.json and mscoco_val2014_annotations.json, or the folder with both",
    ),
    "aokvqa": Benchmark(_aokvqa, ("aokvqa", "vqa_accuracy"), "aokvqa_v1p0_val.json"),
    "aokvqa_choices": Benchmark(_aokvqa_choices, ("exact_match",), "aokvqa_v1p0_val.json"),
    "infoseek": Benchmark(
        _infoseek,
        ("infoseek",),
        "infoseek_val.jsonl and infoseek_val_qtype.jsonl, for gold entities infoseek_val_withkb.jsonl, too",
    ),
    "encyclopedic_vqa": Benchmark(_encyclopedic_vqa, ("encyclopedic_vqa",), "test.csv of Encyclopedic-VQA"),
    "viquae": Benchmark(_viquae, ("exact_match", "token_f1"), "test.jsonl of ViQuAE"),
    "m2kr": Benchmark(_m2kr, ("exact_match", "token_f1"), "Parquet or JSON lines of an M2KR task"),
}
