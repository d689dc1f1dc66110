"""Cross-attention fusion: the language model reads the evidence between its own layers.

A gated layer stands in front of some decoder layers: `h <- h + tanh(a) * attend(h, evidence)`, then
`h <- h + tanh(b) * MLP(h)`. Both gates are 0 at the start, so the model begins as the bare language model, exactly,
and the language model can stay frozen. It stands there as a hook: no parameter of the language model changes its name.

The evidence is projected once per question to keys and values of all layers, packed with these layers into an
[`EvidenceMemory`], and given to the language model as the keyword `evidence_memory`. That reaches every decoder layer,
where the hook of [`attach_cross_attention`] takes it and lets the states read it. The hook itself holds nothing:
copies, adapters and recomputation in the backward pass all see the memory of their own call.
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


class CrossAttentionFusion(nn.Module):
    """The layers that read the evidence inside the language model, and the keys and values that they read.

    There are no memory tokens in the prompt. Order of the passages does not matter, and a row whose evidence is all
    masked gets the bare language model's states, bit for bit.

    Flamingo's gated cross-attention (https://huggingface.co/papers/2204.14198), with one addition: a learned null
    key whose value is zero, so that a token can read nothing.
    """

    num_memory_tokens = 0
    reads_evidence = True
    reads_question = False

    def __init__(self, config: RavlmConfig):
        super().__init__()
        width, decoder = config.text_config.hidden_size, config.get_text_config()
        self.places = cross_attention_places(decoder.num_hidden_layers, config.cross_attention_every)
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, len(self.places) * 2 * width)  # of all layers
        self.layers = nn.ModuleDict(
            {str(place): CrossReading(decoder.hidden_size, width, config.fusion_heads) for place in self.places}
        )

    def forward(self, evidence_states: torch.Tensor, **_: torch.Tensor | None) -> torch.Tensor:
        """Keys and values `(B, K, L, 2 * width * number of layers)` of passages `(B, K, L, width)`, for all layers.

        Batch first, so that `generate` can carry them from step to step and repeat them for beams.
        """
        return self.key_value(self.norm(evidence_states))

    def reading(self, keys_values: torch.Tensor, mask: torch.Tensor) -> EvidenceMemory:
        """The argument `evidence_memory` of the language model: what `forward` returned, where `mask (B, K, L)`."""
        per_layer = keys_values.flatten(1, 2).chunk(len(self.places), dim=-1)
        return EvidenceMemory(self.layers, dict(zip(self.layers, per_layer, strict=True)), mask.bool().flatten(1, 2))


@dataclass(eq=False)
class EvidenceMemory:
    """The evidence of one call: the layers that read it (of the active adapter), what, and where it may be read."""

    layers: nn.ModuleDict
    keys_values: dict[str, torch.Tensor]  # by decoder layer: (B, S, 2 * width), S = K * L
    keep: torch.Tensor  # (B, S)


class CrossReading(GradientCheckpointingLayer):
    """States of the language model read the evidence through gates that are closed at the start."""

    def __init__(self, hidden_dim: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(hidden_dim)
        self.query = nn.Linear(hidden_dim, width)
        self.null_key = nn.Parameter(torch.zeros(width))
        self.output = nn.Linear(width, hidden_dim, bias=False)
        self.feed_forward = feed_forward(hidden_dim, 4 * width, hidden_dim)
        self.read_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_states: torch.Tensor, keys_values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """`hidden_states (B, T, H)` read `keys_values (B, S, 2 * width)` where `keep (B, S)`."""
        states = hidden_states.to(self.norm.weight.dtype)  # a quantised or half-precision reader may differ from us
        key, value = keys_values.chunk(2, dim=-1)
        null_key = self.null_key.to(key.dtype).expand(len(key), 1, -1)
        key, value = torch.cat([null_key, key], dim=1), F.pad(value, (0, 0, 1, 0))  # (B, 1 + S, width)
        query = self.query(self.norm(states)).to(key.dtype)
        read = F.scaled_dot_product_attention(
            *(split_heads(part, self.heads) for part in (query, key, value)),
            attn_mask=F.pad(keep, (1, 0), value=True)[:, None, None, :],
        )  # (B, heads, T, width / heads)
        states = states + torch.tanh(self.read_gate) * self.output(read.transpose(1, 2).flatten(2))
        states = states + torch.tanh(self.feed_forward_gate) * self.feed_forward(states)
        anything = keep.any(dim=1)[:, None, None]
        return torch.where(anything, states.to(hidden_states.dtype), hidden_states)


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
    read = memory.layers[place](states, memory.keys_values[place].to(device), memory.keep.to(device)).to(device)
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
