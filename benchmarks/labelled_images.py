"""What a classifier pays for asking its neighbours: a batch of 32 images against 100,000 labelled entries.

    python benchmarks/labelled_images.py --output labelled_images.json

A vision transformer of the shape of ViT-S/16 with random weights: cost, not quality. Both sides are the same pipeline,
with `k=0` and with its 16 neighbours, in turns; what counts is the ratio of their least CPU times. Smaller towers and
more entries want an approximate index (`--index`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import (
    KnowledgeBase,
    RavlmConfig,
    RavlmEncoder,
    RavlmForImageClassification,
    RavlmModel,
    RavlmProcessor,
    RavlmRetriever,
)
from measuring import Finding, interleaved, markdown, write_json
from random_readers import byte_tokenizer, random_image


GOAL = 0.15  # of the time without neighbours
CLASSES, NEIGHBORS = 1_000, 16
SHAPES = {
    "vit-s/16": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}


def random_classifier(shape: str, vectors: np.ndarray) -> tuple[RavlmForImageClassification, RavlmProcessor]:
    """A dual encoder with a head, random, and its processor."""
    torch.manual_seed(0)
    vision = {"model_type": "vit", "image_size": 224, "patch_size": 16, **SHAPES[shape]}
    tokenizer = byte_tokenizer()
    text = {"model_type": "bert", "vocab_size": len(tokenizer), **SHAPES["tiny"]}
    model = RavlmModel(RavlmConfig(vision_config=vision, text_config=text, projection_dim=vectors.shape[1])).eval()
    processor = RavlmProcessor(ViTImageProcessorPil(), tokenizer, byte_tokenizer())
    names, head = [f"class {number}" for number in range(CLASSES)], torch.from_numpy(vectors[:CLASSES])
    classifier = RavlmForImageClassification.from_dual_encoder(
        model, names, class_embeds=head, num_neighbors=NEIGHBORS
    )
    return classifier.eval(), processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="vit-s/16", help="of the vision tower")
    parser.add_argument("--entries", type=int, default=100_000, help="labelled images in the knowledge base")
    parser.add_argument("--index", default="flat", help="kind of the vector index")
    parser.add_argument("--batch_size", type=int, default=32, help="images that are looked at together")
    parser.add_argument("--rounds", type=int, default=3, help="in which the sides take turns")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(options.entries, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    classifier, processor = random_classifier(options.shape, vectors)
    rows = ({"id": str(n), "text": "an image", "label": f"class {n % CLASSES}"} for n in range(options.entries))
    encoder = RavlmEncoder(classifier.model, processor)
    retriever = RavlmRetriever(KnowledgeBase.from_dicts(rows), encoder, vectors, encoder.fingerprint, options.index)
    look = pipeline("image-classification", model=classifier, processor=processor, retriever=retriever)
    images = [random_image(seed, 224) for seed in range(options.batch_size)]
    batch = {"batch_size": options.batch_size, "top_k": 1}
    sides = {"alone": lambda: look(images, k=0, **batch), "with neighbours": lambda: look(images, **batch)}
    look(images[:2])  # which labels there are is read once
    times = interleaved(sides, options.rounds)
    overhead = times["with neighbours"].cpu / times["alone"].cpu - 1
    what = f"{options.batch_size} images, {options.entries:,} entries, {options.index}, {options.shape}"
    finding = Finding("classification", what, f"<= {GOAL:.0%} more", f"{overhead:.1%} more", overhead <= GOAL)
    print(markdown([finding]))
    if options.output:
        write_json(options.output, {name: time._asdict() for name, time in times.items()}, [finding])


if __name__ == "__main__":
    main()
