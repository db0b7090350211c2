"""Token ids of whole texts, and texts truncated to a model's context.

Texts are encoded many at a time: a fast tokenizer divides them among the processor's cores.

Example::

    full_text_ids(tokenizer, ["a long text ..."], max_length=2048)     # BOS kept, the end kept
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["FULL_TEXT_TOKENS", "fit_texts", "full_text_ids", "token_ids"]

FULL_TEXT_TOKENS = 2048
"""Longest text of the mean-NLL protocol, as in the papers' runs."""

_AT_ONCE = 4096  # texts: ids that are only counted need no memory for all


def token_ids(tokenizer: Any, texts: Sequence[str], **options: Any) -> Iterator[list[int]]:
    """Token ids of each text, as the tokenizer gives them for it alone.

    Args:
        tokenizer: The model's tokenizer.
        texts: The texts.
        **options: More of what the tokenizer is called with, such as ``add_special_tokens``.
    """
    options |= {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    for start in range(0, len(texts), _AT_ONCE):
        yield from map(
            list, tokenizer(list(texts[start : start + _AT_ONCE]), **options)["input_ids"]
        )


def full_text_ids(
    tokenizer: Any, texts: Sequence[str], max_length: int = FULL_TEXT_TOKENS
) -> list[list[int]]:
    """Token ids of whole texts as OpenCompass scores them.

    Args:
        tokenizer: The model's tokenizer; its default special tokens are kept.
        texts: The texts.
        max_length: Longer texts lose tokens on the left; leading special tokens stay.

    Returns:
        For each at most ``max_length`` ids. Scored are ``ids[1:]`` given ``ids[:1]``; the divisor
        is ``len(ids)``.
    """
    found = list(token_ids(tokenizer, texts))
    kept = _n_leading(tokenizer) if any(len(ids) > max_length for ids in found) else 0
    return [
        ids if len(ids) <= max_length else ids[:kept] + ids[len(ids) - max_length + kept :]
        for ids in found
    ]


def fit_texts(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[str]:
    """The ends of texts that are at most ``max_length`` tokens long, special tokens counted.

    For lm-eval's ``hf`` model, which expects strings and rejects longer ones. Where the end of a
    text does not tokenise back into the same tokens, it is a few tokens shorter.
    """
    return [
        text if len(ids) <= max_length else _end(tokenizer, text, ids, max_length)
        for text, ids in zip(texts, token_ids(tokenizer, texts), strict=True)
    ]


def _end(tokenizer: Any, text: str, ids: list[int], max_length: int) -> str:
    kept = max_length - _n_leading(tokenizer)
    while len(ids) > max_length:
        tail = tokenizer.decode(ids[-kept:], clean_up_tokenization_spaces=False)
        text = text[-len(tail) :] if text.endswith(tail) else tail.lstrip("\ufffd")
        (ids,) = token_ids(tokenizer, [text])
        kept -= 1
    return text


def _n_leading(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts before a text."""
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", verbose=False)["input_ids"]
    return next((i for i, token in enumerate(full) if token == bare[0]), 0)
