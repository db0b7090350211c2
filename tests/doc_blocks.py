"""The fenced blocks of the README and the pages, with what is said of how they run.

A comment directly above a block marks it: ``<!-- checked: why -->`` for commands whose arguments
are checked but not run, ``<!-- not run: why -->`` for what is not looked at.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")),
        *(ROOT / name / "README.md" for name in ("baselines", "tasks", "benchmarks")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
]

#: What says how committed results were made.
REPORTS = [
    path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "reports").rglob("README.md"))
]

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>checked|not run): (?P<why>.+?) -->\n)?^```(?P<language>\w*)\n"
    r"(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: File that it stands in.
        line: Of its first line of code.
        language: As the fence names it.
        code: What is between the fences.
        mark: ``checked``, ``not run`` or empty.
    """

    page: str
    line: int
    language: str
    code: str
    mark: str

    def commands(self) -> list[list[str]]:
        """The commands of a shell block as arguments, comments left out."""
        lines = self.code.replace("\\\n", " ").splitlines()
        found = (shlex.split(line, comments=True) for line in lines)
        return [words for words in found if words]


def blocks(page: str) -> list[Block]:
    """The blocks of a page in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page, text[: m.start("code")].count("\n") + 1, m["language"], m["code"], m["mark"] or ""
        )
        for m in _BLOCK.finditer(text)
    ]


def arguments(words: list[str]) -> list[str] | None:
    """What a command gives to ``streamline-bench``; None if it is another program's."""
    if words[0] == "streamline-bench":
        return words[1:]
    if words[0] == "torchrun" and "streamline" in words:
        return words[words.index("streamline") + 1 :]
    return None


def written(page: str) -> list[list[str]]:
    """Every command that a page shows on lines of its own, fenced or not, as arguments."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^ *(streamline-bench .+)$", text, re.M)]
