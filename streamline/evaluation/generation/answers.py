"""The texts that many paths generate for a task, kept while they come.

All paths that can generate side by side do so (:mod:`streamline.evaluation.generation.engine`);
those that cannot, by their architecture or because the task needs more than the likeliest
tokens, are assembled as models and left to lm-eval, one after the other, and the log gives the
reason. Texts are written every few seconds, so a killed run resumes where it was.

Example::

    texts = answer_texts({"a": dense, "b": pruned}, part, tokenizer, files={"a": ..., "b": ...})
    finish(part, texts[0])
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from streamline.distributed.team import leads
from streamline.distributed.work import shared
from streamline.engine.assemble import assemble
from streamline.engine.finite import not_finite
from streamline.engine.paths import Path as LayerPath
from streamline.errors import NotFiniteError
from streamline.evaluation.generation.alone import unsupported
from streamline.evaluation.generation.shards import generate_shared
from streamline.evaluation.harness import continuations, max_length, text_of, unsupported_options
from streamline.evaluation.harness import generate as generate_alone
from streamline.evaluation.part import Part
from streamline.kept import kept_json, write_json

__all__ = ["answer_texts"]

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 20.0  # seconds of work that a killed run may lose


def answer_texts(
    paths: Mapping[str, LayerPath],
    part: Part,
    tokenizer: Any,
    *,
    files: Mapping[str, Path],
    batch_tokens: int | None = None,
    progress: Callable[[float, int], None] | None = None,
) -> list[list[str] | NotFiniteError]:
    """Every path's text for every request of a task.

    Args:
        paths: What generates, by any key.
        part: A part that generates.
        tokenizer: The tokenizer of all of them.
        files: Where each path's texts are kept as they come; what lies there of the same
            questions is not generated again.
        batch_tokens: Most tokens of prompts that are run together; None for what suits the device.
        progress: Called with the requests done and in all, each counted once for every path; one
            that is begun counts as its share of the most tokens that it may have.

    Returns:
        For each path, in order, one text per instance, as lm-eval's ``hf`` model gives them one
        at a time; the error of a path whose logits are not finite for one of them.
    """
    decoder = next(iter(paths.values())).decoder
    longest = max_length(decoder.config, tokenizer)
    kept = {key: _Kept(files[key], part) for key in paths}
    n = shared(lambda: len(part.instances))

    def report(begun: float = 0.0) -> None:
        if progress is not None:
            progress(sum(len(texts.texts) for texts in kept.values()) + begun, n * len(paths))

    options = shared(lambda: unsupported_options(part))
    prompts = shared(lambda: [] if options else continuations(part, tokenizer, max_length=longest))
    length = max((len(p.tokens) + p.max_new_tokens for p in prompts), default=0)
    together: dict[tuple[int, ...], list[str]] = {}
    failed: dict[str, NotFiniteError] = {}
    broken: dict[str, tuple[int, list[int]]] = {}
    for key, path in paths.items():
        missing = tuple(i for i in range(n) if i not in kept[key].texts)
        reason = f"the task needs {options}" if options else unsupported(path.decoder, length)
        if missing and reason is not None:
            logger.warning("%s generates by itself for %s: %s", path.name or key, part.name, reason)
            try:
                texts = shared(partial(_alone, path, part, tokenizer))
            except NotFiniteError as error:
                failed[key] = error
                continue
            kept[key].texts = dict(enumerate(texts))
            kept[key].write()
            report()
        elif missing:
            together.setdefault(missing, []).append(key)
    for missing, keys in together.items():

        def written(
            path: int,
            prompt: int,
            tokens: list[int],
            missing: tuple[int, ...] = missing,
            keys: list[str] = keys,
        ) -> None:
            index = missing[prompt]
            if tokens[-1] < 0:
                broken.setdefault(keys[path], (index, [*prompts[index].tokens, *tokens[:-1]]))
                return
            kept[keys[path]].add(index, text_of(prompts[index], tokens, tokenizer))

        generate_shared(
            [paths[key] for key in keys],
            [prompts[i] for i in missing],
            tokenizer,
            written=written,
            begun=report,
            batch_tokens=batch_tokens,
        )
        for key in keys:
            kept[key].write()
        report()
    for key, (index, read) in broken.items():
        doc = shared(partial(_question, part, index))
        what = f"the logits of a generated token of question {doc}"
        failed[key] = not_finite(f"{part.name}: {what}", paths[key], [torch.tensor([read])])
    return [failed.get(key) or [kept[key].texts[i] for i in range(n)] for key in paths]


def _alone(path: LayerPath, part: Part, tokenizer: Any) -> list[str]:
    return generate_alone(assemble(path), part, tokenizer)


def _question(part: Part, index: int) -> int:
    return int(part.instances[index].doc_id)


class _Kept:
    """The texts of one path that are done, on disk.

    Args:
        file: Where they lie.
        part: Whose requests they answer; texts for other questions are ignored.
    """

    def __init__(self, file: Path, part: Part) -> None:
        self._file, self._data_hash = file, part.data_hash
        self._written = time.monotonic()
        self.texts = shared(lambda: _texts_in(file, part))

    def add(self, index: int, text: str) -> None:
        """Keep a text, on disk if the last writing is a while ago."""
        self.texts[index] = text
        if time.monotonic() - self._written > SAVE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        if not leads():
            return
        texts = {str(index): self.texts[index] for index in sorted(self.texts)}
        write_json(self._file, {"data_hash": self._data_hash, "texts": texts})
        self._written = time.monotonic()


def _texts_in(file: Path, part: Part) -> dict[int, str]:
    """Texts that were kept for the questions of a part, by number."""
    found = kept_json(file)
    if found is None or found["data_hash"] != part.data_hash:
        return {}
    texts = {int(index): text for index, text in found["texts"].items()}
    return {i: text for i, text in texts.items() if i < len(part.instances)}
