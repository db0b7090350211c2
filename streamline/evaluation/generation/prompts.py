"""What is to be continued: prompts, those of them that begin alike, and where their texts end.

Example::

    prompts = [Prompt(tuple(ids), stops=("Question:",), max_new_tokens=512) for ids in encoded]
    for n_shared, members in alike(prompts): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from streamline.errors import ConfigError

__all__ = ["Prompt", "Stops", "alike"]

_ALIKE = 32  # tokens that prompts must have in common to be run together


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued.

    Attributes:
        tokens: Its token ids, at least one.
        stops: Strings that end the text as soon as its last tokens hold one.
        max_new_tokens: Most tokens to be generated, at least 1.
        temperature: What logits are divided by where tokens are drawn; 0 for the likeliest ones.
        seed: Of the draws, the prompt's own.
    """

    tokens: tuple[int, ...]
    stops: tuple[str, ...]
    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be continued.

        Raises:
            ConfigError: If there is no token to begin with or none to be generated.
        """
        if not self.tokens or self.max_new_tokens < 1:
            raise ConfigError(
                "a prompt needs at least one token and at least one to be generated, got "
                f"{len(self.tokens)} and {self.max_new_tokens}"
            )

    def place(self, number: int) -> float:
        """Where in its distribution the new token of a number is drawn, in [0, 1)."""
        digest = blake2b(f"{self.seed} {number}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") / 2**32


def alike(prompts: Sequence[Prompt]) -> list[tuple[int, list[int]]]:
    """Prompts that begin alike, with the number of tokens they have in common.

    At least one token of each prompt remains.

    Returns:
        Groups of two and more, then all others after an empty prefix.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        families.setdefault(prompt.tokens[:_ALIKE], []).append(index)
    out, single = [], []
    for start, members in families.items():
        if len(members) < 2 or len(start) < _ALIKE:
            single += members
            continue
        tokens = [prompts[i].tokens for i in members]
        low, high = min(tokens), max(tokens)
        shared = min(len(min(tokens, key=len)) - 1, len(low))
        n = next((i for i in range(shared) if low[i] != high[i]), shared)
        out.append((n, members))
    return [*out, (0, sorted(single))] if single else out


class Stops:
    """Looks for stop strings in the last tokens of texts, as lm-eval's own criterion does."""

    def __init__(self, prompts: Sequence[Prompt], tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        strings = {stop for prompt in prompts for stop in prompt.stops}
        # Two tokens more than the string's own, since a text may spell it in other tokens.
        self._windows = {
            stop: len(tokenizer.encode(stop, add_special_tokens=False)) + 2 for stop in strings
        }

    def found(self, texts: Sequence[tuple[Prompt, list[int]]]) -> list[bool]:
        """Whether each text ends with a stop string of its prompt, or nearly."""
        tails: dict[tuple[int, int], int] = {}
        wanted: list[list[int]] = []
        for row, (prompt, tokens) in enumerate(texts):
            for stop in prompt.stops:
                key = (row, self._windows[stop])
                if key not in tails:
                    tails[key] = len(wanted)
                    wanted.append(tokens[-key[1] :])
        decoded = self._tokenizer.batch_decode(wanted) if wanted else []
        return [
            any(stop in decoded[tails[row, self._windows[stop]]] for stop in prompt.stops)
            for row, (prompt, _) in enumerate(texts)
        ]
