"""``streamline-bench new-method``: a plugin package to start from."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["EPILOG", "command", "write_package"]

EPILOG = """
Example:

    streamline-bench new-method my-method

    pip install -e my-method && streamline-bench validate my-method
"""

_LONGEST = 64  # characters of a method's name
_FILES = {
    "pyproject.toml.jinja": "pyproject.toml",
    "README.md.jinja": "README.md",
    "init.py.jinja": "src/{module}/__init__.py",
    "method.py.jinja": "src/{module}/method.py",
    "test_method.py.jinja": "tests/test_method.py",
}


def command(
    name: Annotated[str, typer.Argument(help="The method's name: lower case, hyphens between.")],
) -> None:
    """Write a small installable package with one working method and its test into a new folder."""
    folder = write_package(name, Path.cwd())
    print(
        f"wrote {folder.name}/. Next:\n"
        f"  pip install -e {folder.name}\n"
        f"  streamline-bench validate {name}\n"
        f"  python -m pytest {folder.name}"
    )


def write_package(name: str, parent: Path) -> Path:
    """Write the package.

    Args:
        name: The method's name, such as ``my-method``.
        parent: Folder to make the package's folder in.

    Returns:
        The new folder, ``parent / name``.

    Raises:
        ConfigError: If the name cannot be a method's name or is taken, or the folder exists.
    """
    from jinja2 import Environment, StrictUndefined

    from streamline.errors import ConfigError
    from streamline.files import write_text_atomic
    from streamline.registry import METHODS, available

    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise ConfigError(
            f"{name!r} cannot name a method: use lower-case letters and digits with single "
            "hyphens between, beginning with a letter, such as my-method"
        )
    if len(name) > _LONGEST:
        raise ConfigError(f"{name[:20]}... cannot name a method: it is too long")
    if name in available(METHODS):
        raise ConfigError(f"a method {name!r} is installed already; choose another name")
    folder = parent / name
    if folder.exists():
        raise ConfigError(f"{folder} exists; move it away or choose another name")
    words = {
        "name": name,
        "module": module,
        "class_name": "".join(part.capitalize() for part in name.split("-")),
    }
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    templates = files("streamline.cli").joinpath("templates")
    for source, target in _FILES.items():
        text = templates.joinpath(source).read_text(encoding="utf-8")
        rendered = environment.from_string(text).render(words)
        write_text_atomic(folder / target.format(**words), rendered)
    return folder
