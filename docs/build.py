"""Builds the pages of the Python interface out of the docstrings, and fails where they are not sound.

    python docs/build.py build/docs

With pdoc (`pip install "hf_ravlm[docs]"`). What pdoc warns about is an error here: a module that cannot be imported, a
name that is not there, an annotation that cannot be resolved. So is a link between pages that leads nowhere.
"""

from __future__ import annotations

import pkgutil
import re
import sys
import warnings
from html import unescape
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pdoc
import pdoc.render

import hf_ravlm


LINK, SCRIPT = re.compile(r'href="([^"]*)"'), re.compile(r"<script.*?</script>", re.DOTALL)
# A package names its modules, too; of constructors that Python wrote itself pdoc does not know the module, nor where
# the keys of a `TypedDict` that extends another come from: at run time both are plain dictionaries.
NO_FAULT = re.compile(
    r"has already been added|type annotation .* for [\w.]+\.__init__\.|where [\w.]+(Options|Kwargs)\.\w+ is taken"
)


def main(folder: str = "build/docs") -> int:
    """Writes the pages; returns the exit code."""
    pages = Path(folder)
    faults = build(pages)
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    number = len(list(pages.rglob("*.html")))
    sys.stdout.write(f"{number} pages in {pages}: {len(faults) or 'no'} faults\n")
    return 1 if faults else 0


def build(pages: Path) -> list[str]:
    """Writes the pages and tells what is wrong."""
    for module in map(import_module, modules()):
        for name in getattr(module, "__all__", ()):  # some come when they are first used
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="google", footer_text=f"hf_ravlm {hf_ravlm.__version__}", show_source=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc(*modules(), output_directory=pages)
    said = [str(warning.message) for warning in caught if Path(warning.filename).parent.name == "pdoc"]
    return [*(message for message in said if not NO_FAULT.search(message)), *broken_links(pages)]


def modules() -> list[str]:
    """All modules by name, what begins with `_` apart."""
    found = pkgutil.walk_packages(hf_ravlm.__path__, "hf_ravlm.")
    return ["hf_ravlm", *(module.name for module in found if not module.name.rpartition(".")[2].startswith("_"))]


def broken_links(pages: Path) -> list[str]:
    """Links between the pages that lead to no page."""
    there = {page.resolve() for page in pages.rglob("*.html")}
    faults = set()
    for page in sorted(there):
        for link in LINK.findall(SCRIPT.sub("", page.read_text(encoding="utf-8"))):
            target = unquote(unescape(link)).partition("#")[0]
            if "://" in target or target.startswith(("mailto:", "data:")) or not target:
                continue
            if (page.parent / target).resolve() not in there:
                faults.add(f"{page.relative_to(pages.resolve())}: the link {link} leads nowhere")
    return sorted(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
