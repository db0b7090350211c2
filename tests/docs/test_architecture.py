"""ARCHITECTURE.md names every package, and what it names is there."""

from __future__ import annotations

import re

import pytest
from doc_blocks import ROOT

TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", TEXT, re.MULTILINE))
PACKAGES = sorted(path.parent.name for path in (ROOT / "streamline").glob("*/__init__.py"))


def test_the_table_has_the_packages_and_no_others() -> None:
    assert sorted(ROWS) == PACKAGES
    words = {14: "Fourteen", 15: "Fifteen", 16: "Sixteen"}
    assert f"## {words[len(PACKAGES)]} packages" in TEXT


@pytest.mark.parametrize("package", PACKAGES)
def test_a_row_names_the_packages_within(package: str) -> None:
    folder = ROOT / "streamline" / package
    within = {path.parent.name for path in folder.glob("*/__init__.py")}
    named = set(re.findall(r"`(\w+)/`", ROWS[package]))
    assert {name for name in named if (folder / name).is_dir()} == within
