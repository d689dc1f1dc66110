"""Grad-CAM: where in an image a score comes from.

Run the model and keep the output of one layer of the vision tower; take the gradient of a score with respect to it;
weigh every channel by the mean of its gradient, add up, and drop what is negative. The score is the log-probability of
an answer or of one of its tokens, or the cosine of a query with a passage.

Grad-CAM: Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2. Our towers are pooled to a raster of cells that
are weighed one by one, so a channel may speak for a score in one place and against it in another; HiResCAM (Draelos
and Carin 2020, arXiv 2011.08891) multiplies place by place and keeps that apart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InvalidInputError
from ..model.backbones import patch_raster
from ..model.reader.inputs import split_inputs
from ..model.reader.latent_passages import log_prior, passages_are_latent
from ..model.reader.likelihoods import answer_token_log_probs, rag_sequence_log_likelihood


Method = Literal["grad_cam", "hires_cam"]


def answer_grad_cam(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    questions: Sequence[str],
    answers: Sequence[str],
    evidence: Sequence[Sequence[Any]] | None = None,
    token: int | None = None,
    layer: nn.Module | None = None,
    method: Method = "grad_cam",
    prompt: Mapping[str, Any] | None = None,
    prior_scale: float | None = None,
) -> torch.Tensor:
    """Where in each image the log-probability of its answer comes from.

    Args:
        model, processor: a [`RavlmForConditionalGeneration`] with a vision tower of ours, and its processor.
        images, questions, answers, evidence: of one length; evidence as the processor takes it, `None` is closed-book.
        token (`int`, *optional*): explain this token of the answer, from 0; negative numbers count from its end, which
            is the mark that closes it. `None` explains the whole answer.
        layer (`nn.Module`, *optional*): of the vision tower; its last output by default.
        method (`str`): `"grad_cam"` or `"hires_cam"`.
        prompt (`dict`, *optional*): settings of the prompt, as the answer was read.
        prior_scale (`float`, *optional*): of latent passages, `1 / temperature` of the encoder that found them.

    Returns:
        `torch.FloatTensor` of shape `(B, height, width)` in 0..1, as large as the image that the tower sees; a map of
        zeros where nothing in the image speaks for the answer.

    Raises:
        `InvalidInputError`: for an image-text-to-text reader, a token that is not there, a layer that does not run.
    """
    asked = (images, questions, answers, evidence)
    inputs, labels = _answer_inputs(model, processor, *asked, prompt, prior_scale)
    layer = image_layer(model.model) if layer is None else layer
    size = inputs["pixel_values"].shape[-2:]
    raster = partial(patch_raster, size=size, config=model.config.vision_config)
    maps = layer_grad_cam(model, layer, lambda: answer_score(model, inputs, labels, token), method, raster)
    return heat_maps(maps, size)


def retrieval_grad_cam(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    texts: Sequence[str | None] | None,
    passage_vectors: torch.Tensor,
    layer: nn.Module | None = None,
    method: Method = "grad_cam",
) -> torch.Tensor:
    """Where in each image the retrieval score of one passage comes from: the cosine of query and passage.

    Args:
        model, processor: a [`RavlmModel`] (of a reader, `reader.model`) and its processor.
        images, texts: the queries, of one length; `texts` may be `None` or hold it in single places.
        passage_vectors (`torch.Tensor` of shape `(B, D)`): of the passage of each query (`retriever.vectors`).
        layer, method: as of `answer_grad_cam`.

    Returns:
        Maps as of `answer_grad_cam`.

    Raises:
        `InvalidInputError`: if queries and passages differ in number, or the layer does not run.
    """
    if len(passage_vectors) != len(images):
        raise InvalidInputError(
            f"{len(images)} images came with {len(passage_vectors)} vectors of passages; give one each"
        )
    inputs = on_device(processor.for_retrieval(images=list(images), texts=texts), model)
    passages = torch.as_tensor(passage_vectors, dtype=torch.float32, device=model.device)

    def score() -> torch.Tensor:
        return F.cosine_similarity(model.get_query_features(**inputs), passages, dim=-1)  # (B,)

    size = inputs["pixel_values"].shape[-2:]
    raster = partial(patch_raster, size=size, config=model.config.vision_config)
    maps = layer_grad_cam(model, image_layer(model) if layer is None else layer, score, method, raster)
    return heat_maps(maps, size)


def image_layer(model: Any) -> nn.Module:
    """The layer of a dual encoder that is explained by default: the vision tower's last output.

    An encoder that is kept whole pools inside its tower, often from one token: there it is the last layer but one.
    """
    if model.config.encoder_config is None:
        return model.vision_tower
    stacks = [part for part in model.vision_tower.modules() if isinstance(part, nn.ModuleList) and len(part)]
    longest = max(stacks, key=len)
    return longest[max(len(longest) - 2, 0)]


def image_worth(
    model: Any,
    processor: Any,
    images: Sequence[Any],
    questions: Sequence[str],
    answers: Sequence[str],
    evidence: Sequence[Sequence[Any]] | None = None,
    prompt: Mapping[str, Any] | None = None,
    prior_scale: float | None = None,
) -> torch.Tensor:
    """What each image, against its mean colour in its place, gives to the answer's log-probability, in nats: `(B,)`.

    Below 0 where the image speaks against the answer. Arguments as of `answer_grad_cam`, whose maps say where, never
    how much.
    """
    asked = (images, questions, answers, evidence)
    inputs, labels = _answer_inputs(model, processor, *asked, prompt, prior_scale)
    covered = inputs["pixel_values"].mean(dim=(2, 3), keepdim=True).expand_as(inputs["pixel_values"])
    with evaluation_mode(model), torch.no_grad():
        seen = answer_score(model, inputs, labels)
        return seen - answer_score(model, {**inputs, "pixel_values": covered}, labels)


def answer_score(model: Any, inputs: Any, labels: torch.Tensor, token: int | None = None) -> torch.Tensor:
    """Log-probability `(B,)` of the labelled answers, or of one token of each, with gradients.

    Args:
        inputs, labels: what `processor(images, text, evidence, answers=...)` returns, labels apart.
        token (`int`, *optional*): which token; `None` for all of them.

    Raises:
        `InvalidInputError`: for a token that is not there, or any token where the passages are latent.
    """
    if not passages_are_latent(model.config, inputs.get("evidence_scores")):
        log_probs, keep = answer_token_log_probs(model(**inputs, use_cache=False).logits, labels)  # (B, T)
        return log_probs.sum(dim=-1) if token is None else _picked(log_probs, keep, token)
    if token is not None:
        raise InvalidInputError(
            "the passages are latent (config.marginalization), so a token has no log-probability before the whole "
            "answer has; explain the whole answer, with token=None"
        )
    outputs = model(**inputs, labels=labels, use_cache=False)
    prior = log_prior(model, split_inputs(inputs)[0])
    return rag_sequence_log_likelihood(outputs.passage_log_likelihood, prior)


def layer_grad_cam(
    model: nn.Module,
    layer: nn.Module,
    score: Callable[[], torch.Tensor],
    method: Method = "grad_cam",
    raster: Callable[[int], tuple[int, int]] = patch_raster,
) -> torch.Tensor:
    """Grad-CAM of any score over any layer that puts out a feature map or tokens on a raster.

    The model is run in evaluation mode; modes are restored, no hook and no gradient stays. Where the layer runs
    several times, its first run counts.

    Args:
        model (`nn.Module`): what `score` runs.
        layer (`nn.Module`): part of it; puts out `(B, C, h, w)` or `(B, T, C)`, of which the last tokens are the
            patches, or an output with such a `last_hidden_state`.
        score (`Callable`): runs the model and returns one number per row, `(B,)`.
        method (`str`): `"grad_cam"` or `"hires_cam"`.
        raster (`Callable`): rows and columns of the patches among `T` tokens; a square by default.

    Returns:
        `torch.FloatTensor` of shape `(B, h, w)`, at least 0, in units of the score.

    Raises:
        `InvalidInputError`: if the layer does not run, puts out something else, the score does not depend on it, or
            the method is another.

    Example: the first channel speaks for the score, the second against it.

    >>> layer = nn.Identity()
    >>> image = torch.tensor([[[[3.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]]])  # (1, 2, 2, 2)
    >>> weights = torch.tensor([1.0, -1.0])
    >>> layer_grad_cam(layer, layer, lambda: (layer(image).mean((2, 3)) * weights).sum(1)).tolist()
    [[[0.75, 0.0], [0.0, 0.0]]]
    """
    if method not in METHODS:
        raise InvalidInputError(f"method={method!r}: choose one of {', '.join(METHODS)}")
    kept: list[torch.Tensor] = []

    def keep_first(_module: nn.Module, _args: Any, output: Any) -> Any:
        if kept:
            return output
        # The graph begins here: nothing below is differentiated, and a frozen tower can be explained, too.
        kept.append(_states_of(output).detach().requires_grad_(True))
        if isinstance(output, torch.Tensor):
            return kept[0]
        if isinstance(output, tuple):
            return (kept[0], *output[1:])
        output["last_hidden_state"] = kept[0]
        return output

    handle = layer.register_forward_hook(keep_first)
    try:
        with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
            scores = score()
            if not kept:
                raise InvalidInputError(
                    f"the layer, a {type(layer).__name__}, did not run, so there is nothing to explain; choose one "
                    "that the image goes through, such as model.vision_tower or a layer of it"
                )
            gradient = None
            if scores.requires_grad:
                (gradient,) = torch.autograd.grad(scores.sum(), kept, allow_unused=True)
    finally:
        handle.remove()
    if gradient is None:
        raise InvalidInputError(
            f"the score does not depend on what the layer, a {type(layer).__name__}, puts out: is there an image, "
            "and does the score come after the layer?"
        )
    return METHODS[method](spatial(kept[0].detach(), raster), spatial(gradient, raster))


def grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """`relu(sum_c mean_hw(gradients)_c * activations_c)`: feature maps `(B, C, h, w)` and gradients to `(B, h, w)`.

    >>> activations = torch.tensor([[[[1.0, 2.0]], [[4.0, 0.0]]]])  # two channels of 1 x 2
    >>> grad_cam(activations, torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]]]])).tolist()
    [[[0.0, 4.0]]]
    """
    weights = gradients.float().mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    return (weights * activations.float()).sum(dim=1).relu()


def hires_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """`relu(sum_c gradients_c * activations_c)`: feature maps `(B, C, h, w)` and gradients to `(B, h, w)`.

    >>> activations = torch.tensor([[[[1.0, 2.0]], [[4.0, 0.0]]]])
    >>> hires_cam(activations, torch.tensor([[[[1.0, 3.0]], [[-1.0, 0.0]]]])).tolist()
    [[[0.0, 6.0]]]
    """
    return (gradients.float() * activations.float()).sum(dim=1).relu()


METHODS: dict[str, Callable[..., torch.Tensor]] = {"grad_cam": grad_cam, "hires_cam": hires_cam}


def spatial(states: torch.Tensor, raster: Callable[[int], tuple[int, int]] = patch_raster) -> torch.Tensor:
    """Feature maps `(B, C, h, w)` as they are; tokens `(B, T, C)` on their raster, class tokens left out.

    >>> spatial(torch.arange(5.0).reshape(1, 5, 1)).tolist()
    [[[[1.0, 2.0], [3.0, 4.0]]]]
    """
    if states.dim() == 4:
        return states
    rows, columns = raster(states.shape[1])
    return states[:, states.shape[1] - rows * columns :].mT.unflatten(-1, (rows, columns))


def heat_maps(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps `(B, h, w)` as large as images, each divided by its maximum: `(B, height, width)` in 0..1.

    >>> heat_maps(torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]]), (1, 4)).tolist()
    [[[0.0, 0.25, 0.75, 1.0]], [[0.0, 0.0, 0.0, 0.0]]]
    """
    large = F.interpolate(maps.unsqueeze(1), size=tuple(size), mode="bilinear", align_corners=False).squeeze(1)
    highest = large.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, large / highest.clamp(min=torch.finfo(large.dtype).tiny), large)


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The part of a model with this name, such as `"vision_tower.encoder.stages.1"`.

    Raises:
        `InvalidInputError`: names parts that are there.

    >>> find_layer(nn.Sequential(nn.ReLU(), nn.Tanh()), "1")
    Tanh()
    """
    parts = dict(model.named_modules())
    if name not in parts or not name:
        known = name
        while known not in parts:  # the whole model is ""
            known = known.rpartition(".")[0]
        there = [f"{known}.{child}" if known else child for child, _ in parts[known].named_children()]
        raise InvalidInputError(
            f"there is no layer {name!r} in a {type(model).__name__}; there are {', '.join(there)}"
        )
    return parts[name]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode and gives every part of it its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _answer_inputs(
    model: Any,
    processor: Any,
    images: Any,
    questions: Any,
    answers: Any,
    evidence: Any,
    prompt: Any,
    prior_scale: float | None,
) -> tuple[Any, torch.Tensor]:
    if model.reads_images:
        raise InvalidInputError(
            "the reader is an image-text-to-text model with a vision tower of its own, in whose prompt the images "
            "of question and passages cannot be told apart; use retrieval_grad_cam, or layer_grad_cam with a layer "
            "and a score of your own"
        )
    asked = {"images": list(images), "text": list(questions), "answers": list(answers), "evidence": evidence}
    inputs = processor(**asked, answer_on_top=True, prompt=prompt)
    inputs = on_device(inputs, model)
    scores = inputs.get("evidence_scores")
    if prior_scale is not None and passages_are_latent(model.config, scores):
        inputs["prior_scale"] = scores.new_full((len(scores),), prior_scale)
    return inputs, inputs.pop("labels")


def _states_of(output: Any) -> torch.Tensor:
    states = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)
    if not isinstance(states, torch.Tensor) or states.dim() not in (3, 4):
        came = f"a tensor {tuple(states.shape)}" if isinstance(states, torch.Tensor) else type(states).__name__
        raise InvalidInputError(
            f"the layer puts out {came}; Grad-CAM needs a feature map (B, C, h, w) or tokens (B, T, C)"
        )
    return states


def _picked(log_probs: torch.Tensor, keep: torch.Tensor, token: int) -> torch.Tensor:
    lengths = keep.sum(dim=1)
    places = lengths + token if token < 0 else torch.full_like(lengths, token)
    if bool(((places < 0) | (places >= lengths)).any()):
        raise InvalidInputError(
            f"token={token}: the answers have {lengths.tolist()} tokens, the mark at their end included; count from "
            "0, or from -1 backwards"
        )
    return log_probs.gather(1, places.unsqueeze(1)).squeeze(1)


def on_device(inputs: Any, model: nn.Module) -> Any:
    """Inputs on the device of the model, images in its type."""
    inputs = inputs.to(model.device)
    for name in ("pixel_values", "evidence_pixel_values"):
        if name in inputs:
            inputs[name] = inputs[name].to(model.dtype)
    return inputs
