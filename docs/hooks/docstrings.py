"""The extension of the Python reference that shows docstrings as the other pages do."""

from __future__ import annotations

from typing import Any

import griffe
from rewriting import rewritten


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put Markdown in the place of a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)
