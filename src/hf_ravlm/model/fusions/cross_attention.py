"""Cross-attention fusion: the language model reads the evidence between its own layers.

A gated layer stands in front of some decoder layers: `h <- h + tanh(10 a) * attend(h, evidence)`, then
`h <- h + tanh(10 b) * MLP(h)`. Both gates are 0 at the start, so the model begins as the bare language model, exactly,
and the language model can stay frozen. It stands there as a hook: no parameter of the language model changes its name.

The evidence is projected once per question to keys of all layers and values that they share, packed with these
layers into an [`EvidenceMemory`], and given to the language model as the keyword `evidence_memory`. That reaches every
decoder layer, where the hook of [`attach_cross_attention`] takes it and lets the states read it. The hook itself holds
nothing: copies, adapters and recomputation in the backward pass all see the memory of their own call.
"""

from __future__ import annotations

import inspect
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration_ravlm import RavlmConfig
from .null_attention import feed_forward, split_heads
from .tokens import AddedToWords, PassageInput, kept_embeds, previous


class CrossAttentionFusion(nn.Module):
    """The layers that read the evidence inside the language model, and the keys and values that they read.

    There are no memory tokens in the prompt. Order of the passages does not matter, and a row whose evidence is all
    masked gets the bare language model's states, bit for bit.

    Flamingo's gated cross-attention (https://huggingface.co/papers/2204.14198), with two additions: a learned null
    key whose value is zero, so that a token can read nothing; and values that hold the language model's embedding of
    a token under keys that hold the embedding of the token before it. So what was written last finds what comes next.
    """

    num_memory_tokens = 0
    reads_evidence = True
    reads_question = False

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width, decoder = config.text_config.hidden_size, config.get_text_config()
        self.places = cross_attention_places(decoder.num_hidden_layers, config.cross_attention_every)
        self.evidence_input = PassageInput(config)
        self.keys = nn.Linear(width, len(self.places) * width)  # of all layers
        self.value_norm = nn.LayerNorm(config.generator_dim)
        self.state_value = AddedToWords(width, config.generator_dim)
        self.layers = nn.ModuleDict({str(place): CrossReading(config, decoder.hidden_size) for place in self.places})

    def forward(
        self,
        evidence_states: torch.Tensor,
        evidence_embeds: torch.Tensor,
        evidence_token_mask: torch.Tensor,
        **_: torch.Tensor | None,
    ) -> torch.Tensor:
        """Keys of all layers and the values that they share, `(B, K, L, number of layers * width + H)`.

        Batch first, so that `generate` can carry them from step to step and repeat them for beams.
        """
        embeds = kept_embeds(evidence_embeds, evidence_token_mask)
        keys = self.keys(self.evidence_input(evidence_states, previous(embeds)))
        return torch.cat([keys, self.value_norm(embeds) + self.state_value(evidence_states)], dim=-1)

    def reading(self, keys_values: torch.Tensor, mask: torch.Tensor) -> EvidenceMemory:
        """The argument `evidence_memory` of the language model: what `forward` returned, where `mask (B, K, L)`."""
        keys, values = keys_values.flatten(1, 2).tensor_split([self.keys.out_features], dim=-1)
        per_layer = dict(zip(self.layers, keys.chunk(len(self.places), dim=-1), strict=True))
        return EvidenceMemory(self.layers, per_layer, values, mask.bool().flatten(1, 2))


@dataclass(eq=False)
class EvidenceMemory:
    """The evidence of one call: the layers that read it (of the active adapter), what, and where it may be read."""

    layers: nn.ModuleDict
    keys: dict[str, torch.Tensor]  # by decoder layer: (B, S, width), S = K * L
    values: torch.Tensor  # (B, S, H)
    keep: torch.Tensor  # (B, S)


