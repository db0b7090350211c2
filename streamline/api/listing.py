"""What is installed, by name; loads neither torch nor transformers.

Example::

    list_methods()["shortgpt"]
    [name for name, what in list_tasks().items() if "needs the hub" not in what]
"""

from __future__ import annotations

from streamline.evaluation.tasks.catalogue import listing
from streamline.registry import METHODS, available, method_summary

__all__ = ["list_methods", "list_tasks"]


def list_methods() -> dict[str, str]:
    """Every registered method and what it does, in one line each."""
    return {name: method_summary(name) or "" for name in available(METHODS)}


def list_tasks() -> dict[str, str]:
    """Every group of tasks with its members, and every task with how it is scored."""
    found = {}
    for row in listing():
        if row["kind"] == "group":
            found[row["name"]] = "group: " + ", ".join(row["members"])
        else:
            hub = "; needs the hub" if row["needs_hub"] else ""
            found[row["name"]] = f"{row['metric']} by {row['protocol']}{hub}"
    return found
