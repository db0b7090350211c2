"""Token batches for calibration and training: packed text, or padded examples.

Both kinds of training data become padded sequences that name the first token whose loss counts, so
one loss serves both: all tokens of running text, only the answer of an example.

Example::

    token_batches(texts, tokenizer, n_samples=32, length=512, seed=0)           # [32, 512]
    batches = TokenBatches(tokenizer)                # made once for all that use them
    batches.tokens("packaged", n_samples=64, length=512, seed=0)                # [64, 512]
    as_sequences([{"instruction": "Add 2 and 3.", "output": "5"}], tokenizer, length=256)

Notation: N sequences, B sequences of one batch, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from streamline.errors import ConfigError
from streamline.hashing import content_key
from streamline.sources.instructions import is_instructions, load_examples, prompt_text
from streamline.sources.texts import Split, load_texts

__all__ = [
    "Sequences",
    "TokenBatches",
    "TrainingData",
    "as_sequences",
    "batches_fingerprint",
    "token_batches",
]

#: Token batches, [N, T], int64; or rows with ``instruction``, ``output`` and perhaps ``input``.
TrainingData = Tensor | Sequence[Mapping[str, str]]

#: Tokens loaded beyond those needed, since packing leaves remainders out.
_SPARE = 1.02


def token_batches(
    texts: Iterable[str], tokenizer: Any, *, n_samples: int, length: int, seed: int
) -> Tensor:
    """Pack texts into equal sequences of tokens.

    Documents are tokenised without truncation and joined, each ended by the end-of-sequence token;
    the stream is split into pieces of ``length``, the remainder is left out, and pieces are drawn
    without replacement by ``seed``. A tokenizer with a beginning-of-sequence token that it adds by
    itself starts each document with it, as in training.

    Args:
        texts: Documents.
        tokenizer: A Hugging Face tokenizer.
        n_samples: Sequences wanted.
        length: Tokens per sequence, T.
        seed: Seed of the draw.

    Returns:
        Token ids, [n_samples, T], int64.

    Raises:
        ConfigError: If the texts hold too few tokens.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    stream: list[int] = []
    for text in texts:
        stream += [*tokenizer(text, truncation=False, verbose=False).input_ids, *end]
    n_pieces = len(stream) // length
    if n_pieces < n_samples:
        raise ConfigError(
            f"the text holds {len(stream)} tokens, too few for {n_samples} sequences of {length}: "
            f"use at most {n_pieces} sequences, shorter ones, or give more text"
        )
    pieces = torch.tensor(stream[: n_pieces * length], dtype=torch.int64).view(n_pieces, length)
    generator = torch.Generator().manual_seed(seed)
    return pieces[torch.randperm(n_pieces, generator=generator)[:n_samples]]


def batches_fingerprint(batches: Tensor) -> str:
    """Content hash of token batches, for cache keys and provenance."""
    digest = hashlib.sha256(str(tuple(batches.shape)).encode())
    digest.update(batches.contiguous().numpy().tobytes())
    return digest.hexdigest()


