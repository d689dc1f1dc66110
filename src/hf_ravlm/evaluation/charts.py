"""Draws what an evaluation found: arms side by side, a curve over a growing knowledge base, accuracy over coverage.

With PIL alone. Positions are computed here; figures come from the reports.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ..metrics.calibration import accuracy_by_coverage
from ..metrics.intervals import Interval


if TYPE_CHECKING:
    from .growth import GrowthReport
    from .report import EvaluationReport

INK, FAINT, GRID, PAPER = "#1b1f24", "#6a737d", "#d0d7de", "#ffffff"
PLAIN, WITH_EVIDENCE, RESCUED, HARMED = "#8c959f", "#2f81f7", "#1a7f37", "#cf222e"
CURVES = (WITH_EVIDENCE, HARMED, RESCUED, "#8250df", "#bf8700", PLAIN)
MARGIN, ROW, BAR = 24, 44, 18
LABELS, BARS, EFFECTS = 190, 340, 260


def arms_chart(report: EvaluationReport) -> Image.Image:
    """A bar per arm with its accuracy, and beside it how many answers evidence rescued and harmed.

    Returns:
        `PIL.Image.Image` in RGB. Thin lines are the 95 % intervals; the dashed one is closed-book.
    """
    width, top = 2 * MARGIN + LABELS + BARS + 2 * MARGIN + EFFECTS, MARGIN + 44
    image = Image.new("RGB", (width, top + ROW * len(report.arms) + MARGIN + 16), PAPER)
    draw = ImageDraw.Draw(image)
    left, middle = MARGIN + LABELS, MARGIN + LABELS + BARS + 2 * MARGIN + EFFECTS // 2
    bottom = top + ROW * len(report.arms)
    _text(draw, MARGIN, MARGIN - 8, f"{report.num_questions} questions", 16, INK)
    _text(draw, left, MARGIN + 20, f"{report.accuracy}, %", 13, FAINT)
    _text(draw, middle - 66, MARGIN + 20, "harmed", 13, HARMED)
    _text(draw, middle + 10, MARGIN + 20, "rescued, % of all", 13, RESCUED)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        place = left + round(BARS * share)
        draw.line([(place, top), (place, bottom)], fill=GRID)
        _text(draw, place - 8, bottom + 4, f"{100 * share:.0f}", 12, FAINT)
    base = left + round(BARS * report.arms[report.baseline].metrics[report.accuracy].mean)
    for dash in range(top, bottom, 8):
        draw.line([(base, dash), (base, dash + 4)], fill=FAINT)
    draw.line([(middle, top), (middle, bottom)], fill=FAINT)
    for row, (name, arm) in enumerate(report.arms.items()):
        place = top + row * ROW + (ROW - BAR) // 2
        accuracy = arm.metrics[report.accuracy]
        _text(draw, MARGIN, place, name.replace("_", " "), 15, INK)
        _bar(draw, left, place, BARS, accuracy, PLAIN if name == report.baseline else WITH_EVIDENCE)
        end = left + round(BARS * max(accuracy.upper, accuracy.mean))
        _text(
            draw,
            min(end + 6, left + BARS - 34),
            place + (0 if end + 40 < left + BARS else -15),
            _percent(accuracy),
            13,
            INK,
        )
        if arm.effect is not None:
            half = EFFECTS // 2 - 40
            _bar(draw, middle, place, half, arm.effect.rescue_rate, RESCUED)
            _bar(draw, middle, place, -half, arm.effect.harm_rate, HARMED)
            _text(draw, middle + half + 8, place, _percent(arm.effect.rescue_rate), 13, RESCUED)
            _text(draw, middle - half - 40, place, _percent(arm.effect.harm_rate), 13, HARMED)
    return image


def growth_chart(report: GrowthReport) -> Image.Image:
    """Accuracy, and hit rate where it is known, over the number of passages, which is drawn by its logarithm."""
    width, height, left, top = 720, 420, MARGIN + 40, MARGIN + 34
    right, bottom = width - 150, height - MARGIN - 34
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    _text(draw, MARGIN, MARGIN - 8, f"The same {report.num_questions} questions in a growing knowledge base", 16, INK)
    for step in range(5):
        place = bottom - round((bottom - top) * step / 4)
        draw.line([(left, place), (right, place)], fill=GRID)
        _text(draw, MARGIN, place - 8, f"{25 * step} %", 12, FAINT)
    sizes = [point.num_passages for point in report.points]
    low, high = math.log(min(sizes)), math.log(max(sizes))

    def across(size: int) -> int:
        return left + 20 + round((right - left - 40) * (math.log(size) - low) / ((high - low) or 1))

    def up(share: float) -> int:
        return bottom - round((bottom - top) * share)

    for point in report.points:
        label = f"{point.num_passages:,}"
        _text(draw, across(point.num_passages) - 4 * len(label), bottom + 6, label, 12, FAINT)
    _text(draw, (left + right) // 2 - 30, bottom + 26, "passages", 13, FAINT)
    base = up(report.closed_book.mean)
    for dash in range(left, right, 10):
        draw.line([(dash, base), (dash + 5, base)], fill=FAINT)
    ends = [("closed-book", base, FAINT)]
    curves = [(report.accuracy, [point.accuracy for point in report.points], WITH_EVIDENCE)]
    if all(point.hit is not None for point in report.points):
        curves.append((report.hit or "hit", [point.hit for point in report.points if point.hit], RESCUED))
    for name, values, colour in curves:
        spots = [(across(size), up(value.mean)) for size, value in zip(sizes, values, strict=True)]
        draw.line(spots, fill=colour, width=2)
        for (x, y), value in zip(spots, values, strict=True):
            draw.line([(x, up(value.lower)), (x, up(value.upper))], fill=colour)
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        ends.append((name, spots[-1][1], colour))
    _end_labels(draw, right + 6, ends)
    return image


def coverage_chart(curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], title: str) -> Image.Image:
    """How right the answers are, if only the surest are given: a curve per system, for choosing when to abstain.

    Args:
        curves (`dict`): By name, confidences and what was right, each `(Q,)`; six at most have colours of their own.
        title (`str`): Stands above.
    """
    width, height, left, top = 760, 440, MARGIN + 40, MARGIN + 34
    right, bottom = width - 220, height - MARGIN - 34
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    _text(draw, MARGIN, MARGIN - 8, title, 16, INK)
    for step in range(5):
        up, across = bottom - round((bottom - top) * step / 4), left + round((right - left) * step / 4)
        draw.line([(left, up), (right, up)], fill=GRID)
        draw.line([(across, top), (across, bottom)], fill=GRID)
        _text(draw, MARGIN, up - 8, f"{25 * step} %", 12, FAINT)
        _text(draw, across - 12, bottom + 6, f"{25 * step} %", 12, FAINT)
    _text(draw, left + 150, bottom + 26, "answered, surest first", 13, FAINT)
    ends = []
    for (name, (confidences, correct)), colour in zip(curves.items(), itertools.cycle(CURVES), strict=False):
        coverage, accuracy = accuracy_by_coverage(confidences, correct)
        spots = [
            (left + round((right - left) * share), bottom - round((bottom - top) * value))
            for share, value in zip(coverage.tolist(), accuracy.tolist(), strict=True)
        ]
        draw.line(spots, fill=colour, width=2)
        ends.append((name, spots[-1][1], colour))
    _end_labels(draw, right + 8, ends)
    return image


def _bar(draw: ImageDraw.ImageDraw, left: int, top: int, length: int, interval: Interval, colour: str) -> None:
    """From `left` to the right, or to the left where `length` is negative; with the interval as a thin line."""
    end = left + round(length * interval.mean)
    draw.rectangle([min(left, end), top, max(left, end), top + BAR], fill=colour)
    if not math.isnan(interval.lower):
        ends = [left + round(length * value) for value in (interval.lower, interval.upper)]
        draw.line([(ends[0], top + BAR // 2), (ends[1], top + BAR // 2)], fill=INK, width=2)


def _end_labels(draw: ImageDraw.ImageDraw, left: int, ends: Sequence[tuple[str, int, str]]) -> None:
    """Names at the ends of curves, moved down where they would cover each other."""
    lowest = -100
    for name, place, colour in sorted(ends, key=lambda end: end[1]):
        lowest = max(place - 8, lowest + 16)
        _text(draw, left, lowest, name, 13, colour)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f}"


def _text(draw: ImageDraw.ImageDraw, left: int, top: int, text: str, size: int, colour: str) -> None:
    draw.text((left, top), text, font=ImageFont.load_default(size), fill=colour)
