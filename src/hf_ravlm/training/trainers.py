"""The Trainer for readers: retrieved evidence, frozen parts in eval mode, adapters, complete checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import DataCollator, Trainer, TrainingArguments
from transformers.trainer_utils import has_length, rotate_checkpoints

from ..errors import InvalidInputError
from ..model.loading import without_adapters
from ..model.processing_ravlm import RavlmProcessor
from ..retrieval import RavlmEncoder, RavlmRetriever
from .applied_arguments import check_arguments, loss_outside, read_in_every_process
from .batches.broken_images import OnError
from .batches.evidence_mixing import EvidenceMix
from .batches.reader_batches import ROW_NAMES, ReaderBatches
from .batches.rows import NumberedRows, check_gold_ids, first_row, gold_ids_of, is_stream, numbered
from .checkpoints.checkpoints import checkpoint_to_resume, mark_complete
from .checkpoints.whole_weights import holds_whole_model, load_weights
from .lora import add_adapters
from .losses.memory import hard_token_loss
from .measures import measure_answers
from .memory import ASKED, IN_WORDS, MemoryTraining, distillation_loss, word_processor
from .processes import allow_idle_parameters, check_idle_parameters, check_processes, shard_language_model


if TYPE_CHECKING:
    from peft import PeftConfig


logger = logging.getLogger(__name__)


def freeze(*modules: nn.Module) -> None:
    """Makes the modules untrainable until they are loaded anew; [`RavlmTrainer`] also keeps them in eval mode.

    >>> tower = nn.Linear(2, 2)
    >>> freeze(tower)
    >>> any(parameter.requires_grad for parameter in tower.parameters())
    False
    """
    for module in modules:
        module.requires_grad_(False)


class RavlmTrainer(Trainer):
    """`transformers.Trainer` for a reader that learns to answer from evidence.

    With a [`RavlmProcessor`] as `processing_class` and no `data_collator`, rows are those of
    `hf_ravlm.training.batches.rows` (images, questions and answers), and the `retriever` finds their evidence. Only
    the tokens of answers are learned, each alike: accumulated gradients are those of one large batch.

    Frozen parts stay in eval mode, as a batch norm would move its statistics and the encoder would no longer be that
    of the index. Only complete checkpoints are resumed from; the training then goes on with the same weights, states
    and draws.

    Args:
        model, args, data_collator, ...: As for `transformers.Trainer`.
        retriever: Finds the evidence. What its dual encoder shares with the model, all of it or a tower, is frozen.
        evidence: What is read in training; `None` for `config.num_passages` passages as the retriever finds them.
        memory: How a fusion with weights learns to keep what passages say, see [`MemoryTraining`].
        peft_config: Adapters to train instead of the model, such as `LoraConfig(r=8)`, see `lora.add_adapters`; the
            language model may then be quantized.
        generation: Arguments of `generate` in evaluation, which then reports `exact_match`, `token_f1`,
            `closed_book_exact_match`, the shares of answers that evidence `rescued` and `harmed`, and the ranking
            (`hit@k`, `mrr`) among `num_passages`. Greedy, unless they say otherwise. `None` reports the loss alone.
        on_error: For images that cannot be used: `"raise"` an error, `"skip"` the row, or read a grey image
            (`"blank"`).
        max_broken: More broken images than this stop the training.

    Raises:
        InvalidInputError: If the knowledge base misses a gold passage, adapters match nothing, or there is no complete
            checkpoint to resume from.
        FloatingPointError: If a loss is NaN or infinite; names the step and the rows.

    Example:

    ```python
    trainer = RavlmTrainer(
        model,
        TrainingArguments("reader", metric_for_best_model="exact_match"),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=processor,
        retriever=retriever,
        evidence=EvidenceMix(num_passages=4, gold=(1.0, 0.2), noise=0.2, dropout=0.1, withheld=0.3, shuffled=0.5),
        peft_config=LoraConfig(r=8),
        generation={"max_new_tokens": 16},
    )
    trainer.train()
    ```
    """

    towers_learn = False  # the towers that encode for the search

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        *,
        retriever: RavlmRetriever | None = None,
        evidence: EvidenceMix | None = None,
        memory: MemoryTraining | None = None,
        peft_config: PeftConfig | None = None,
        generation: Mapping[str, Any] | None = None,
        on_error: OnError = "raise",
        max_broken: int = 100,
        **kwargs: Any,
    ) -> None:
        reads_rows = data_collator is None and isinstance(processing_class, RavlmProcessor)
        check_arguments(args, reads_rows, _data_sets(train_dataset, eval_dataset))
        if args is not None:
            check_processes(args)
            allow_idle_parameters(args)
            if reads_rows:
                read_in_every_process(args)
        if model is None and peft_config is not None:
            raise InvalidInputError("peft_config adapts a model that is there: pass `model`, not `model_init`.")
        if model is not None and retriever is not None:
            _freeze_shared_encoder(model, retriever)
        if peft_config is not None:
            recomputes = bool(getattr(args, "activation_checkpointing", False))
            model = add_adapters(model, peft_config, recomputes, self.towers_learn)
        self.batches: ReaderBatches | None = None
        self.generation = None if generation is None else dict(generation)
        if reads_rows:
            data_collator = list  # rows stay rows until their step is known
        elif any(option is not None for option in (retriever, evidence, memory, generation)):
            raise InvalidInputError(
                "retriever, evidence, memory and generation are for rows that this trainer prepares itself: pass a "
                "RavlmProcessor as `processing_class`, and no `data_collator`."
            )
        super().__init__(model, args, data_collator, train_dataset, eval_dataset, processing_class, **kwargs)
        self.memory = memory
        self._apply_arguments(kwargs.get("compute_loss_func"))
        if self.is_fsdp_enabled:
            _check_shards(generation, memory)
            shard_language_model(self.accelerator.state.fsdp_plugin, self.model, self.args.device)
        if reads_rows:
            config = without_adapters(self.model).config
            self.batches = ReaderBatches(
                processing_class,
                retriever,
                EvidenceMix(config.num_passages) if evidence is None else evidence,
                lambda: config.marginalization != "none",
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                on_error=on_error,
                max_broken=max_broken,
            )
            self._check_gold_ids()

    def _apply_arguments(self, compute_loss_func: Callable | None) -> None:
        """What the Trainer has set up for models that it knows is set for the parts of ours."""
        if self.memory is not None:
            compute_loss_func = self._loss_of_memory(self.memory, compute_loss_func)
        self.compute_loss_func = loss_outside(self.args, compute_loss_func, self._loss_of_its_own())
        self.label_smoother = None  # the Trainer's does not shift our labels; the line above has one that does
        language_model = getattr(without_adapters(self.model), "language_model", None)
        if language_model is not None:
            language_model.config.get_text_config().use_cache = self.args.use_cache

    def _loss_of_memory(self, memory: MemoryTraining, given: Callable | None) -> Callable | None:
        """The `compute_loss_func` of memory training, if it weighs tokens; refuses readers without a memory."""
        if not isinstance(memory, MemoryTraining):
            raise InvalidInputError(f"memory={memory!r}: expected a MemoryTraining(...), or None.")
        config = without_adapters(self.model).config
        if config.fusion == "in_context" or config.marginalization != "none":
            raise InvalidInputError(
                f"memory=... with fusion={config.fusion!r} and marginalization={config.marginalization!r}: expected a "
                "fusion with weights (concat, product, attention, gated, cross_attention) and marginalization='none'."
            )
        if not memory.focus:
            return given
        if given is not None:
            raise InvalidInputError("compute_loss_func and MemoryTraining(focus=...) exclude each other: give one.")
        return partial(hard_token_loss, focus=memory.focus)

    def _loss_of_its_own(self) -> str | None:
        """What the model's loss is, where it is no mean over tokens of one prompt."""
        config = getattr(without_adapters(self.model), "config", None)
        latent = getattr(config, "marginalization", "none")
        return None if latent == "none" else f"the likelihood over latent passages (marginalization={latent!r})"

    def _check_gold_ids(self) -> None:
        if self.retriever is None:
            self._check_rows_alone()
            return
        for rows in _data_sets(self.train_dataset, self.eval_dataset):
            if (gold_ids := gold_ids_of(rows)) is not None:
                check_gold_ids(gold_ids, self.retriever.knowledge_base)

    def _check_rows_alone(self) -> None:
        """Without a retriever, rows that bring no evidence are questions alone."""
        if self.train_dataset is None or is_stream(self.train_dataset):
            return
        row = first_row(self.train_dataset)
        if not row or row.get("evidence") is not None:
            return
        if self.memory is not None:
            raise InvalidInputError(
                "memory=... learns from passages, and there are none: pass `retriever=`, or rows with `evidence`."
            )
        if row.get("gold_ids"):
            logger.warning(
                "Rows name gold passages (gold_ids), which are not read without a `retriever`: the reader learns to "
                "answer without evidence."
            )

    @property
    def retriever(self) -> RavlmRetriever | None:
        """The retriever in use."""
        return None if self.batches is None else self.batches.retriever

    def _get_dataloader(self, dataset, *args, **kwargs):
        if has_length(dataset) and not len(dataset):
            raise InvalidInputError("The data set has no rows: expected one or more. Look at its split and filters.")
        if self.batches is not None:
            dataset = numbered(dataset)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _get_train_sampler(self, train_dataset=None):
        """Samples from the data set itself, which may have a column of lengths to group by."""
        if isinstance(train_dataset, NumberedRows):
            train_dataset = train_dataset.rows
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        return super()._get_eval_sampler(eval_dataset.rows if isinstance(eval_dataset, NumberedRows) else eval_dataset)

    def _get_collator_with_removed_columns(self, data_collator, description=None):
        if self.batches is not None:
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, description)

    def _set_signature_columns_if_needed(self) -> None:
        """Keeps the columns that the collator names in `columns`, beside those that the model takes."""
        super()._set_signature_columns_if_needed()
        wanted = getattr(self.data_collator, "columns", [])
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The batches of one optimizer step, and how many answer tokens they hold."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.batches is None:
            return batches, num_items
        batches = [self.training_inputs(rows) for rows in batches]
        return batches, self._get_num_items_in_batch(batches, device)

    def training_inputs(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The inputs of one batch of rows at the next step.

        Raises:
            InvalidInputError: If a row has no answer, or asks nothing.
            UnsafeInputError: If an image cannot be used, see `on_error`.
        """
        step = self.state.global_step
        progress = step / max(self.state.max_steps, 1)
        if self.memory is None:
            return self.batches.for_training(rows, step, progress)
        opened, evidence = self.batches.read(rows, step, progress)
        opened, evidence, asked = self.memory.repeated(opened, evidence, progress, [self.batches.seed, step, 1])
        inputs = self.batches.inputs(opened, evidence)
        if self.memory.distillation and any(asked):
            words, chosen = word_processor(self.processing_class), [at for at, kept in enumerate(asked) if kept]
            in_words = self.batches.inputs([opened[at] for at in chosen], [evidence[at] for at in chosen], words)
            del in_words[ROW_NAMES]
            inputs[IN_WORDS], inputs[ASKED] = in_words, torch.tensor(asked)
        return inputs

    def _get_num_items_in_batch(self, batch_samples, device):
        """Answer tokens, each counted once, in however many prompts of latent passages it stands."""
        once = [
            {"labels": inputs["labels"][::number]} if (number := self._prompts_per_answer(inputs)) > 1 else inputs
            for inputs in batch_samples
        ]
        return super()._get_num_items_in_batch(once, device)

    def _prompts_per_answer(self, inputs: Any) -> int:
        if not isinstance(inputs, Mapping) or "labels" not in inputs or "evidence_scores" not in inputs:
            return 1
        config = getattr(without_adapters(self.accelerator.unwrap_model(self.model)), "config", None)
        is_latent = getattr(config, "marginalization", "none") != "none"
        return max(inputs["evidence_scores"].shape[1], 1) if is_latent else 1

    def compute_loss_context_manager(self):
        """Entered for every loss, after the Trainer has put the model into training mode; frozen parts go back."""
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        if self.neftune_noise_alpha is not None and self.is_in_train and self.model.training:
            without_adapters(self.model).get_input_embeddings().train()  # the noise is a hook on it, in training mode
        return super().compute_loss_context_manager()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The model's own loss, which counts an answer once in each of its `K` prompts, and that of `memory`."""
        if num_items_in_batch is not None:
            num_items_in_batch = num_items_in_batch * self._prompts_per_answer(inputs)
        if self.memory is None or not isinstance(inputs, Mapping) or IN_WORDS not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        in_words, asked, labels = inputs.pop(IN_WORDS), inputs.pop(ASKED), inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        reader = self.accelerator.unwrap_model(model)  # another process may have no words to read: nothing in common
        added = distillation_loss(reader, outputs["logits"], labels, asked, in_words, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            added = added * self.accelerator.num_processes
        loss = loss + self.memory.distillation * added
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One step.

        Raises:
            FloatingPointError: If the loss is NaN or infinite.
        """
        names = inputs.pop(ROW_NAMES, None) if isinstance(inputs, MutableMapping) else None
        loss = super().training_step(model, inputs, num_items_in_batch)
        check_idle_parameters(model)
        if not torch.isfinite(loss).all():
            raise FloatingPointError(
                f"The loss of step {self.state.global_step + 1} is {loss.item()} (epoch {self.state.epoch or 0:.2f}, "
                f"rows: {', '.join(names[:8]) if names else 'of a collator that does not name them'}). Look at these "
                "rows, lower the learning rate, or compute in bfloat16 instead of float16. The last complete "
                "checkpoint is from before this step."
            )
        return loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of one batch of rows, with the evidence that the retriever finds."""
        if self.batches is not None and isinstance(inputs, list):
            inputs = self.batches.for_evaluation(inputs)
            inputs.pop(ROW_NAMES)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """The loss, and with `generation` the measures of generated answers."""
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.batches is not None and self.generation is not None:
            reader = without_adapters(self.accelerator.unwrap_model(self.model))
            measured = measure_answers(
                reader, self.batches, dataloader.dataset, self.args.eval_batch_size, self.accelerator, self.generation
            )
            if self.batches.view is not None:
                measured["num_passages"] = len(self.batches.view)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in measured.items()})
        return output

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As `Trainer.train`; incomplete checkpoints are skipped with a warning."""
        checkpoint = checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
        if checkpoint is not None:
            self.load_more(Path(checkpoint))
        return super().train(resume_from_checkpoint=checkpoint, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_whole(resume_from_checkpoint, self.model if model is None else model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_whole(self.state.best_model_checkpoint, self.model):
            super()._load_best_model()

    def _load_whole(self, folder: str, model: nn.Module) -> bool:
        """Loads every weight; `False` for adapters, FSDP and DeepSpeed, which have their own ways of loading."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not holds_whole_model(folder, model):
            return False
        load_weights(model, folder)
        return True

    def _save_checkpoint(self, model, trial):
        # Old checkpoints go only when the new one is complete, and only a complete one goes to the Hub.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        publish, self.args.push_to_hub = self.args.push_to_hub, False
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit, self.args.push_to_hub = limit, publish
        run_folder = self._get_output_dir(trial)
        folder = Path(run_folder) / f"checkpoint-{self.state.global_step}"
        self.accelerator.wait_for_everyone()  # for the random states of all processes
        if self.args.should_save:
            self.save_more(folder)
            mark_complete(folder, resumable=not self.args.save_only_model)
        if publish:
            self._push_from_checkpoint(str(folder))
        if self.args.should_save:
            rotate_checkpoints(run_folder, limit, self.state.best_model_checkpoint, use_mtime=False)

    def save_more(self, folder: Path) -> None:
        """Adds to a checkpoint the states of callbacks that have `save_state`."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "save_state"):
                callback.save_state(folder)

    def load_more(self, folder: Path) -> None:
        """Reads what `save_more` wrote."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "load_state"):
                callback.load_state(folder)


