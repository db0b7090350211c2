"""What the fields of a method name: models, files and folders, known by their content.

Example::

    named_content(build_method("smaller-dense+model=models/small"))     # {"model": "5f3c..."}
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from streamline.errors import StreamlineError
from streamline.fields import model_fields
from streamline.hashing import file_sha256, folder_key
from streamline.method import Method
from streamline.sources.models import model_fingerprint

__all__ = ["named_content", "named_models"]


def named_models(method: Method) -> list[str]:
    """The models that a method's fields name."""
    return [str(getattr(method, name)) for name in model_fields(method)]


def named_content(method: Method) -> dict[str, str]:
    """The content of what a method's fields name on this machine.

    A model is known by its content, on the hub by its commit.

    Args:
        method: The method.

    Returns:
        Field -> a key of the content; of a model that cannot be read the reason, which its own
        cells meet again.
    """
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
