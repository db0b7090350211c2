"""Flags as fields of a run: only what was given, so that defaults and suites keep their say."""

from __future__ import annotations

from typing import Any

__all__ = ["given"]


def given(**flags: Any) -> dict[str, Any]:
    """The flags that were given: neither None nor a switch left off."""
    return {
        name: value for name, value in flags.items() if value is not None and value is not False
    }
