"""lm-eval as the authority on questions, prompts and metrics; the only file that imports it.

lm-eval builds the requests once, its own code turns them into token ids, our scorer answers them
for all paths, and lm-eval computes its metrics for each path from the answers
(:mod:`streamline.evaluation.task_results`). None of this needs a model.

Example::

    for part in build(resolve(["commonsense"]), tokenizer, max_length=max_length(config)):
        for answers in score(paths, part.requests):
            result, rows = finish(part, answers)
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamline.errors import ConfigError
from streamline.evaluation.finite import finite_logits
from streamline.evaluation.generation.prompts import Prompt
from streamline.evaluation.part import BatchTokenizer, Part
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.scoring.packing import Request
from streamline.evaluation.tasks.catalogue import TaskEntry, include_paths
from streamline.evaluation.tasks.overrides import fingerprint, question_keys
from streamline.evaluation.tasks.row_checks import askable, check_repeats, loading, shown
from streamline.evaluation.tasks.text_ids import FULL_TEXT_TOKENS, full_text_ids

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "aggregate", "continuations", "doc_hash", "generate", "load_tasks", "max_length", "quiet",
    "task_manager", "task_part", "text_of", "token_pairs", "unsupported_options",
]  # fmt: skip

_BOOTSTRAP = 1000


def max_length(config: PretrainedConfig, tokenizer: Any = None) -> int:
    """The context length that lm-eval's ``hf`` model uses for a model."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(config, tokenizer))


def task_manager(entries: Iterable[TaskEntry]) -> Any:
    """lm-eval's index of the folders that some rows are defined in, as they are written now."""
    paths, defaults = include_paths(entries)
    files = sorted(file for path in paths for file in Path(path).glob("**/*.yaml"))
    return _indexed(tuple(paths), defaults, tuple((f, f.stat().st_mtime_ns) for f in files))


@lru_cache(maxsize=4)
def _indexed(paths: tuple[str, ...], defaults: bool, _: tuple[tuple[Path, int], ...]) -> Any:
    from lm_eval.tasks import TaskManager

    with quiet():
        return TaskManager(include_path=list(paths), include_defaults=defaults)


def load_tasks(manager: Any, name: str, changes: Mapping[str, Any]) -> list[Any]:
    """The task objects of one of lm-eval's names, a task's with its configuration changed."""
    group = {"group": "streamline_run", "task": [{"task": name, **changes}]}
    with quiet():
        return list(manager.load([group if changes else name])["tasks"].values())


def task_part(
    task: Any,
    entry: TaskEntry,
    tokenizer: Any,
    *,
    max_length: int,
    limit: int | None = None,
    prompting: Prompting | None = None,
) -> Part:
    """Build the requests of one lm-eval task object.

    Args:
        task: For example ``ConfigurableTask(config=...)`` over questions in memory.
        entry: The row it belongs to.
        tokenizer: The model's tokenizer.
        max_length: The model's context length.
        limit: The first so many questions; None for all.
        prompting: What is put around each question; None for the task's own prompts.

    Raises:
        AssetError: If a question cannot be asked as it is.
        ConfigError: If the task is of another kind, has no such prompts, or answers are too long.
    """
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood", "generate_until"):
        raise ConfigError(
            f"Task {task.task_name!r} is of type {task.OUTPUT_TYPE}, which is not supported here. "
            "For perplexity use wikitext2, c4 or heldout."
        )
    from lm_eval.utils import env

    with quiet(), loading(task.task_name), shown(task, env):
        task.set_fewshot_seed(1234)  # lm-eval's own default
        task.build_all_requests(limit=limit, **_around(task, tokenizer, prompting or Prompting()))
    instances = askable(task)
    requests: list[Request] = []
    if task.OUTPUT_TYPE != "generate_until":
        if entry.protocol == "opencompass-ppl":
            most = min(max_length, FULL_TEXT_TOKENS)
            texts = [instance.args[0] + instance.args[1] for instance in instances]
            pairs = [(ids[:1], ids[1:]) for ids in full_text_ids(tokenizer, texts, most)]
        else:
            pairs = token_pairs(instances, tokenizer)
        for instance, (context, continuation) in zip(instances, pairs, strict=True):
            longest = max_length + 1 - len(continuation)  # of the context
            if longest < 1:
                raise ConfigError(
                    f"Option {instance.idx} of question {instance.doc_id} of {task.task_name!r} "
                    f"has {len(continuation)} tokens, the model's context {max_length}."
                )
            option = task.task_name, int(instance.doc_id), int(instance.idx)
            requests.append(Request(*option, tuple(context[-longest:]), tuple(continuation)))
    n_docs = len({instance.doc_id for instance in instances})
    keys = question_keys(task.eval_docs, n_docs)
    check_repeats(task.task_name, keys, entry.brings_data)
    return Part(
        name=task.task_name,
        entry=entry,
        task=task,
        instances=instances,
        requests=tuple(requests),
        n_docs=n_docs,
        data_hash=fingerprint(keys),
        shots=entry.shots or int(task.config.num_fewshot or 0),
    )


