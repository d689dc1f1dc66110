"""The blocks of the guides run as they stand, with tiny models on a Hub of our own under the names that they use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pdf_files import manual
from tiny import picture
from tiny_backbones import causal_tokenizer, multimodal_model, text_model
from tiny_detectors import tiny_detector
from tiny_encoders import FAMILIES, save


GUIDES = Path(__file__).parents[2] / "docs" / "guides"
NAMES = sorted(path.name for path in GUIDES.glob("*.md"))
PHOTOGRAPHS = {"harbour": "Boats in the harbour of Oslo.", "market": "Fruit on the market."}
CATALOGUE = """sku;name;description;picture;licence;price;colour
M-1;Red mug;A mug of stoneware.;mug.png;CC0-1.0;12.5;red
B-7;Blue bowl;A bowl for soup.;bowl.png;CC0-1.0;18;blue
P-3;Plate;A plate, its picture is lost.;lost.png;CC0-1.0;9;white
"""


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of tiny models, by the names of the large ones."""
    root = tmp_path_factory.mktemp("published")
    reader, processor = multimodal_model("qwen3_vl")
    parts = {
        "Qwen/Qwen3-VL-2B-Instruct": (reader, processor),
        "sentence-transformers/all-MiniLM-L6-v2": (text_model("bert"), causal_tokenizer()),
        "PekingU/rtdetr_r18vd": tiny_detector("rt_detr"),
    }
    for name, (model, belongs) in parts.items():
        model.save_pretrained(root / name)
        belongs.save_pretrained(root / name)
    siglip = "google/siglip2-base-patch16-224"
    save(FAMILIES["SigLIP"], root / siglip)
    return {name: root / name for name in [*parts, siglip]}


def fill(folder: Path) -> None:
    """What readers of the guides have at hand."""
    for name in ("my_photographs", "pictures"):
        (folder / name).mkdir()
    for number, (name, words) in enumerate(PHOTOGRAPHS.items()):
        picture(number).save(folder / "my_photographs" / f"{name}.png")
        (folder / "my_photographs" / f"{name}.txt").write_text(words)
    for number, name in enumerate(["new", "old", "customer", "pictures/mug", "pictures/bowl"]):
        picture(number + 2).save(folder / f"{name}.png")
    (folder / "catalogue.csv").write_text(CATALOGUE)
    (folder / "manuals").mkdir()
    manual(folder / "manuals" / "kettle.pdf")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "README.md"])
def test_the_python_lines_of_a_guide_run(hub, client, published, tmp_path, name):
    if name == "milvus_and_serving.md":
        pytest.importorskip("milvus_lite", reason='pip install "hf_ravlm[test]"')
    for part, folder in published.items():
        hub.put(part, folder)
    fill(tmp_path)
    program = "\n".join(blocks(GUIDES / name, "python"))
    client.do(f"import os\nos.chdir({str(tmp_path)!r})\nexec(compile({program!r}, {name!r}, 'exec'), {{}})")


def test_the_first_lines_of_the_readme_run(hub, client, published, tmp_path):
    for part, folder in published.items():
        hub.put(part, folder)
    fill(tmp_path)
    (tmp_path / "my_photographs").rename(tmp_path / "my_folder")
    picture(9).save(tmp_path / "photo.jpg")
    program = blocks(GUIDES.parents[1] / "README.md", "python")[0]
    client.do(f"import os\nos.chdir({str(tmp_path)!r})\nexec(compile({program!r}, 'README', 'exec'), {{}})")
    assert sum(path.stat().st_size for path in (tmp_path / "my_system").glob("*")) < 100_000, "names, not weights"


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_show_the_same_code(name):
    for language in ("python", "console"):
        assert blocks(GUIDES / name, language) == blocks(GUIDES / "zh" / name, language)


@pytest.mark.parametrize("page", sorted(GUIDES.rglob("*.md")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_links_between_the_guides_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
