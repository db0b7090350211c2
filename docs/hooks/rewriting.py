"""Docstrings in Markdown: references as code, and sections of ours as paragraphs."""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?\.?([\w.]+)`")
_HEADING = re.compile(r"^(Example|Reference|Differs from the [\w ]+)(?:::|:)\s*(.*)$", re.MULTILINE)


def rewritten(text: str) -> str:
    """A docstring in Markdown."""
    text = _ROLE.sub(lambda found: f"`{found[1]}`", text)
    text = text.replace("Class attributes:", "Attributes:")
    lines: list[str] = []
    indented = code = False
    for line in text.split("\n"):
        if (found := _HEADING.match(line)) is not None:
            code, indented = found[1] == "Example", True
            lines += [f"**{found[1]}.** {found[2]}", ""] if not code else [f"**{found[1]}.**", ""]
        elif indented and line.startswith("    ") and not code:
            lines.append(line[4:])
        else:
            indented = indented and (not line or line.startswith("    "))
            lines.append(line)
    return "\n".join(lines)
