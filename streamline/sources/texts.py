"""Text for calibration, training and perplexity: a name -> documents with their domains.

Names: "packaged" (`streamline.sources.packaged`) or one domain of it, as "packaged:books",
"slimpajama", "slimpajama:rows", "slimpajama:rows-v1", "wikitext2", "c4", or a local .jsonl or .txt
file or a folder of them. A suffix ":train", ":heldout" or ":all" picks the split.
`streamline.sources.batches` draws token batches from them.

Example::

    for document in load_texts("packaged:heldout", seed=0): ...
    stream = encoded_texts("packaged", encode, seed=0)          # in the order of its mixture
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from streamline.errors import AssetError, ConfigError
from streamline.sources.hub.kept_rows import kept_rows
from streamline.sources.hub.rows import require_fields
from streamline.sources.mixing import MIXTURES, Document, Encode, Encoded, mixed, plain
from streamline.sources.packaged import DOMAINS, is_heldout, packaged_passages

__all__ = [
    "REPOSITORIES",
    "TEXTS",
    "Document",
    "Split",
    "check_text",
    "encoded_texts",
    "load_texts",
    "split_of",
    "text_files",
]

Split = Literal["train", "heldout", "all"]

_HUB_SPLITS: dict[str, dict[Split, str]] = {
    "slimpajama": {"train": "train", "heldout": "validation"},
    "wikitext2": {"train": "train", "heldout": "test"},
    "c4": {"train": "train", "heldout": "validation"},
}
REPOSITORIES = {
    "slimpajama": "DKYoon/SlimPajama-6B",
    "wikitext2": "Salesforce/wikitext",
    "c4": "allenai/c4",
}
"""Name -> repository on the hub."""
_HUB_COLUMNS = {"slimpajama": ("text", "meta")}
TEXTS = (*MIXTURES, *DOMAINS, "wikitext2", "c4")
"""The names that are not paths."""

_SHUFFLE_BUFFER = 10_000  # documents a stream is shuffled within
_APART = 0.1  # of the documents, for validation
_PLAIN_TEXT_CHARS = 2_000  # least length of a document from a plain text file
_HEADING = re.compile(r" ?= [^=].* = ?")


def load_texts(
    spec: str,
    *,
    seed: int | None = 0,
    split: Split = "train",
    n_documents: int | None = None,
    revisions: Mapping[str, str | None] | None = None,
) -> list[Document]:
    """Documents of a named text as its source has them, in an order fixed by the seed.

    Args:
        spec: A name as in the module's docstring.
        seed: Order of the documents; None keeps the source's own order.
        split: A suffix of ``spec`` overrides it. For hub texts "heldout" is their test
            (wikitext2) or validation split, and there is no "all"; for packaged and local texts
            it is about a tenth of the documents, chosen by hash.
        n_documents: Stop at this many documents.
        revisions: Commits of repositories on the hub; of others the main branch is read.

    Returns:
        The documents; never an empty list.

    Raises:
        ConfigError: If the split does not exist or is empty, or the text is too large to be loaded
            whole or has too few documents.
        AssetError: If the text does not exist or cannot be fetched or read.
    """
    if n_documents is None and split_of(spec)[0].split(":")[0] in ("slimpajama", "c4"):
        raise ConfigError(f"{spec!r} is too large to load whole: give n_documents.")
    found = list(islice(_Documents(spec, split, seed, revisions), n_documents))
    if n_documents is not None and len(found) < n_documents:
        raise ConfigError(
            f"{n_documents} documents of {spec!r} are needed and it has {len(found)}: choose fewer."
        )
    return found


def encoded_texts(
    spec: str,
    encode: Encode,
    *,
    seed: int | None = 0,
    split: Split = "train",
    validation: bool | None = None,
    longest: int | None = None,
    revisions: Mapping[str, str | None] | None = None,
    spent: MutableMapping[str, int] | None = None,
) -> Iterator[Encoded]:
    """Documents of a named text as tokens, in the order of its mixture.

    Args:
        spec: As for :func:`load_texts`, as are ``seed``, ``split`` and ``revisions``.
        encode: Makes tokens of a text.
        validation: Only the tenth of the documents that is set apart for validation, chosen by
            hash, or only the others; None for all.
        longest: Tokens of a document, where a mixture counts tokens.
        seed: Order of the documents.
        split: Part of the text.
        revisions: Commits of repositories on the hub.
        spent: As for :func:`streamline.sources.mixing.mixed`.

    Raises:
        ConfigError: As there.
        AssetError: As there.
    """
    documents = _Documents(spec, split, seed, revisions, validation)
    mixture = MIXTURES.get(split_of(spec)[0])
    if mixture is None:
        return plain(documents, encode)
    return mixed(documents, *mixture, encode=encode, longest=longest, seed=seed, spent=spent)


def check_text(spec: str) -> None:
    """Refuse a text that :func:`load_texts` would not know; nothing is read or fetched.

    Args:
        spec: As there.

    Raises:
        AssetError: If it is neither a name nor a file or folder of texts.
    """
    name, _ = _parse(spec, "train")
    if name not in TEXTS:
        text_files(name)


def split_of(spec: str) -> tuple[str, Split]:
    """A text's name without its split, and the split: that of training where it names none."""
    return _parse(spec, "train")


