"""The growth of the flags' knowledge base: made-up company, and the program as a user runs it."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from flags.questions import SHORT_KINDS
from flags.world import load_world
from growth import Options, invented_passages, main


def test_made_up_countries_have_what_people_ask_for_and_a_flag():
    world = load_world()
    rows = list(islice(invented_passages(world, seed=3), 20))
    assert [row["id"].split("/")[1] for row in rows[:5]] == list(SHORT_KINDS)
    assert rows == list(islice(invented_passages(world, seed=3), 20))
    assert rows != list(islice(invented_passages(world, seed=4), 20))
    flags = [rows[first]["image"] for first in range(0, 20, 5)]
    assert len(set(flags)) == 4
    assert all(row["image"] == flags[n // 5] for n, row in enumerate(rows))


@pytest.mark.slow
def test_the_program_writes_the_curve(tmp_path):
    main(Options(out=str(tmp_path), questions=4, factors=[1, 2]))
    growth = json.loads((tmp_path / "growth.json").read_text())
    assert [point["factor"] for point in growth["points"]] == [1, 2]
    assert growth["points"][1]["num_passages"] == 2 * growth["points"][0]["num_passages"]
    assert (tmp_path / "growth.png").stat().st_size > 1000
