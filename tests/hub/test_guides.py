"""The blocks of the guides run as they stand, with tiny models on a Hub of our own under the names that they use."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hf_ravlm.commands.command_line import make_parser
from pdf_files import manual
from stub_server import StubServer
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


def test_the_lines_about_servers_run(hub, client, published, tmp_path):
    for part, folder in published.items():
        hub.put(part, folder)
    fill(tmp_path)
    program = "\n".join(blocks(GUIDES / "servers.md", "py"))
    with StubServer(models=["Qwen/Qwen3-VL-8B-Instruct"]) as stub:
        program = program.replace("http://localhost:8000/v1", stub.address)
        client.do(f"import os\nos.chdir({str(tmp_path)!r})\nexec(compile({program!r}, 'servers.md', 'exec'), {{}})")
    assert len(stub.asked) == 2


def test_the_commands_about_own_photographs_run(hub, client, published, tmp_path):
    for part, folder in published.items():
        hub.put(part, folder)
    fill(tmp_path)
    lines = [line for line in commands(GUIDES / "own_photographs.md") if line.startswith("hf-ravlm ask")]
    client.do(f"import os\nfrom hf_ravlm.cli import main\nos.chdir({str(tmp_path)!r})")
    for line in lines:
        assert client.do(f"result = main({[*shlex.split(line)[1:], '--quiet', '--max_new_tokens', '4']!r})") == 0, line
    assert len(lines) == 3


def commands(page: Path) -> list[str]:
    """The commands of a page's console blocks, one by one."""
    lines = "".join(blocks(page, "console")).replace("\\\n", " ").splitlines()
    return [one.strip() for line in lines for one in re.split(r"&&|\|\|", re.sub(r"\s#.*", "", line)) if one.strip()]


ROOT = GUIDES.parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(GUIDES.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_the_documents_is_one(page):
    """What is told to be typed has options that are there, scripts that are there, extras that are there."""
    text, extras = page.read_text(encoding="utf-8"), (ROOT / "setup.py").read_text(encoding="utf-8")
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in commands(page):
        words = shlex.split(line, posix=True) if line.count("'") % 2 == 0 else line.split()
        if words[0] == "hf-ravlm":
            if not line.endswith("{"):
                make_parser("0").parse_args(words[1:])
        elif words[:2] == ["pip", "install"]:
            assert all(f'"{extra}"' in extras for extra in re.findall(r"hf_ravlm\[(\w+)\]", line)), line
        elif words[0] == "make":
            assert f"\n{words[1]}:" in targets, line
        elif words[0] in ("python", "accelerate"):
            script = next(word for word in words if word.endswith(".py"))
            assert (ROOT / script).is_file() or f"`{script}`" in text, line
            options = [word for word in words[words.index(script) :] if word.startswith("--")]
            source = (ROOT / script).read_text(encoding="utf-8") if options else ""
            assert all(re.search(rf"\b{option[2:].removeprefix('no_')}\b", source) for option in options), line
        elif words[0] == "git":
            continue
        else:
            assert words[0] in ("curl", "vllm") or line[0] in "\"{'}", line


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
