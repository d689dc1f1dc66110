"""What it costs to compare a saved folder with its manifest: seconds of loading with and without, in turns.

    python benchmarks/checksums.py --megabytes 500 --cold

A reader with random weights is saved, in float32, and loaded again and again: without the comparison, with the
comparison of every byte (as when it is loaded for the first time), and as a user loads it, for whom weights that were
found whole are noted for a day. With `--cold` (Linux) the files are read from the disk, as after a start of the
machine; else they lie in memory, where the comparison weighs most. It runs beside loading, on as many cores as are
free, so run this on an idle machine. The ratios of the medians are to stay below 1.10, but for the first in memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from hf_ravlm import RavlmConfig, RavlmForConditionalGeneration
from hf_ravlm.saving.checksums import SWITCH


TOWER = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500, help="size of the weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before each load")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_reader(folder, arguments.megabytes)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        time.sleep(3)  # what was written just now is not noted
        seconds: dict[str, list[float]] = {"0": [], "always": [], "1": []}
        for turn in range(3 * arguments.rounds + 3):
            os.environ[SWITCH] = mode = list(seconds)[turn % 3]
            if arguments.cold:
                forget(folder)
            begun = time.perf_counter()
            RavlmForConditionalGeneration.from_pretrained(folder)
            if turn > 2:
                seconds[mode].append(time.perf_counter() - begun)
    plain, first, later = (statistics.median(values) for values in seconds.values())
    print(
        "| weights | loading | for the first time | later | ratio at first | ratio later |\n|---|---|---|---|---|---|"
    )
    print(
        f"| {size / 1e6:,.0f} MB | {plain:.3f} s | {first:.3f} s | {later:.3f} s | {first / plain:.2f} "
        f"| {later / plain:.2f} |"
    )


def forget(folder: Path) -> None:
    """Drops the files of a folder from the page cache."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def save_reader(folder: Path, megabytes: int) -> None:
    """Saves a reader of about so many megabytes; a layer of its language model has 30."""
    torch.manual_seed(0)
    layers = max(1, (megabytes - 60) // 30)
    language = {"hidden_size": 768, "intermediate_size": 2304, "num_attention_heads": 12, "vocab_size": 4000}
    config = RavlmConfig(
        vision_config={"model_type": "vit", "image_size": 64, **TOWER},
        text_config={"model_type": "bert", "vocab_size": 4000, **TOWER},
        generator_config={"model_type": "llama", "num_hidden_layers": layers, **language},
    )
    RavlmForConditionalGeneration(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
