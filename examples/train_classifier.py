"""Train a classifier that also asks labelled images: its head, and how much neighbours count.

    accelerate launch examples/train_classifier.py  # flags by country, with the shipped towers
    accelerate launch examples/train_classifier.py --encoder google/siglip2-base-patch16-224 --dataset birds/ \
        --output_dir runs/birds
    accelerate launch examples/train_classifier.py --encoder openai/clip-vit-base-patch32 --dataset NAME --use_lora

`--dataset` is a folder with one sub-folder of images per class, a file, or a data set of the Hub with the columns
`image` and `label`. Its images are learned from and become the entries of the index; a fifth of them is held out, to
set by it how much neighbours count. The encoder stays as it is, and every image is looked at once; with `--use_lora`
its vision tower is adapted, too, and the index is made anew. The output folder is what
`pipeline("image-classification", model=...)` opens; classes are added to it by adding labelled images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from datasets import ClassLabel, Dataset, Image
from transformers import (
    AutoModel,
    AutoProcessor,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
    set_seed,
)

from flags.world import VIEWS, load_world
from hf_ravlm import (
    ClassificationCollator,
    KnowledgeBase,
    RavlmEncoder,
    RavlmForImageClassification,
    RavlmRetriever,
    RowsWithNeighbors,
    from_encoder,
)
from hf_ravlm.training import freeze
from training_rows import CHECKPOINT, open_dataset


VISION_ATTENTION = r".*(vision_tower|vision_model|image_model)\..*\.(q_proj|v_proj|query|value)"


@dataclass
class Options:
    """What is trained, on which images."""

    model: str = field(default=CHECKPOINT, metadata={"help": "folder or name with towers of ours"})
    encoder: str | None = field(default=None, metadata={"help": "a pretrained dual encoder instead (CLIP, SigLIP)"})
    dataset: str = field(default="flags", metadata={"help": "'flags', a folder of folders, a file, or a name"})
    split: str = field(default="train", metadata={"help": "of the data set"})
    head: str = field(default="names", metadata={"help": "begin with the classes' 'names' or with their 'images'"})
    num_neighbors: int = field(default=16, metadata={"help": "K"})
    use_lora: bool = field(default=False, metadata={"help": "adapt the vision tower, too"})
    lora_rank: int = field(default=8, metadata={"help": "of the adapters"})


@dataclass
class Arguments(TrainingArguments):
    """`TrainingArguments` with other defaults."""

    output_dir: str = field(default="runs/classifier", metadata={"help": "folder to write"})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "images in a batch of one process"})
    num_train_epochs: float = field(default=5.0, metadata={"help": "passes over the images"})
    learning_rate: float = field(default=1e-3, metadata={"help": "at its highest"})
    save_strategy: str = field(default="no", metadata={"help": "a head is quick to train again"})


def main(options: Options, arguments: Arguments) -> None:
    """Trains, sets what neighbours count, saves."""
    set_seed(arguments.seed)
    if options.encoder is not None:
        dual, processor = from_encoder(options.encoder)
    else:
        dual, processor = AutoModel.from_pretrained(options.model), AutoProcessor.from_pretrained(options.model)
    rows = flag_pictures() if options.dataset == "flags" else open_dataset(options.dataset, options.split, "image")
    rows = rows if isinstance(rows.features["label"], ClassLabel) else rows.class_encode_column("label")
    names = rows.features["label"].names
    rows = rows.add_column("id", list(map(str, range(len(rows)))))
    train, held_out = rows.train_test_split(0.2, seed=arguments.seed).values()

    retriever = index_of(train, dual, processor)
    of_images = torch.from_numpy(means_of(retriever, names)) if options.head == "images" else None
    model = RavlmForImageClassification.from_dual_encoder(
        dual, names, processor, class_embeds=of_images, num_neighbors=options.num_neighbors
    )
    freeze(dual)
    trained, collator, learned_from = model, default_data_collator, None
    if options.use_lora:
        from peft import LoraConfig, get_peft_model

        targets = {"target_modules": VISION_ATTENTION, "modules_to_save": ["class_head"]}
        trained = get_peft_model(model, LoraConfig(r=options.lora_rank, lora_alpha=2 * options.lora_rank, **targets))
        collator, learned_from = ClassificationCollator(processor=processor, labels=names), train
        arguments.remove_unused_columns = False
    else:
        learned_from = RowsWithNeighbors(list(train), names, retriever, options.num_neighbors)
    trainer = Trainer(trained, arguments, data_collator=collator, train_dataset=learned_from)
    trainer.train()
    model = trained.merge_and_unload() if options.use_lora else model
    if not trainer.is_world_process_zero():
        return
    if options.use_lora:  # the entries stand elsewhere now
        retriever = index_of(train, model.model, processor)
    classify = pipeline("image-classification", model=model.eval(), processor=processor, retriever=retriever)
    found = classify.fit_neighbors(held_out["image"], [names[number] for number in held_out["label"]])
    print(f"accuracy of the held-out images, each class alike: {found.accuracy:.3f} with alpha={found.weight:.3g}, "
          f"beta={found.sharpness:.3g}, gamma={found.balance:.3g}")  # fmt: skip
    classify.save_pretrained(arguments.output_dir)
    print(f"saved to {arguments.output_dir}")


def index_of(rows: Dataset, dual, processor) -> RavlmRetriever:
    """The images as labelled entries."""
    return RavlmRetriever.build(KnowledgeBase.from_dataset(rows), RavlmEncoder(dual, processor))


def means_of(retriever: RavlmRetriever, names: list[str]):
    """The mean image of every class, in the order of `names`."""
    labels = retriever.labels()
    if missing := set(names) - set(labels.names):
        raise SystemExit(f"--head images: {len(missing)} classes have no image to learn from: {sorted(missing)[:3]}")
    return labels.means[[labels.names.index(name) for name in names]]


def flag_pictures() -> Dataset:
    """Drawings of the flags of the dev countries, which the towers were not trained on."""
    world = load_world()
    found = [(entity, view) for entity in world.dev for view in VIEWS if (entity, view) in world.images.encoded]
    columns = {
        "image": [{"bytes": world.images.encoded[key], "path": None} for key in found],
        "label": [f"flag of {world.entities[entity]['name']}" for entity, _ in found],
    }
    return Dataset.from_dict(columns).cast_column("image", Image())


if __name__ == "__main__":
    main(*HfArgumentParser([Options, Arguments]).parse_args_into_dataclasses())
