"""What the pages are made of: nothing that the code has is left out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from doc_blocks import ROOT

from streamline.cli.main import _VERBS
from streamline.registry import METHODS, available
from streamline.run.config import RunConfig
from streamline.run.settings import settings
from streamline.run.suites import suite_files


@pytest.fixture(scope="module")
def generated() -> Iterator[Any]:
    """The module that makes parts of pages."""
    sys.path.insert(0, str(ROOT / "docs" / "hooks"))
    yield import_module("generated")
    sys.path.pop(0)


def _page(generated: Any, name: str) -> str:
    """A page with its generated parts."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.sub(
        r"^\{\{ (\w+) ?(.*?) \}\}$",
        lambda found: str(generated.GENERATED[found[1]](found[2])),
        text,
        flags=re.MULTILINE,
    )


def test_every_method_has_its_place_with_all_its_fields(generated: Any) -> None:
    folder = ROOT / "docs" / "methods"
    pages = {path.name: _page(generated, f"methods/{path.name}") for path in folder.glob("*.md")}
    points = available(METHODS).items()
    ours = {name for name, point in points if point.dist and point.dist.name == "streamline-bench"}
    assert {name for rows in generated.catalogue().values() for name in rows} == ours
    headings = re.findall(r"^## ([a-z0-9-]+)$", "\n".join(pages.values()), re.MULTILINE)
    assert sorted(headings) == sorted(ours)
    assert (
        "| `layers_per_merge` | `4` | paper | whole number from 1 | C, layers"
        in pages["whole-layers.md"]
    )
    assert "| `rule` | `release` | run script |" in pages["whole-layers.md"]


def test_every_setting_is_in_the_reference(generated: Any) -> None:
    page = _page(generated, "configuration.md")
    for found in settings(RunConfig):
        assert f"`{found.path[-1]}`" in page, found.path
        assert found.flag is None or f"`{found.flag}`" in page, found.flag
        assert found.help.replace("|", "\\|") in page, found.path
    assert (
        "| `sparsities`<br>`--sparsities` | `0.25` | a list: number from 0 below 1 | cell, model |"
        in page
    )
    assert "| `limit`<br>`--limit` | none | whole number from 1 or none | key |" in page


def test_every_verb_and_every_suite_has_its_part(generated: Any) -> None:
    verbs = re.findall(r"^## (.+)$", generated.commands(""), re.MULTILINE)
    assert {verb.split()[0] for verb in verbs} == {*_VERBS, "cache"}
    page = _page(generated, "reproducing.md")
    assert re.findall(r"^### (.+)$", page, re.MULTILINE) == list(suite_files())
    assert "| cells | 21 |" in page
    assert "| training | 30,000 documents, " in page


def test_what_would_end_a_cell_of_a_table_does_not(generated: Any) -> None:
    assert generated.table(["a"], [["x | y\nz"]]) == "| a |\n|:--|\n| x \\| y z |\n"
