"""What a model may be called, and where that leads: a wheel, a folder or the hub.

Example::

    resolve_model("llama2-7b").location      # "meta-llama/Llama-2-7b-hf"
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamline.errors import AssetError
from streamline.sources.folders import refuse_adapter
from streamline.sources.hub.commits import known_as
from streamline.sources.model_table import MODEL_TABLE
from streamline.sources.wheels import SMOLLM2

__all__ = ["GGUF", "MODELS", "ModelSource", "accepted_names", "resolve_model"]

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The embedded model's file in its wheel."""

MODELS: dict[str, str] = {
    name: row.hub_id or f"wheel:{SMOLLM2.project}=={SMOLLM2.version}"
    for name, row in MODEL_TABLE.items()
}
"""Short name -> hub id, or the wheel that holds the model."""

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_REVISION = re.compile(r"\w[\w.+/-]*")


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model's files are.

    Attributes:
        name: The name as given.
        kind: "wheel", "folder" or "hub".
        location: Wheel member, absolute folder or hub id.
        revision: Branch, tag or commit on the hub; None for the main branch.
    """

    name: str
    kind: Literal["wheel", "folder", "hub"]
    location: str
    revision: str | None = None

    @property
    def known_as(self) -> str:
        """The location, with the revision that is asked for: ``ORG/NAME@REVISION``."""
        return known_as(self.location, self.revision)


def resolve_model(name: str) -> ModelSource:
    """Where the model of a name is, found without the network.

    Args:
        name: A short name of `MODELS`, an existing folder with a ``config.json``, or a hub id; a
            name on the hub may end in ``@REVISION``, its branch, tag or commit.

    Returns:
        Where the model is.

    Raises:
        AssetError: If the name is written like a path and there is no such folder, or the folder
            holds no ``config.json``, the name cannot be a hub id, or there can be no such
            revision of it.
        UnsupportedModelError: If the folder holds an adapter alone.
    """
    folder = Path(name).expanduser()
    if name not in MODEL_TABLE and folder.is_dir():
        if not (folder / "config.json").is_file():
            refuse_adapter(folder)
            raise AssetError(
                f"Model folder {folder} holds no config.json. Give a folder as "
                f"`save_pretrained` writes it, or a finished checkpoint of this package."
            )
        return ModelSource(name=name, kind="folder", location=str(folder.resolve()))
    given, at, revision = name.partition("@")
    if name.startswith(("/", ".", "~")) or given.count("/") > 1 or folder.exists():
        raise AssetError(f"There is no model folder {name!r}. {accepted_names(name)}")
    if not _HUB_ID.fullmatch(given) or ".." in given or "--" in given:
        raise AssetError(f"{name!r} cannot name a model. {accepted_names(name)}")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise AssetError(
            f"{revision!r} cannot be a revision of model {given!r}. It is a branch, a tag or a "
            f"commit, as in {given}@main."
        )
    row = MODEL_TABLE.get(given)
    if row is not None and row.hub_id is None:
        if at:
            raise AssetError(f"{given!r} comes from a wheel and has one revision: leave out '@'.")
        return ModelSource(name=name, kind="wheel", location=GGUF)
    location = given if row is None or row.hub_id is None else row.hub_id
    return ModelSource(name=name, kind="hub", location=location, revision=revision or None)


def accepted_names(name: str) -> str:
    """What a model may be called, with the short names nearest to the one given."""
    near = difflib.get_close_matches(name.partition("@")[0].lower(), MODEL_TABLE, n=3)
    hint = f"Did you mean {', '.join(near)}? " if near else ""
    return (
        f"{hint}A model is a short name (`streamline-bench ls models`), a folder written by "
        f"`save_pretrained`, or a hub id such as facebook/opt-1.3b, perhaps with @REVISION."
    )
