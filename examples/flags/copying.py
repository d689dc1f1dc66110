"""A random start from which a small Llama can copy before its first step of training: an induction head, laid by hand.

Reading is copying: find the place in the passages that the question points at, then repeat what stands there. From an
ordinary random start a small Transformer takes long to discover copying at all. Three parts are enough to have it:

(1) *A stream of words.* Every token has a random embedding `e` of width D; in high dimensions such vectors are all but
    orthogonal, so `e_i · e_j` asks "the same token?".

(2) *A memory of what came before.* In the layers `previous_layers` the position `t` attends to `t - 1`, by rotary
    phases alone. Rotary embeddings turn pair `p` of query and key by the angle `t · w_p`, so that with biases for
    query and key (and next to no weights) the score depends on the distance only:

        score(t, s) = sum_p b² cos((t - s - 1) · w_p)        if  k = R(+1) q,  q = b on every fast pair

    It is largest where `t - s = 1`. The value is turned by a random rotation `R` of the stream before it is added, so
    that "I am x" and "x came before me" do not get mixed up. After two such layers the stream holds, with a and b
    between 0.5 and 2,

        h_t = e_t + a R e_{t-1} + b R² e_{t-2}

    Two tokens are too few: "Fiji" and "Fijian", or two places of a passage that say "of the flag", go on differently
    behind the same two. So the heads of the layer `further_layer` look 2, 3, 4, ... tokens back, one distance each.
    Head `d` carries the part `U` of the stream, `head_dim` wide and the same for all of them, and adds

        c R^d Uᵀ U h_{t-d}

(3) *The induction head.* In the last layer `q_t = P h_t` and `k_j = P Rᵀ h_j`, with one more rotation `P`. Then

        q_t · k_j = h_t · Rᵀ h_j ≈ a e_t · e_{j-1} + a b e_{t-1} · e_{j-2}

    which is large where the one or two tokens *before* `j` are the tokens *at* `t`: "where did this go on last time?"
    The further layer adds a term for each token more, since `U` is the same at all distances.
    Value and output are `P` and `Pᵀ`: they add `e_j` to the stream, and the output layer, tied to the embeddings,
    reads it as the next token. Only slow rotary pairs carry the match, since distance turns the fast ones about.

No data and no foreign weights enter; all that is not named above is small and random, and training may change it all.

Reference: Olsson et al. 2022, "In-context Learning and Induction Heads", arXiv 2209.11895.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


# Of a copier: its layers, those that look one token back, the one whose heads look further, from which distance on,
# and how loud that one is beside the stream.
NUM_LAYERS, PREVIOUS_LAYERS, FURTHER_LAYER, FIRST_DISTANCE, FURTHER_GAIN = 4, (0, 2), 1, 2, 0.5
PHASE_BIAS = 9.0  # of a query that tells distances


@torch.no_grad()
def start_as_copier(
    language_model: LlamaForCausalLM,
    seed: int = 0,
    previous_layers: Sequence[int] = PREVIOUS_LAYERS,
    further_layer: int = FURTHER_LAYER,
    embedding_norm: float = 4.0,
    sharpness: float = 2.2,
    gain: float = 10.0,
    phase_bias: float = PHASE_BIAS,
    num_fast_pairs: int = 8,
    alike: tuple[int, int] | None = None,
) -> LlamaForCausalLM:
    """Overwrites the weights of `language_model`, in place, with the start that this file describes.

    Args:
        language_model ([`~transformers.LlamaForCausalLM`]): Made with `attention_bias=True`,
            `tie_word_embeddings=True`, as many key heads as query heads, and slow rotary pairs: a `rope_theta` of 1e6.
        seed (`int`): The same seed gives the same weights.
        previous_layers (`Sequence[int]`): Layers that look one token back; the last layer is the induction head.
        further_layer (`int`): The layer whose heads look 2, 3, 4, ... tokens back.
        embedding_norm (`float`): Norm of every embedding. Whatever else enters the stream, such as image tokens,
            should be about as large.
        sharpness (`float`): Factor of query and key of the induction head: higher is surer and learns more slowly.
        gain (`float`): How much louder the copied token is than the stream.
        phase_bias (`float`): `b` of the formula above.
        num_fast_pairs (`int`): How many rotary pairs tell the distance.
        alike (`tuple[int, int]`, *optional*): Two tokens whose embeddings start equal. Where values follow a colon and
            answers a mark, colon and mark are to be alike: then "the last two tokens match" holds at the second token
            of an answer for the value, and not for another word with the same beginning.

    Returns:
        `LlamaForCausalLM`: `language_model` itself.

    Raises:
        ValueError: If the model lacks what the construction stands on.

    Example:

    ```python
    >>> model = LlamaForCausalLM(copier_config(vocab_size=256, hidden_size=128))
    >>> copying_accuracy(model) < 0.05 < 0.8 < copying_accuracy(start_as_copier(model))
    True

    ```
    """
    _check(language_model, (*previous_layers, further_layer), num_fast_pairs)
    generator = torch.Generator().manual_seed(seed)
    width = language_model.config.hidden_size
    turn_back, match, carry = (_random_rotation(width, generator) for _ in range(3))  # R, P, and one for the values
    _start_embeddings(language_model, embedding_norm, generator)
    if alike is not None:
        embeddings = language_model.get_input_embeddings().weight
        embeddings[alike[0]] = embeddings[alike[1]]
    unit = embedding_norm * width**-0.5  # takes a normed stream (norm √D) back to the norm of an embedding
    num_heads, head_dim = language_model.config.num_attention_heads, language_model.config.head_dim
    distances = range(FIRST_DISTANCE, FIRST_DISTANCE + num_heads)
    last = len(language_model.model.layers) - 1
    for index, layer in enumerate(language_model.model.layers):
        _start_mlp(layer.mlp, unit, generator)
        if index in previous_layers:
            _attend_back(layer.self_attn, [1] * num_heads, phase_bias, num_fast_pairs, generator)
            layer.self_attn.v_proj.weight.copy_(carry)
            layer.self_attn.o_proj.weight.copy_(turn_back @ carry.T * unit)
        elif index == further_layer:
            _attend_back(layer.self_attn, distances, phase_bias, num_fast_pairs, generator)
            _carry_a_part(layer.self_attn, distances, carry[:head_dim], turn_back, FURTHER_GAIN * unit)
        elif index == last:
            _attend_to_what_followed(layer.self_attn, match, turn_back, sharpness)
            layer.self_attn.v_proj.weight.copy_(match)
            layer.self_attn.o_proj.weight.copy_(gain * unit * match.T)
        else:
            _start_attention(layer.self_attn, unit, generator)
    return language_model


def copying_parts(language_model: LlamaForCausalLM) -> list[nn.Module]:
    """The embeddings and the layers that look back, told by their phases: what training should leave as it was laid.

    Everything else learns where to begin and where to stop. Trained along, these parts lose the second tokens of names
    that begin alike ("Moldovan leu" becomes "Moldova") before the rest has learned its share.
    """
    attentions = [layer.self_attn for layer in language_model.model.layers]
    looks_back = [attention for attention in attentions if attention.q_proj.bias.max() > 0.5 * PHASE_BIAS]
    return [language_model.get_input_embeddings(), *looks_back]


@torch.no_grad()
def deepen(language_model: LlamaForCausalLM, num_layers: int = 7, seed: int = 0) -> LlamaForCausalLM:
    """The same reader with more layers below its last one.

    They add nothing before they are trained: copying is learned fast in four layers; to understand what is asked, in
    whatever words, and which of many passages tells it, takes more of them. A reader that has `num_layers` is given
    back as it is.

    Args:
        language_model ([`~transformers.LlamaForCausalLM`]): By `start_as_copier`, trained or not, with its usual
            `previous_layers`; its last layer stays the last.
        num_layers (`int`): Layers of the result.
        seed (`int`): Of the new weights.

    Example:

    ```python
    >>> shallow = start_as_copier(LlamaForCausalLM(copier_config(vocab_size=64, hidden_size=128))).eval()
    >>> deep = deepen(shallow).eval()
    >>> len(deep.model.layers), copying_accuracy(deep) > 0.7
    (7, True)

    ```
    """
    last = language_model.config.num_hidden_layers - 1
    if last + 1 >= num_layers:
        return language_model
    config = copy.deepcopy(language_model.config)
    config.num_hidden_layers = num_layers
    deeper, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(seed)
    moved = {
        name.replace(f"layers.{last}.", f"layers.{num_layers - 1}."): weight
        for name, weight in language_model.state_dict().items()
    }
    deeper.load_state_dict(moved, strict=False)
    for layer in deeper.model.layers[last:-1]:
        for module in (*_projections(layer.self_attn), layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            silent = module in (layer.self_attn.o_proj, layer.mlp.down_proj)
            std = 0.0 if silent else 0.5 * module.weight.shape[1] ** -0.5
            module.weight.copy_(_random(module.weight.shape, std, generator))
            if module.bias is not None:
                module.bias.zero_()
    return deeper


def copier_config(
    vocab_size: int, hidden_size: int = 256, intermediate_size: int = 512, head_dim: int = 64, **fields
) -> LlamaConfig:
    """The configuration of a small Llama that `start_as_copier` can start: four layers, about 3 million weights.

    Args:
        vocab_size (`int`), hidden_size (`int`), intermediate_size (`int`): As in `LlamaConfig`.
        head_dim (`int`): Width of a head; `hidden_size` is a multiple of it.
        fields: Further fields of `LlamaConfig`, such as the ids of special tokens; they win over ours.
    """
    num_heads = hidden_size // head_dim
    ours = {
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    sizes = {"vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size}
    return LlamaConfig(**{**sizes, **ours, **fields})


@torch.no_grad()
def copying_accuracy(
    language_model: LlamaForCausalLM,
    length: int = 128,
    num_sequences: int = 16,
    num_strings: int = 5,
    first_token: int = 8,
    seed: int = 0,
) -> float:
    """How often the model knows the next token of a string that it has seen before, all strings being random.

    Each sequence is `num_strings` random strings, and then the same strings in another order. Of the second half every
    token counts but the first of each string, which nothing could tell.

    Args:
        language_model (`LlamaForCausalLM`): Any causal language model.
        length (`int`): Tokens of a sequence, rounded down to whole strings.
        num_sequences (`int`), num_strings (`int`): See above.
        first_token (`int`): Tokens below it (the special ones) are left out.
        seed (`int`): Of the strings.

    Returns:
        `float`: Share of right tokens, 0..1. Guessing gives one over the size of the vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    size = length // (2 * num_strings)  # tokens of a string
    shape = (num_sequences, num_strings, size)
    strings = torch.randint(first_token, language_model.config.vocab_size, shape, generator=generator)
    order = torch.rand(num_sequences, num_strings, generator=generator).argsort(dim=1)
    again = strings.gather(1, order[..., None].expand(shape))
    input_ids = torch.cat([strings.flatten(1), again.flatten(1)], dim=1).to(language_model.device)  # (B, T)
    predicted = language_model(input_ids=input_ids).logits.argmax(-1)[:, :-1]  # (B, T - 1)
    right = predicted == input_ids[:, 1:]
    knowable = torch.ones(2, num_strings, size, dtype=torch.bool)
    knowable[0], knowable[1, :, 0] = False, False
    return right[:, knowable.flatten()[1:]].float().mean().item()


