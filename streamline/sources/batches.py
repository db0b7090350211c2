"""Token batches for calibration, training and perplexity: packed text, drawn at random.

Text is packed into pieces, and the pieces are drawn at random from a pool of documents much larger
than what is needed, as from the whole text: a batch is not the first documents of a stream.

Example::

    token_batches(texts, tokenizer, n_samples=32, length=512, seed=0)           # [32, 512]
    batches = TokenBatches(tokenizer)                # made once for all that use them
    batches.tokens("packaged", n_samples=64, length=512, seed=0)                # [64, 512]

Notation: N sequences, T tokens.
"""

from __future__ import annotations

import hashlib
import logging
from array import array
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import asdict, replace
from typing import Any, Literal, cast

from torch import Tensor

from streamline.errors import ConfigError
from streamline.hashing import content_key
from streamline.sources.drawing import Drawn, draw, encoded
from streamline.sources.instructions import Example, is_instructions, load_examples
from streamline.sources.mixing import MIXTURES, Encoded, Exhausted, first, gather
from streamline.sources.packaged import DOMAINS
from streamline.sources.texts import Split, encoded_texts, split_of

__all__ = [
    "OF_DOMAIN",
    "Part",
    "TokenBatches",
    "batches_fingerprint",
    "domain_batches",
    "token_batches",
]

log = logging.getLogger(__name__)

#: Part of a text: what is set apart for validation is in no training, what is held out in neither.
Part = Literal["train", "validation", "heldout"]

