"""The page itself: what stands where, and what happens when it is clicked."""

from __future__ import annotations

from typing import Any

from ..errors import InvalidInputError
from ..retrieval import RavlmEncoder, RavlmRetriever
from .answering import CHOICES, MOST_SHOWN, TABLE_HEAD, WITH, WITHOUT, answer_for_page, choose_for_page
from .parts import DRAWN, FITTED, TITLE, blocks, error_shower, image_part
from .serving import require_gradio
from .uploads import READABLE, own_uploads, read_upload


TABLE_WIDTHS = ["14%", "29%", "17%", "10%", "9%", "12%", "9%"]
MOST_LETTERS, MOST_PASSAGES = 2_000, 10
TABLE = 4  # among the parts of an answer


def build_page(model: Any, processor: Any, retriever: Any) -> Any:
    """The page of one model.

    Args:
        model, processor, retriever: as a pipeline holds them; `retriever=None` answers closed-book until somebody
            uploads a knowledge base. An uploaded one is its visitor's alone and is gone with the visit.

    Returns:
        `gradio.Blocks`, to be served by `serve_page`. Its endpoints for programs are `/answer` (image, question,
        mode, passages), `/choose` (and answers, one a line), `/use_knowledge` (files), `/drop_knowledge`.

    Raises:
        ImportError: Without gradio.
    """
    gradio = require_gradio()
    with blocks(gradio) as page:
        uploaded = gradio.State(None)  # the visitor's own retriever
        gradio.Markdown(f"# {TITLE}\nEvery answer names the passages it rests on. Check them before you rely on it.")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                asked, ask = _question_parts(gradio, model.config, retriever)
                answers, choose, chosen = _choice_parts(gradio)
                status, files, use, drop = _knowledge_parts(gradio, retriever)
            with gradio.Column(scale=3, min_width=420):
                shown = _answer_parts(gradio)

        def checked(own: Any, image: str | None, question: str, passages: float) -> tuple[Any, str | None]:
            if len(question) > MOST_LETTERS or not 0 < passages <= MOST_PASSAGES:
                raise InvalidInputError(
                    f"Ask with at most {MOST_LETTERS:,} letters and 1 to {MOST_PASSAGES} passages."
                )
            return retriever if own is None else own, own_uploads([image])[0] if image else None

        def answer(own: Any, image: str | None, question: str, mode: str, passages: float) -> tuple:
            knowledge, image = checked(own, image, question, passages)
            found = answer_for_page(model, processor, knowledge, image, question, mode, int(passages))
            texts = (found.retrieved or "", found.closed_book or "")
            return (*texts, found.gallery, found.maps, found.table, found.sheet, found.record)

        def choose_answer(
            own: Any, image: str | None, question: str, mode: str, passages: float, answers: str
        ) -> tuple[dict[str, float], list]:
            knowledge, image = checked(own, image, question, passages)
            k = 0 if mode == WITHOUT else int(passages)
            return choose_for_page(model, processor, knowledge, image, question, answers, k)

        def use_knowledge(paths: list[str] | None) -> tuple[Any, str]:
            knowledge_base = read_upload(own_uploads(paths or []))
            own = RavlmRetriever.build(knowledge_base, RavlmEncoder(model.model, processor))
            return own, _describe(own, knowledge_base.skipped)

        def drop_knowledge() -> tuple[None, str]:
            return None, _describe(retriever)

        show = error_shower(gradio)
        gradio.on([ask.click, asked[1].submit], show(answer), [uploaded, *asked], shown, api_name="answer")
        choose.click(show(choose_answer), [uploaded, *asked, answers], [chosen, shown[TABLE]], api_name="choose")
        use.click(show(use_knowledge), [files], [uploaded, status], api_name="use_knowledge")
        drop.click(show(drop_knowledge), None, [uploaded, status], api_name="drop_knowledge")
    return page


def _question_parts(gradio: Any, config: Any, retriever: Any) -> tuple[list[Any], Any]:
    """Image, question, mode and number of passages, in this order; and the button."""
    image = image_part(gradio)
    question = gradio.Textbox(
        label="Question", placeholder=config.default_prompt, max_length=MOST_LETTERS, elem_id="question"
    )
    mode = gradio.Radio(
        list(CHOICES), value=WITH if retriever is not None else WITHOUT, label="Answer", elem_id="mode"
    )
    passages = gradio.Slider(1, MOST_PASSAGES, value=config.num_passages, step=1, label="Passages", elem_id="passages")
    return [image, question, mode, passages], gradio.Button("Ask", variant="primary", elem_id="ask")


def _choice_parts(gradio: Any) -> tuple[Any, Any, Any]:
    """A closed set of answers, the button that chooses among them, and the scores of the best."""
    with gradio.Accordion("Choose among answers of yours", open=False, elem_id="choice"):
        answers = gradio.Textbox(label="Answers, one a line", lines=4, elem_id="answers")
        choose = gradio.Button("Choose", elem_id="choose")
        chosen = gradio.Label(label="The likeliest", num_top_classes=MOST_SHOWN, elem_id="chosen")
    return answers, choose, chosen


def _knowledge_parts(gradio: Any, retriever: Any) -> tuple[Any, Any, Any, Any]:
    """What is in use, the files of the visitor's own, the button that uses them, the button that does not."""
    with gradio.Accordion("Knowledge base", open=True, elem_id="knowledge"):
        status = gradio.Textbox(_describe(retriever), label="In use", interactive=False, lines=2, elem_id="status")
        files = gradio.File(
            label="Your own: a ZIP, or images with .txt files, or a .jsonl or .csv",
            file_count="multiple",
            file_types=[".zip", *READABLE],
            elem_id="files",
        )
        with gradio.Row():
            use = gradio.Button("Use these files", elem_id="use")
            drop = gradio.Button("Back to the model's own", elem_id="drop")
    return status, files, use, drop


def _answer_parts(gradio: Any) -> list[Any]:
    """Both answers, evidence, maps, table, sheet and record, in this order."""
    with gradio.Row():
        retrieved = gradio.Textbox(label="Answer with retrieval", interactive=False, lines=3, elem_id="retrieved")
        closed = gradio.Textbox(label="Answer without (closed-book)", interactive=False, lines=3, elem_id="closed")
    gallery = gradio.Gallery(label="Evidence, with its posterior", **FITTED, elem_id="gallery")
    label = "Where the image speaks (brightly) for the answer, and for each passage"
    maps = gradio.Gallery(label=label, **FITTED, elem_id="maps")
    table = gradio.Dataframe(
        headers=TABLE_HEAD, column_widths=TABLE_WIDTHS, label="Passages", interactive=False, wrap=True, elem_id="table"
    )
    with gradio.Accordion("The whole explanation", open=False, elem_id="whole"):
        sheet = gradio.Image(label="Explanation", interactive=False, type="pil", **DRAWN, elem_id="sheet")
    with gradio.Accordion("As JSON", open=False):
        record = gradio.JSON(label="Record", elem_id="record")
    return [retrieved, closed, gallery, maps, table, sheet, record]


def _describe(retriever: Any, skipped: Any = ()) -> str:
    if retriever is None:
        return "None: answers are closed-book."
    number = len(retriever)
    said = f"{number:,} passage{'' if number == 1 else 's'}."
    if skipped:
        said += f" Left out: {len(skipped)}, the first because: {skipped[0].reason}"
    return said
