"""Benchmarks by their official files, in small files of our own in the same formats."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hash_encoder import HashEncoder
from hf_ravlm import InvalidInputError, RavlmRetriever
from hf_ravlm.corpora import (
    BENCHMARKS,
    benchmark_questions,
    from_encyclopedic_vqa,
    from_infoseek,
    from_m2kr,
    from_viquae,
)
from hf_ravlm.corpora.benchmarks.files import json_entries
from hf_ravlm.evaluation import Evaluator, Question, Reply, questions_from
from hf_ravlm.evaluation.arms import _known_as, _parts_of
from hf_ravlm.evaluation.scoring import ANSWER_METRICS, retrieval_scores
from hf_ravlm.retrieval import Chunking
from tiny import picture


LANDMARK = "https://en.wikipedia.org/wiki/Old_Mill"
BIRD = "https://en.wikipedia.org/wiki/Wren"


def lines(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def okvqa(tmp_path):
    questions = [{"image_id": 7, "question": "What sport is this?", "question_id": 70}]
    said = [
        {"answer": word, "raw_answer": word, "answer_id": n} for n, word in enumerate(["surf", "surf", "swim"] * 2)
    ]
    answers = [{"question_id": 70, "image_id": 7, "answers": said[:5], "question_type": "six"}]
    head = {"data_subtype": "val2014", "info": {}}
    (tmp_path / "OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({**head, "questions": questions}))
    noted = {**head, "annotations": answers, "question_types": {"six": "Sports and Recreation"}}
    (tmp_path / "mscoco_val2014_annotations.json").write_text(json.dumps(noted))
    return tmp_path


def test_okvqa_joins_questions_and_annotations_and_counts_five_people_twice(okvqa):
    (okvqa / "coco" / "val2014").mkdir(parents=True)
    picture(1).save(okvqa / "coco" / "val2014" / "COCO_val2014_000000000007.jpg")
    (row,) = benchmark_questions("okvqa", okvqa, images=okvqa / "coco")
    assert (row["id"], row["kind"], row["cluster"]) == ("70", "Sports and Recreation", "7")
    assert row["answers"].count("surf") == 8
    assert row["image"] == str(okvqa / "coco" / "val2014" / "COCO_val2014_000000000007.jpg")
    with pytest.raises(InvalidInputError, match="annotations are missing.*mscoco_val2014_annotations"):
        benchmark_questions("okvqa", okvqa / "OpenEnded_mscoco_val2014_questions.json")


def test_aokvqa_leaves_out_difficult_ones_and_asks_with_choices(tmp_path):
    row = {"split": "val", "image_id": 461751, "question": "What is in his mouth?", "rationales": ["Smoke."]}
    row |= {"choices": ["straw", "cigarette"], "correct_choice_idx": 1, "direct_answers": ["cigarette"] * 10}
    rows = [{**row, "question_id": "a", "difficult_direct_answer": False}]
    rows += [{**row, "question_id": "b", "difficult_direct_answer": True}]
    file = tmp_path / "aokvqa_v1p0_val.json"
    file.write_text(json.dumps(rows))
    (direct,) = benchmark_questions("aokvqa", file, images=tmp_path)
    assert (direct["id"], len(direct["answers"])) == ("a", 10)
    assert direct["image"].endswith("val2017/000000461751.jpg")
    choices = benchmark_questions("aokvqa_choices", file)
    assert [one["answers"] for one in choices] == [["cigarette"]] * 2
    assert choices[0]["question"] == "What is in his mouth? Choose one: straw, cigarette."
    test = [{key: value for key, value in rows[0].items() if key not in ("direct_answers", "correct_choice_idx")}]
    file.write_text(json.dumps(test))
    with pytest.raises(InvalidInputError, match="No question with an answer"):
        benchmark_questions("aokvqa", file)


def infoseek_files(folder):
    base = {"image_id": "oven_01", "question": "When was this mill built?", "answer": ["1889"]}
    number = {"answer_eval": [{"wikidata": 10.0, "range": [9.0, 11.0]}]}
    rows = [
        {**base, "data_id": "v1", "answer_eval": ["1889", "AD 1889"], "data_split": "val_unseen_question"},
        {**base, "data_id": "v2", **number, "data_split": "val_unseen_entity"},
    ]
    lines(folder / "infoseek_val.jsonl", rows)
    kinds = [{"data_id": "v1", "question_type": "Time"}, {"data_id": "v2", "question_type": "Numerical"}]
    lines(folder / "infoseek_val_qtype.jsonl", kinds)
    lines(folder / "infoseek_val_withkb.jsonl", [{"data_id": "v1", "entity_id": "Q5", "entity_text": "Old Mill"}])
    return folder


def test_infoseek_joins_types_and_entities_and_tells_its_splits(tmp_path):
    (tmp_path / "images" / "03").mkdir(parents=True)
    picture(1).save(tmp_path / "images" / "03" / "oven_01.JPEG")
    first, second = benchmark_questions("infoseek", infoseek_files(tmp_path), images=tmp_path / "images")
    assert (first["kind"], first["split"], first["gold_ids"]) == ("time", "unseen_question", ["Q5"])
    assert (second["kind"], second["split"], second["answers"]) == ("numerical", "unseen_entity", ["9.0", "11.0"])
    assert first["image"] == str(tmp_path / "images" / "03" / "oven_01.JPEG")


def test_splits_are_reported_with_their_harmonic_mean(tmp_path):
    rows = benchmark_questions("infoseek", infoseek_files(tmp_path))
    more = [{**row, "id": f"{row['id']}-{n}"} for row in rows for n in range(2)]
    said = {"v1-0": "1889", "v1-1": "1890", "v2-0": "10", "v2-1": "9.5"}
    arms = {"closed_book": lambda batch: [said[question.id] for question in batch]}
    report = Evaluator(arms, ("infoseek",)).run(questions_from(more))
    arm = report.arms["closed_book"]
    assert arm.by_split["unseen_question"] == {"count": 2, "value": 0.5}
    assert arm.harmonic_mean == pytest.approx(2 / 3)
    assert report.to_dict()["arms"]["closed_book"]["harmonic_mean"] == pytest.approx(2 / 3)
    assert "| arm | unseen_entity (2) | unseen_question (2) | harmonic mean |" in report.to_markdown()
    assert "| closed_book | 100.0 | 50.0 | 66.7 |" in report.to_markdown()
    plain = Evaluator({"closed_book": lambda batch: ["x"] * len(batch)}).run([Question("1", "Who?", ("y",))])
    assert plain.arms["closed_book"].harmonic_mean is None
    assert "split" not in plain.to_markdown()


@pytest.fixture
def encyclopedic(tmp_path):
    head = "question,answer,dataset_image_ids,dataset_name,question_type,wikipedia_url,evidence_section_id,"
    head += "wikipedia_url_used_in_train"
    rows = [
        f"Which age?,9 years|nine,abcd1|abcd2,landmarks,templated,{LANDMARK},1,True",
        f'Which colours?,"red && blue",12,inaturalist,multi_answer,{BIRD},,False',
        f"Which river?,Po,12,inaturalist,2_hop,{LANDMARK}|{BIRD},0|1,False",
    ]
    (tmp_path / "test.csv").write_text("\n".join([head, *rows]) + "\n")
    (tmp_path / "images" / "a" / "b" / "c").mkdir(parents=True)
    picture(1).save(tmp_path / "images" / "a" / "b" / "c" / "abcd1.jpg")
    (tmp_path / "images" / "val").mkdir()
    picture(2).save(tmp_path / "images" / "val" / "wren.jpg")
    (tmp_path / "images" / "val.json").write_text(json.dumps({"images": [{"id": 12, "file_name": "val/wren.jpg"}]}))
    entry = {"section_titles": ["Old Mill", "History"], "section_texts": ["A mill.", "It is old. It has a wheel."]}
    articles = {LANDMARK: {"title": "Old Mill", **entry, "image_urls": [], "url": LANDMARK}}
    articles[BIRD] = {"title": "Wren", "section_titles": ["Wren", "Food"], "section_texts": ["A bird.", ""]}
    (tmp_path / "encyclopedic_kb_wiki.json").write_text(json.dumps(articles))
    return tmp_path


def test_encyclopedic_vqa_has_a_question_for_every_image_and_gold_sections(encyclopedic):
    rows = benchmark_questions("encyclopedic_vqa", encyclopedic / "test.csv", images=encyclopedic / "images")
    assert [row["id"] for row in rows] == ["test-0-0", "test-0-1", "test-1-0", "test-2-0"]
    assert rows[0]["image"].endswith("a/b/c/abcd1.jpg")
    assert rows[2]["image"].endswith("val/wren.jpg")
    assert (rows[0]["gold_ids"], rows[0]["answers"]) == ([f"{LANDMARK}#1"], ["9 years", "nine"])
    assert rows[2]["gold_ids"] == [BIRD]
    assert rows[3]["gold_ids"] == [f"{LANDMARK}#0", f"{BIRD}#1"]
    assert [row["split"] for row in rows] == ["seen_entity"] * 2 + ["unseen_entity"] * 2
    assert [row["kind"] for row in rows][2:] == ["multi_answer", "2_hop"]


def test_the_knowledge_of_encyclopedic_vqa_is_read_section_by_section(encyclopedic, monkeypatch):
    base = from_encyclopedic_vqa(encyclopedic / "encyclopedic_kb_wiki.json")
    assert base.ids == [f"{LANDMARK}#0", f"{LANDMARK}#1", f"{BIRD}#0"]
    assert (base[f"{LANDMARK}#1"].title, base[f"{LANDMARK}#1"].metadata["section"]) == ("Old Mill", "History")
    monkeypatch.setattr("hf_ravlm.corpora.benchmarks.files._PIECE", 3)
    assert from_encyclopedic_vqa(encyclopedic / "encyclopedic_kb_wiki.json").table.equals(base.table)
    cut = from_encyclopedic_vqa(encyclopedic / "encyclopedic_kb_wiki.json", chunking=Chunking(12))
    assert _parts_of(f"{LANDMARK}#1", cut) == [f"{LANDMARK}#1-{number}" for number in range(3)]
    assert _known_as(cut[f"{LANDMARK}#1-1"], {f"{LANDMARK}#1"}) == f"{LANDMARK}#1"
    assert _known_as(cut[f"{LANDMARK}#1-1"], {LANDMARK}) == LANDMARK
    assert _known_as(cut[f"{LANDMARK}#1-1"], {BIRD}) == f"{LANDMARK}#1-1"
    assert _parts_of(LANDMARK, base) == [f"{LANDMARK}#0", f"{LANDMARK}#1"]


def test_an_article_is_found_by_any_of_its_sections_and_counts_once(encyclopedic):
    rows = benchmark_questions("encyclopedic_vqa", encyclopedic / "test.csv", images=encyclopedic / "images")
    questions = list(questions_from(rows))
    found = (f"{LANDMARK}#0", f"{LANDMARK}#0-1", "https://en.wikipedia.org/wiki/Elsewhere#4")
    figures = retrieval_scores([Reply("", evidence_ids=found)] * 4, questions, ks=(1, 2))
    assert figures["hit@3"].tolist() == [0, 0, 0, 1]  # the section with the evidence
    assert figures["article_hit@1"].tolist() == figures["article_hit@3"].tolist() == [1, 1, 0, 1]
    assert figures["article_recall@2"].tolist() == [1, 1, 0, 0.5]
    figures = retrieval_scores([Reply("", evidence_ids=("b", f"{BIRD}#0"))] * 4, questions)
    assert figures["article_hit@2"].tolist() == [0, 0, 1, 1]
    plain = retrieval_scores([Reply("", evidence_ids=("a",))], [Question("1", "?", ("b",), gold_ids=("a",))])
    assert not [name for name in plain if name.startswith("article")]


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1', '{"a" 1}', '{"a": {"b": ', "{1: 2}", '{"a": 1,'])
def test_a_torn_file_of_entries_is_refused(tmp_path, text):
    (tmp_path / "kb.json").write_text(text)
    with pytest.raises(InvalidInputError, match="Download it again"):
        list(json_entries(tmp_path / "kb.json"))


def test_entries_of_any_size_and_spacing_are_read(tmp_path):
    (tmp_path / "kb.json").write_text('\n{ "a" :\n {"b": [1, 2]} ,"ü{": 12345, "c": "}" }\n')
    assert list(json_entries(tmp_path / "kb.json")) == [("a", {"b": [1, 2]}), ("ü{", 12345), ("c", "}")]
    (tmp_path / "kb.json").write_text("{}")
    assert list(json_entries(tmp_path / "kb.json")) == []


def test_viquae_names_its_articles_by_their_entities(tmp_path):
    output = {"original_answer": "Levi's", "answer": ["Levi's", "Levis"], "provenance": [{"wikipedia_id": ["1"]}]}
    row = {"id": "x1", "input": "this singer advertised what?", "image": "512px-A.png", "output": output}
    (one,) = benchmark_questions("viquae", lines(tmp_path / "test.jsonl", [{**row, "wikidata_id": "Q9"}]), tmp_path)
    assert (one["answers"], one["gold_ids"]) == (["Levi's", "Levis"], ["Q9"])
    article = {"wikipedia_id": "44", "wikipedia_title": "A Singer", "text": {"paragraph": ["A Singer\n", "He sang."]}}
    other = {**article, "wikipedia_id": "45"}
    file = lines(tmp_path / "non_humans.jsonl", [{**article, "wikidata_info": {"wikidata_id": "Q9"}}, other])
    base = from_viquae(file)
    assert base.ids == ["Q9-0", "45-0"]
    assert base[0].url == "https://en.wikipedia.org/wiki/A_Singer"
    assert base[0].text == "A Singer\nA Singer\n\nHe sang."
    lost = lines(tmp_path / "lost.jsonl", [{"wikipedia_id": "1"}, article])
    assert len(from_viquae(lost, on_error="skip").skipped) == 1


def test_infoseeks_wikipedia(tmp_path):
    row = {
        "wikidata_id": "Q5",
        "wikipedia_title": "Old Mill",
        "wikipedia_content": "A mill.",
        "wikipedia_summary": "M",
    }
    assert from_infoseek(lines(tmp_path / "Wiki6M_ver_1_0.jsonl", [row])).ids == ["Q5-0"]


def test_m2kr_has_instructions_and_gold_passages(tmp_path):
    row = {"question_id": "E_1", "question": "How tall?", "instruction": "Use the image:", "img_path": "inat/1.jpg"}
    row |= {"pos_item_ids": ["W_3"], "pos_item_contents": ["It is 9 m tall."], "answers": ["9 m"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test-00000.parquet")
    passages = [{"passage_id": f"W_{n}", "passage_content": f"topic{n} passage {n}"} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(passages), tmp_path / "passages.parquet")
    (one,) = benchmark_questions("m2kr", tmp_path, images=tmp_path)
    assert (one["question"], one["answers"], one["gold_ids"]) == ("Use the image: How tall?", ["9 m"], ["W_3"])
    assert one["image"] == str(tmp_path / "inat/1.jpg")
    retriever = RavlmRetriever.build(from_m2kr(tmp_path / "passages.parquet"), HashEncoder())
    assert retriever.retrieve(None, ["topic3 passage 3"], k=1)[0][0].id == "W_3"


def test_what_is_wrong_is_told(tmp_path):
    with pytest.raises(InvalidInputError, match="no benchmark 'vqa2'.*infoseek"):
        benchmark_questions("vqa2", tmp_path)
    with pytest.raises(InvalidInputError, match="no file of the benchmark"):
        benchmark_questions("infoseek", tmp_path)
    with pytest.raises(InvalidInputError, match="no such file"):
        benchmark_questions("infoseek", tmp_path / "infoseek_val.jsonl")
    lines(tmp_path / "infoseek_val.jsonl", [{"id": 1}])
    with pytest.raises(InvalidInputError, match="not the files of infoseek.*'data_id'.*infoseek_val_qtype"):
        benchmark_questions("infoseek", tmp_path)
    with pytest.raises(InvalidInputError, match="no such folder"):
        benchmark_questions("infoseek", infoseek_files(tmp_path), images=tmp_path / "nowhere")


def test_every_benchmark_is_judged_by_metrics_that_there_are():
    for benchmark in BENCHMARKS.values():
        assert set(benchmark.metrics) <= set(ANSWER_METRICS)
