"""The answer sheet draws what it was given."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hf_ravlm.explain import answer_sheet, heat_overlay, seen_image
from hf_ravlm.explain.sheets import MARGIN, ROW_HEIGHT
from hf_ravlm.saving.drawing import BLUE, THUMB
from tiny import picture


def bar_pixels(posterior: float) -> int:
    entry = {"id": "a", "image": picture(0), "score": 0.5}
    record = {"generated_text": "Oslo", "evidence": [entry], "posterior": [posterior]}
    sheet = np.asarray(answer_sheet([Image.new("RGB", (9, 9))], ["?"], [record]))
    blue = tuple(int(BLUE[i : i + 2], 16) for i in (1, 3, 5))
    return int((sheet == blue).all(-1).sum())


def test_the_bar_is_as_long_as_the_posterior():
    full, half = bar_pixels(1.0), bar_pixels(0.5)
    assert full == (THUMB[0] + 1) * 8
    assert abs(half / full - 0.5) < 0.01


def test_rows_without_evidence_and_long_words_are_drawn():
    records = [
        {"generated_text": "word " * 200, "evidence": [], "posterior": []},
        {"generated_text": "x" * 500, "evidence": [{"id": "b", "image": None, "score": 1.0}], "posterior": []},
    ]
    sheet = answer_sheet([picture(0), picture(1)], ["Why?", "How?"], records, captions=["one", "two"])
    assert sheet.height == 2 * ROW_HEIGHT + MARGIN


def test_maps_lie_on_images_of_at_most_a_million_pixels():
    class Processor:
        image_processor, trim_image_margins = None, False

    seen = seen_image(Processor, Image.new("RGB", (4000, 1000), "lime"))
    assert seen.size == (2000, 500)
    assert heat_overlay(seen, [[0.0, 1.0]]).size == (2000, 500)


def test_letters_that_the_font_lacks_are_written_without_accents_and_not_as_boxes():
    def sheet(text):
        return answer_sheet([Image.new("RGB", (3, 2))], [text], [{"generated_text": text, "evidence": []}], [text])

    assert sheet("Åland: Asunción, Færøerne").tobytes() == sheet("Aland: Asuncion, Faeroerne").tobytes()
    assert sheet("首都 Łódź").tobytes() == sheet("?? Lodz").tobytes()
