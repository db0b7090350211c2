"""Variants beside their dense model, measured in turn with it in one process.

Each round times one and then the other, after a warm-up; a decoding step is a round of its own, so
that a few seconds give many pairs. Nothing here changes a model or an answer.

Example::

    beside = Beside(decoder, "quick")
    values = beside.measure(path, seconds=4.0)      # a record's `efficiency`
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from streamline.engine.assemble import assemble
from streamline.engine.decoder import Decoder
from streamline.engine.memory import free_memory
from streamline.engine.paths import Path, dense_path
from streamline.engine.stored import stored_of
from streamline.environment import versions
from streamline.errors import reason
from streamline.evaluation.efficiency.clock import clock, in_turn, quartiles, ratios
from streamline.evaluation.efficiency.counts import counts, shape_of
from streamline.evaluation.efficiency.decoding import WAYS, prefill, prompt, stepper, synchronize
from streamline.evaluation.efficiency.explain import explain
from streamline.evaluation.efficiency.memory import peak_of
from streamline.hashing import content_key

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["BATCHES", "Beside", "Sizes", "unmeasurable"]

log = logging.getLogger(__name__)

BATCHES = (1, 8)
_WARM = 2  # decoding steps that are not timed
_ROOM = 8  # tokens of the cache for these and for what a graph needs before it is recorded
_PAIRS = 3  # the fewest that have quartiles
_FIRST = 0.3  # of the seconds that the first batch may take


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        length: Tokens of each prompt.
        steps: Decoding steps that are timed.
        rounds: Prefills that are timed.
    """

    length: int
    steps: int
    rounds: int

    @property
    def room(self) -> int:
        """Tokens that a cache of fixed size holds after the prompts."""
        return self.steps + _ROOM

    @classmethod
    def of(cls, decoder: Decoder, level: str, *, cuda: bool) -> Sizes:
        """What is measured of a model's variants, as far as its positions go.

        Args:
            decoder: The dense model; its weights may lie on the meta device.
            level: ``quick`` or ``full``.
            cuda: Whether it is on a GPU.
        """
        sizes, limit = _SIZES[level, cuda], decoder.max_length
        if limit is None:
            return sizes
        length = max(1, min(sizes.length, limit - sizes.room))
        return cls(length, max(1, min(sizes.steps, limit - length - _ROOM)), sizes.rounds)


_SIZES = {
    ("quick", False): Sizes(64, 12, 4),
    ("quick", True): Sizes(512, 32, 8),
    ("full", False): Sizes(256, 64, 12),
    ("full", True): Sizes(512, 128, 20),
}


@dataclass
class _Measured:
    """One batch: the way, and the seconds of the models by round."""

    way: str
    prefill: list[list[float]]
    decode: list[list[float]]


