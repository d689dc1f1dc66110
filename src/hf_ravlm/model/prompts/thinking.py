"""What a reader thinks before it answers, told apart from the answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from .literal import control_tokens


OPEN, CLOSE = "<think>", "</think>"


def split_thinking(
    tokenizer: PreTrainedTokenizerBase, ids: Any, template: str, opens_thinking: Callable[[], bool]
) -> tuple[str, str | None]:
    """An answer, and the thoughts before it or `None`.

    Where the tokenizer has marks of thoughts, these alone count, and no words that look like them; where it has none,
    words count if the chat template has them, too. Thoughts without an end are all that there is.

    Args:
        ids: generated token ids, a list or a tensor.
        template (`str`): the chat template.
        opens_thinking (`Callable`): whether the prompt ends within thoughts.
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    marks = control_tokens(tokenizer)

    def words(part: list[int]) -> str:
        kept = [id for id in part if id != marks.get(OPEN)]
        return str(tokenizer.decode(kept, skip_special_tokens=True)).strip()

    if CLOSE in marks:
        end, begun = marks[CLOSE], OPEN in marks and marks[OPEN] in ids
        if end in ids:
            place = ids.index(end)
            return words([id for id in ids[place:] if id != end]), words(ids[:place]) or None
        return ("", words(ids)) if begun or opens_thinking() else (words(ids), None)
    text = words(ids)
    if CLOSE not in template and OPEN not in template:
        return text, None
    begun = text.startswith(OPEN) or opens_thinking()
    if not begun:
        return text, None
    thoughts, _, answer = text.removeprefix(OPEN).partition(CLOSE)
    return answer.strip(), thoughts.strip() or None
