"""Asks a trained flags model in wordings that nothing was trained on, and moves the passage that answers about.

    python examples/flags/rewording.py examples/flags/checkpoint

Writes `wordings.json` into the folder, from which `examples/flags/card.py` takes the tables of the model card.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers import AutoModelForImageTextToText, AutoProcessor

from flags.measure import abstention_table, format_table, place_table, tasks_of, wording_table
from flags.world import ENTRY_VIEW, SHORT_KINDS, VIEWS, load_world
from hf_ravlm import RavlmEncoder, RavlmRetriever


def reworded(folder: Path, per_family: int, num_placed: int) -> dict:
    """The tables of one folder, with the numbers of questions behind them.

    Args:
        folder (`Path`): model, processor and knowledge base.
        per_family (`int`): questions for each family of wordings.
        num_placed (`int`): questions of which the passage that answers is moved about, and left out.
    """
    world = load_world()
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder).eval(),
        AutoProcessor.from_pretrained(folder),
    )
    retriever = RavlmRetriever.from_pretrained(folder, encoder=RavlmEncoder(model.model, processor))
    parts = (model.eval(), processor, retriever, world)
    views = [view for view in VIEWS if view != ENTRY_VIEW]
    tasks = random.Random(0).sample(tasks_of(world, world.dev, views, SHORT_KINDS), num_placed)
    return {
        "questions": {"per family": per_family, "placed": num_placed},
        "wordings": wording_table(*parts, views, per_family),
        "places": place_table(*parts, tasks),
        "unknown": abstention_table(*parts, tasks),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the trained model with its knowledge base")
    parser.add_argument("--per_family", type=int, default=40, help="questions for each family of wordings")
    parser.add_argument(
        "--num_placed", type=int, default=60, help="questions on the place of the passage that answers"
    )
    options = parser.parse_args()
    started = time.perf_counter()
    found = reworded(options.folder, options.per_family, options.num_placed)
    (options.folder / "wordings.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name in ("wordings", "places", "unknown"):
        print(f"\n{name}\n{format_table(found[name])}")
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
