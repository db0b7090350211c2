"""Where the models of each method can be served: found by pruning a tiny Llama with it.

Example::

    Served().of("llm-streamline-none")      # ["transformers", "vLLM", ...]
"""

from __future__ import annotations

from functools import cached_property

import torch

from streamline.calibration import Calibration
from streamline.checkpoints.formats.form import form_of
from streamline.checkpoints.formats.serving import serves_in
from streamline.engine.decoder import Decoder
from streamline.method import Method
from streamline.testing.models import VOCAB_SIZE, tiny_model

__all__ = ["Served"]

_SPARSITY = 0.3


class Served:
    """A tiny Llama, and what methods make of it; methods that share a calibration share it here."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, VOCAB_SIZE - 70, (2, 32), generator=generator)
        self._calibrations: dict[tuple[str, str], Calibration] = {}

    @cached_property
    def decoder(self) -> Decoder:
        """The model; its MLPs have a width that every format knows."""
        return Decoder(tiny_model("llama", n_layers=6, intermediate_size=256))

    def of(self, method: Method) -> list[str] | None:
        """Where a method's models can be served; None if it makes none of this one."""
        if method.unsupported(self.decoder) is not None:
            return None
        key = (type(method).__module__, method.calibration_key())
        try:
            if key not in self._calibrations:
                self._calibrations[key] = method.calibrate(self.decoder, self.tokens)
            made = method.prune(
                self.decoder, self._calibrations[key], _SPARSITY, self.tokens, seed=0
            )
            return serves_in(form_of(made.path(self.decoder)))
        except Exception:  # of a method that needs other fields, or of somebody's own
            return None