def _data_sets(train_dataset: Any, eval_dataset: Any) -> list[Any]:
    """The data sets of a trainer that are there."""
    evaluated = list(eval_dataset.values()) if isinstance(eval_dataset, Mapping) else [eval_dataset]
    return [rows for rows in (train_dataset, *evaluated) if rows is not None]


def _check_shards(generation: Mapping[str, Any] | None, memory: MemoryTraining | None) -> None:
    """Refuses what only some processes would do, while others wait for their shards."""
    if generation is not None:
        raise InvalidInputError(
            "generation=... under FSDP: processes would wait for each other's shards in the middle of an answer. "
            "Leave it out, and evaluate what was saved."
        )
    if memory is not None and memory.distillation:
        raise InvalidInputError(
            "MemoryTraining(distillation=...) under FSDP: processes would wait for each other's shards where only "
            "some have words to read. Leave distillation out, or train with DDP."
        )


def _freeze_shared_encoder(model: nn.Module, retriever: RavlmRetriever) -> None:
    """Freezes what made the vectors of the retriever, as far as it is also a part of the model."""
    if not isinstance(retriever.encoder, RavlmEncoder):
        return
    encoding = {id(parameter) for parameter in retriever.encoder.model.parameters()}
    shared = [parameter for parameter in model.parameters() if id(parameter) in encoding]
    if any(parameter.requires_grad for parameter in shared):
        logger.info("The dual encoder is frozen: it made the vectors of the retriever.")
    for parameter in shared:
        parameter.requires_grad_(False)
