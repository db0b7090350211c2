"""Code that a model brings along: in which repositories it lies, and at which commit it is read.

A model's ``auto_map`` may name classes of another repository (``org/code--modeling.Model``).
transformers reads those at the head of that repository's branch unless it is told a commit.

Example::

    AutoConfig.from_pretrained(folder, **code_options(source, str(folder), trust_remote_code=True))
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from streamline.errors import AssetError
from streamline.sources.hub.commits import model_commit
from streamline.sources.hub.model_files import model_explained
from streamline.sources.names import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = ["class_options", "code_commits", "code_options", "model_commits"]


def code_options(
    source: ModelSource, place: str, revision: str | None = None, *, trust_remote_code: bool
) -> dict[str, Any]:
    """Arguments for transformers' loaders: whether code may run, and at which commit it is read.

    Args:
        source: The model.
        place: Its folder or hub id, where its config and its tokenizer's are read.
        revision: The commit at which they are.
        trust_remote_code: Whether code may run; without it nothing is read here.

    Raises:
        AssetError: If the classes lie in several repositories, which a loader would all read at one
            revision; or if the commit of theirs cannot be had.
    """
    found = (trust_remote_code and code_commits(source, place, revision)) or {}
    if len(found) > 1:
        raise AssetError(
            f"The code of model {source.name!r} lies in {' and '.join(found)}, and one revision "
            "cannot name a commit of each. Put its files into a folder with the model's and name "
            "them in auto_map without a repository."
        )
    pinned = {"code_revision": next(iter(found.values()))} if found else {}
    return {"trust_remote_code": trust_remote_code, **pinned}


def class_options(
    config: PretrainedConfig, source: ModelSource, *, trust_remote_code: bool
) -> dict[str, Any]:
    """As :func:`code_options`, for ``from_config``: a class that is known already is not read.

    Args:
        config: The model's config.
        source: The model.
        trust_remote_code: Whether code may run.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    registered = known is not None and not known.__module__.startswith("transformers.")
    if registered or not trust_remote_code or not getattr(config, "auto_map", None):
        return {"trust_remote_code": trust_remote_code}
    revision = None
    if source.kind == "hub":
        revision = model_commit(source.location, source.revision)
    return code_options(source, source.location, revision, trust_remote_code=True)


def code_commits(
    source: ModelSource, place: str, revision: str | None = None
) -> dict[str, str] | None:
    """Repository -> commit of the code that a model's classes are read from.

    Args:
        source: The model.
        place: As for :func:`code_options`.
        revision: As for :func:`code_options`.

    Returns:
        The repositories sorted, none where the code lies in the model's own folder; None where it
        brings none.

    Raises:
        AssetError: If a commit, or the model, cannot be had.
    """
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    with model_explained(source):
        config, _ = PretrainedConfig.get_config_dict(place, revision=revision)
        tokenizer = get_tokenizer_config(place, revision=revision)
    names = {*_classes(config.get("auto_map")), *_classes(tokenizer.get("auto_map"))}
    if not names:
        return None
    found = {}
    for name in sorted({name.split("--")[0] for name in names if "--" in name}):
        if source.kind == "hub" and name == source.location:
            found[name] = revision or model_commit(name, source.revision)
            continue
        with model_explained(ModelSource(name=name, kind="hub", location=name)):
            found[name] = model_commit(name)
    return found


def model_commits(source: ModelSource, *, trust_remote_code: bool = False) -> dict[str, str]:
    """Commits of what is read of a model on the hub: its own, and that of code that lies elsewhere.

    Args:
        source: The model.
        trust_remote_code: Whether its code runs.

    Returns:
        By ``ORG/NAME`` or ``ORG/NAME@REVISION``; empty where nothing is read there.

    Raises:
        AssetError: If a commit cannot be had.
    """
    found: dict[str, str] = {}
    if source.kind == "hub":
        with model_explained(source):
            found[source.known_as] = model_commit(source.location, source.revision)
    if trust_remote_code and source.kind != "wheel":
        code = code_commits(source, source.location, found.get(source.known_as))
        found |= {name: commit for name, commit in (code or {}).items() if name != source.location}
    return found


def _classes(auto_map: Any) -> Iterator[str]:
    """The classes of a map: by loader, and of a tokenizer one or two, the slow and the fast."""
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, dict):
        for entry in auto_map.values():
            yield from _classes(entry)
    elif isinstance(auto_map, (list, tuple)):
        for entry in auto_map:
            yield from _classes(entry)
