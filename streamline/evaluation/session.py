"""Evaluate many paths on many tasks, keeping every answer as soon as it is there.

Questions are built once and scored for all paths in one walk, task by task. Each path's answers to
a task go to ``DIR/cache/answers/KEY`` at once, so a killed run asks only what is missing; what was
asked together changes no number by more than rounding.

Example:
    session = Session(config, tokenizer, materials, out / "cache", progress)
    results = session.run({key: path, dense_key: dense_path(decoder)})
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.engine.paths import Path as LayerPath
from streamline.errors import AssetError
from streamline.evaluation.generation.answers import answer_texts
from streamline.evaluation.harness import build, max_length
from streamline.evaluation.part import Part
from streamline.evaluation.scoring.perplexity import Perplexity, perplexity, text_windows
from streamline.evaluation.scoring.score import score
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.evaluation.task_results import combine, finish
from streamline.evaluation.tasks.catalogue import TaskEntry, resolve
from streamline.evaluation.tasks.overrides import provenance, unavailable
from streamline.evaluation.tasks.running_text import RunningText, running_text
from streamline.files import write_json_atomic
from streamline.progress import Progress
from streamline.results.assess import CellResult
from streamline.results.samples import read_samples, write_samples
from streamline.run.cell import Cell
from streamline.run.config import RunConfig
from streamline.run.inputs import Materials

__all__ = ["Session"]


@dataclass(frozen=True)
class _Text:
    """A text whose perplexity is asked for, cut into windows [N, T]."""

    name: str
    windows: Tensor
    provenance: dict[str, Any]


class Session:
    """The evaluation of all cells of one model.

    Args:
        config: The run.
        tokenizer: The model's tokenizer.
        materials: Token batches, for the held-out text.
        cache_dir: Where answers are kept.
        progress: Where to say what is being done.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: Any,
        materials: Materials,
        cache_dir: Path,
        progress: Progress,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.materials = materials
        self.folder = cache_dir / "answers"
        self.budget = TokenBudget(config.batch_tokens, cache_dir / "batch_tokens")
        self.progress = progress
        self.unavailable: dict[str, str] = {}
        self._running: dict[str, RunningText] = {}
        self.entries = [entry for entry in resolve(config.tasks) if self._available(entry)]
        self._parts: list[Part] | None = None
        self._longest: int | None = None
        if not self.entries and not config.perplexity.n_tokens:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.unavailable.items())
            raise AssetError(f"none of the asked tasks has questions here: {reasons}")

    def run(self, paths: Mapping[str, LayerPath]) -> dict[str, CellResult]:
        """Answer everything for every path that has no answer yet.

        Args:
            paths: Cell key to path; all paths enter the same decoder.

        Returns:
            Each cell's results, read back from disk.
        """
        decoder = next(iter(paths.values())).decoder
        parts = self._questions(max_length(decoder.config, self.tokenizer))
        if decoder.streamed:
            self._in_one_pass(parts, paths)
            return {key: self.stored(key) for key in paths}
        for part in parts:
            missing = {k: p for k, p in paths.items() if not self._file(k, part.name).is_file()}
            if missing:
                self._answer(part, missing)
        for text in self._texts:
            missing = {k: p for k, p in paths.items() if not self._file(k, text.name).is_file()}
            if missing:
                self._perplexity(text, missing)
        return {key: self.stored(key) for key in paths}

    def stored(self, key: str) -> CellResult:
        """A cell's results as they lie on disk; all its answers must be there."""
        parts = self._parts or []
        blocks = {part.name: self._read(key, part.name) for part in parts}
        tasks: dict[str, dict[str, Any]] = {}
        for entry in self.entries:
            names = [part.name for part in parts if part.entry.name == entry.name]
            if names:
                row = combine(entry, [blocks[name]["block"] for name in names])
                tasks[entry.name] = row | {"subtasks": names, "protocol": entry.protocol}
        frames = [read_samples(self._samples(key, part.name)) for part in parts]
        texts = {text.name: self._read(key, text.name) for text in self._texts}
        seconds = sum(b["seconds"] for b in (*blocks.values(), *texts.values()))
        perplexity = {name: found["block"] for name, found in texts.items()}
        samples = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
        return CellResult(tasks, samples, perplexity, seconds)

    def answered(self, key: str, decoder: Decoder) -> bool:
        """Whether all of a cell's answers lie on disk."""
        self._questions(max_length(decoder.config, self.tokenizer))
        return self.has(key)

    def has(self, key: str) -> bool:
        """Whether all of a cell's answers to the questions at hand lie on disk."""
        return self._complete(key, self._parts or [])

    def _complete(self, key: str, parts: Iterable[Part]) -> bool:
        """Whether a path's answers to these tasks and all texts lie on disk."""
        asked: list[Part | _Text] = [*parts, *self._texts]
        return all(self._file(key, item.name).is_file() for item in asked)

    def write_samples(self, cell: Cell, result: CellResult) -> None:
        """Write a cell's rows where reports look for them."""
        file = self.config.out / "samples" / f"{cell.slug}.parquet"
        if len(result.samples):
            write_samples(file, result.samples)
        else:
            file.unlink(missing_ok=True)  # of other tasks

    def facts(self) -> dict[str, Any]:
        """Content hashes of the questions and texts, for the record."""
        return {
            "questions": {part.name: part.data_hash for part in self._parts or []},
            "sources": {
                part.name: provenance(
                    part.name, source=self.config.data, data_dir=self.config.data_dir
                )
                for part in self._parts or []
            },
            "unavailable": self.unavailable,
            "texts": {text.name: text.provenance for text in self._texts},
            "batches": self.materials.facts(),
            "scoring": {"batch_tokens": self.budget.facts(), "compiled": self.config.compile},
        }

    def _available(self, entry: TaskEntry) -> bool:
        """Whether a row's questions or text can be had; if not, its reason is kept and said."""
        reason = self._lacks(entry)
        if reason is not None:
            self.unavailable[entry.name] = reason
            self.progress.say(f"left out: {entry.name}: {reason}")
        return reason is None

    def _lacks(self, entry: TaskEntry) -> str | None:
        """Why a row cannot be measured here; a text is kept when it can be read."""
        source, data_dir = self.config.data, self.config.data_dir
        if entry.protocol == "perplexity":
            try:
                self._running[entry.name] = running_text(
                    entry.name, source=source, data_dir=data_dir
                )
            except AssetError as error:
                return str(error)
        reasons = (unavailable(name, source=source, data_dir=data_dir) for name in entry.tasks)
        return next((reason for reason in reasons if reason is not None), None)

    def _questions(self, longest: int) -> list[Part]:
        if self._parts is None:
            self._longest = longest
            self.progress.stage("questions")
            self._parts = build(
                self.entries,
                self.tokenizer,
                max_length=longest,
                limit=self.config.limit,
                source=self.config.data,
                data_dir=self.config.data_dir,
            )
            if self.config.stream:
                self._leave_out_texts()
        return self._parts

    def _leave_out_texts(self) -> None:
        """Keep what is scored: a text needs a pass over a streamed model for each of its tokens."""
        parts = self._parts or []
        self._parts = [part for part in parts if not part.generates]
        for name in {part.entry.name for part in parts if part.generates}:
            reason = "generates text, which a model whose layers are streamed cannot do in one pass"
            self.unavailable[name] = reason
            self.progress.say(f"left out: {name}: {reason}")

    @cached_property
    def _texts(self) -> list[_Text]:
        """Texts whose perplexity is asked for: the run's own, then those among the tasks."""
        texts = []
        own = self.config.perplexity
        if own.n_tokens and self._has_room(_label(own.texts), own.length):
            held = self.materials.heldout()
            texts.append(_Text(_label(own.texts), held, {"window": held.shape[1]}))
        for entry in self.entries:
            if entry.protocol == "perplexity" and entry.name not in {t.name for t in texts}:
                window = entry.window or 2048
                if not self._has_room(entry.name, window):
                    continue
                running = self._running[entry.name]
                tokens = text_windows(running.text, self.tokenizer, window)
                tokens = tokens[: self.config.limit] if self.config.limit else tokens
                texts.append(_Text(entry.name, tokens, running.to_json()))
        return texts

    def _has_room(self, name: str, window: int) -> bool:
        """Whether the model has positions for a text's windows; if not, that is kept and said."""
        if self._longest is None or window <= self._longest:
            return True
        self.unavailable[name] = (
            f"windows of {window:,} tokens are longer than the {self._longest:,} positions of the "
            f"model; ask for shorter ones, as wikitext2@{self._longest}, or set perplexity: length:"
        )
        self.progress.say(f"left out: {name}: {self.unavailable[name]}")
        return False

    def _answer(self, part: Part, paths: Mapping[str, LayerPath]) -> None:
        self.progress.stage(f"{part.name}: {part.n_docs} questions, {len(paths)} models")
        start = time.perf_counter()
        answers = self._asked(part, paths)
        self._keep(part, paths, answers, (time.perf_counter() - start) / len(paths))

    def _keep(
        self, part: Part, paths: Iterable[str], answers: Iterable[Any], seconds: float
    ) -> None:
        """Write every path's answers to a task."""
        for key, answer in zip(paths, answers, strict=True):
            block, rows = finish(part, answer)
            write_samples(self._samples(key, part.name), rows)
            self._write(key, part.name, block, seconds)

    def _asked(self, part: Part, paths: Mapping[str, LayerPath]) -> list[Any]:
        """Every path's texts, or its log-probabilities."""
        if part.generates:
            return answer_texts(
                paths,
                part,
                self.tokenizer,
                files={key: self._file(key, f"{part.name}.texts") for key in paths},
                batch_tokens=self.config.batch_tokens,
                progress=self.progress.step,
            )
        return score(
            list(paths.values()),
            part.requests,
            batch_tokens=self.budget,
            compiled=self.config.compile,
            progress=self.progress.step,
        )

    def _perplexity(self, text: _Text, paths: Mapping[str, LayerPath]) -> None:
        self.progress.stage(f"perplexity of {text.name}: {len(paths)} models")
        start = time.perf_counter()
        found = perplexity(
            list(paths.values()),
            text.windows,
            batch_tokens=self.budget,
            progress=self.progress.step,
        )
        self._keep_perplexity(text, paths, found, (time.perf_counter() - start) / len(paths))

    def _keep_perplexity(
        self, text: _Text, paths: Iterable[str], found: Iterable[Perplexity], seconds: float
    ) -> None:
        """Write every path's perplexity of a text."""
        for key, result in zip(paths, found, strict=True):
            block = {
                "value": result.value if math.isfinite(result.value) else None,
                "mean_nll": result.mean_nll if math.isfinite(result.mean_nll) else None,
                "n_tokens": result.n_tokens,
                "window": text.windows.shape[1],
            }
            self._write(key, text.name, block, seconds)

    def _in_one_pass(self, parts: list[Part], paths: Mapping[str, LayerPath]) -> None:
        """Answer everything that is missing of a streamed model's paths, its weights read once."""
        from streamline.evaluation.streamed import evaluate_streamed

        missing = {key: path for key, path in paths.items() if not self._complete(key, parts)}
        if not missing:
            return
        n_docs = sum(part.n_docs for part in parts)
        self.progress.stage(f"one pass: {n_docs} questions, {len(missing)} models")
        start = time.perf_counter()
        answers, nlls = evaluate_streamed(
            list(missing.values()),
            [request for part in parts for request in part.requests],
            [text.windows for text in self._texts],
            batch_tokens=self.budget,
            progress=self.progress.step,
        )
        seconds = (time.perf_counter() - start) / len(missing)
        seconds /= len(parts) + len(self._texts)
        place = 0
        for part in parts:
            own = slice(place, place + len(part.requests))
            self._keep(part, missing, [answer.part(own) for answer in answers], seconds)
            place = own.stop
        for text, nll in zip(self._texts, nlls, strict=True):
            n_tokens = text.windows.shape[0] * (text.windows.shape[1] - 1)
            found = [Perplexity(float(value), n_tokens) for value in nll]
            self._keep_perplexity(text, missing, found, seconds)

    def _file(self, key: str, name: str) -> Path:
        return self.folder / key[:16] / f"{name}.json"

    def _samples(self, key: str, name: str) -> Path:
        return self._file(key, name).with_suffix(".parquet")

    def _write(self, key: str, name: str, block: dict[str, Any], seconds: float) -> None:
        write_json_atomic(self._file(key, name), {"block": block, "seconds": seconds})

    def _read(self, key: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._file(key, name).read_text(encoding="utf-8"))
        return found


def _label(texts: str) -> str:
    """A short name for the run's own held-out text, apart from the names of the tasks."""
    if texts.startswith("packaged"):
        return "heldout"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", Path(texts).stem) + "-heldout"
