"""YAML as a suite may be: no key twice, nothing that expands without bound, plain values alone.

Example::

    content = read_yaml(Path("suite.yaml"))      # or ConfigError, with the line
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import ConfigError
from streamline.run.checks.values import is_text

if TYPE_CHECKING:
    import yaml

__all__ = ["read_yaml"]

_MOST_BYTES = 2**20
_MOST_VALUES = 10_000  # with each anchor counted wherever it is used


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Args:
        path: The file.

    Returns:
        Its one document; None if it is empty.

    Raises:
        ConfigError: If it is no YAML in UTF-8, is larger than a mebibyte, stands for more than
            ten thousand values by its anchors, or gives a key twice.
    """
    import yaml

    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"the suite {path} is larger than 1 MiB, which no suite needs")
    try:
        loader = yaml.SafeLoader(content.decode("utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _n_values(node, path, {})
        return loader.construct_document(node)
    except RecursionError:
        reason = "it is nested too deeply"
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())
    raise ConfigError(f"the suite {path} is not YAML in UTF-8: {reason}")


def _n_values(node: yaml.Node, path: Path, known: dict[int, int]) -> int:
    """How many values a node stands for, each anchor counted wherever it is used."""
    import yaml

    if known.get(id(node)) == 0:
        raise ConfigError(f"the suite {path}: an anchor stands for itself{_line(node)}")
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 0  # being counted
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(node, path)
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    elif not is_text(node.value):
        raise ConfigError(
            f"the suite {path}: {node.value!r} holds characters that no text has{_line(node)}"
        )
    count = 1
    for part in parts:
        count += _n_values(part, path, known)
        if count > _MOST_VALUES:
            raise ConfigError(
                f"the suite {path}: its anchors stand for more than {_MOST_VALUES:,} values"
                f"{_line(node)}"
            )
    known[id(node)] = count
    return count


def _refuse_twice(node: yaml.MappingNode, path: Path) -> None:
    """Refuse a mapping in which a key is given twice; YAML itself would take the last."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if not isinstance(key.value, str):
            continue
        if (key.tag, key.value) in seen:
            raise ConfigError(f"the suite {path}: {key.value!r} is given twice{_line(key)}")
        seen.add((key.tag, key.value))


def _line(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})"
