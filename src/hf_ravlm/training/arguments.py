"""Arguments of the alignment of the two towers."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..errors import InvalidInputError


@dataclass
class RavlmPreTrainingArguments(TrainingArguments):
    """`TrainingArguments` of [`RavlmPreTrainer`]: the loss is the weighted sum of the objectives.

    Args:
        itc_weight: InfoNCE of queries against the passages of the batch of all processes.
        itm_weight: Matching: a joint encoder tells pairs from hard negatives, which are drawn by similarity.
        mlm_weight: Words hidden in the passage, guessed with the query in view.
        triplet_weight: Triplets with semi-hard negatives.
        triplet_margin: In cosine.
        symmetric: Takes the mean of InfoNCE in both directions; needs one passage per query, no hard negatives.
        false_negative_ratio: Leaves passages with a cosine above this share of the positive's out of the negatives;
            0.95 is usual, for towers that are trained already. `None` leaves out none.
        matryoshka_dims: Widths that vectors are cut to, each with an InfoNCE of its own; put the full width among
            them. `None` for the full width alone.
        matryoshka_weights: Of the widths; 1 each by default.
        mlm_probability: Share of the words that are hidden.
        grad_cache_chunk_size: Rows that go through the towers at once. `per_device_train_batch_size` then costs the
            memory of this many, for one more forward pass; dropout and batch statistics are those of the chunks.

    Raises:
        InvalidInputError: If a value is out of its range, or no objective has a weight.
    """

    itc_weight: float = field(default=1.0, metadata={"help": "Weight of InfoNCE."})
    itm_weight: float = field(default=0.0, metadata={"help": "Weight of matching with hard negatives."})
    mlm_weight: float = field(default=0.0, metadata={"help": "Weight of guessing hidden words."})
    triplet_weight: float = field(default=0.0, metadata={"help": "Weight of semi-hard triplets."})
    triplet_margin: float = field(default=0.2, metadata={"help": "Margin of the triplets, in cosine."})
    symmetric: bool = field(default=False, metadata={"help": "Also contrast passages against queries (one to one)."})
    false_negative_ratio: float | None = field(
        default=None, metadata={"help": "Leave out negatives above this share of the positive's cosine."}
    )
    matryoshka_dims: list[int] | None = field(default=None, metadata={"help": "Widths that the contrast is made at."})
    matryoshka_weights: list[float] | None = field(default=None, metadata={"help": "Weights of these widths."})
    mlm_probability: float = field(default=0.15, metadata={"help": "Share of words that are hidden."})
    grad_cache_chunk_size: int | None = field(default=None, metadata={"help": "Rows that the towers read at once."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator picks its columns itself."})

    def __post_init__(self):
        super().__post_init__()
        weights = self._weights()
        if min(weights.values()) < 0 or not any(weights.values()):
            raise InvalidInputError(
                f"weights of the objectives are {weights}: expected numbers from 0 on, at least one of them above 0"
            )
        if not 0 < self.mlm_probability <= 1:
            raise InvalidInputError(f"mlm_probability={self.mlm_probability}: expected a share above 0, up to 1")
        if self.false_negative_ratio is not None and not 0 < self.false_negative_ratio <= 1:
            raise InvalidInputError(f"false_negative_ratio={self.false_negative_ratio}: expected above 0, up to 1")
        if self.grad_cache_chunk_size is not None and self.grad_cache_chunk_size < 1:
            raise InvalidInputError(f"grad_cache_chunk_size={self.grad_cache_chunk_size}: expected at least 1")
        if self.matryoshka_dims is not None and not self.matryoshka_dims:
            raise InvalidInputError("matryoshka_dims is empty: give widths, or None for the whole vector")
        if self.matryoshka_weights is not None and len(self.matryoshka_weights) != len(self.matryoshka_dims or ()):
            raise InvalidInputError(
                f"got {len(self.matryoshka_weights)} matryoshka_weights for matryoshka_dims={self.matryoshka_dims}: "
                "give one per width"
            )

    @property
    def objectives(self) -> dict[str, float]:
        """Weights of the objectives in use."""
        return {name: weight for name, weight in self._weights().items() if weight}

    def _weights(self) -> dict[str, float]:
        return {name: getattr(self, f"{name}_weight") for name in ("itc", "itm", "mlm", "triplet")}
