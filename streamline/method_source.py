"""What a method's code is, by content: part of the key of whatever the method decided.

Example::

    source_key(build_method("my_package.mine:Mine"))    # another one once a file of it is edited
"""

from __future__ import annotations

import ast
import sys
import uuid
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType

from streamline import __version__
from streamline.hashing import content_key

__all__ = ["source_key"]

_OURS = "streamline"


def source_key(method: object) -> str:
    """The content of the code that a method consists of.

    For each class that it is made of: the files of its package, or of its module and of those
    beside it that the module imports, and the version of the distribution they came in. For this
    project's own methods: the project's version, the module, and what that imports beside it.

    Args:
        method: The method.

    Returns:
        64 hexadecimal digits. Code that lies in no file (typed at a prompt) is equal to none but
        itself while the process lasts.
    """
    return content_key([_class_source(cls) for cls in type(method).__mro__])


@cache
def _class_source(cls: type) -> list[object]:
    """A class's name and what its code is known by; nothing of Python's own classes."""
    top = cls.__module__.partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return []
    name = f"{cls.__module__}.{cls.__qualname__}"
    module = sys.modules.get(cls.__module__)
    files = _files(module, top) if module is not None else {}
    if not files:
        return [name, uuid.uuid4().hex]
    hashes = {label: sha256(path.read_bytes()).hexdigest() for label, path in files.items()}
    return [name, __version__ if top == _OURS else _versions(top), hashes]


def _versions(top: str) -> list[str]:
    """The distributions that a package came in, with their versions."""
    names = sorted(set(_distributions().get(top, ())))
    return [f"{name} {version(name)}" for name in names]


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Every installed package or module, and the distributions it came in."""
    return packages_distributions()


def _files(module: ModuleType, top: str) -> dict[str, Path]:
    """The files that a module's code lies in, by name."""
    package = getattr(sys.modules.get(top), "__path__", None)
    if package is not None and top != _OURS:
        folders = [Path(folder) for folder in package]
        return {
            path.relative_to(folder).as_posix(): path
            for folder in folders
            for path in sorted(folder.rglob("*.py"))
        }
    file = getattr(module, "__file__", None)
    return {} if file is None else {path.name: path for path in _with_imports(Path(file))}


def _with_imports(file: Path) -> list[Path]:
    """A module's file and those of its own folder that it imports, directly or through them."""
    found: dict[Path, None] = {}
    waiting = [file] if file.is_file() else []
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            for name, relative in _imported(path):
                beside = [path.with_name(f"{name}.py"), *path.parent.glob(f"{name}/**/*.py")]
                files = [other for other in beside if other.is_file()]
                if files and (relative or name not in _distributions()):
                    waiting += files
    return sorted(found)


def _imported(file: Path) -> set[tuple[str, bool]]:
    """First parts of the names that a file imports, as they could lie in its folder.

    Returns:
        Each with whether it is imported from that folder and no other.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # compiled, or edited since it was imported
        return set()
    names: set[tuple[str, bool]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.name.partition(".")[0], False) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level <= 1:
            given = [node.module] if node.module else [alias.name for alias in node.names]
            names |= {(name.partition(".")[0], node.level == 1) for name in given}
    return {(name, own) for name, own in names if own or name not in sys.stdlib_module_names}
