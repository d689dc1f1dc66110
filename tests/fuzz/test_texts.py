"""Any text, in any field: it comes out as `clean_text` says, once and for all, or is refused; nothing else is lost."""

from __future__ import annotations

import json

from fuzzing import choose, run_cases

from hf_ravlm.errors import RavlmError
from hf_ravlm.retrieval import KnowledgeBase
from hf_ravlm.text import clean_text, plain_text


PIECES = [
    "a",
    "é",
    "e\u0301",
    "\u200b",
    "\ufeff",
    "\0",
    "\x1b",
    "\ud83d",
    "\ude00",
    "😀",
    "क्षि",
    "ไทย",
    "中",
    "\r\n",
    "\t",
    " ",
    '"',
]


def test_random_texts(tmp_path):
    def case(random):
        pieces = PIECES if random.integers(2) else [piece for piece in PIECES if piece not in ("\0", "\x1b")]
        texts = ["".join(choose(random, pieces) for _ in range(int(random.integers(1, 12)))) for _ in range(4)]
        rows = [{"id": f"{number}", "text": text, "note": text} for number, text in enumerate(texts)]
        try:
            cleaned = [clean_text(text) for text in texts]
        except RavlmError:  # half of a pair, or a control character
            cleaned = None
        else:
            assert cleaned == [clean_text(text) for text in cleaned]
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        for read in (
            lambda: KnowledgeBase.from_dicts(rows),
            lambda: KnowledgeBase.from_jsonl(tmp_path / "rows.jsonl"),
        ):
            try:
                base = read()
            except RavlmError:
                continue
            assert cleaned is not None
            assert len(base) == sum(map(bool, cleaned))
            read_texts = [text or "" for text in base.table["text"].to_pylist()]
            assert [plain_text(text) for text in read_texts] == read_texts
            assert [clean_text(text) for text in read_texts] == [text for text in cleaned if text]

    run_cases("test_random_texts", case, 100, tmp_path)