class TokenBatches:
    """The token batches of one tokenizer, made on first use and kept.

    Equal text, number, length and seed give the same tensor.

    Args:
        tokenizer: The model's tokenizer.
        revisions: Commits of texts on the hub, by repository.
    """

    def __init__(self, tokenizer: Any, revisions: Mapping[str, str | None] | None = None) -> None:
        self.tokenizer = tokenizer
        self.revisions = revisions
        self._prints: dict[tuple[Any, ...], str] = {}
        self._used: dict[tuple[Any, ...], None] = {}
        self._made: dict[tuple[Any, ...], Any] = {}

    def tokens(
        self,
        texts: str,
        *,
        n_samples: int,
        length: int,
        seed: int,
        split: Split | Literal["train"] = "train",
    ) -> Tensor:
        """Sequences of a text.

        Args:
            texts: A known name, or a file or folder of texts.
            n_samples: Sequences, N.
            length: Tokens of each, T.
            seed: Seed of the draw.
            split: Part of the text; no document is in ``"heldout"`` and in ``"train"``.

        Returns:
            Token ids, [N, T], int64.

        Raises:
            AssetError: If there is no such text.
            ConfigError: If it holds too few tokens.
        """
        key = (texts, split, n_samples, length, seed)
        if key not in self._made:
            n_tokens = int(n_samples * length * _SPARE) + length
            documents = load_texts(
                texts,
                seed=seed,
                split=split,
                n_tokens=n_tokens,
                tokenizer=self.tokenizer,
                revisions=self.revisions,
            )
            self._made[key] = token_batches(
                [document.text for document in documents],
                self.tokenizer,
                n_samples=n_samples,
                length=length,
                seed=seed,
            )
        self._used[key] = None
        found: Tensor = self._made[key]
        return found

    def training(
        self, texts: str, *, n_tokens: int, validation_tokens: int, length: int, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Training and validation tokens of a text, [N, T] and [M, T]; no piece is in both.

        M is 0 without validation tokens, else at least 1.
        """
        n_train = max(1, n_tokens // length)
        n_validation = max(1, validation_tokens // length) if validation_tokens else 0
        batches = self.tokens(texts, n_samples=n_train + n_validation, length=length, seed=seed)
        return batches[:n_train], batches[n_train:]

    def fine_tuning(
        self, texts: str, *, n_tokens: int, validation_tokens: int, length: int, seed: int
    ) -> tuple[TrainingData, TrainingData | None]:
        """Training data of a whole model, and that of its validation loss.

        Both are tokens, [N, T], or instructions with their answers where ``texts`` names some.
        Without validation tokens the second is None.
        """
        if not is_instructions(texts):
            n_validation = -(-validation_tokens // length) * length
            train, validation = self.training(
                texts, n_tokens=n_tokens, validation_tokens=n_validation, length=length, seed=seed
            )
            return train, validation if len(validation) else None
        key = (texts, "train", n_tokens, validation_tokens, seed)
        if key not in self._made:
            self._made[key] = load_examples(
                texts,
                [n_tokens, validation_tokens],
                tokenizer=self.tokenizer,
                seed=seed,
                revisions=self.revisions,
            )
        self._used[key] = None
        examples, held_out = self._made[key]
        return examples, held_out or None

    def view(self) -> TokenBatches:
        """The same batches, with facts of what is asked of it alone."""
        own = TokenBatches(self.tokenizer, self.revisions)
        own._made, own._prints = self._made, self._prints
        return own

    def facts(self) -> dict[str, str]:
        """Content hashes of what was asked for so far, for the records."""
        for key in self._used:
            if key not in self._prints:
                made = self._made[key]
                tokens = isinstance(made, Tensor)
                self._prints[key] = batches_fingerprint(made) if tokens else content_key(made)
        return {"/".join(map(str, key)): self._prints[key] for key in self._used}


@dataclass(frozen=True)
class Sequences:
    """Right-padded token sequences.

    Attributes:
        ids: Tokens, [N, T], int64.
        lengths: Tokens of each without padding, [N].
        first: Index of the first token whose loss counts, [N].
        packed: Whether they all have one length, as running text in batches has.
    """

    ids: Tensor
    lengths: Tensor
    first: Tensor
    packed: bool

    def part(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Some sequences, as wide as the longest: ids [B, T] and which tokens count, [B, T], bool.

        Under a causal mask, padding on the right cannot reach a token that counts.
        """
        lengths = self.lengths[indices]
        width = int(lengths.max())
        places = torch.arange(width)
        scored = (places >= self.first[indices, None]) & (places < lengths[:, None])
        return self.ids[indices, :width], scored


def as_sequences(data: TrainingData, tokenizer: Any, length: int) -> Sequences:
    """Training data of either kind as padded sequences.

    Args:
        data: Token batches, which are used as they are, or examples.
        tokenizer: A Hugging Face tokenizer, for examples.
        length: Examples are truncated to this many tokens; one whose whole answer would be lost is
            left out.

    Raises:
        ConfigError: If there is nothing to learn from, or a tokenizer is missing.
    """
    if isinstance(data, Tensor):
        if data.dim() != 2 or data.dtype != torch.int64 or not len(data) or data.shape[1] < 2:
            raise ConfigError(
                "training needs token batches [N, T], int64, of at least 2 tokens each, got "
                f"{data.dtype} {tuple(data.shape)}"
            )
        n, width = data.shape
        return Sequences(data, torch.full((n,), width), torch.ones(n, dtype=torch.int64), True)
    if tokenizer is None:
        raise ConfigError("examples with instructions need tokenizer=, got None")
    rows: list[tuple[list[int], int]] = []
    for example in data:
        prompt = list(tokenizer(prompt_text(example)).input_ids)
        answer = list(tokenizer(example["output"], add_special_tokens=False).input_ids)
        if tokenizer.eos_token_id is not None:
            answer.append(tokenizer.eos_token_id)
        if answer and 0 < len(prompt) < length:
            rows.append(((prompt + answer)[:length], len(prompt)))
    if not rows:
        raise ConfigError(
            f"none of {len(data)} examples has an answer within {length} tokens; raise the length"
        )
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for index, (row, _) in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return Sequences(ids, lengths, torch.tensor([first for _, first in rows]), False)
