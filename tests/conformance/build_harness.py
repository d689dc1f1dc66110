"""Builds the folder in which the common test suites of transformers and peft meet our classes: it knows their source.

The suites are not in the wheels and no line of them is in this repository: they are taken from the published source
archives of exactly the versions that are installed. That of transformers holds `tests/test_*.py`, but not the modules
that some of them import from sub-folders; small stand-ins take their places, in which the mixins for generation and
export are empty classes. Whoever has a source checkout of the same version gets these tests, too, by putting its
`tests/generation/test_utils.py` in the place of the stand-in.

    python tests/conformance/build_harness.py .conformance
    cd .conformance && python -m pytest -c pyproject.toml ../tests/conformance
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sys
import tarfile
from pathlib import Path

from PIL import Image


# What the modules of the archive import and the archive lacks; an existing file stays.
PEFT_MODULES = ("testing_common.py", "testing_utils.py")
STAND_INS = {
    "peft_tests/__init__.py": "",
    "tests/__init__.py": "",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": (
        "class ExportTesterMixin:\n    pass\n\n\nclass ExportGenerateTesterMixin:\n    pass\n"
    ),
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    # A file of the same name in the working directory replaces the address of a picture: no network.
    "utils/fetch_hub_objects_for_ci.py": (
        "import os\n\n\ndef url_to_local_path(url, return_url_if_not_found=True):\n"
        '    name = url.split("/")[-1]\n'
        "    return url if not os.path.exists(name) and return_url_if_not_found else name\n"
    ),
}
PICTURE = "coco_sample.png"  # the name in the addresses of the processor tests
SETTINGS = """\
[tool.pytest.ini_options]
addopts = ["--import-mode=importlib", "-p", "no:cacheprovider", "-W", "ignore", "--tb=native"]
pythonpath = ["."]
timeout = 300
markers = [
    "generate", "flash_attn_test", "all_flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "is_training_test",
    "is_tensor_parallel_test", "is_expert_parallel_test", "is_fsdp_test", "onnx_export_test", "executorch_export_test",
    "torch_compile_test",
]
"""


def main() -> None:
    """Builds the harness in the folder that is given; what is there already is downloaded and unpacked only once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to build: about 15 MB, out of version control")
    folder = parser.parse_args().folder
    unpack_tests(download_archive("transformers", folder / "downloads"), folder / "tests")
    unpack_tests(download_archive("peft", folder / "downloads"), folder / "peft_tests", only=PEFT_MODULES)
    for name, content in STAND_INS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(content, encoding="utf-8")
    link_package("transformers", folder / "src")
    Image.new("RGB", (64, 48), (9, 90, 200)).save(folder / PICTURE)
    (folder / "pyproject.toml").write_text(SETTINGS, encoding="utf-8")
    sys.stdout.write(f"common test suites of transformers and peft in {folder}\n")


def download_archive(package: str, folder: Path) -> Path:
    """The source archive of `package` as it is installed, from the package index that pip is set up for."""
    version = importlib.metadata.version(package)
    archive = folder / f"{package}-{version}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--no-binary", package, "--dest", folder, f"{package}=={version}"], check=True)
    return archive


def unpack_tests(archive: Path, folder: Path, only: tuple[str, ...] = ()) -> None:
    """The files of the `tests` folder of a source archive, all of them or those named, without its sub-folders."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2] in (only or (parts[2],)):
                (folder / parts[2]).write_bytes(tar.extractfile(member).read())


def link_package(package: str, folder: Path) -> None:
    """A link to the installed package where a source checkout has it: some tests read its files by path."""
    source = Path(importlib.metadata.distribution(package).locate_file(package))
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / package
    link.unlink(missing_ok=True)
    link.symlink_to(source, target_is_directory=True)


if __name__ == "__main__":
    main()
