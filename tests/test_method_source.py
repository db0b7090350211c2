from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamline import method_source
from streamline.registry import build_method, source_key

_METHOD = """
from dataclasses import dataclass
from {base} import {cls} as Base

@dataclass(frozen=True, kw_only=True)
class Mine(Base):
    name = "mine"
"""
_FILES = {
    "lone_method.py": _METHOD.format(base="streamline.baselines.shortgpt", cls="ShortGPT")
    + "import lone_helper\nimport torch\n",
    "lone_helper.py": "from lone_further import x\n",
    "lone_further.py": "x = 1\n",
    "unused_neighbour.py": "x = 1\n",
    "plug/__init__.py": "",
    "plug/mine.py": _METHOD.format(base="plug.parts.base", cls="Base"),
    "plug/parts/base.py": _METHOD.format(base="streamline.baselines.uidl", cls="UIDL")
    + "Base = Mine\n",
    "plug/parts/never_imported.py": "",
}


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """The key of a spec, as a process that starts now finds it."""
    for name, text in _FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    own = ("lone_", "plug")

    def found(spec: str) -> str:
        for name in [name for name in sys.modules if name.startswith(own)]:
            del sys.modules[name]
        importlib.invalidate_caches()
        method_source._class_source.cache_clear()
        return source_key(build_method(spec))

    yield found
    for name in [name for name in sys.modules if name.startswith(own)]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("spec", "file", "counts"),
    [
        ("lone_method:Mine", "lone_method.py", True),
        ("lone_method:Mine", "lone_helper.py", True),
        ("lone_method:Mine", "lone_further.py", True),
        ("lone_method:Mine", "unused_neighbour.py", False),
        ("plug.mine:Mine", "plug/mine.py", True),
        ("plug.mine:Mine", "plug/parts/base.py", True),
        ("plug.mine:Mine", "plug/parts/never_imported.py", True),
        ("plug.mine:Mine", "lone_method.py", False),
    ],
)
def test_an_edited_file_of_a_method_is_another_method(
    key: Callable[[str], str], tmp_path: Path, spec: str, file: str, counts: bool
) -> None:
    before = key(spec)
    assert key(spec) == before
    with (tmp_path / file).open("a", encoding="utf-8") as stream:
        stream.write("\nedited = True\n")
    assert (key(spec) != before) is counts


def test_our_own_methods_are_known_by_version_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    shortgpt, slicegpt = build_method("shortgpt"), build_method("slicegpt")
    key = source_key(shortgpt)
    assert source_key(build_method("shortgpt")) == key
    assert source_key(slicegpt) != key
    [_, version, files] = method_source._class_source(type(slicegpt))
    assert version == method_source.__version__
    assert isinstance(files, dict)
    assert {"slicegpt.py", "_slicing.py", "_fusing.py"} <= set(files)
    assert "shortgpt.py" not in files


def test_our_own_methods_are_known_without_a_look_at_every_installed_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method_source._class_source.cache_clear()
    monkeypatch.setattr(method_source, "_distributions", lambda: pytest.fail("looked"))
    assert len(source_key(build_method("slicegpt"))) == 64


def test_the_distribution_that_a_package_came_in_is_named() -> None:
    assert method_source._versions("pytest") == [f"pytest {pytest.__version__}"]


def test_code_that_lies_in_no_file_is_equal_to_itself_alone() -> None:
    spaces = [{"__name__": "nowhere_to_be_found"} for _ in range(2)]
    for space in spaces:
        exec("class Typed: pass", space)
    first, second = (space["Typed"]() for space in spaces)  # type: ignore[operator]
    assert source_key(first) == source_key(first)
    assert source_key(first) != source_key(second)
