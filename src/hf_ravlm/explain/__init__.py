"""Pictures of what the system did."""

from __future__ import annotations

from .figures import answer_sheet


__all__ = ["answer_sheet"]
