"""Pictures and numbers of what the system did: where an answer comes from, and what found its evidence."""

from __future__ import annotations

from .attention import PassageAttention, passage_attention
from .explanation import Explanation, explain_answer
from .explanation_sheet import explanation_sheet
from .figures import answer_sheet
from .gradcam import answer_grad_cam, layer_grad_cam, picture_worth, retrieval_grad_cam
from .match_chart import match_chart
from .maxsim import TokenMatch, cosine_match, maxsim_match
from .overlay import heat_overlay, seen_picture


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
    "layer_grad_cam",
    "match_chart",
    "maxsim_match",
    "passage_attention",
    "picture_worth",
    "retrieval_grad_cam",
    "seen_picture",
]