def _parse(spec: str, split: Split) -> tuple[str, Split]:
    """A spec without its split, and the split."""
    splits: tuple[Split, ...] = get_args(Split)
    for candidate in splits:
        if spec.endswith(f":{candidate}"):
            spec, split = spec.removesuffix(f":{candidate}"), candidate
            break
    if split not in splits:
        raise ConfigError(f"Unknown split {split!r}. Splits are: {', '.join(splits)}.")
    if not spec:
        raise AssetError(f"A text's name is empty; it is one of {', '.join(TEXTS)}, or a file.")
    return spec, split


@dataclass(frozen=True)
class _Documents:
    """A split's documents in seeded order, and of them those set apart for validation, or not.

    They are read anew, in the same order, whenever one begins.
    """

    spec: str
    split: Split
    seed: int | None
    revisions: Mapping[str, str | None] | None
    validation: bool | None = None

    def __iter__(self) -> Iterator[Document]:
        spec, (name, split) = self.spec, _parse(self.spec, self.split)
        if name.split(":")[0] in ("slimpajama", "c4"):
            for document in _streamed(name, split, self.seed, self.revisions):
                if self.validation in (None, _lot(document.text) < _APART):
                    yield document
            return
        domain = DOMAINS.get(name)  # a part of the mixture, in the same splits
        rows = _whole("packaged" if domain else name, split, self.revisions)
        if not rows:
            raise ConfigError(f"{spec!r} has no document in the split {split!r}; use '{name}:all'.")
        if self.validation is not None:
            lots = sorted({group for _, group in rows}, key=_lot)
            apart = set(lots[: max(1, round(_APART * len(lots)))]) if len(lots) > 1 else set()
            rows = [row for row in rows if (row[1] in apart) == self.validation]
            if not rows:
                raise ConfigError(f"{spec!r} is one document, and validation needs one of its own.")
        rows = [row for row in rows if domain in (None, row[0].domain)]
        if self.seed is not None:
            random.Random(self.seed).shuffle(rows)
        yield from (document for document, _ in rows)


def _lot(group: str) -> float:
    """A number below 1 drawn for a group of documents, the same on every machine."""
    digest = hashlib.sha256(f"validation: {group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _whole(
    name: str, split: Split, revisions: Mapping[str, str | None] | None
) -> list[tuple[Document, str]]:
    """All documents of a text that fits into memory, in the source's order, with their groups."""
    if name == "packaged":
        rows = [(Document(p.text, p.domain), p.group) for p in packaged_passages()]
    elif name == "wikitext2":
        stream = _hub("wikitext2", "wikitext-2-raw-v1", split, None, revisions)
        return [(Document(t, "wikitext2"), t) for t in _articles(row["text"] for row in stream)]
    else:
        pieces = ((_jsonl if f.suffix == ".jsonl" else _txt)(f) for f in text_files(name))
        rows = [(document, document.text) for piece in pieces for document in piece]
    return [row for row in rows if split == "all" or is_heldout(row[1]) == (split == "heldout")]


