"""The site's pages beyond the files of ``docs/``: READMEs as they are, and generated parts.

A file of the repository that is a page of the site stands in ``PAGES``; links are written as in
the repository and rewritten here, so that they hold in both places. A line ``{{ name argument }}``
in a page is replaced by what ``generated`` makes of it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from generated import GENERATED
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]

#: File of the repository -> page of the site.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "development/architecture.md",
    "CONTRIBUTING.md": "development/contributing.md",
    "CHANGELOG.md": "development/changelog.md",
    "baselines/README.md": "methods/index.md",
    "tasks/README.md": "tasks.md",
    "benchmarks/README.md": "suites.md",
}
#: What of the committed results is shown.
RESULTS = ("**/*.md", "**/report.html", "**/figures/*.svg", "**/figures/*.png")

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)|(!\[[^\]]*\])\(([^()\s]+)\)")
_CALL = re.compile(r"^\{\{ (\w+) ?(.*?) \}\}$", re.MULTILINE)
_PAPER = re.compile(r"(?<![\[/\w])arXiv:(\d{4}\.\d{5})")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's own pages and its committed results."""
    added = dict(PAGES)
    for pattern in RESULTS:
        for path in sorted((ROOT / "reports").glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            added[name] = name.replace("reports/", "results/", 1)
    for source, page in added.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in what is generated, and turn the repository's links into the site's."""
    source = _source(page.file)
    here = posixpath.dirname(source)

    def call(match: re.Match[str]) -> str:
        return GENERATED[match[1]](match[2].strip())

    def link(match: re.Match[str]) -> str:
        text, target = (f"[{match[1]}]", match[2]) if match[2] else (match[3], match[4])
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        name, hash_, anchor = target.partition("#")
        name = posixpath.normpath(posixpath.join(here, name))
        found = _page(name)
        if files.get_file_from_path(found) is None and (ROOT / name).exists():
            return match[1] or ""  # lies in the repository alone
        to = posixpath.relpath(found, posixpath.dirname(page.file.src_uri))
        return f"{text}({to}{hash_}{anchor})"

    parts = _FENCE.split(_CALL.sub(call, markdown))
    return "".join(
        part if part.startswith("```") else _papers(_LINK.sub(link, part)) for part in parts
    )


def _papers(text: str) -> str:
    """Names of papers become links to them."""
    return _PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _page(name: str) -> str:
    """The page of a file or folder of the repository."""
    for known in (name, f"{name}/README.md"):
        if known in PAGES:
            return PAGES[known]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if name.startswith("reports/"):
        found = name.replace("reports/", "results/", 1)
        return found if Path(found).suffix else f"{found}/README.md"
    return name


def _source(file: File) -> str:
    """Where a page lies in the repository."""
    return Path(file.abs_src_path).resolve().relative_to(ROOT).as_posix()
