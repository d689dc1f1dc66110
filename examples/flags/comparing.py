"""Knows what comparisons of trainings share: how towers begin, the arguments of every trainer, what is measured."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from flags.measure import Task, tasks_of
from flags.questions import SHORT_KINDS, UNSEEN
from flags.recipe import build_model
from flags.world import ENTRY_VIEW, VIEWS, World, drawing_group, load_world, split_entities
from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmProcessor, RavlmRetriever
from hf_ravlm.training import RavlmPreTrainingArguments, RetrievalCollator
from hf_ravlm.training.batches.leakage import holds_answer


TEXT_WEIGHT = 0.4  # beside 1 for pictures
QUERY_VIEWS = tuple(view for view in VIEWS if view != ENTRY_VIEW)


def world_to_compare_in(num_chosen: int = 0) -> World:
    """The flags world; with a number, so many training countries take the place of the dev countries.

    Settings are chosen on those, so that the dev countries are looked at once.
    """
    world = load_world()
    if not num_chosen:
        return world
    train, chosen = split_entities(world.train, num_chosen, seed=1)
    return replace(world, train=train, dev=chosen)


def arguments_for(folder: str, seed: int, steps: int, kind: type = TrainingArguments, **settings: Any):
    """Training arguments: cosine schedule, no checkpoints, no bars."""
    usual: dict[str, Any] = {
        "per_device_train_batch_size": 1,
        "use_cpu": not torch.cuda.is_available(),
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(steps // 20, 1),
        "logging_steps": max(steps // 4, 1),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "accelerator_config": {"dispatch_batches": False},
    }
    return kind(output_dir=folder, max_steps=steps, seed=seed, **usual | settings)


def alignment_arguments(folder: str, seed: int, steps: int, pairs: int, learning_rate: float, **settings: Any):
    """Those of `RavlmPreTrainer`: InfoNCE alone, if the settings name no other objective."""
    return arguments_for(
        *(folder, seed, steps, RavlmPreTrainingArguments),
        per_device_train_batch_size=pairs,
        learning_rate=learning_rate,
        **settings,
    )


def alignment_collator(processor: RavlmProcessor, negatives: str | None = None) -> RetrievalCollator:
    """Batches out of the rows of `AskedWorld`: picture and question, picture and text of the passage that answers."""
    return RetrievalCollator(
        processor=processor,
        query_image="image",
        query_text="question",
        passage_image="gold_image",
        passage_text="gold_text",
        negatives=negatives,
        label="label",
        id="id",
    )


def begin_towers(towers: nn.Module, processor: RavlmProcessor, seed: int) -> None:
    """Towers that know drawings, as those of the shipped model do, and no words: the text tower begins anew.

    Words weigh twice as much as in the recipe, whose loss keeps them out of the pictures' way.
    """
    fresh = build_model(processor, seed).model
    for name in ("text_encoder", "text_projection"):
        getattr(towers, name).load_state_dict(getattr(fresh, name).state_dict())
    with torch.no_grad():
        towers.modality_log_weight.copy_(torch.tensor([1.0, TEXT_WEIGHT]).log())
    learn_words(towers)


def learn_words(towers: nn.Module) -> None:
    """Only the text tower learns; which country a picture shows stays with the picture tower."""
    towers.requires_grad_(False)
    towers.text_encoder.requires_grad_(True)
    towers.text_projection.requires_grad_(True)


def whole_retriever(towers: nn.Module, processor: RavlmProcessor, world: World) -> RavlmRetriever:
    """All passages of all entries, by the towers as they are."""
    rows = [row for entity in world.entities for row in world.passages(entity)]
    return RavlmRetriever.build(KnowledgeBase.from_dicts(rows), RavlmEncoder(towers, processor))


def retrieval_figures(retriever: RavlmRetriever, world: World, views: Sequence[str] = QUERY_VIEWS) -> dict[str, float]:
    """hit@1 of the dev countries for pictures with questions, in usual wordings and in others.

    The best passage is a hit if it is of the right country and of the kind that was asked for.
    """
    tasks = tasks_of(world, world.dev, views, SHORT_KINDS)
    rng = random.Random(0)
    reworded = [replace(task, question=rng.choice(UNSEEN[task.kind])) for task in tasks]
    hits = first_hits(retriever, world, tasks)
    return {
        "hit@1": hits["passage"],
        "hit@1, wordings never trained on": first_hits(retriever, world, reworded)["passage"],
        "hit@1 of the country alone": hits["country"],
    }


def first_hits(retriever: RavlmRetriever, world: World, tasks: Sequence[Task]) -> dict[str, float]:
    """Shares of tasks whose best passage is of the right `"country"`, also holds the `"answer"`, is the `"passage"`.

    Entries with the same drawing count as one country.
    """
    images = [world.images[task.entity, task.view] for task in tasks]
    vectors = retriever.encoder.encode_queries(images, [task.question for task in tasks])
    best = retriever.knowledge_base.passages((vectors @ retriever.vectors.T).argmax(axis=1).tolist())
    hits = {"country": 0, "answer": 0, "passage": 0}
    for passage, task in zip(best, tasks, strict=True):
        country, kind = passage.id.split("/")
        if drawing_group(country) == drawing_group(task.entity):
            hits["country"] += 1
            hits["answer"] += holds_answer(passage.text, task.answers)
            hits["passage"] += kind == task.kind
    return {name: number / len(tasks) for name, number in hits.items()}
