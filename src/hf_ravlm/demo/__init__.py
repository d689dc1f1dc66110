"""A page in the browser: an image and a question in; the answer, its evidence and its reasons out.

`hf-ravlm demo MODEL` opens it. It needs gradio: `pip install "hf_ravlm[demo]"`.
"""

from __future__ import annotations

from .looking import build_looking_page
from .page import build_page
from .serving import serve_page


__all__ = ["build_looking_page", "build_page", "serve_page"]
