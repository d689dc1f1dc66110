"""The trainer of reader and retriever together: the likelihood of the answers teaches the retriever, too.

A step: (1) the index gives every question its best K passages; (2) the towers score them again, with gradient; (3) the
reader computes the likelihood of the answer under each; (4) the objective turns that into a loss for both.

| objective | the reader learns | the retriever learns |
|---|---|---|
| `"rag_sequence"`, `"rag_token"` | `-log sum_k p(z_k) p(y given z_k)` | the same loss |
| `"perplexity_distillation"` | the same, its prior held fixed | KL from the ranking by the answer's perplexity |
| `"emdr2"` | the same, its prior held fixed | the marginal likelihood, the reader held fixed |

A reader that sees images by itself (Qwen3-VL, SmolVLM, ...) reads the K passages of a question one by one, each with
its images, while it is trained; afterwards it answers from all of them in one prompt, as before.

A pseudo-relevance loss can be added. Formulas: `model/reader/likelihoods.py`, `losses/distillation.py`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from transformers.feature_extraction_utils import BatchFeature

from ..errors import InvalidInputError
from ..model.loading import without_adapters
from ..retrieval import RavlmEncoder, RavlmRetriever
from .batches.evidence_mixing import EvidenceMix
from .batches.leakage import holds_answer
from .batches.reader_batches import ROW_NAMES
from .batches.rows import TrainingRow, first_row
from .callbacks import RefreshIndexCallback
from .checkpoints.index_versions import FOLDER, drop_unused_versions, load_index_version, save_index_version
from .joint_model import JointOutput, JointReader
from .losses.distillation import emdr2_loss, perplexity_distillation_loss, pseudo_relevance_loss
from .trainers import RavlmTrainer, freeze


logger = logging.getLogger(__name__)

Objective = Literal["rag_sequence", "rag_token", "perplexity_distillation", "emdr2"]
JOINT = "joint"  # in a batch: what scores the passages
_BESIDE_PARTS = ("labels", "evidence_scores", "evidence_mask", ROW_NAMES)  # what is known of a batch as a whole


@dataclass(frozen=True)
class JointSettings:
    """How reader and retriever learn from each other.

    Attributes:
        objective: See the table of this module; RAG-sequence and RAG-token need the `config.marginalization` of that
            name, but for readers that see images by themselves.
        side: `"query"` takes the vectors of passages from the index; `"passage"` encodes the K passages anew, with
            gradient.
        refresh_every: Steps between two encodings of the whole knowledge base; `None` encodes it at the end only.
        warmup_steps: Steps in which the reader alone is trained.
        reader_learns: Whether the reader is trained.
        retriever_weight: Of the retriever's loss, where it has one of its own.
        temperature: Of both rankings in perplexity distillation.
        pseudo_relevance_weight: Of the pseudo-relevance loss.
        tokens_at_once: Tokens of prompts, padding included, of which activations and logits are in memory at once, but
            at least those of one question; what a batch has beyond that is computed twice. `None` for all.
    """

    objective: Objective = "rag_sequence"
    side: Literal["query", "passage"] = "query"
    refresh_every: int | None = None
    warmup_steps: int = 0
    reader_learns: bool = True
    retriever_weight: float = 1.0
    temperature: float = 0.1
    pseudo_relevance_weight: float = 0.0
    tokens_at_once: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective):
            raise InvalidInputError(f"objective={self.objective!r}: expected one of {list(get_args(Objective))}.")
        if self.side not in ("query", "passage"):
            raise InvalidInputError(f'side={self.side!r}: expected "query" or "passage".')
        if self.refresh_every is not None and self.refresh_every < 1:
            raise InvalidInputError(f"refresh_every={self.refresh_every}: expected at least 1, or None.")
        if self.tokens_at_once is not None and self.tokens_at_once < 1:
            raise InvalidInputError(f"tokens_at_once={self.tokens_at_once}: expected at least 1, or None.")
        if self.objective == "rag_token" and not self.reader_learns:
            raise InvalidInputError(
                'objective="rag_token" with reader_learns=False: choose "emdr2" or "rag_sequence".'
            )
        if min(self.warmup_steps, self.retriever_weight, self.pseudo_relevance_weight) < 0 or self.temperature <= 0:
            raise InvalidInputError(f"{self}: expected steps and weights from 0 on, and a temperature above 0.")


class RavlmJointTrainer(RavlmTrainer):
    """Trains a reader over latent passages together with the retriever that finds them.

    Rows, checkpoints and evaluation are those of [`RavlmTrainer`]; `evidence.num_passages` is `K`. After training,
    save `trainer.retriever` beside the model: its index is the newest.

    Passages and queries share their towers. If the passages are all of one modality and queries have the other as
    well, `side="query"` freezes the passages' tower, and the index stays exact; else its vectors are those of the
    last refresh, with a warning.

    With adapters (`peft_config`) the reader, the towers, or both learn through them, as `target_modules` say, and all
    of it is saved as adapters; the index fits the towers with them. Before these are merged, they serve as they are;
    afterwards build the index anew. Activations are computed anew (`activation_checkpointing`) in reader and towers.

    Args:
        model, args, ...: As for [`RavlmTrainer`].
        retriever: Built by the towers of the model.
        settings: `None` for the defaults of [`JointSettings`].

    Raises:
        InvalidInputError: If a causal reader reads all passages in one prompt, the retriever has other towers, nothing
            in the towers is trainable, adapters would be saved without what is trained beside them, or rows bring
            their evidence.
    """

    towers_learn = True

    def __init__(self, model: nn.Module, *args: Any, settings: JointSettings | None = None, **kwargs: Any) -> None:
        self.settings = JointSettings() if settings is None else settings
        self.index_version = 0
        retriever = kwargs.pop("retriever", None)
        reader = without_adapters(model)
        _check_parts(reader, retriever, self.settings)
        super().__init__(model, *args, retriever=None, **kwargs)
        if self.batches is None:
            raise InvalidInputError("RavlmJointTrainer finds passages itself: pass `processing_class`, no collator.")
        if self.batches.mix != EvidenceMix(self.batches.mix.num_passages):
            raise InvalidInputError(f"{self.batches.mix}: here all passages are retrieved; give `num_passages` alone.")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise InvalidInputError(
                "RavlmJointTrainer runs on one process or several with DDP, not sharded. Unset fsdp."
            )
        if hasattr(self.model, "get_base_model"):
            _check_adapters(self.model, retriever)
        self.batches.retriever = retriever
        self._check_gold_ids()
        self.passages_are_fixed = False
        if self.settings.side == "query":
            self.passages_are_fixed = _freeze_passage_side(reader.model, retriever, self.train_dataset)
        if not self.settings.reader_learns:
            freeze(*(part for name, part in without_adapters(self.model).named_children() if name != "model"))
        self._tower_parameters = [parameter for parameter in reader.model.parameters() if parameter.requires_grad]
        if not self._tower_parameters:
            raise InvalidInputError(
                "All of `model.model` is frozen, so no retriever can learn: name layers of its towers in "
                "`target_modules` of the adapters, too, or train with RavlmTrainer."
            )
        self._num_queries = 0
        self.add_callback(RefreshIndexCallback(self.settings.refresh_every, self.refresh_index))

    def _loss_of_its_own(self):
        return super()._loss_of_its_own() or "the likelihood of answers under one passage at a time"

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As [`RavlmTrainer`]'s; also counts the questions of the step."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(len(inputs[JOINT]["has_answer"]) for inputs in batches), device=device)
        self._num_queries = int(self.accelerator.reduce(count, "sum"))
        return batches, num_items

    def training_inputs(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Inputs of the reader, with what scores the passages under the key `"joint"`.

        Raises:
            InvalidInputError: If a row brings its evidence, has no answer, or asks nothing.
        """
        opened = self.batches.opened(rows)
        if any(row.evidence is not None for row in opened):
            raise InvalidInputError(
                "Rows bring `evidence` of their own, and the joint trainer finds it: leave it out."
            )
        view, processor = self.batches.require_view(), self.batches.processor
        evidence = self.batches.evidence_for(opened, self.batches.mix)
        inputs = self.batches.inputs(opened, evidence, passage_prompts=True)
        parts = self._parts(inputs, opened, evidence)
        places = _padded([[item["row"] for item in items] for items in evidence])  # (B, K)
        has_answer = [
            [holds_answer(text, row.answers) for text in view.texts(chosen)]
            for row, chosen in zip(opened, places.tolist(), strict=True)
        ]
        query = processor.for_retrieval([row.image for row in opened], [row.question for row in opened])
        joint: dict[str, Any] = {"query": query, "has_answer": torch.tensor(has_answer)}
        if self.settings.side == "passage":
            passages = view.knowledge_base.passages(places.ravel().tolist())
            joint["passages"] = processor.for_retrieval(
                [item.image for item in passages], [item.text for item in passages]
            )
        else:
            joint["passage_vectors"] = torch.from_numpy(np.ascontiguousarray(view.vectors[places]))
        if parts is not None:
            joint["parts"] = parts
            inputs = BatchFeature({name: inputs[name] for name in _BESIDE_PARTS if name in inputs})
        inputs[JOINT] = joint
        return inputs

    def _parts(
        self, inputs: Mapping[str, Any], rows: Sequence[TrainingRow], evidence: Sequence[Sequence[Any]]
    ) -> list[Mapping[str, Any]] | None:
        """The inputs of some rows each, within `tokens_at_once`; `None` where all of them are."""
        budget, prompts = self.settings.tokens_at_once, inputs["input_ids"]
        if budget is None or prompts.numel() <= budget:
            return None
        number = max(budget * len(rows) // prompts.numel(), 1)
        parts = [
            self.batches.inputs(rows[at : at + number], evidence[at : at + number], passage_prompts=True)
            for at in range(0, len(rows), number)
        ]
        for part in parts:
            del part[ROW_NAMES]
        return parts

    def _wrap_model(self, model, training=True, dataloader=None):
        wrapped = super()._wrap_model(model, training, dataloader)
        if training and wrapped is self.model:
            marginalization = "token" if self.settings.objective == "rag_token" else "sequence"
            return self.accelerator.prepare_model(JointReader(self.model, marginalization))
        return wrapped

    def _prompts_per_answer(self, inputs):
        if isinstance(inputs, Mapping) and JOINT in inputs:
            return inputs["evidence_scores"].shape[1]
        return super()._prompts_per_answer(inputs)

    def compute_loss_context_manager(self):
        """As [`RavlmTrainer`]'s; no dropout in readers whose likelihoods are targets, nor in towers in warm-up."""
        context = super().compute_loss_context_manager()
        reader = without_adapters(self.model)
        if self.settings.objective in ("perplexity_distillation", "emdr2") or not self.settings.reader_learns:
            reader.language_model.eval()
        if self._is_warming_up():
            reader.model.eval()
        return context

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of the objective; in evaluation the reader's own."""
        joint = inputs.pop(JOINT, None)
        if joint is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        has_answer = joint.pop("has_answer")
        settings = self.settings
        outputs = model(
            **joint,
            **({} if "parts" in joint else inputs),
            num_answer_tokens=num_items_in_batch,
            retriever_learns_from_answers=settings.objective in ("rag_sequence", "rag_token"),
            reader_learns=settings.reader_learns,
        )
        mask = inputs.get("evidence_mask")
        loss = outputs.loss if settings.reader_learns else outputs.scores.new_zeros(())
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        share = len(has_answer) / self._num_queries * self.accelerator.num_processes
        loss = loss + share * self.retriever_loss(outputs, has_answer, mask)
        return (loss, outputs) if return_outputs else loss

    def retriever_loss(
        self, outputs: JointOutput, has_answer: torch.Tensor, evidence_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The retriever's own loss beside the marginal likelihood, a mean over questions."""
        settings, scores = self.settings, outputs.scores
        loss = scores.new_zeros(())
        if settings.objective == "perplexity_distillation":
            likelihood, temperatures = outputs.passage_log_likelihood, (settings.temperature, settings.temperature)
            loss = perplexity_distillation_loss(likelihood, outputs.num_tokens, scores, evidence_mask, *temperatures)
        elif settings.objective == "emdr2" or not settings.reader_learns:  # one gradient in the scores
            loss = emdr2_loss(outputs.passage_log_likelihood, scores, evidence_mask, outputs.logit_scale)
        loss = settings.retriever_weight * loss
        if settings.pseudo_relevance_weight:
            relevance = pseudo_relevance_loss(scores, has_answer, outputs.is_right, evidence_mask, outputs.logit_scale)
            loss = loss + settings.pseudo_relevance_weight * relevance
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One step; in warm-up the towers' gradients are dropped."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._is_warming_up():
            for parameter in self._tower_parameters:
                parameter.grad = None
        return loss

    def _is_warming_up(self) -> bool:
        return self.state.global_step < self.settings.warmup_steps

    def refresh_index(self) -> None:
        """Encodes the knowledge base with the towers as they are, and replaces the index.

        Several processes share the work through files in the output folder: in a collective operation they would time
        out.
        """
        old = self.retriever
        kind = old.index.spec["kind"]
        if self.passages_are_fixed:
            new = RavlmRetriever(old.knowledge_base, old.encoder, old.vectors, index=kind)
        else:
            staging = None
            if self.args.world_size > 1:
                folder = Path(self.args.output_dir) / FOLDER
                staging = folder / f"staging-{self.index_version}"
                if self.args.process_index == 0:  # every process has read those of the version before
                    shutil.rmtree(folder / f"staging-{self.index_version - 1}", ignore_errors=True)
            new = RavlmRetriever.build(old.knowledge_base, old.encoder, index=kind, staging=staging)
        self.batches.retriever = new
        self.index_version += 1
        logger.info("Version %d of the index serves, from step %d.", self.index_version, self.state.global_step)

    def save_more(self, folder: Path) -> None:
        """Also writes the version of the index."""
        super().save_more(folder)
        save_index_version(Path(self.args.output_dir), folder, self.index_version, self.retriever)
        drop_unused_versions(Path(self.args.output_dir))

    def load_more(self, folder: Path) -> None:
        """Also reads the version of the index."""
        super().load_more(folder)
        self.index_version, self.batches.retriever = load_index_version(folder.parent, folder, self.retriever)


def _check_parts(reader: nn.Module, retriever: RavlmRetriever | None, settings: JointSettings) -> None:
    if reader.model is None:
        raise InvalidInputError(
            "the reader has no towers, and those of a retriever beside it are trained by nobody: make one that has "
            'the encoder inside, from_backbones(encoder="google/siglip2-base-patch16-224", generator=...).'
        )
    given = reader.config.marginalization
    wanted = {"rag_sequence": ["sequence"], "rag_token": ["token"]}.get(settings.objective, ["sequence", "token"])
    if not reader.reads_images and given not in wanted:
        raise InvalidInputError(
            f"objective={settings.objective!r} with config.marginalization={given!r}: expected one of {wanted}. Load "
            f"the model with `marginalization={wanted[0]!r}`, and its processor with `passage_prompts=True`."
        )
    encoder = getattr(retriever, "encoder", None)
    if not isinstance(encoder, RavlmEncoder) or encoder.model is not reader.model:
        raise InvalidInputError(
            "The retriever must be of the model's own towers, or nothing in it could learn: "
            "RavlmRetriever.build(knowledge_base, RavlmEncoder(model.model, processor))."
        )


def _check_adapters(model: nn.Module, retriever: RavlmRetriever) -> None:
    """Refuses adapters that would be saved without all that is trained, or beside a copy of the towers."""
    towers = without_adapters(model).model
    if towers is not retriever.encoder.model:
        raise InvalidInputError(
            "modules_to_save names `model`, of which peft trains a copy that the retriever does not see: name layers "
            "of its towers in target_modules."
        )
    prefix = getattr(model.base_model, "prefix", "lora_")
    whole = [name for name, weight in towers.named_parameters() if weight.requires_grad and prefix not in name]
    if whole:
        raise InvalidInputError(
            f"The towers are trained whole ({whole[0]}, ...) beside adapters, which are saved without them: freeze "
            "the towers and name their layers in target_modules, or merge the adapters first (merge_and_unload())."
        )


def _freeze_passage_side(towers: nn.Module, retriever: RavlmRetriever, rows: Any) -> bool:
    """Freezes what encodes passages, if queries have another part to learn with; whether it did."""
    table = retriever.knowledge_base.table
    has_text, has_image = (table[name].null_count < len(table) for name in ("text", "image"))
    row = first_row(rows)
    first = TrainingRow.parse(row) if row else TrainingRow()
    if has_text and not has_image and first.image is not None:
        freeze(*_half(towers, "text"))
        return True
    if has_image and not has_text and first.question:
        freeze(*_half(towers, "image"))
        return True
    logger.warning(
        'side="query": passages and queries share their towers, so the vectors of the index will be those of older '
        'weights until the next refresh. side="passage" learns on both sides.'
    )
    return False


def _half(towers: nn.Module, part: str) -> list[nn.Module]:
    """The tower of images or texts with its projection; of an encoder that is kept whole, all of it with that name."""
    if towers.config.encoder_config is None:
        return [towers.vision_tower if part == "image" else towers.text_encoder, getattr(towers, f"{part}_projection")]
    names = ("text",) if part == "text" else ("image", "vis")
    return [child for name, child in towers.encoder.named_children() if name.startswith(names)]


def _padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Places `(B, K)`; a shorter row repeats its first, or 0, which the evidence mask hides."""
    width = max(map(len, rows))
    return np.array([[*row, *[row[0] if row else 0] * (width - len(row))] for row in rows], np.int64)