def _around(task: Any, tokenizer: Any, prompting: Prompting) -> dict[str, Any]:
    """What lm-eval puts around the questions of a task, whose number of examples is set.

    A task that says 0 keeps 0, as in lm-eval.
    """
    from lm_eval.models.huggingface import HFLM

    if prompting.num_fewshot is not None and task.config.num_fewshot != 0:
        task.set_config("num_fewshot", prompting.num_fewshot)
    given: dict[str, Any] = {
        "system_instruction": prompting.system_instruction,
        "apply_chat_template": prompting.apply_chat_template,
        "fewshot_as_multiturn": prompting.fewshot_as_multiturn,
    }
    if not prompting.apply_chat_template:
        return given
    if tokenizer.chat_template is None:
        raise ConfigError(
            "the model's tokenizer has no chat template, which --apply-chat-template needs; leave "
            "it out, or take an instruction-tuned model"
        )

    class Chat(HFLM):  # type: ignore[misc]
        """lm-eval's model class without a model: it only fills in the template."""

        def __init__(self) -> None:
            self.tokenizer = tokenizer
            self.chat_template_args: dict[str, Any] = {}

    return given | {"chat_template": Chat().apply_chat_template}


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
        part: A part that generates; one text is returned for each of its instances.
        tokenizer: Its tokenizer.
        batch_size: Prompts at once.
        max_length: Context length; None for the model's.

    Raises:
        NotFiniteError: If a logit that a token is chosen by is NaN or infinite.
    """
    from lm_eval.models.huggingface import HFLM

    with quiet(), finite_logits(model, part.name):
        lm = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length
        )
        return list(lm.generate_until(list(part.instances), disable_tqdm=True))


def continuations(part: Part, tokenizer: Any, *, max_length: int) -> list[Prompt]:
    """The prompts of a task that generates text, as lm-eval's ``hf`` model encodes them.

    Args:
        part: A part that generates greedily (no :func:`unsupported_options`).
        tokenizer: The model's tokenizer.
        max_length: The model's context length; longer prompts lose tokens on the left.

    Returns:
        One prompt per instance; its stop strings are the task's and the end-of-text token's.
    """
    from lm_eval.api.model import LM
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import configure_pad_token

    class Recording(HFLM):  # type: ignore[misc]
        """lm-eval's model class without a model: it only records the prompts."""

        def __init__(self) -> None:
            LM.__init__(self)
            self.tokenizer = shim
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

    def recorded() -> list[Prompt]:
        recording = Recording()
        for instance in part.instances:  # one by one: lm-eval would change their order
            recording.generate_until([instance], disable_tqdm=True)
        return recording.kept

    with quiet():
        shim = BatchTokenizer(configure_pad_token(tokenizer))
        return shim.answered(recorded)


def unsupported_options(part: Part) -> str | None:
    """The generation options of a task that greedy decoding does not have, or None."""
    from lm_eval.models.utils import normalize_gen_kwargs

    found: set[str] = set()
    with quiet():
        for instance in part.instances:
            options = dict(normalize_gen_kwargs(instance.args[1]))
            off = {name for name in ("do_sample", "temperature") if not options.get(name)}
            found |= set(options) - {"until", "max_gen_toks"} - off
    return ", ".join(sorted(found)) or None


def text_of(prompt: Prompt, tokens: Sequence[int], tokenizer: Any) -> str:
    """The answer of lm-eval's ``hf`` model for some generated tokens."""
    from lm_eval.models.utils import postprocess_generated_text

    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    return str(postprocess_generated_text(text, list(prompt.stops), None))


def doc_hash(doc: Any) -> str:
    """Hash of a question: lm-eval's own, unless the document has a ``question_key``."""
    if "question_key" in doc:
        return str(doc["question_key"])
    from lm_eval.utils import handle_non_serializable, hash_string

    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))


def aggregate(
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


def token_pairs(instances: Sequence[Any], tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Context and continuation of each request, encoded by lm-eval's ``hf`` code."""
    from lm_eval.models.huggingface import HFLM

    class Encoding(HFLM):  # type: ignore[misc]
        """lm-eval's model class without a model: it only returns the token ids."""

        def __init__(self) -> None:
            self.tokenizer = shim
            self.backend = "causal"
            self.add_bos_token = None
            self.custom_prefix_token_id = None
            self.enable_thinking = None

        @cached_property
        def prefix_token_id(self) -> int:
            """lm-eval's own, which it looks up for each text."""
            return int(super().prefix_token_id)

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[Any]:
            return [(context, continuation) for _, context, continuation in requests]

    shim = BatchTokenizer(tokenizer)
    answered = shim.answered(lambda: Encoding().loglikelihood([*instances], disable_tqdm=True))
    return list(answered)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without lm-eval's progress bars and notices; errors are raised as ever."""
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
