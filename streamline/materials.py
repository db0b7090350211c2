"""The token batches of a run: calibration, training, validation, held-out text.

All methods of a run see the same batches: one corpus, one seed, one count, unless a method's paper
fixes another. Batches are made when first asked for and kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from streamline.calibration import batches_fingerprint, token_batches
from streamline.config import RunConfig
from streamline.texts import Split, load_texts

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
    _made: dict[Any, Tensor] = field(default_factory=dict)

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

    def recovery(self, seed: int) -> Tensor:
        """Tokens for post-training, [N, T]: the training tokens unless the run says otherwise."""
        wanted = self.config.healing
        length = self.config.training.length
        n_tokens = wanted.n_tokens or self.config.training.n_tokens
        texts = wanted.texts or self.config.training.texts or self.config.calibration.texts
        return self._batches(texts, "train", max(1, n_tokens // length), length, seed)

    def heldout(self) -> Tensor:
        """Held-out tokens for perplexity, [N, T]: always the same, whatever the seed."""
        wanted = self.config.perplexity
        n_samples = max(1, wanted.n_tokens // wanted.length)
        return self._batches(wanted.texts, "heldout", n_samples, wanted.length, 0)

    def facts(self) -> dict[str, str]:
        """Content hashes of what was made so far, for the records."""
        return {"/".join(map(str, key)): batches_fingerprint(b) for key, b in self._made.items()}

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
        return self._made[key]