def _streamed(
    name: str, split: Split, seed: int | None, revisions: Mapping[str, str | None] | None
) -> Iterator[Document]:
    """Documents of a text that does not fit into memory."""
    if name == "c4":
        yield from (Document(row["text"], "c4") for row in _hub("c4", "en", split, seed, revisions))
        return
    for row in _hub("slimpajama", None, split, seed, revisions):
        require_fields(row["meta"], ("redpajama_set_name",), REPOSITORIES["slimpajama"])
        yield Document(row["text"], row["meta"]["redpajama_set_name"])


def _hub(
    name: str,
    config: str | None,
    split: Split,
    seed: int | None,
    revisions: Mapping[str, str | None] | None,
) -> Iterator[dict[str, Any]]:
    """Rows of a data set on the hub, streamed; shuffled within a buffer if there is a seed."""
    hub_split = _HUB_SPLITS[name].get(split)
    if hub_split is None:
        raise ConfigError(f"{name!r} has no split {split!r}; use {name + ':heldout'!r} or train.")
    return kept_rows(
        REPOSITORIES[name],
        config,
        split=hub_split,
        columns=_HUB_COLUMNS.get(name, ("text",)),
        revision=(revisions or {}).get(REPOSITORIES[name]),
        seed=seed,
        buffer=_SHUFFLE_BUFFER,
    )


def text_files(name: str) -> list[Path]:
    """The .jsonl and .txt files of a text's name."""
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", ".txt"))
    else:
        files = [path] if path.is_file() and path.suffix in (".jsonl", ".txt") else []
    if not files:
        state = "holds no .jsonl or .txt file" if path.is_dir() else "is no .jsonl or .txt file"
        state = state if path.exists() else "does not exist"
        raise AssetError(
            f"Text {name!r} {state}. A text is one of {', '.join(TEXTS)}, or a local .jsonl file "
            f"(a field 'text', optionally 'domain'), a .txt file, or a folder of them."
        )
    return files


def _jsonl(path: Path) -> Iterator[Document]:
    with path.open(encoding="utf-8") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield from _row(line, f"{path}, line {number}", path.stem)
        except UnicodeDecodeError as error:
            raise AssetError(f"{path} is not UTF-8 text: {error}.") from error


def _row(line: str, where: str, domain: str) -> Iterator[Document]:
    """The document of a line, unless it is empty."""
    try:
        row = json.loads(line)
    except RecursionError:
        raise AssetError(f"{where} is not JSON: it is nested too deeply.") from None
    except ValueError as error:
        raise AssetError(f"{where} is not JSON: {error}.") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise AssetError(
            f"{where} has no field 'text' with a string; each line is an object like "
            '{"text": "...", "domain": "..."}.'
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AssetError(f"{where} holds half of a surrogate pair, which is no text.") from error
    if text:
        yield Document(text, str(row.get("domain") or domain))


def _txt(path: Path) -> Iterator[Document]:
    """Articles of a wikitext-style file; else pieces of a plain text split at blank lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        raise AssetError(f"{path} is not UTF-8 text: {error}.") from error
    if any(_HEADING.fullmatch(line.rstrip("\n")) for line in lines):
        pieces = _articles(lines)
    else:
        pieces = _pieces(lines)
    for piece in pieces:
        yield Document(piece, path.stem)


def _articles(lines: Iterable[str]) -> Iterator[str]:
    """Join the lines of wikitext into articles, which begin at `` = Title = ``."""
    article: list[str] = []
    for line in lines:
        if _HEADING.fullmatch(line.rstrip("\n")) and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append(line)
    if "".join(article).strip():
        yield "".join(article)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if not line.strip() and size >= _PLAIN_TEXT_CHARS:
            yield "".join(piece).strip("\n")
            piece, size = [], 0
    if "".join(piece).strip():
        yield "".join(piece).strip("\n")
