"""A control: the released dense model whose size is nearest to the pruned one's.

What pruning has to beat is not the dense model but the one that somebody trained at that size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from streamline.calibration import Calibration
from streamline.engine.budget import Effort, check_sparsity, removed_fraction, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.errors import AssetError, UnsupportedModelError
from streamline.fields import ModelName
from streamline.method import Method, Pruned, Size
from streamline.plan import Plan, Span
from streamline.sources.models import load_config, load_model, load_tokenizer, resolve_model

from ._sizes import smaller_releases

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Text for which two tokenizers must give the same ids.
_PROBE = (
    "The 12 quick-brown foxes didn't jump over 3,456 lazy dogs; naïve Ångström café — "
    "\tdef f(x):\n    return x ** 2  # 你好, Привет, 🙂\n\n  Doubled  spaces, too."
)


@dataclass(frozen=True, kw_only=True)
class SmallerDense(Method):
    """Use the released model of nearest size instead.

    Of the smaller models with the same tokenizer, the one whose counted parameters are nearest to
    the target replaces the model; of two equally near ones the larger. Families have few sizes, so
    the achieved sparsity may be far from the target: both are in the record. No layer of the dense
    model is kept, and calibration is not used.

    Attributes:
        model: The smaller model (short name, hub id or folder); None for the family's own.

    Reference:
        None: a control.
    """

    name: ClassVar[str] = "smaller-dense"
    paper: ClassVar[str] = "control: a released dense model of the pruned size"
    returns_model: ClassVar[bool] = True

    model: ModelName | None = None

    def unsupported(self, decoder: Decoder) -> str | None:
        """Models of which no smaller sibling is known."""
        if self.model is None and not self._known(decoder):
            known = self._known(decoder)
            what = "is the smallest of its family" if known == () else "has no known family"
            return (
                f"{self.name} needs a smaller released model, and {decoder.name} {what}; name one "
                f"with {self.name}+model=NAME"
            )
        return super().unsupported(decoder)

    def loads(self, model: str, sparsity: float) -> tuple[str, ...]:
        """The sibling that is chosen, where no field names one.

        Raises:
            AssetError: If the model's config cannot be had.
            UnsupportedModelError: As :meth:`choose`.
        """
        if self.model is not None or check_sparsity(sparsity) == 0.0:
            return ()
        config = load_config(model)
        config.name_or_path = resolve_model(model).known_as  # as the loaded model's
        return (self.choose(Decoder.from_config(config), sparsity)[0],)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Load the model of nearest size.

        Raises:
            UnsupportedModelError: If there is no smaller model, it cannot be loaded, or its
                tokenizer is another one.
        """
        if check_sparsity(sparsity) == 0.0:
            return Pruned(Plan.dense(decoder.n_layers))
        name, count = self.choose(decoder, sparsity)
        try:
            same = same_tokens(load_tokenizer(decoder.name), load_tokenizer(name))
            model = None
            if same:
                model, _ = load_model(name, device=decoder.device, dtype=decoder.dtype)
        except AssetError as error:
            raise UnsupportedModelError(
                f"{self.name} cannot load {name} to replace {decoder.name}: {error}"
            ) from error
        if model is None:
            raise UnsupportedModelError(
                f"{self.name} compares models on the same tokens, and the tokenizer of {name} is "
                f"not that of {decoder.name}; name another with {self.name}+model=NAME"
            )
        dense = decoder.n_parameters()
        notes = {
            "smaller_model": name,
            "asked_parameters": round((1.0 - sparsity) * dense),
            "parameters": count,
            "removed_fraction": removed_fraction(dense, count),
        }
        plan = Plan.replace(decoder.n_layers, Span(0, decoder.n_layers), self.name)
        return Pruned(plan, model=model, notes=notes)

    def choose(self, decoder: Decoder, sparsity: float) -> tuple[str, int]:
        """The model of nearest size and its parameters, from configs alone.

        Raises:
            UnsupportedModelError: If no candidate is smaller than the dense model, or a config
                cannot be read.
        """
        names = (self._known(decoder) or ()) if self.model is None else (self.model,)
        dense = decoder.n_parameters()
        try:
            counts = {name: Decoder.from_config(load_config(name)).n_parameters() for name in names}
        except AssetError as error:
            raise UnsupportedModelError(
                f"{self.name} cannot read the size of {' or '.join(names)}: {error}"
            ) from error
        smaller = {name: count for name, count in counts.items() if count < dense}
        if not smaller:
            found = ", ".join(f"{name} has {count:,}" for name, count in counts.items())
            raise UnsupportedModelError(
                f"{self.name} needs a model smaller than {decoder.name} with its {dense:,} "
                f"parameters, and {found or 'none is known'}; name one with {self.name}+model=NAME"
            )
        target = (1.0 - sparsity) * dense
        return min(smaller.items(), key=lambda item: (abs(item[1] - target), -item[1]))

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The shared calibration, which it does not look at."""
        return Effort(statistics_flops(decoder, math.prod(shape)))

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """The count of the model that would be loaded."""
        dense = decoder.n_parameters()
        if check_sparsity(sparsity) == 0.0:
            return Size(dense, dense)
        return Size(dense, self.choose(decoder, sparsity)[1])

    @staticmethod
    def _known(decoder: Decoder) -> tuple[str, ...] | None:
        return smaller_releases(decoder.name)


def same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give every text the same ids, as far as a probe shows.

    Their ordinary tokens, the end of sequences, and a text with digits, code and many scripts must
    agree. Added special tokens, which no text of a benchmark holds, may differ.
    """

    def ordinary(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
        added = tokenizer.get_added_vocab()
        return {token: i for token, i in tokenizer.get_vocab().items() if token not in added}

    return (
        one.eos_token_id == other.eos_token_id
        and list(one(_PROBE).input_ids) == list(other(_PROBE).input_ids)
        and ordinary(one) == ordinary(other)
    )
