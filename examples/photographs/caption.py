"""Describe pictures of one's own with a trained captioner, with the entries that it read.

python examples/photographs/caption.py --adapters runs/photographs/captioner/adapters --pictures panda.jpg bus.png
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftModel
from PIL import Image, ImageOps
from transformers import HfArgumentParser


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands in, not beside, the rest
from hf_ravlm.images import safe_image
from hf_ravlm.pipelines import answer_questions
from photographs.measure import MAX_NEW_TOKENS
from photographs.parts import IMAGE_SIZE, QUESTION, build_retriever, load_parts


@dataclass
class Options:
    """What can be chosen on the command line."""

    pictures: list[str] = field(metadata={"help": "files to describe"})
    adapters: str = field(default="runs/photographs/captioner/adapters", metadata={"help": "what the training wrote"})
    data: str = field(default="runs/photographs/data", metadata={"help": "folder that prepare_data.py wrote"})


def main(options: Options) -> list[dict]:
    """Prints a caption without and with entries per picture."""
    lines = (Path(options.data) / "knowledge.jsonl").read_text(encoding="utf-8").splitlines()
    model, processor, keys = load_parts()
    retriever = build_retriever(model, processor, keys, [json.loads(line) for line in lines])
    reader = PeftModel.from_pretrained(model, options.adapters).merge_and_unload().eval()
    pictures = [middle_of(safe_image(path)) for path in options.pictures]
    rows = []
    generation = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}
    for path, picture in zip(options.pictures, pictures, strict=True):
        alone, told = (
            answer_questions(reader, processor, retriever, [picture], [QUESTION], k=k, **generation)[0][0]
            for k in (0, None)
        )
        rows.append({"picture": path, "closed-book": alone.text, "caption": told.text, "posterior": told.posterior})
        print(f"{path}\n  without entries: {alone.text}\n  with entries:    {told.text}")
        for passage, probability in zip(told.evidence, told.posterior, strict=True):
            print(f"    {probability:.2f}  cosine {passage.score:.3f}  {passage.text}")
    return rows


def middle_of(picture: Image.Image) -> Image.Image:
    """The middle of a photograph, as Lite0's classifier was measured: a square of 7/8 of the short side."""
    side = round(min(picture.size) * 0.875)
    box = ((picture.width - side) // 2, (picture.height - side) // 2)
    square = picture.crop((*box, box[0] + side, box[1] + side))
    return ImageOps.fit(square, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main(HfArgumentParser(Options).parse_args_into_dataclasses()[0])
