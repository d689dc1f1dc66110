"""The page of a classifier or a detector: an image in; classes or boxes out, each with the entries it rests on."""

from __future__ import annotations

from typing import Any

from ..explain.overlay import SHOWN_PIXELS
from ..images import safe_image, shrunk
from ..pipelines.object_detection import RavlmObjectDetectionPipeline
from .answering import Captioned, picture_of
from .parts import DRAWN, FITTED, TITLE, blocks, error_shower, image_part
from .serving import require_gradio
from .uploads import own_uploads


SURE = 0.3  # a box is shown from this score on, unless the visitor says otherwise
MOST_CLASSES, MOST_ENTRIES = 5, 24


def build_looking_page(look: Any) -> Any:
    """The page of one pipeline.

    Args:
        look: that of `image-classification` or `object-detection`, with labelled entries or without.

    Returns:
        `gradio.Blocks`, to be served by `serve_page`. Its endpoint for programs is `/look` (image, least score of a
        box).

    Raises:
        ImportError: Without gradio.
    """
    gradio = require_gradio()
    finds_boxes = isinstance(look, RavlmObjectDetectionPipeline)
    with blocks(gradio) as page:
        what = "Every box" if finds_boxes else "Every class"
        gradio.Markdown(f"# {TITLE}\n{what} names the labelled images that it rests on.")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=300):
                image = image_part(gradio)
                label = "Boxes from this score on"
                sure = gradio.Slider(0, 1, value=SURE, step=0.05, label=label, visible=finds_boxes, elem_id="sure")
                button = gradio.Button("Look", variant="primary", elem_id="look")
            with gradio.Column(scale=3, min_width=420):
                if finds_boxes:
                    found = gradio.AnnotatedImage(label="Found", elem_id="found", **DRAWN)
                else:
                    found = gradio.Label(label="Classes", num_top_classes=MOST_CLASSES, elem_id="found")
                gallery = gradio.Gallery(label="Labelled images that this rests on", **FITTED, elem_id="gallery")
                with gradio.Accordion("As JSON", open=False):
                    record = gradio.JSON(label="Record", elem_id="record")

        def look_at(path: str | None, least: float) -> tuple:
            return look_for_page(look, own_uploads([path])[0] if path else None, least)

        button.click(error_shower(gradio)(look_at), [image, sure], [found, gallery, record], api_name="look")
    return page


def look_for_page(look: Any, image: Any, least: float = SURE) -> tuple[Any, list[Captioned], list[dict[str, Any]]]:
    """What the page shows of one image: boxes on it, or scores by class; the entries; the same as JSON values.

    Raises:
        `InvalidInputError`: without an image, or for a score that is none.
        `UnsafeInputError`: if it cannot be used.
    """
    picture = picture_of(image)
    if isinstance(look, RavlmObjectDetectionPipeline):
        told = look(picture, threshold=least)
        boxes = [[one["box"][edge] for edge in ("xmin", "ymin", "xmax", "ymax")] for one in told]
        found: Any = (
            picture,
            [(box, f"{one['label']} {one['score']:.2f}") for box, one in zip(boxes, told, strict=True)],
        )
    else:
        told = look(picture, top_k=MOST_CLASSES)
        found = {one["label"]: one["score"] for one in told}
    entries = [(one["label"], entry) for one in told for entry in one["evidence"] if entry["image"] is not None]
    gallery = [
        (shrunk(safe_image(entry["image"]), SHOWN_PIXELS), f"{label}: {entry['id']}")
        for label, entry in entries[:MOST_ENTRIES]
    ]
    record = [{**one, "evidence": [{**entry, "image": None} for entry in one["evidence"]]} for one in told]
    return found, gallery, record
