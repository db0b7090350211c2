"""The token batches of a run: calibration, training, validation, held-out text.

All methods of a run see the same batches: one corpus, one seed, one count, unless a method's paper
fixes another. Batches are made when first asked for and kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from streamline.files import content_key
from streamline.run.config import RunConfig
from streamline.sources.batches import TrainingData, batches_fingerprint, token_batches
from streamline.sources.instructions import is_instructions, load_examples
from streamline.sources.texts import Split, load_texts

#: Tokens loaded beyond those asked for, since packing leaves remainders out.
_SPARE = 1.02


@dataclass
class Materials:
    """Token batches for one model, by use and seed.

    Attributes:
        config: The run.
        tokenizer: The model's tokenizer.
    """

    config: RunConfig
    tokenizer: Any
    _made: dict[Any, Any] = field(default_factory=dict)

    def calibration(self, seed: int) -> Tensor:
        """Calibration tokens, [N, T], int64."""
        wanted = self.config.calibration
        texts = wanted.texts
        if wanted.proportions == "rows" and texts == "slimpajama":
            texts = "slimpajama:rows"
        return self._batches(texts, "train", wanted.n_samples, wanted.length, seed)

    def training(self, seed: int) -> tuple[Tensor, Tensor]:
        """Training and validation tokens, [N, T] and [M, T]; no piece is in both."""
        wanted = self.config.training
        n_train = max(1, wanted.n_tokens // wanted.length)
        n_validation = max(1, wanted.validation_tokens // wanted.length)
        texts = wanted.texts or self.config.calibration.texts
        batches = self._batches(texts, "train", n_train + n_validation, wanted.length, seed)
        return batches[:n_train], batches[n_train:]

    def recovery(self, seed: int) -> tuple[TrainingData, TrainingData | None]:
        """What post-training learns from, and what is kept apart for its validation loss.

        Both are tokens, [N, T], the training's unless the run says otherwise; or instructions with
        their answers. Without validation tokens the second is None.
        """
        wanted = self.config.lora
        length = self.config.training.length
        n_tokens = wanted.n_tokens or self.config.training.n_tokens
        texts = wanted.texts or self.config.training.texts or self.config.calibration.texts
        if is_instructions(texts):
            return self._examples(texts, n_tokens, wanted.validation_tokens, seed)
        n_train = max(1, n_tokens // length)
        n_validation = -(-wanted.validation_tokens // length)
        batches = self._batches(texts, "train", n_train + n_validation, length, seed)
        return batches[:n_train], batches[n_train:] if n_validation else None

    def heldout(self) -> Tensor:
        """Held-out tokens for perplexity, [N, T]: always the same, whatever the seed."""
        wanted = self.config.perplexity
        n_samples = max(1, wanted.n_tokens // wanted.length)
        return self._batches(wanted.texts, "heldout", n_samples, wanted.length, 0)

    def facts(self) -> dict[str, str]:
        """Content hashes of what was made so far, for the records."""
        return {
            "/".join(map(str, key)): batches_fingerprint(made)
            if isinstance(made, Tensor)
            else content_key(made)
            for key, made in self._made.items()
        }

    def _examples(
        self, texts: str, n_tokens: int, n_validation: int, seed: int
    ) -> tuple[TrainingData, TrainingData | None]:
        key = (texts, "train", n_tokens, n_validation, seed)
        if key not in self._made:
            self._made[key] = load_examples(
                texts, [n_tokens, n_validation], tokenizer=self.tokenizer, seed=seed
            )
        train, validation = self._made[key]
        return train, validation or None

    def _batches(
        self,
        texts: str,
        split: Split | Literal["train"],
        n_samples: int,
        length: int,
        seed: int,
    ) -> Tensor:
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
        batches: Tensor = self._made[key]
        return batches