def _check(model: LlamaForCausalLM, previous_layers: Sequence[int], num_fast_pairs: int) -> None:
    config = model.config
    wanted = {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": config.num_attention_heads}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(f"`{name}` is {getattr(config, name)}, but this start needs {value}: see `copier_config`")
    last = config.num_hidden_layers - 1
    if not previous_layers or not all(0 <= layer < last for layer in previous_layers):
        raise ValueError(f"`previous_layers` is {tuple(previous_layers)}: expected layers below the last one, {last}")
    if config.head_dim < 2 * num_fast_pairs:
        raise ValueError(f"`head_dim` is {config.head_dim}, too narrow for {num_fast_pairs} rotary pairs")


def _random(shape: Sequence[int], std: float, generator: torch.Generator) -> torch.Tensor:
    return std * torch.randn(shape, generator=generator)


def _random_rotation(width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(_random((width, width), 1.0, generator))[0]


def _rotary_frequencies(attention: nn.Module) -> torch.Tensor:
    """Radians per token of each rotary pair `(p, p + head_dim / 2)`, fastest first: shape (head_dim / 2,)."""
    half = attention.head_dim // 2
    return attention.config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)


def _start_embeddings(model: LlamaForCausalLM, norm: float, generator: torch.Generator) -> None:
    embeddings = model.get_input_embeddings().weight  # (V, D)
    embeddings.copy_(_random(embeddings.shape, norm * embeddings.shape[1] ** -0.5, generator))
    model.model.norm.weight.fill_(1 / norm)  # the output layer has the same large rows: no overconfidence
    for layer in model.model.layers:
        layer.input_layernorm.weight.fill_(1)
        layer.post_attention_layernorm.weight.fill_(1)
        for projection in _projections(layer.self_attn):
            projection.bias.zero_()


def _start_mlp(mlp: nn.Module, unit: float, generator: torch.Generator) -> None:
    """Random, and quiet beside the stream."""
    for name, weight in mlp.named_parameters():
        quiet = 0.3 * unit if "down" in name else 1.0
        weight.copy_(_random(weight.shape, quiet * weight.shape[1] ** -0.5, generator))


def _start_attention(attention: nn.Module, unit: float, generator: torch.Generator) -> None:
    """Random, and quiet beside the stream."""
    for projection in _projections(attention):
        quiet = 0.3 * unit if projection is attention.o_proj else 1.0
        shape = projection.weight.shape
        projection.weight.copy_(_random(shape, quiet * shape[1] ** -0.5, generator))


def _attend_back(
    attention: nn.Module, distances: Sequence[int], bias: float, num_pairs: int, generator: torch.Generator
) -> None:
    """Query and key of part (2), a distance for each head: the same for every token, so that only it matters."""
    frequencies = _rotary_frequencies(attention)[:num_pairs]
    half = attention.head_dim // 2
    query, key = torch.zeros(len(distances), 2 * half), torch.zeros(len(distances), 2 * half)
    query[:, :num_pairs] = bias
    turned = torch.tensor(distances)[:, None] * frequencies  # R(+distance) q: turned ahead by so many tokens
    key[:, :num_pairs] = bias * turned.cos()
    key[:, half : half + num_pairs] = bias * turned.sin()
    for projection, phases in ((attention.q_proj, query), (attention.k_proj, key)):
        projection.weight.copy_(_random(projection.weight.shape, 0.02, generator))
        projection.bias.copy_(phases.flatten())


def _carry_a_part(
    attention: nn.Module, distances: Sequence[int], part: torch.Tensor, turn_back: torch.Tensor, gain: float
) -> None:
    """Value and output of the further layer: `part`, (head_dim, D), of what stands at each distance, turned as often.

    All heads together are `gain` times as loud as one that carries everything.
    """
    scale = gain * (part.shape[1] / part.shape[0] / len(distances)) ** 0.5
    turned = [torch.linalg.matrix_power(turn_back, distance) @ part.T for distance in distances]
    attention.v_proj.weight.copy_(part.repeat(len(distances), 1))
    attention.o_proj.weight.copy_(scale * torch.cat(turned, dim=1))


def _attend_to_what_followed(
    attention: nn.Module, match: torch.Tensor, turn_back: torch.Tensor, sharpness: float
) -> None:
    """Query and key of part (3). A pair that turns by less than a radian in 500 tokens is slow enough to match."""
    frequencies = _rotary_frequencies(attention)
    damping = torch.where(frequencies < 1 / 500, 1.0, 0.25).repeat(len(match) // len(frequencies))[:, None]  # (D, 1)
    attention.q_proj.weight.copy_(sharpness * damping * match)
    attention.k_proj.weight.copy_(sharpness * damping * (match @ turn_back.T))


def _projections(attention: nn.Module) -> tuple[nn.Linear, ...]:
    return attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