class Beside:
    """Measures variants of one dense model.

    Args:
        decoder: The dense model.
        level: ``quick`` or ``full``.
    """

    def __init__(self, decoder: Decoder, level: str) -> None:
        self._decoder = decoder
        self._level = level
        cuda = decoder.device.type == "cuda"
        self._ways = WAYS.get((decoder.device.type, level), ("cache",))
        self.sizes = Sizes.of(decoder, level, cuda=cuda)

    @cached_property
    def _dense(self) -> PreTrainedModel:
        return _ready(dense_path(self._decoder))

    @cached_property
    def _dense_counts(self) -> dict[str, int]:
        return counts(self._dense, self.sizes.length)

    @cached_property
    def _dense_peaks(self) -> dict[tuple[int, str], tuple[int, str]]:
        return {}

    def key(self, path: Path) -> str:
        """Equal for variants that take equally long, on equal machines and software alone."""
        return content_key([shape_of(assemble(path)), *self._circumstances])

    @cached_property
    def _circumstances(self) -> list[Any]:
        """What else a speed beside this dense model depends on."""
        known = versions(str(self._decoder.device))
        machine = [known["device"], known["torch"], known["transformers"], torch.get_num_threads()]
        return [shape_of(self._dense), *machine, self._level, *vars(self.sizes).values()]

    def measure(self, path: Path, seconds: float | None) -> dict[str, Any]:
        """Measure one variant.

        Args:
            path: The variant; the dense path for the dense model beside itself.
            seconds: After which no further round is begun, and what would take longer is left
                out; None for as long as it takes.

        Returns:
            The values of :class:`streamline.results.blocks.efficiency.Efficiency`. What could not
            be measured is missing, and ``reason`` says why.
        """
        start = clock()
        until = start + (float("inf") if seconds is None else seconds)
        device = self._decoder.device
        found: dict[str, Any] = {
            "level": self._level,
            "device": versions(str(device))["device"],
            "dtype": str(self._decoder.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }
        try:
            dense = self._dense
            own = path.nodes == dense_path(self._decoder).nodes
            model = dense if own else _ready(path)
            found |= {"context": self.sizes.length, "dense": self._dense_counts}
            found |= self._dense_counts if own else counts(model, self.sizes.length)
            models = [dense] if own else [dense, model]
            stored = stored_of(model)
            if stored is None:
                found |= self._speeds(models, start, until, found)
            else:
                found["reason"] = (
                    f"{stored.way}, read back into {found['dtype']} to be evaluated: speed and "
                    "memory are those of the kernels that serve it, and not measured"
                )
        except Exception as error:  # a cell is worth no less if its speed cannot be had
            log.debug("%s could not be measured", path.name, exc_info=True)
            found["reason"] = f"could not be measured: {reason(error)}"
        free_memory()
        return found | {"seconds": clock() - start}

    def _speeds(
        self, models: list[PreTrainedModel], start: float, until: float, known: dict[str, Any]
    ) -> dict[str, Any]:
        """Speeds at every batch, and the peak of memory at the largest.

        The peak takes a prefill and few steps: it comes first at the last batch, whose speeds take
        what is left of the time.
        """
        found: dict[str, Any] = {"prefill": [], "decode": []}
        peaks: dict[str, Any] = {}
        lacking, largest = [], 0
        for batch in BATCHES:
            late = until if batch != BATCHES[0] else start + _FIRST * (until - start)
            needed = self._least_seconds(found, batch)
            if needed and clock() + needed > until:
                lacking.append(
                    f"batch {batch} would take {needed:.1f} s or more, beyond the seconds that are "
                    "set for it; --efficiency full takes them"
                )
                continue
            try:
                first = largest and batch == BATCHES[-1]
                held = self._peaks(models, batch, found["way"], until, known) if first else {}
                one = self._measured(models, batch, late)
            except Exception as error:
                log.debug("batch %d could not be measured", batch, exc_info=True)
                lacking.append(f"batch {batch}: {reason(error)}")
                continue
            peaks = held if one.way == found.get("way") else {}
            found["way"], largest = one.way, batch
            for phase, times in (("prefill", one.prefill), ("decode", one.decode)):
                found[phase].append(self._speed(phase, batch, times))
            if min(len(one.prefill[-1]), len(one.decode[-1])) < _PAIRS:
                lacking.append(f"batch {batch}: time was up before there were {_PAIRS} pairs")
            if batch == 1:
                found["dense_time_to_first_token_seconds"] = quartiles(one.prefill[0])
                found["time_to_first_token_seconds"] = quartiles(one.prefill[-1])
        if largest:
            peaks = peaks or self._peaks(models, largest, found["way"], until, known)
            if not peaks:
                lacking.append("time was up before the peak of memory")
        if lacking:
            found["reason"] = "; ".join(lacking)
        found |= peaks
        note = explain(models[-1], models[0], known | found)
        return found | ({"note": note} if note else {})

    def _measured(self, models: list[PreTrainedModel], batch: int, until: float) -> _Measured:
        """One batch in the best way that works for all models."""
        for way in self._ways[:-1]:
            try:
                return self._timed(models, batch, way, until)
            except Exception:
                log.debug("decoding with %s does not work here", way, exc_info=True)
                free_memory()
        return self._timed(models, batch, self._ways[-1], until)

    @torch.inference_mode()
    def _timed(
        self, models: list[PreTrainedModel], batch: int, way: str, until: float
    ) -> _Measured:
        """Prefills in turn, then decoding steps in turn."""
        device, sizes = self._decoder.device, self.sizes
        ids = prompt(models[0], batch, sizes.length)
        states: list[Any] = [None for _ in models]

        def fill(index: int) -> None:
            states[index] = None  # one cache a model at a time
            states[index] = prefill(models[index], ids, room=sizes.room, way=way)

        actions = [lambda index=index: fill(index) for index in range(len(models))]
        in_turn(actions, most=1, until=until, device=device)
        half = clock() + 0.6 * (until - clock()) if until != float("inf") else until
        filled = in_turn(actions, most=sizes.rounds, until=half, device=device)
        try:
            steps = [
                stepper(model, cache, token, way)
                for model, (cache, token) in zip(models, states, strict=True)
            ]
            in_turn(steps, most=_WARM, until=float("inf"), device=device)
            decoded = in_turn(steps, most=sizes.steps, until=until, device=device)
        finally:
            if way == "compiled":
                torch._dynamo.reset()  # each model is compiled for itself
        return _Measured(way, filled, decoded)

    def _speed(self, phase: str, batch: int, times: list[list[float]]) -> dict[str, Any]:
        """The values of :class:`streamline.results.blocks.efficiency.Speed`."""
        each = self.sizes.length if phase == "prefill" else 1
        dense, own = ([batch * each / seconds for seconds in one] for one in (times[0], times[-1]))
        return {
            "batch": batch,
            "length": self.sizes.length,
            "tokens": each if phase == "prefill" else len(own),
            "n": len(own),
            "tokens_per_second": quartiles(own),
            "dense_tokens_per_second": quartiles(dense),
            "ratio": ratios(times) if len(own) >= _PAIRS or len(times) == 1 else None,
        }

    def _least_seconds(self, found: dict[str, Any], batch: int) -> float:
        """What a batch takes at least, as the one before it went: a warm-up and one round."""
        if not found["prefill"]:
            return 0.0
        prefill, decode = found["prefill"][-1], found["decode"][-1]
        speeds = ("tokens_per_second", "dense_tokens_per_second")
        rate = sum(1 / prefill[name]["median"] for name in speeds)
        step = sum(prefill["batch"] / decode[name]["median"] for name in speeds)
        # A batch of more tokens is at least half again as fast for each of them.
        return float(2 * rate * batch * self.sizes.length / 1.5 + (_WARM + 1) * step)

    def _peaks(
        self,
        models: list[PreTrainedModel],
        batch: int,
        way: str,
        until: float,
        known: dict[str, Any],
    ) -> dict[str, Any]:
        """The most memory that generating holds, with the model's own weights."""
        plain = "cache" if way == "cache" else "static-cache"
        kept = self._dense_peaks
        if (batch, plain) not in kept:
            if clock() > until:
                return {}
            kept[batch, plain] = self._peak(models[0], batch, plain)
        dense, found = kept[batch, plain], kept[batch, plain]
        if len(models) > 1:
            if clock() > until:
                return {}
            found = self._peak(models[-1], batch, plain)
        return {
            "peak_memory_bytes": found[0] + known["checkpoint_bytes"],
            "dense_peak_memory_bytes": dense[0] + known["dense"]["checkpoint_bytes"],
            "peak_memory_way": found[1],
        }

    @torch.inference_mode()
    def _peak(self, model: PreTrainedModel, batch: int, way: str) -> tuple[int, str]:
        ids = prompt(model, batch, self.sizes.length)
        with peak_of(self._decoder.device) as peak:
            cache, token = prefill(model, ids, room=_ROOM, way=way)
            step = stepper(model, cache, token, way)
            for _ in range(_WARM):
                step()
            synchronize(self._decoder.device)
            del cache, token, step
        return peak.bytes, peak.way


def _ready(path: Path) -> PreTrainedModel:
    """A path as a model that computes as it does when it is used."""
    model = assemble(path)
    model.eval()
    return model


def unmeasurable(decoder: Decoder) -> str | None:
    """Why no speed can be had of a model and its variants, or None."""
    if decoder.layer_order is not None:
        return "the model is larger than memory and read layer by layer: it has no speed of its own"
    places = {str(p) for p in (getattr(decoder.model, "hf_device_map", None) or {}).values()}
    if places & {"cpu", "disk"} and len(places) > 1:
        return "a part of the model is kept off the device and fetched for each batch"
    return None
