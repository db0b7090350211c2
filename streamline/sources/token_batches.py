"""The token batches of one model, made once for all that use them.

Example::

    batches = TokenBatches(tokenizer)
    batches.tokens("packaged", n_samples=64, length=512, seed=0)        # [64, 512]
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from streamline.files import content_key
from streamline.sources.batches import TrainingData, batches_fingerprint, token_batches
from streamline.sources.instructions import is_instructions, load_examples
from streamline.sources.texts import Split, load_texts

__all__ = ["TokenBatches"]

#: Tokens loaded beyond those wanted, since packing leaves remainders out.
_SPARE = 1.02


class TokenBatches:
    """The token batches of one tokenizer, made when first wanted and kept.

    Methods that want the same text, number, length and seed get the same tensor.

    Args:
        tokenizer: The model's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
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
            split: Part of the text; ``"heldout"`` shares nothing with ``"train"``.

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
                texts, seed=seed, split=split, n_tokens=n_tokens, tokenizer=self.tokenizer
            )
            self._made[key] = token_batches(
                [document.text for document in documents],
                self.tokenizer,
                n_samples=n_samples,
                length=length,
                seed=seed,
            )
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
        """What a whole model learns from, and what is kept apart for its validation loss.

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
                texts, [n_tokens, validation_tokens], tokenizer=self.tokenizer, seed=seed
            )
        examples, held_out = self._made[key]
        return examples, held_out or None

    def facts(self) -> dict[str, str]:
        """Content hashes of what was made so far, for the records."""
        return {
            "/".join(map(str, key)): batches_fingerprint(made)
            if isinstance(made, Tensor)
            else content_key(made)
            for key, made in self._made.items()
        }
