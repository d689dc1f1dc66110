"""Train a detector that also asks labelled images, and measure classes that it never saw: COCO's mAP.

    accelerate launch examples/train_detector.py  # scenes of flags, a small RT-DETR from new weights, shipped towers
    accelerate launch examples/train_detector.py --stamps tuxpaint-stamps-default_*.deb --encoder offline
    accelerate launch examples/train_detector.py --detector PekingU/rtdetr_r18vd --dataset DIR --use_lora \
        --encoder google/siglip2-base-patch16-224 --output_dir runs/detector

`--dataset` is a folder or a data set of the Hub with the columns `image` and `objects`, of which `bbox` has
`[x, y, width, height]` and `category` the names: its objects are learned from, and cut out as entries; every tenth
image is held out, to set how much neighbours count. `--use_lora` adapts the attention and trains the heads.
`--num_novel` classes of the composed scenes are in the tests and among the entries alone. The output folder is what
`pipeline("object-detection", model=...)` opens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForObjectDetection,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from detection.measure import measured
from detection.scenes import Scenes, flag_things, stamp_things
from detection.small import small_detector
from hf_ravlm import (
    DetectionCollator,
    KnowledgeBase,
    RavlmEncoder,
    RavlmForObjectDetection,
    RavlmRetriever,
    load_encoder,
)
from hf_ravlm.evaluation.detector_evaluation import read_annotated
from hf_ravlm.pipelines import boxed_entries
from training_rows import CHECKPOINT


ATTENTION = r".*\.(q_proj|v_proj|value_proj|query|value)"
HEADS = ("class_embed", "bbox_embed", "enc_score_head", "enc_bbox_head", "class_labels_classifier", "bbox_predictor")


@dataclass
class Options:
    """What is trained, on which scenes."""

    detector: str | None = field(default=None, metadata={"help": "its name; by default a small one from new weights"})
    dataset: str | None = field(default=None, metadata={"help": "annotated images; by default composed scenes"})
    stamps: str | None = field(default=None, metadata={"help": "Debian package with stamps, in the place of flags"})
    encoder: str | None = field(default=None, metadata={"help": "looks boxes up; by default the shipped towers"})
    num_scenes: int = field(default=12000, metadata={"help": "to learn from"})
    held_out: int = field(default=10, metadata={"help": "of annotated images every so many"})
    num_tests: int = field(default=200, metadata={"help": "scenes to measure with"})
    num_base: int = field(default=40, metadata={"help": "countries to learn"})
    num_novel: int = field(default=20, metadata={"help": "countries that come with entries alone"})
    use_lora: bool = field(default=False, metadata={"help": "adapt the attention, and train the heads"})
    lora_rank: int = field(default=8, metadata={"help": "of the adapters"})


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with other defaults."""

    output_dir: str = field(default="runs/detector", metadata={"help": "folder to write"})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "images in a batch of one process"})
    num_train_epochs: float = field(default=1.0, metadata={"help": "passes over the images"})
    learning_rate: float = field(default=1e-3, metadata={"help": "at its highest"})
    warmup_steps: float = field(default=50, metadata={"help": "steps until then"})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "how it falls"})
    save_strategy: str = field(default="steps", metadata={"help": "when checkpoints are written"})
    save_steps: float = field(default=200, metadata={"help": "between checkpoints, from which training goes on"})
    save_total_limit: int = field(default=1, metadata={"help": "checkpoints that are kept"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "rows become tensors in the collator"})


def main(options: Options, arguments: Arguments) -> None:
    """Trains, sets what neighbours count, measures, saves."""
    set_seed(arguments.seed)
    things = None
    if options.dataset is not None:
        rows = read_annotated(options.dataset, "train")
        held_out, train = rows[:: options.held_out], [row for n, row in enumerate(rows) if n % options.held_out]
        names = sorted({entry["label"] for row in train for entry in row["objects"]})
        entries = list(boxed_entries([row["image"] for row in train], [row["objects"] for row in train]))
    else:
        drawn = (arguments.seed, options.num_base, options.num_novel)
        things = stamp_things(options.stamps, arguments.seed) if options.stamps else flag_things(*drawn)
        train, names = Scenes(things.train, options.num_scenes, arguments.seed), sorted(things.base)
        held_out = Scenes(things.train, options.num_tests, arguments.seed + 1000)
        entries = [{"id": f"{label}-{n}", "image": picture.convert("RGB"), "label": label}
                   for label, pictures in things.entries.items() for n, picture in enumerate(pictures)]  # fmt: skip
    detector, processor = new_detector(names, options.detector)
    model = trained = RavlmForObjectDetection.from_detector(detector)
    if options.use_lora:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=options.lora_rank, lora_alpha=2 * options.lora_rank, target_modules=ATTENTION)
        trained = get_peft_model(model, lora)
        for name, weight in trained.named_parameters():
            weight.requires_grad_(weight.requires_grad or any(head in name for head in HEADS))
    collator = DetectionCollator(image_processor=processor, labels=names)
    trainer = Trainer(trained, arguments, data_collator=collator, train_dataset=train)
    trainer.train(resume_from_checkpoint=any(Path(arguments.output_dir).glob("checkpoint-*")) or None)
    if not trainer.is_world_process_zero():
        return
    model = (trained.merge_and_unload() if options.use_lora else model).eval()
    retriever = RavlmRetriever.build(KnowledgeBase.from_dicts(entries), encoder_of(options.encoder))
    detect = pipeline("object-detection", model=model, image_processor=processor, retriever=retriever)
    rows = [held_out[number] for number in range(len(held_out))]
    fit = detect.fit_neighbors([row["image"] for row in rows], [row["objects"] for row in rows])
    print({name: round(value, 3) for name, value in fit._asdict().items()})
    detect.save_pretrained(arguments.output_dir)
    if things is not None:
        tests = Scenes(things.test, options.num_tests, arguments.seed + 2000)
        report = measured(detect, tests, things, Path(arguments.output_dir)) | {"fit": fit._asdict()}
        report |= {"seed": arguments.seed, "steps": trainer.state.global_step}
        (Path(arguments.output_dir) / "report.json").write_text(json.dumps(report, indent=1))
        print(json.dumps(report["arms"], indent=1))
    print(f"saved to {arguments.output_dir}")


def new_detector(names: list[str], source: str | None):
    """A pretrained detector with a new head, or a small one from new weights, and its image processor."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)}}
    if source is not None:
        model = AutoModelForObjectDetection.from_pretrained(source, **labels, ignore_mismatched_sizes=True)
        return model, AutoImageProcessor.from_pretrained(source)
    return small_detector(labels)


def encoder_of(name: str | None):
    """The encoder that looks boxes up."""
    if name is not None:
        return load_encoder(name)
    return RavlmEncoder(AutoModel.from_pretrained(CHECKPOINT), AutoProcessor.from_pretrained(CHECKPOINT))


if __name__ == "__main__":
    main(*HfArgumentParser([Options, Arguments]).parse_args_into_dataclasses())
