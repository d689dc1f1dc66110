"""Where an answer comes from and what found its evidence, as images and numbers."""

from __future__ import annotations

from .attention import PassageAttention, passage_attention
from .explanation import Explanation, explain_answer
from .gradcam import answer_grad_cam, image_worth, layer_grad_cam, retrieval_grad_cam
from .maxsim import TokenMatch, cosine_match, maxsim_match
from .overlay import heat_overlay, seen_image
from .sheets import answer_sheet, explanation_sheet, match_chart


__all__ = [
    "Explanation",
    "PassageAttention",
    "TokenMatch",
    "answer_grad_cam",
    "answer_sheet",
    "cosine_match",
    "explain_answer",
    "explanation_sheet",
    "heat_overlay",
    "image_worth",
    "layer_grad_cam",
    "match_chart",
    "maxsim_match",
    "passage_attention",
    "retrieval_grad_cam",
    "seen_image",
]
