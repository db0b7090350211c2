"""What the stages hand on: the dense model, a variant that is wanted, and what has become of it.

Plain values: a stage is called with some and returns others, and none is filled in later.

Example::

    target = Target(label="short", method=ShortGPT(), sparsity=0.25)
    unsupported_reason(target.method, decoder, target.sparsity)     # None, or why it cannot be had
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamline.distributed.team import world_size
from streamline.engine.decoder import Decoder
from streamline.environment import pick_device
from streamline.errors import ConfigError, StreamlineError
from streamline.method import Method, Pruned
from streamline.modeling.modeling_narrow import SlicedLayer
from streamline.progress import Progress
from streamline.sources.models import hub_commit, load_model
from streamline.streaming.decoder import StreamedDecoder
from streamline.streaming.opening import load_streamed, refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Dense",
    "Failure",
    "Target",
    "Variant",
    "load_dense",
    "only_variant",
    "unsupported_reason",
]


@dataclass(frozen=True, kw_only=True)
class Dense:
    """The model that variants are made of.

    Attributes:
        name: Its name, for progress and provenance.
        decoder: The model itself.
        tokenizer: Its tokenizer.
        fingerprint: Content key of its weights.
        original: Loads the model once more, on the CPU; None if only its owner can.
        spoiled: Names of weights that a method has written over and that cannot be had again.
        commit: At which it was read from the hub, or None.
    """

    name: str
    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    original: Callable[[], PreTrainedModel] | None = None
    spoiled: list[str] = field(default_factory=list)
    commit: str | None = None


def load_dense(
    name: str,
    fingerprint: str,
    progress: Progress,
    *,
    device: str,
    dtype: str,
    device_map: str | None,
    stream: bool,
    trust_remote_code: bool,
) -> Dense:
    """A dense model and its tokenizer.

    Args:
        name: Alias, hub id or folder.
        fingerprint: Content key of its weights.
        progress: Where to report it.
        device: ``auto`` or the name of a device.
        dtype: Number format of the weights.
        device_map: How it is spread over several devices, or None.
        stream: Whether its layers are read one at a time.
        trust_remote_code: Whether its own code may run.

    Raises:
        ConfigError: If several processes are each to spread it over all devices.
    """
    if device_map is not None and world_size() > 1:
        raise ConfigError(
            f"--device-map {device_map} spreads a model over the GPUs of one process, and "
            f"{world_size()} were launched, each with the whole model: use one or the other"
        )
    progress.stage("load")
    place = pick_device(device)
    if stream:
        decoder, tokenizer = load_streamed(
            name, device=place, dtype=dtype, trust_remote_code=trust_remote_code
        )
        return Dense(
            name=name,
            decoder=decoder,
            tokenizer=tokenizer,
            fingerprint=fingerprint,
            commit=hub_commit(name),
        )
    model, tokenizer = load_model(
        name,
        device=place,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )

    def original() -> PreTrainedModel:
        return load_model(name, device="cpu", dtype=dtype, trust_remote_code=trust_remote_code)[0]

    return Dense(
        name=name,
        decoder=Decoder(model),
        tokenizer=tokenizer,
        fingerprint=fingerprint,
        original=original,
        commit=hub_commit(name),
    )


@dataclass(frozen=True, kw_only=True)
class Target:
    """A variant that is wanted.

    Attributes:
        label: A name that no other variant has; its files are named by it.
        title: Its name for people; the label if not given.
        method: How it is pruned.
        sparsity: Fraction of parameters to remove, in [0, 1); 0 is the dense model.
        seed: Seed of everything random.
        recovery: What follows the pruning, for what it needs of the model: ``none``, ``lora``
            or ``kd``.
        shares: A name in common with the variants that differ from it in their recovery alone:
            what the method decides is decided once for all of them. The label if not given.
    """

    label: str
    method: Method
    sparsity: float
    seed: int = 0
    recovery: str = "none"
    title: str = ""
    shares: str = ""

    @property
    def name(self) -> str:
        """Its name for people."""
        return self.title or self.label

    @property
    def decision(self) -> str:
        """The name of what its method decides, which variants may share."""
        return self.shares or self.label


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant as a stage left it.

    Attributes:
        target: What was wanted.
        pruned: The plan with its modules, or a model of its own.
        costs: Seconds and tokens by stage: ``calibrate_s``, ``train_s``, ``train_tokens``.
        training: A summary of each training by its label.
    """

    target: Target
    pruned: Pruned
    costs: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """A variant that came to nothing.

    Attributes:
        target: What was wanted.
        error: Why; an ``UnsupportedModelError`` where the method cannot do it.
        costs: What it had cost until then.
    """

    target: Target
    error: Exception
    costs: Mapping[str, float] = field(default_factory=dict)


def only_variant(found: Sequence[Variant | Failure]) -> Variant:
    """The one variant of a stage.

    Raises:
        Exception: The error of one that failed.
    """
    (one,) = found
    if isinstance(one, Failure):
        raise one.error
    return one


def unsupported_reason(
    method: Method,
    decoder: Decoder,
    sparsity: float,
    *,
    recovery: str = "none",
    streamed: bool = False,
    processes: int | None = None,
) -> str | None:
    """Why a method cannot do what is wanted of it, known from the model's config alone, or None.

    Args:
        method: The method.
        decoder: The dense model; its weights may lie on the meta device.
        sparsity: Fraction of parameters to remove.
        recovery: What is to follow.
        streamed: Whether the model's layers will be read one at a time.
        processes: How many work together; None for as many as there are.
    """
    reason = _unfit(decoder) if sparsity else None
    if reason is None:
        reason = method.unsupported(decoder)
    if reason is None and recovery != "none" and not method.trainable:
        reason = f"what {method.name} makes cannot be trained: leave out --recovery {recovery}"
    if reason is None and (streamed or isinstance(decoder, StreamedDecoder)):
        reason = refusal(method, recovery, processes)
    if reason is None and sparsity:
        try:
            method.size(decoder, sparsity)
        except StreamlineError as error:
            return str(error)
    return reason


def _unfit(decoder: Decoder) -> str | None:
    """Why no layer of a model can be pruned, as it is with some checkpoints of pruned ones."""
    owners: dict[int, int] = {}
    for index, layer in enumerate(decoder.layers):
        if isinstance(layer, SlicedLayer):
            return (
                f"the layers of {decoder.name} pass on states of several widths (it is a sliced "
                "model); prune the model that it was made of"
            )
        for parameter in layer.parameters():
            other = owners.setdefault(id(parameter), index)
            if other != index:
                return (
                    f"layers {other} and {index} of {decoder.name} share their weights, so that "
                    "taking one of them out removes nothing; prune the model that it was made of"
                )
    return None