class CrossReading(GradientCheckpointingLayer):
    """States of the language model read the evidence through gates that are closed at the start.

    The heads share the values, so that each copies whole tokens; they look by the cosine of query and key, sharply.
    """

    def __init__(self, config: RavlmConfig, hidden_dim: int):
        super().__init__()
        width = config.text_config.hidden_size
        self.heads = config.fusion_heads
        self.norm = nn.LayerNorm(hidden_dim)
        self.query = nn.Linear(hidden_dim, width)
        self.null_key = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.output = nn.Linear(config.generator_dim, hidden_dim, bias=False)
        self.feed_forward = feed_forward(hidden_dim, 4 * width, hidden_dim)
        self.read_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden_states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        """`hidden_states (B, T, H)` read `values (B, S, H)` under `keys (B, S, width)` where `keep (B, S)`."""
        states = hidden_states.to(self.norm.weight.dtype)  # a quantised or half-precision reader may differ from us
        query, key = self.queries_and_keys(states, keys)
        read = F.scaled_dot_product_attention(
            query,
            key,
            F.pad(values, (0, 0, 1, 0)).unsqueeze(1).expand(-1, self.heads, -1, -1),  # (B, heads, 1 + S, H)
            attn_mask=F.pad(keep, (1, 0), value=True)[:, None, None, :],
            scale=1.0,
        ).mean(dim=1)  # (B, T, H)
        states = states + opening(self.read_gate) * self.output(read)
        states = states + opening(self.feed_forward_gate) * self.feed_forward(states)
        anything = keep.any(dim=1)[:, None, None]
        return torch.where(anything, states.to(hidden_states.dtype), hidden_states)

    def queries_and_keys(self, states: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, heads, T, d)` and `(B, heads, 1 + S, d)`, the null first; their products are the scores."""
        query = F.normalize(split_heads(self.query(self.norm(states)).to(keys.dtype), self.heads), dim=-1, eps=1e-6)
        key = F.normalize(split_heads(keys, self.heads), dim=-1, eps=1e-6)
        null = split_heads(self.null_key.to(keys.dtype).expand(len(keys), 1, -1), self.heads)
        return query * self.log_scale.exp().to(keys.dtype), torch.cat([null, key], dim=2)


def opening(gate: torch.Tensor) -> torch.Tensor:
    """How far a gate is open, from -1 to 1; closed at 0, and open after a hundred steps of Adam at a rate of 1e-3.

    >>> opening(torch.tensor([0.0, 0.1])).tolist()
    [0.0, 0.7615941762924194]
    """
    return torch.tanh(10 * gate)


def cross_attention_places(num_layers: int, every: int) -> list[int]:
    """The decoder layers in front of which evidence is read: the last of each group of `every`.

    >>> cross_attention_places(12, 4), cross_attention_places(2, 4), cross_attention_places(3, 1)
    ([3, 7, 11], [1], [0, 1, 2])
    """
    return list(range(min(every, num_layers) - 1, num_layers, every))


def attach_cross_attention(language_model: PreTrainedModel) -> list[RemovableHandle]:
    """Lets `language_model` take the keyword `evidence_memory` and read it in front of its decoder layers.

    Without that keyword it computes what it computed before. A model that is attached already is left as it is.

    Returns:
        `list` of handles; `handle.remove()` on each undoes it.

    Raises:
        `ValueError`: if no list of decoder layers is found.
    """
    layers = decoder_layers(language_model)
    if any(getattr(hook, "func", None) is read_evidence for hook in layers[0]._forward_pre_hooks.values()):
        return []
    handles = [
        layer.register_forward_pre_hook(partial(read_evidence, str(place)), with_kwargs=True)
        for place, layer in enumerate(layers)
    ]
    parameters = inspect.signature(language_model.forward).parameters.values()
    hand_down = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    handles.append(language_model.register_forward_pre_hook(partial(hold_evidence, hand_down), with_kwargs=True))
    handles.append(language_model.register_forward_hook(release_evidence, always_call=True))
    return handles


def decoder_layers(language_model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers: the outermost one that is as long as the configuration says.

    Raises:
        `ValueError`: if there is none.

    >>> from transformers import AutoModelForCausalLM, GPT2Config
    >>> model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=9))
    >>> type(decoder_layers(model)[0]).__name__, len(decoder_layers(model))
    ('GPT2Block', 3)
    """
    number = language_model.config.get_text_config(decoder=True).num_hidden_layers
    roots = (language_model.get_decoder(), language_model)  # what a model calls its decoder may be its head
    lists = [module for root in roots for module in root.modules() if isinstance(module, nn.ModuleList)]
    for module in lists:
        if len(module) == number:
            return module
    raise ValueError(
        f"{type(language_model).__name__} has no list of {number} decoder layers (found lists of length "
        f"{sorted({len(module) for module in lists})}), so evidence cannot be read between them; choose another "
        "language model or another fusion"
    )


def read_evidence(place: str, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Hook in front of decoder layer `place`: takes `evidence_memory` out of the keywords, lets the states read it."""
    memory = kwargs.pop("evidence_memory") if "evidence_memory" in kwargs else find_held_evidence(layer)
    if memory is None or place not in memory.layers:
        return args, kwargs
    states = args[0] if args else kwargs["hidden_states"]
    device = states.device
    given = (memory.keys[place].to(device), memory.values.to(device), memory.keep.to(device))
    read = memory.layers[place](states, *given).to(device)
    return ((read, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": read})


def hold_evidence(hand_down: bool, language_model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Hook in front of the language model: holds the memory while it runs, for layers that get no keywords."""
    memory = kwargs.pop("evidence_memory", None)
    held_evidence.set(memory)
    if hand_down:
        kwargs["evidence_memory"] = memory
    return args, kwargs


def find_held_evidence(layer: nn.Module) -> EvidenceMemory | None:
    """What is held for a layer that got no keywords, unless the backward pass would recompute the layer without it."""
    memory = held_evidence.get()
    recomputed = HOOKS_ARE_RECOMPUTED and layer.training and getattr(layer, "gradient_checkpointing", False)
    if memory is not None and recomputed:
        raise RuntimeError(
            f"{type(layer).__name__} gets no keywords from its decoder, and this version of transformers would "
            "recompute it without its evidence; switch activation checkpointing off or install a newer version"
        )
    return memory


def release_evidence(language_model: nn.Module, args: tuple, output: object) -> None:
    """Hook behind it, also after an error."""
    held_evidence.set(None)


class HeldEvidence:
    """What the running language model reads: one per thread, and one for all where `torch.compile` traces."""

    def __init__(self):
        self.of_thread: ContextVar[EvidenceMemory | None] = ContextVar("evidence_memory", default=None)
        self.of_trace: EvidenceMemory | None = None

    def set(self, memory: EvidenceMemory | None) -> None:
        self.of_trace = memory
        if not torch.compiler.is_compiling():
            self.of_thread.set(memory)

    def get(self) -> EvidenceMemory | None:
        return self.of_trace if torch.compiler.is_compiling() else self.of_thread.get()


# Most decoders hand keywords down to their layers. Some older ones (Bloom, Falcon, GPT-J, GPT-Neo, MPT) do not, and
# there this is what a layer finds. It is gone in the backward pass, so such a layer must not be recomputed there
# together with its hooks; newer versions of transformers checkpoint `forward`, which leaves them out.
held_evidence = HeldEvidence()
HOOKS_ARE_RECOMPUTED = "__call__" in vars(GradientCheckpointingLayer)
