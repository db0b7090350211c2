"""Names of files that a report reads, and of its own and of links, each of one part alone.

Two models may have names that make one file name (``a/b`` and ``a-b``, or ``M`` and ``m`` where
letters' case does not count): neither's figures take the place of the other's.

Example::

    figures = distinct(figures, lambda one: [one.file_of(view) for view in one.views])
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

__all__ = ["COMMANDS", "SETTINGS", "distinct", "slug"]

#: What lies in a run's folder beside the records, and a report shows.
SETTINGS, COMMANDS = "run.json", "commands.json"

_LONGEST = 120  # letters of a file's name

Named = TypeVar("Named", bound=Any)


def slug(text: str) -> str:
    """A name for files and links; a long one is cut, and told apart by a hash."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}-{_hash(text)}"


def distinct(items: Sequence[Named], files: Callable[[Named], Iterable[str]]) -> list[Named]:
    """Items of which no two make one file.

    Args:
        items: Dataclasses with a ``name``, a slug, and what it was made of, ``given``.
        files: The names of an item's files.

    Returns:
        The same items; those that would share a file with another have a hash of what they were
        given behind their name, whatever their order.
    """
    claims = Counter(file.casefold() for item in items for file in set(files(item)))
    taken: set[str] = set()
    found: list[Named] = []
    for item in items:
        one, again = item, 0
        while any(claims[name] > 1 or name in taken for name in _folded(files(one))):
            number = f"-{again}" if again else ""  # of two that were given the same
            one, again = replace(item, name=f"{item.name}-{_hash(item.given)}{number}"), again + 1
        taken.update(_folded(files(one)))
        found.append(one)
    return found


def _folded(names: Iterable[str]) -> list[str]:
    return [name.casefold() for name in names]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
