"""What work holds in memory, found by doing it on tensors without data.

A model of the same shapes but of few layers is made of fake tensors: operations give tensors of the
right shape and dtype, and nothing is computed. The stages' own code runs on it, until it asks for a
value that is not there, while what lives is counted. Two numbers of layers give what each layer
adds, so the number of a whole model costs no more. Nothing here knows an architecture.

Example::

    rehearsal = Rehearsal(decoder, torch.bfloat16)
    rehearsal.peak(lambda few: measure(few, rehearsal.tokens(8, 512)))      # bytes
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.errors import reason
from streamline.evaluation.efficiency.memory import peak_of

__all__ = ["Rehearsal"]

log = logging.getLogger(__name__)

_FEW, _MORE = 2, 4  # layers of the models that are tried

#: Work on a model without data; what it returns is not looked at.
Work = Callable[[Decoder], object]


class Rehearsal:
    """Counts what work on a model would hold.

    Args:
        decoder: The model; its weights may lie on the meta device and are not used.
        dtype: Of the weights.

    Attributes:
        ended: What ended the last work before its end, or None.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._whole = decoder
        self.dtype = dtype
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._tried: dict[int, Decoder | None] = {}
        self.ended: str | None = None

    def peak(self, work: Work, *, own: bool = False) -> int | None:
        """The most bytes that some work holds at once, beside the weights.

        Args:
            work: What is done. Where it asks for a value, it ends: what comes after such a place
                is not counted.
            own: Whether the work holds the same whatever the number of layers.

        Returns:
            Bytes for the model with all of its layers; None if the work cannot be done without
            data at all.
        """
        n_layers = self._whole.n_layers
        few = self._count(_FEW, work)
        if self._model(_FEW) is None:  # one whose layers are listed one by one, such as ours
            return self._count(n_layers, work)
        if few is None or own or n_layers <= _FEW:
            return few
        more = self._count(_MORE, work)
        if more is None:
            return None
        each = max(0, more - few) / (_MORE - _FEW)
        return round(few + each * (n_layers - _FEW))

    def tokens(self, rows: int, length: int) -> Tensor:
        """Token ids without values, [rows, length]."""
        with self._mode:
            return torch.zeros(rows, length, dtype=torch.int64)

    def make(self, work: Callable[[Decoder], Any]) -> Any:
        """Something made without data beside a model of few layers in float32; None if it fails."""
        n_layers = self._whole.n_layers if self._model(_FEW) is None else _FEW
        try:
            with _quiet(), self._mode:
                return work(self._made(n_layers, torch.float32))
        except (Exception, SystemExit) as error:  # of a method's code, or the model's
            log.debug("cannot be made without data: %s", error, exc_info=True)
            return None

    def renew(self) -> None:
        """Let go of the models that are tried: code that nobody knows has had them."""
        self._tried.clear()

    def _made(self, n_layers: int, dtype: torch.dtype) -> Decoder:
        """A model of the same shapes with some layers, of fake tensors."""
        whole = self._whole
        config = copy.deepcopy(whole.config)
        config.num_hidden_layers = min(n_layers, whole.n_layers)
        kinds = getattr(config, "layer_types", None)
        if kinds:
            config.layer_types = list(kinds)[: config.num_hidden_layers]
        fused = getattr(type(whole.model), "_supports_sdpa", False)
        config._attn_implementation = "sdpa" if fused else "eager"
        with self._mode:
            made = type(whole.model)._from_config(config, dtype=dtype)
        made.eval().requires_grad_(False)
        return Decoder(made)

    def _model(self, n_layers: int) -> Decoder | None:
        """The model with some layers, made once; None if there is none of that number."""
        if n_layers not in self._tried:
            self._tried[n_layers] = None
            try:
                self._tried[n_layers] = self._made(n_layers, self.dtype)
            except Exception as error:  # of the model's code
                log.debug("no model of %d layers: %s", n_layers, error, exc_info=True)
        return self._tried[n_layers]

    def _count(self, n_layers: int, work: Work) -> int | None:
        decoder = self._model(n_layers)
        if decoder is None:
            return None
        with _quiet(), self._mode, peak_of(torch.device("cpu")) as peak:
            try:
                work(decoder)
                self.ended = None
            except (Exception, SystemExit) as error:  # of any kind: no value is there
                log.debug("rehearsed until: %s", error, exc_info=True)
                self.ended = reason(error)
        return peak.bytes or None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it torch tells nobody which operation has no rule for tensors without data."""
    told = logging.getLogger("torch._subclasses.fake_tensor")
    was, told.disabled = told.disabled, True
    try:
        yield
    finally:
        told.disabled = was
