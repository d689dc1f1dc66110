"""What lies in the folder or repository of a model: its processor, its knowledge base and its policy."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor

from ..errors import InvalidInputError, KnowledgeBaseMismatchError
from ..model import RavlmProcessor
from ..model.loading import origin_of, source_of, without_adapters
from ..saving.commit import hub_failure
from .knowledge import KNOWLEDGE_FOLDER


if TYPE_CHECKING:
    from ..retrieval import Encoder, RavlmRetriever
    from .policy.answer_policy import AnswerPolicy

logger = logging.getLogger(__name__)


def find_processor(model: Any) -> RavlmProcessor:
    """The processor that was saved with the model.

    Raises:
        InvalidInputError: The model was made here and not loaded from anywhere.
    """
    source, origin = source_of(without_adapters(model)), origin_of(without_adapters(model))
    if not source:
        raise InvalidInputError(
            "this model object was not loaded from a folder, so its processor cannot be found; pass processor="
        )
    return AutoProcessor.from_pretrained(source, trust_remote_code=False, **origin)


def find_retriever(model: Any, processor: RavlmProcessor, encoder: Encoder | None = None) -> RavlmRetriever | None:
    """The knowledge base beside the model, or `None`.

    It is asked with `encoder`, else with the towers of the model if they built it, else with the one that it names. A
    model in reduced precision does not embed exactly as the one that built the base; its folder's towers are then
    loaded once more as they were saved.
    """
    source, origin = source_of(without_adapters(model)), origin_of(without_adapters(model))
    if not source or not _has_knowledge(source, origin):
        return None
    from ..retrieval import RavlmEncoder, RavlmRetriever  # FAISS and pyarrow come only when needed

    towers = without_adapters(model).model
    if encoder is None and towers is not None and str(towers.dtype) == "torch.float32":
        try:
            return RavlmRetriever.from_pretrained(source, encoder=RavlmEncoder(towers, processor), **origin)
        except KnowledgeBaseMismatchError:  # another one built it, which it may name
            pass
    retriever = RavlmRetriever.from_pretrained(source, encoder=encoder, **origin)
    if encoder is None and (own := getattr(retriever.encoder, "model", None)) is not None:
        own.to(model.device)
    return retriever


def find_policy(model: Any) -> AnswerPolicy | None:
    """The policy beside the model, or `None`."""
    from .policy.answer_policy import AnswerPolicy, find_policy_files

    source, origin = source_of(without_adapters(model)), origin_of(without_adapters(model))
    try:
        found = find_policy_files(source, **origin)
        return None if found is None else AnswerPolicy.from_pretrained(source, **origin)
    except OSError as error:
        _warn_unknown(source, "a policy", "Nothing is withheld", "policy", error)
        return None


def _has_knowledge(source: str, origin: dict[str, Any]) -> bool:
    if os.path.isdir(source):
        from ..retrieval.store.versions import store_state

        # What is damaged or unfinished is opened, too, which says so: nobody is answered without evidence unawares.
        return store_state(os.path.join(source, KNOWLEDGE_FOLDER)) != "none"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(source, f"{KNOWLEDGE_FOLDER}/CURRENT", **origin)
        return True
    except HFValidationError:  # a folder that is no longer there
        return False
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return False
        if hub_failure(error) is None:
            raise
        _warn_unknown(source, "a knowledge base", "Answers are closed-book", "retriever", error)
        return False


def _warn_unknown(source: str, part: str, until_then: str, argument: str, error: Exception) -> None:
    logger.warning(
        "%s: whether %s lies beside this model could not be found out (%s). %s until you pass `%s=`, or load the "
        "model again when the Hub can be reached.",
        *(source, part, str(error).partition("\n")[0], until_then, argument),
    )
