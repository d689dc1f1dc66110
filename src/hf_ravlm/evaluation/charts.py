"""Charts of what an evaluation found: arms side by side, accuracy over the size of the knowledge base or coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
from PIL import Image, ImageDraw

from ..metrics.calibration import accuracy_by_coverage
from ..saving.drawing import BLUE, FAINT, GREEN, GREY, INK, LINE, RED, canvas, dashed_line, write


CURVES = (BLUE, RED, GREEN, "#8250df", "#bf8700", GREY)
MARGIN, ROW, BAR = 24, 44, 18
LABELS, BARS, EFFECTS = 190, 340, 260

# x, y, and the ends of the interval of y, all in 0..1.
Point = tuple[float, float, float | None, float | None]


def arms_chart(report: Mapping[str, Any]) -> Image.Image:
    """A bar per arm with its accuracy, and beside it how many answers evidence rescued and harmed.

    Args:
        report (`dict`): `EvaluationReport.to_dict()`.

    Returns:
        `PIL.Image.Image` in RGB. Thin lines are the 95 % intervals; the dashed one is closed-book.
    """
    arms, accuracy = report["arms"], report["accuracy"]
    left, top = MARGIN + LABELS, MARGIN + 44
    middle, bottom = left + BARS + 2 * MARGIN + EFFECTS // 2, top + ROW * len(arms)
    image, draw = canvas(middle + EFFECTS // 2 + MARGIN, bottom + MARGIN + 16)
    write(draw, MARGIN, MARGIN - 8, f"{report['num_questions']} questions", 16, INK)
    write(draw, left, MARGIN + 20, f"{accuracy}, %", 13, FAINT)
    write(draw, middle - 66, MARGIN + 20, "harmed", 13, RED)
    write(draw, middle + 10, MARGIN + 20, "rescued, % of all", 13, GREEN)
    for percent in (0, 25, 50, 75, 100):
        place = left + round(BARS * percent / 100)
        draw.line([(place, top), (place, bottom)], fill=LINE)
        write(draw, place - 8, bottom + 4, str(percent), 12, FAINT)
    base = left + round(BARS * arms[report["baseline"]]["metrics"][accuracy]["mean"])
    dashed_line(draw, (base, top), (base, bottom))
    draw.line([(middle, top), (middle, bottom)], fill=FAINT)
    for row, (name, arm) in enumerate(arms.items()):
        place = top + row * ROW + (ROW - BAR) // 2
        write(draw, MARGIN, place, name.replace("_", " "), 15, INK)
        value = arm["metrics"][accuracy]
        _bar(draw, left, place, BARS, value, GREY if name == report["baseline"] else BLUE)
        end = left + round(BARS * max(value["upper"] or 0, value["mean"]))
        above = 0 if end + 40 < left + BARS else 15  # beside the bar, or above it where that has no place
        write(draw, min(end + 6, left + BARS - 34), place - above, f"{100 * value['mean']:.1f}", 13, INK)
        if arm["effect"] is not None:
            half = EFFECTS // 2 - 40
            rescued, harmed = arm["effect"]["rescue_rate"], arm["effect"]["harm_rate"]
            _bar(draw, middle, place, half, rescued, GREEN)
            _bar(draw, middle, place, -half, harmed, RED)
            write(draw, middle + half + 8, place, f"{100 * rescued['mean']:.1f}", 13, GREEN)
            write(draw, middle - half - 40, place, f"{100 * harmed['mean']:.1f}", 13, RED)
    return image


def growth_chart(report: Mapping[str, Any]) -> Image.Image:
    """Accuracy, and hit rate where it is known, over the number of passages, which is drawn by its logarithm.

    Args:
        report (`dict`): `GrowthReport.to_dict()`.
    """
    points = report["points"]
    logs = [math.log(point["num_passages"]) for point in points]
    across = [0.04 + 0.92 * (log - logs[0]) / ((logs[-1] - logs[0]) or 1) for log in logs]
    curves = {}
    for name, key, colour in ((report["accuracy"], "accuracy", BLUE), (report["hit"] or "hit", "hit", GREEN)):
        values = [point[key] for point in points]
        if None not in values:
            rows = [(x, v["mean"], v["lower"], v["upper"]) for x, v in zip(across, values, strict=True)]
            curves[name] = (rows, colour)
    title = f"The same {report['num_questions']} questions in a growing knowledge base"
    ticks = {x: f"{point['num_passages']:,}" for x, point in zip(across, points, strict=True)}
    return _plot(title, "passages", ticks, curves, ("closed-book", report["closed_book"]["mean"]))


def coverage_chart(curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], title: str) -> Image.Image:
    """Accuracy over the share of questions that are answered, surest first: a curve per system.

    Args:
        curves (`dict`): By name, confidences and what was right, each `(Q,)`; six at most have colours of their own.
        title (`str`): Stands above.
    """
    drawn = {}
    for (name, (confidences, correct)), colour in zip(curves.items(), itertools.cycle(CURVES), strict=False):
        coverage, accuracy = accuracy_by_coverage(confidences, correct)
        rows = zip(coverage.tolist(), accuracy.tolist(), strict=True)
        drawn[name] = ([(x, y, None, None) for x, y in rows], colour)
    ticks = {step / 4: f"{25 * step} %" for step in range(5)}
    return _plot(title, "answered, surest first", ticks, drawn)


def curves_chart(
    curves: Mapping[str, Sequence[tuple[float, float, float]]], ticks: Sequence[str], title: str, below: str
) -> Image.Image:
    """Shares at the same few places for several systems, such as accuracy over the number of labelled images.

    Args:
        curves (`dict`): By name, one (mean, lowest, highest) per tick, from 0 to 1.
        ticks (`list[str]`): What stands below each place, from the left.
        title, below (`str`): Above the whole, and below the ticks.
    """
    across = [0.04 + 0.92 * place / max(len(ticks) - 1, 1) for place in range(len(ticks))]
    drawn = {
        name: ([(x, *values) for x, values in zip(across, points, strict=True)], colour)
        for (name, points), colour in zip(curves.items(), itertools.cycle(CURVES), strict=False)
    }
    return _plot(title, below, dict(zip(across, ticks, strict=True)), drawn)


def _plot(
    title: str,
    below: str,
    ticks: Mapping[float, str],
    curves: Mapping[str, tuple[Sequence[Point], str]],
    base: tuple[str, float] | None = None,
) -> Image.Image:
    """Curves of shares, with their names at their ends, and a dashed line across."""
    width, height, left, top = 760, 440, MARGIN + 40, MARGIN + 34
    right, bottom = width - 220, height - MARGIN - 34
    image, draw = canvas(width, height)
    write(draw, MARGIN, MARGIN - 8, title, 16, INK)

    def spot(x: float, y: float) -> tuple[int, int]:
        return left + round((right - left) * x), bottom - round((bottom - top) * y)

    for step in range(5):
        draw.line([spot(0, step / 4), spot(1, step / 4)], fill=LINE)
        write(draw, MARGIN, spot(0, step / 4)[1] - 8, f"{25 * step} %", 12, FAINT)
    for x, label in ticks.items():
        draw.line([spot(x, 0), spot(x, 1)], fill=LINE)
        write(draw, spot(x, 0)[0] - 4 * len(label), bottom + 6, label, 12, FAINT)
    write(draw, (left + right) // 2 - 3 * len(below), bottom + 26, below, 13, FAINT)
    ends = []
    if base is not None:
        dashed_line(draw, spot(0, base[1]), spot(1, base[1]))
        ends.append((spot(1, base[1])[1], base[0], FAINT))
    for name, (points, colour) in curves.items():
        draw.line([spot(x, y) for x, y, *_ in points], fill=colour, width=2)
        for x, y, lower, upper in points:
            if lower is not None and upper is not None:
                draw.line([spot(x, lower), spot(x, upper)], fill=colour)
                across, up = spot(x, y)
                draw.ellipse([across - 4, up - 4, across + 4, up + 4], fill=colour)
        ends.append((spot(*points[-1][:2])[1], name, colour))
    lowest = -100
    for place, name, colour in sorted(ends):  # moved down where they would cover each other
        lowest = max(place - 8, lowest + 16)
        write(draw, right + 8, lowest, name, 13, colour)
    return image


def _bar(
    draw: ImageDraw.ImageDraw, left: int, top: int, length: int, value: Mapping[str, float | None], colour: str
) -> None:
    """From `left` to the right, or to the left where `length` is negative; with the interval as a thin line."""
    mean, lower, upper = (value[name] for name in ("mean", "lower", "upper"))
    end = left + round(length * (mean or 0))
    draw.rectangle([min(left, end), top, max(left, end), top + BAR], fill=colour)
    if lower is not None and upper is not None:
        ends = [(left + round(length * share), top + BAR // 2) for share in (lower, upper)]
        draw.line(ends, fill=INK, width=2)
