"""Token ids of whole texts, and texts truncated to a model's context.

Example::

    full_text_ids(tokenizer, "a long text ...", max_length=2048)     # BOS kept, the end kept
"""

from __future__ import annotations

from typing import Any

__all__ = ["FULL_TEXT_TOKENS", "fit_text", "full_text_ids"]

FULL_TEXT_TOKENS = 2048
"""Longest text of the mean-NLL protocol, as in the papers' runs."""


def full_text_ids(tokenizer: Any, text: str, max_length: int = FULL_TEXT_TOKENS) -> list[int]:
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

    For lm-eval's ``hf`` model, which expects strings and rejects longer ones. Where the end of the
    text does not tokenise back into the same tokens, it is a few tokens shorter.
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
