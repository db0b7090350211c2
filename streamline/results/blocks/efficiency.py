"""How fast and how large a cell's model is, beside the dense model: a record's ``efficiency``.

Counted: parameters, bytes, FLOPs. Measured: tokens per second, seconds, peak memory; dense and
variant in turn in one process, so that whatever else the machine does meets both. A ratio is above
1 where the variant is faster. What was not measured is null, and ``reason`` says why.

Example::

    speed = efficiency.speed("decode", batch=1)
    speed.tokens_per_second.median, speed.ratio.median      # 41.2, 1.31
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from streamline.results.blocks.base import Block

__all__ = ["WAYS", "Counts", "Efficiency", "Phase", "Quartiles", "Speed"]

Phase = Literal["prefill", "decode"]
Count = Annotated[int, Field(ge=0)]

WAYS = {
    "cache": "plain decoding with a cache that grows",
    "static-cache": "decoding with a cache of fixed size",
    "cuda-graph": "decoding with a cache of fixed size, each step one CUDA graph",
    "compiled": "decoding with a cache of fixed size and steps compiled by torch.compile",
}
"""How decoding was run: the values of ``way`` and what they mean."""


class Quartiles(Block):
    """A quantity that was measured several times."""

    median: float = Field(ge=0)
    lower: float = Field(ge=0)  # the first quartile
    upper: float = Field(ge=0)  # the third quartile

    @model_validator(mode="after")
    def _in_order(self) -> Quartiles:
        """Refuse quartiles that do not enclose the median."""
        if not self.lower <= self.median <= self.upper:
            raise ValueError(f"{self.lower}, {self.median}, {self.upper} are not in order")
        return self


class Speed(Block):
    """Speed of one phase at one batch.

    ``length`` is, for ``prefill``, the tokens of each prompt, all processed at once; for
    ``decode`` the tokens in the cache when the first of ``tokens`` steps begins. Tokens per second
    are those of the whole batch. ``ratio`` is variant to dense, of ``n`` pairs that were measured
    one right after the other.
    """

    batch: int = Field(ge=1)
    length: int = Field(ge=1)
    tokens: int = Field(ge=1)
    n: Count = 0
    tokens_per_second: Quartiles | None = None
    dense_tokens_per_second: Quartiles | None = None
    ratio: Quartiles | None = None


class Counts(Block):
    """What is counted without a clock. FLOPs: a multiplication and an addition are two.

    ``checkpoint_bytes``: of the weights as a checkpoint holds them, tied ones once.
    ``flops_per_token``: of the forward pass of one token behind ``context`` tokens, head included.
    ``kv_cache_bytes_per_token``: what the cache grows by with each token of one sequence.
    """

    parameters: Count | None = None
    checkpoint_bytes: Count | None = None
    flops_per_token: Count | None = None
    kv_cache_bytes_per_token: Count | None = None


class Efficiency(Counts):
    """The variant's counts and speeds, and the dense model's ``dense``.

    ``time_to_first_token_seconds`` is that of the first prefill, batch 1. ``peak_memory_bytes`` is
    the most that generating held at the largest batch of ``decode``, the model's own weights
    included; ``peak_memory_way`` says how that was found: ``allocator`` (of the device) or
    ``tensors`` (live tensors were counted, without what kernels take for themselves).
    ``shape`` is equal in cells that take equally long on one machine; only one of them is
    measured, and ``measured_on`` names it in the others.
    ``note`` says why a ratio is not what the removed share promises. ``seconds``: what measuring
    took; of cells that share a measurement the first one has them.
    """

    level: Literal["quick", "full"] = "quick"
    way: str | None = None
    device: str | None = None
    dtype: str | None = None
    threads: Annotated[int, Field(ge=1)] | None = None
    context: Count | None = None
    dense: Counts | None = None
    prefill: list[Speed] = Field(default_factory=list)
    decode: list[Speed] = Field(default_factory=list)
    time_to_first_token_seconds: Quartiles | None = None
    dense_time_to_first_token_seconds: Quartiles | None = None
    peak_memory_bytes: Count | None = None
    dense_peak_memory_bytes: Count | None = None
    peak_memory_way: Literal["allocator", "tensors"] | None = None
    shape: str | None = None
    measured_on: str | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    note: str | None = None
    reason: str | None = None

    def speed(self, phase: Phase, batch: int) -> Speed | None:
        """The speed of a phase at a batch, or None if it was not measured.

        Args:
            phase: ``prefill`` or ``decode``.
            batch: Sequences at once.
        """
        found: list[Speed] = getattr(self, phase)
        return next((speed for speed in found if speed.batch == batch), None)

    def alone(self) -> Efficiency:
        """What is left where what stood in for the dense model was not it: its own values."""
        own = ("dense", "dense_time_to_first_token_seconds", "dense_peak_memory_bytes")
        speeds = {
            phase: [
                one.model_copy(update={"dense_tokens_per_second": None, "ratio": None})
                for one in getattr(self, phase)
            ]
            for phase in ("prefill", "decode")
        }
        why = "the dense model was not there to be measured beside it"
        reasons = "; ".join(filter(None, (self.reason, why)))
        return self.model_copy(update={**dict.fromkeys(own), **speeds, "reason": reasons})
