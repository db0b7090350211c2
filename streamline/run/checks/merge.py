"""Settings laid over one another: defaults, a suite, a trial, flags.

Example::

    merge({"training": {"epochs": 1}}, {"training": {"n_tokens": 9}})    # both fields
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["merge", "yielding"]

_BUDGETS = ("n_tokens", "n_documents")  # of a training: one of the two


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over a base; mappings are merged field by field, everything else replaced.

    Args:
        base: The values to start from; not changed.
        changes: The values that win; a budget in tokens takes the place of one in documents.
    """
    merged = dict(base)
    for name, other in (_BUDGETS, _BUDGETS[::-1]):
        if changes.get(name) is not None and other not in changes:
            merged.pop(other, None)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def yielding(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's settings for single methods and models, without what flags set for all.

    Args:
        values: The suite's.
        flags: Those of the command line.

    Returns:
        ``per_method`` and ``per_model`` where the suite has them as mappings.
    """
    found: dict[str, Any] = {}
    methods, models = values.get("per_method"), values.get("per_model")
    if isinstance(methods, Mapping) and all(isinstance(own, Mapping) for own in methods.values()):
        found["per_method"] = {
            name: {field: value for field, value in own.items() if field not in flags}
            for name, own in methods.items()
        }
    if isinstance(models, Mapping) and all(isinstance(own, Mapping) for own in models.values()):
        found["per_model"] = {
            name: merge(own, {field: flags[field] for field in own if field in flags})
            | yielding({"per_method": own.get("per_method")}, flags)
            for name, own in models.items()
        }
    return found
