"""The field's benchmarks by their own files: questions with gold and splits, and the knowledge they ask about."""

from __future__ import annotations

from .knowledge import from_encyclopedic_vqa, from_infoseek, from_m2kr, from_viquae
from .questions import BENCHMARKS, Benchmark, benchmark_questions


__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "benchmark_questions",
    "from_encyclopedic_vqa",
    "from_infoseek",
    "from_m2kr",
    "from_viquae",
]
