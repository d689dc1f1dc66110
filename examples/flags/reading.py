"""Knows how the reader is taught: its tokenizer, and endless batches of passages, questions and weighted answers.

A sequence is one prompt of the processor, `<bos> <image>… <passage> text … <question> q <answer> a <eos>`, its best
passage last, followed by further turns `<question> q <answer> a <eos>` on the same passages: reading them once serves
many questions. Where whole countries are read no turn sees another: each stands where the first one does, as if it
were asked alone. The picture is any picture, for the answer stands in the passages; where there are none, it stands in
the question, or is not known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from flags.pictures import picture_tensor
from flags.shuffled import Example, ShuffledCountries
from flags.texts import passage_texts
from flags.wordings import trained_wordings
from flags.world import World
from hf_ravlm import RavlmProcessor
from hf_ravlm.model.prompts.layout import PassagePart, layout_prompt
from hf_ravlm.text import clean_text


SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<image>", "<evidence>", "<passage>", "<question>", "<answer>")
FIRST_TOKEN_WEIGHT = 4.0  # falling by 1 a token to 1: finding the place is the hard part, going on is not
FORK_WEIGHT = 1.0  # of going on where the two tokens before do not tell how, and of ending
IGNORED = -100  # the label of tokens that are not learned
POOL = 96  # examples that are sorted by length together
MULTIPLE = 16  # lengths of batches: few different shapes
NOTHING_IS_CUT = 1 << 31  # tokens; too long sequences are left out, lest an answer be cut off


def make_tokenizer(rows: Sequence[Mapping], vocab_size: int = 2560, seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on the passages of `rows`, the questions of training and invented names.

    A blank is put before every text, so that a value has the same ids inside a passage ("Capital of Norway: Oslo") and
    at the start of an answer ("Oslo"): what is to be copied has to look the same. Every string can be written in it.
    No token holds more than one Chinese letter, and those of the questions are one token each: three bytes of a letter
    are shared with many that mean something else.

    Args:
        rows (`Sequence[dict]`): Rows of the knowledge base.
        vocab_size (`int`): Tokens in all; 256 bytes and 8 special tokens are among them.
        seed (`int`): Of the invented names.
    """
    passages = [text for row in rows for _, text in passage_texts(row).values()]
    names = ShuffledCountries(rows, seed).names
    # So often that what is asked for becomes whole tokens before rarer pieces of names do.
    texts = passages * 2 + trained_wordings() * 50 + [names.phrase() for _ in range(3000)]

    tokenizer = Tokenizer(models.BPE())
    letters = pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([letters, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {clean_text(text)}" for text in texts], trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos, *marks = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=marks,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        add_prefix_space=True,
    )


class TrainingSequence(NamedTuple):
    """One example in token ids; lists of one length. `turns` are 0 for what all turns share, then 1, 2, ..."""

    input_ids: list[int]
    labels: list[int]
    weights: list[float]
    turns: list[int]
    positions: list[int]


class ReadingBatches(IterableDataset):
    """Endless batches for a reader that copies; the same arguments give the same batches.

    Every batch is a dictionary, ready for the model: pass it through a `DataLoader` with `batch_size=None`.

    - `input_ids` (B, T) int64, padded on the right to a multiple of 16
    - `turns` (B, T) int64, 0 for what all turns share, -1 on the padding; a token sees its own turn and what is shared
    - `position_ids` (B, T) int64: every turn goes on where the passages end
    - `labels` (B, T) int64, in step with `input_ids` (the model shifts), -100 where no answer stands
    - `token_weights` (B, T) float32, in step with `labels`: an answer of n tokens, `<eos>` included, weighs n^-1/2 per
      token, its first three tokens four times, three times and twice as much; `<eos>` and all that the two tokens
      before it do not tell, by where they stand in the prompt, weigh at least 1
    - `pixel_values` (B, 3, H, W) float32, of any picture: the answer must not hang on it

    Args:
        processor ([`RavlmProcessor`]): Tokenizer, image processor and layout; with passages as text
            (`fusion="in_context"`).
        world (`World`): Rows and pictures.
        countries (`Sequence[str]`): Countries to learn from: no other lends a fact, a word or a picture.
        views (`Sequence[str]`): Drawing styles to show; each country has a picture in one of them at least.
        tokens_per_batch (`int`): About how many tokens a batch holds, before padding to the multiple of 16.
        num_short_batches (`int`): So many batches come first that have short contexts only.
        whole (`bool`): Whether to read whole countries, see `ShuffledCountries.whole_example`.
        seed (`int`): Workers of a `DataLoader` each add to it, and each start with their own short batches.

    Raises:
        ValueError: If a country has no picture in `views`, or the processor writes passages as memory tokens.
    """

    def __init__(
        self,
        processor: RavlmProcessor,
        world: World,
        countries: Sequence[str],
        views: Sequence[str],
        tokens_per_batch: int = 2048,
        num_short_batches: int = 0,
        seed: int = 0,
        whole: bool = False,
    ):
        if processor.fusion != "in_context":
            raise ValueError(
                f"the processor has `fusion={processor.fusion!r}`, but this reader copies from passages in a prompt: "
                'make the processor with `fusion="in_context"`'
            )
        self.processor = processor
        self.rows = [world.entities[country] for country in countries]
        self.tokens_per_batch = tokens_per_batch
        self.num_short_batches = num_short_batches
        self.seed, self.whole = seed, whole
        keys = [(country, view) for country in countries for view in views if (country, view) in world.images.encoded]
        without = sorted(set(countries) - {country for country, _ in keys})
        if without:
            raise ValueError(
                f"no picture of {', '.join(without)} in {', '.join(views)}: add a style or leave them out"
            )
        self.pixels = picture_tensor(processor, world, keys)  # (N, 3, H, W)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        seed = self.seed + (1_000_003 * worker.id if worker else 0)
        countries, rng = ShuffledCountries(self.rows, seed), random.Random(seed)
        num_batches = 0
        while True:
            short_only = num_batches < self.num_short_batches
            for group in self._next_groups(countries, short_only, rng):
                yield self._collate(group, rng)
                num_batches += 1
                if short_only and num_batches == self.num_short_batches:
                    break

    def _next_groups(
        self, countries: ShuffledCountries, short_only: bool, rng: random.Random
    ) -> list[list[TrainingSequence]]:
        """A pool of examples, cut into batches of like lengths. Examples that are too long are left out; few are."""
        examples = [countries.whole_example() if self.whole else countries.example(short_only) for _ in range(POOL)]
        encoded = encode_examples(self.processor, examples, apart=self.whole)
        sequences = [sequence for sequence in encoded if sequence is not None]
        if not sequences:
            raise ValueError(
                f"no example fits into the processor's `max_length` of {self.processor.max_length} tokens"
            )
        groups: list[list[TrainingSequence]] = [[]]
        for sequence in sorted(sequences, key=lambda sequence: len(sequence.input_ids)):
            if groups[-1] and (len(groups[-1]) + 1) * len(sequence.input_ids) > self.tokens_per_batch:
                groups.append([])
            groups[-1].append(sequence)
        rng.shuffle(groups)
        return groups

    def _collate(self, group: Sequence[TrainingSequence], rng: random.Random) -> dict[str, torch.Tensor]:
        length = math.ceil(max(len(sequence.input_ids) for sequence in group) / MULTIPLE) * MULTIPLE
        pad = self.processor.tokenizer.pad_token_id
        pictures = [rng.randrange(len(self.pixels)) for _ in group]
        return {
            "input_ids": torch.tensor([_padded(sequence.input_ids, pad, length) for sequence in group]),
            "turns": torch.tensor([_padded(sequence.turns, -1, length) for sequence in group]),
            "position_ids": torch.tensor([_padded(sequence.positions, 0, length) for sequence in group]),
            "labels": torch.tensor([_padded(sequence.labels, IGNORED, length) for sequence in group]),
            "token_weights": torch.tensor([_padded(sequence.weights, 0.0, length) for sequence in group]),
            "pixel_values": self.pixels[pictures],
        }


def encode_examples(
    processor: RavlmProcessor, examples: Sequence[Example], apart: bool = False
) -> list[TrainingSequence | None]:
    """Token ids, labels and weights of examples; `None` for one that the processor's limits would cut.

    With `apart` each turn goes on where the passages end, and sees no other turn.
    """
    texts = [text for example in examples for text in example.passages]
    texts += [text for example in examples for _, *turn in example.turns for text in turn]
    ids = dict(zip(texts, processor.encode_text(texts), strict=True))
    return [_encode_example(processor, example, ids, apart) for example in examples]


def _encode_example(
    processor: RavlmProcessor, example: Example, ids: Mapping[str, list[int]], apart: bool
) -> TrainingSequence | None:
    """The first turn is laid out by the processor's own function, so that training meets what use will."""
    markers = processor.markers
    passages = [PassagePart(ids[text]) for text in example.passages]
    turns = [(ids[question], [*ids[answer], markers.eos]) for _, question, answer in example.turns]
    if not turns or any(len(passage.text) > processor.max_passage_length for passage in passages):
        return None
    prompt = layout_prompt(markers, turns[0][0], passages, processor.num_image_tokens, max_length=NOTHING_IS_CUT)
    shared = prompt.answer_start - len(turns[0][0]) - 2  # up to the mark of the question
    sequence = TrainingSequence(prompt.ids[:shared], [IGNORED] * shared, [0.0] * shared, [0] * shared, [])
    sequence.positions.extend(range(shared))
    goes_on = _followers(sequence.input_ids)
    for number, (question, answer) in enumerate(turns, start=1):
        asked = [markers.question, *question, markers.answer]
        size, start = len(asked) + len(answer), len(sequence.input_ids)
        sequence.input_ids.extend([*asked, *answer])
        sequence.labels.extend([IGNORED] * len(asked) + answer)
        sequence.weights.extend([0.0] * len(asked))
        sequence.weights.extend(_token_weights(answer, goes_on))
        sequence.turns.extend([number if apart else 0] * size)
        start = shared if apart else start
        sequence.positions.extend(range(start, start + size))
    if max(sequence.positions) >= processor.max_length:
        return None
    return sequence


def turn_mask(turns: torch.Tensor) -> torch.Tensor:
    """Who sees whom, `(B, 1, T, T)` bool: what stands before, of the own turn or shared by all.

    >>> turn_mask(torch.tensor([[0, 1, 1, 2]]))[0, 0].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    """
    mine, seen = turns[:, :, None], turns[:, None, :]
    return ((seen == 0) | (seen == mine)).tril()[:, None]


def _followers(ids: Sequence[int]) -> dict[tuple[int, int], set[int]]:
    """What follows each two neighbouring tokens.

    >>> _followers([1, 2, 3, 1, 2, 4])[1, 2] == {3, 4}
    True
    """
    found: dict[tuple[int, int], set[int]] = {}
    for first, second, third in zip(ids, ids[1:], ids[2:], strict=False):
        found.setdefault((first, second), set()).add(third)
    return found


def _token_weights(answer: Sequence[int], goes_on: Mapping[tuple[int, int], Collection[int]]) -> list[float]:
    """How much each token of an answer weighs: one over the root of their number, more where a place is to be found.

    "Fijian dollar" begins as "Fiji" does, and a description leaves one passage for another: such a token weighs the
    same in a long answer as in a short one.

    >>> goes_on = {(7, 8): {9}, (8, 9): {6, 5}, (9, 6): {7}, (6, 7): {8}}
    >>> [round(weight, 2) for weight in _token_weights([7, 8, 9, 6, 7, 8, 9, 7, 2], goes_on)]
    [1.33, 1.0, 0.67, 1.0, 0.33, 0.33, 0.33, 1.0, 1.0]
    """
    share = len(answer) ** -0.5
    weights = []
    for place, token in enumerate(answer):
        falling = max(FIRST_TOKEN_WEIGHT - place, 1.0) * share
        told = goes_on.get((answer[place - 2], answer[place - 1])) == {token} if place > 1 else False
        weights.append(falling if told else max(falling, FORK_WEIGHT))
    return [*weights[:-1], max(weights[-1], FORK_WEIGHT)]


def _padded(values: list, padding: float, length: int) -> list:
    return values + [padding] * (length - len(values))