#: Most sequences of a domain, and tokens of each: the smallest holds more than twice as many.
OF_DOMAIN = (16, 512)
#: Times the tokens that are needed, of which a pool has at most so many: a validation loss needs
#: fewer documents than a choice of layers, and what is set apart is only a tenth of a text.
_TIMES: dict[Part, int] = {"train": 64, "validation": 8, "heldout": 64}
_MOST = 2**23  # tokens of a pool, unless more are needed
_KEPT = 2**22  # tokens of documents that are kept for further draws
_LONGEST = 50  # a document of a mixture by tokens gives at most this part of its pool


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
    found = [Encoded("text", encoded(tokenizer, text)) for text in texts]
    n_tokens = sum(len(one.ids) for one in found)
    if n_tokens // length < n_samples:
        raise ConfigError(
            f"the text holds {n_tokens} tokens, too few for {n_samples} sequences of {length}: "
            f"use at most {n_tokens // length} sequences, shorter ones, or give more text"
        )
    return draw(found, n_samples, length, seed)[0]


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
        self._drawn: dict[tuple[Any, ...], Drawn] = {}
        self._encode = _Encoding(tokenizer)

    def tokens(
        self,
        texts: str,
        *,
        n_samples: int | None = None,
        n_documents: int | None = None,
        length: int,
        seed: int,
        part: Part = "train",
    ) -> Tensor:
        """Sequences of a text: drawn from a pool, or all of a number of documents.

        Args:
            texts: A known name, or a file or folder of texts.
            n_samples: Sequences, N.
            n_documents: Documents whose every whole sequence is taken, in place of ``n_samples``.
            length: Tokens of each, T.
            seed: Seed of the draw.
            part: Part of the text; no document is in two of them.

        Returns:
            Token ids, [N, T], int64, in random order.

        Raises:
            AssetError: If there is no such text.
            ConfigError: If it holds too few tokens or documents; the message says how many.
        """
        amount = n_samples if n_documents is None else f"{n_documents} documents"
        key = (texts, part, amount, length, seed)
        if key not in self._made:
            spent: dict[str, int] = {}
            found = self._pool(texts, part, n_samples, n_documents, length, seed, spent)
            self._made[key], drawn = draw(found, n_samples, length, seed)
            self._drawn[key] = drawn = _as_promised(drawn, texts, spent)
            if drawn.lacking:
                log.warning("text %r (%s): %s", texts, part, drawn.lacking)
        self._used[key] = None
        return cast(Tensor, self._made[key])

    def _pool(
        self,
        texts: str,
        part: Part,
        n_samples: int | None,
        n_documents: int | None,
        length: int,
        seed: int,
        spent: dict[str, int],
    ) -> list[Encoded]:
        """The documents of one draw; domains that ran out are put into ``spent``."""
        least = (n_samples or 1) * length
        most = max(least, min(_MOST, _TIMES[part] * least))
        split: Split = "heldout" if part == "heldout" else "train"
        stream = encoded_texts(
            texts,
            self._encode,
            seed=seed,
            split=split,
            validation=None if part == "heldout" else part == "validation",
            longest=None if n_documents else max(1, most // _LONGEST),
            revisions=self.revisions,
            spent=spent,
        )
        try:
            if n_documents is not None:
                return first(stream, n_documents, least=length, spent=spent)
            return gather(stream, least=least, most=most, spent=spent)
        except Exhausted as error:
            asked = f"{n_samples} sequences of {length} tokens" if n_samples else "that"
            raise ConfigError(
                f"the text {texts!r} ({part}) is too short for {asked}: {error}. Ask for less, or "
                "give more text"
            ) from error

    def training(
        self,
        texts: str,
        *,
        n_tokens: int | None = None,
        n_documents: int | None = None,
        validation_tokens: int,
        length: int,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """Training and validation tokens of a text, [N, T] and [M, T]; of different documents.

        Args:
            texts: A known name, or a file or folder of texts.
            n_tokens: Tokens of the training, of which the last piece is left out if it is no whole
                one.
            n_documents: Documents of the training, in place of ``n_tokens``.
            validation_tokens: M is 0 without, else at least 1.
            length: Tokens of each sequence, T.
            seed: Seed of the draws.
        """
        n_train = max(1, n_tokens // length) if n_tokens else None
        train = self.tokens(
            texts, n_samples=n_train, n_documents=n_documents, length=length, seed=seed
        )
        if not validation_tokens:
            return train, train[:0]
        n_validation = max(1, validation_tokens // length)
        validation = self.tokens(
            texts, n_samples=n_validation, length=length, seed=seed, part="validation"
        )
        return train, validation

    def fine_tuning(
        self,
        texts: str,
        *,
        n_tokens: int | None = None,
        n_documents: int | None = None,
        validation_tokens: int,
        length: int,
        seed: int,
    ) -> tuple[Tensor | list[Example], Tensor | list[Example] | None]:
        """Training data of a whole model, and that of its validation loss.

        Both are tokens, [N, T], or instructions with their answers where ``texts`` names some.
        Without validation tokens the second is None.
        """
        if not is_instructions(texts):
            n_validation = -(-validation_tokens // length) * length
            train, validation = self.training(
                texts,
                n_tokens=n_tokens,
                n_documents=n_documents,
                validation_tokens=n_validation,
                length=length,
                seed=seed,
            )
            return train, validation if len(validation) else None
        amount = n_tokens if n_documents is None else f"{n_documents} documents"
        key = (texts, "train", amount, validation_tokens, seed)
        if key not in self._made:
            self._made[key] = load_examples(
                texts,
                [n_tokens or 0, validation_tokens],
                n_examples=n_documents,
                tokenizer=self.tokenizer,
                seed=seed,
                revisions=self.revisions,
            )
        self._used[key] = None
        examples, held_out = self._made[key]
        return examples, held_out or None

    def view(self) -> TokenBatches:
        """The same batches, with facts of what is asked of it alone."""
        own = copy(self)
        own._used = {}
        return own

    def facts(self) -> dict[str, str]:
        """Content hashes of what was asked for so far, for the records."""
        for key in self._used:
            if key not in self._prints:
                made = self._made[key]
                tokens = isinstance(made, Tensor)
                self._prints[key] = batches_fingerprint(made) if tokens else content_key(made)
        return {"/".join(map(str, key)): self._prints[key] for key in self._used}

    def drawn(self) -> list[tuple[str, Drawn]]:
        """What was asked for so far of running text, by its name, and what it is made of."""
        return [(key[0], self._drawn[key]) for key in self._used if key in self._drawn]

    def texts(self) -> list[dict[str, Any]]:
        """What was asked for so far is made of, for the records."""
        hashes = self.facts().values()
        return [
            {"name": key[0], "part": key[1], **self._made_of(key), "sha256": sha256}
            for key, sha256 in zip(self._used, hashes, strict=True)
        ]

    def _made_of(self, key: tuple[Any, ...]) -> dict[str, Any]:
        if key in self._drawn:
            return asdict(self._drawn[key])
        return {"documents": sum(map(len, self._made[key]))}  # instructions


def domain_batches(
    batches: TokenBatches, *, n_samples: int, length: int, seed: int
) -> dict[str, Tensor]:
    """Calibration tokens of each domain of the packaged text, by its name.

    Args:
        batches: Those of the model.
        n_samples: Sequences of its own calibration text; a domain has at most 16.
        length: Tokens of each, likewise; of a domain's at most 512.
        seed: Seed of the draws.
    """
    n, most = min(n_samples, OF_DOMAIN[0]), min(length, OF_DOMAIN[1])
    return {name: batches.tokens(name, n_samples=n, length=most, seed=seed) for name in DOMAINS}


def _as_promised(drawn: Drawn, texts: str, spent: dict[str, int]) -> Drawn:
    """A draw with what the mixture of its text promises, and where that is not kept."""
    fractions, counted = MIXTURES.get(split_of(texts)[0], ({}, None))
    total = sum(fractions.values())
    promised = {domain: fraction / total for domain, fraction in fractions.items()}
    return replace(drawn, counted=counted, promised=promised, spent=spent)


class _Encoding:
    """Documents as tokens; those of a text that is read often are made once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, array[int]] = {}
        self._room = _KEPT

    def __call__(self, text: str) -> array[int]:
        ids = self._ids.get(text)
        if ids is None:
            ids = encoded(self._tokenizer, text)
            if len(ids) <= self._room:
                self._ids[text] = ids
                self._room -= len(ids)
        return ids
