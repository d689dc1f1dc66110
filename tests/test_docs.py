"""The pages of the Python interface can be built, and every fault is told."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


BUILD = Path(__file__).parents[1] / "docs" / "build.py"

pytest.importorskip("pdoc", reason='pip install "hf_ravlm[docs]"')


@pytest.mark.slow
def test_every_module_has_its_page(tmp_path):
    built = subprocess.run([sys.executable, BUILD, tmp_path / "docs"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for name in ("hf_ravlm", "hf_ravlm/explain", "hf_ravlm/retrieval/retriever", "hf_ravlm/demo/page"):
        assert (tmp_path / "docs" / f"{name}.html").is_file()
    page = (tmp_path / "docs" / "hf_ravlm" / "explain" / "gradcam.html").read_text()
    assert "Selvaraju" in page


def test_a_link_to_no_page_is_told(tmp_path):
    spec = spec_from_file_location("build", BUILD)
    build = module_from_spec(spec)
    spec.loader.exec_module(build)
    (tmp_path / "a.html").write_text('<a href="b.html#x">b</a> <a href="c.html">c</a> <a href="https://x.org">x</a>')
    (tmp_path / "b.html").write_text('<script>`href="${url}"`</script>')
    assert build.broken_links(tmp_path) == ["a.html: the link c.html leads nowhere"]
