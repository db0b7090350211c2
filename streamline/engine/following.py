"""How the first of several processes leads the others: it sends calls, they make them too.

A call travels as its function's name and its arguments. Models are sent whole the first time they
are needed and by name afterwards; of a path through a model only the modules that are not the
model's own are sent. Tensors go one by one beside the pickled structure and arrive on the device of
the same kind that belongs to the process. Nothing of it is written to disk.

Example::

    records = lead(lambda: work_everything(config))      # the same on every process
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from streamline.distributed import (
    LostProcess,
    Shard,
    exchanging,
    gathered,
    joined,
    world_size,
)
from streamline.engine.decoder import Decoder
from streamline.engine.kernels import FastLinears
from streamline.errors import StreamlineError

__all__ = ["lead", "with_leader"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Tensors = list[Tensor]


def with_leader(work: Callable[[], Result]) -> Result:
    """Let the first process work and the others help it; alone, just work."""
    return work() if world_size() == 1 else lead(work)


def lead(work: Callable[[], Result]) -> Result:
    """Let the first of several processes work and the others follow.

    Args:
        work: Run by the first process only; what it calls through
            :func:`streamline.distributed.scatter` is shared with the others.

    Returns:
        What the work gave, on every process.

    Raises:
        StreamlineError: On the others, if the first process failed.
        LostProcess: If one of them is gone.
    """
    with joined(_Leader) as team:
        if not isinstance(team.leader, _Leader):
            outcome: Result = _follow(team.shard)
            return outcome
        try:
            result = work()
        except LostProcess:
            raise
        except BaseException as error:
            team.leader.send("failed", f"{type(error).__name__}: {error}")
            raise
        team.leader.send("done", result)
        return result


@dataclass
class _Sent:
    """A model that the others have."""

    decoder: weakref.ref[Decoder]
    version: int


class _Leader:
    """The first process's view of what the others know."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._sent: dict[int, _Sent] = {}
        self._next = 0

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Send a call with its arguments, and the models that the others do not have.

        Returns:
            Whether it was sent. It is not, with a line in the log, if a model is spread over
            several devices or read in parts, or holds something that cannot be sent.
        """
        self._forget()
        try:
            for decoder in _decoders(args):
                self._introduce(decoder)
            body, tensors = self._packed((function, args))
        except (pickle.PicklingError, AttributeError, TypeError, _Unsendable) as error:
            logger.warning("run by one of %d processes: %s", self.shard.size, error)
            return False
        self._broadcast("call", body, tensors)
        return True

    def send(self, kind: str, value: Any) -> None:
        """Send a plain value."""
        self._broadcast(kind, *self._packed(value))

    def _introduce(self, decoder: Decoder) -> None:
        """Send a model unless the others have it as it is now."""
        if type(decoder) is not Decoder:
            raise _Unsendable(f"{decoder.name} is not held whole")
        if any(hasattr(module, "_hf_hook") for module in decoder.model.modules()):
            raise _Unsendable(f"{decoder.name} is spread over devices")
        version = hash(
            tuple(
                (id(p), 0 if p.is_inference() else p._version) for p in decoder.model.parameters()
            )
        )
        for key, sent in list(self._sent.items()):
            if sent.decoder() is decoder:
                if sent.version == version:
                    return
                del self._sent[key]
                self.send("forget", [key])
        body, tensors = self._packed(decoder.model)
        self._broadcast("model", body, tensors, self._next)
        self._sent[self._next] = _Sent(weakref.ref(decoder), version)
        self._next += 1

    def _forget(self) -> None:
        """Let the others drop models that are gone here."""
        gone = [key for key, sent in self._sent.items() if sent.decoder() is None]
        for key in gone:
            del self._sent[key]
        if gone:
            self.send("forget", gone)

    def _packed(self, value: Any) -> tuple[bytes, Tensors]:
        named: dict[int, tuple[Any, ...]] = {}
        for key, sent in self._sent.items():
            decoder = sent.decoder()
            if decoder is not None:
                named[id(decoder)] = ("decoder", key)
                for name, module in decoder.model.named_modules():
                    named[id(module)] = ("module", key, name)
        stream = io.BytesIO()
        pickler = _Pickler(stream, named)
        pickler.dump(value)
        return stream.getvalue(), pickler.tensors

    def _broadcast(self, kind: str, body: bytes, tensors: Tensors, key: int = -1) -> None:
        about = [
            (tuple(t.shape), t.dtype, t.device.type, t.device.index or 0, _gradient(t))
            for t in tensors
        ]
        with exchanging():
            torch.distributed.broadcast_object_list([(kind, body, about, key)], src=0)
            for tensor in tensors:
                if tensor.numel():
                    torch.distributed.broadcast(_bytes(tensor.detach().cpu().contiguous()), src=0)


class _Unsendable(Exception):
    """Why something stays with the first process."""


class _Pickler(pickle.Pickler):
    """Leaves tensors, and what the others have already, out of the structure."""

    def __init__(self, stream: io.BytesIO, named: dict[int, tuple[Any, ...]]) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: Tensors = []
        self._named = named
        self._places: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        """A reference for what is sent in another way."""
        if isinstance(obj, (nn.Module, Decoder)):
            return self._named.get(id(obj))
        if not isinstance(obj, Tensor):
            return None
        if obj.device.type == "meta":
            raise _Unsendable("some weights are not in memory")
        if id(obj) not in self._places:
            self._places[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return ("tensor", self._places[id(obj)])

    def reducer_override(self, obj: Any) -> Any:
        """Modules without the faster products that they have for the moment."""
        forward = obj.__dict__.get("forward") if isinstance(obj, nn.Module) else None
        if getattr(forward, "__module__", None) != FastLinears.__module__:
            return NotImplemented
        made, given, state, *rest = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        return made, given, {k: v for k, v in state.items() if k != "forward"}, *rest


class _Unpickler(pickle.Unpickler):
    """Puts a structure together again from tensors and known models."""

    def __init__(self, body: bytes, tensors: Tensors, models: dict[int, Decoder]) -> None:
        super().__init__(io.BytesIO(body))
        self._tensors = tensors
        self._models = models

    def persistent_load(self, pid: tuple[Any, ...]) -> Any:
        """The object that a reference names."""
        if pid[0] == "tensor":
            return self._tensors[pid[1]]
        decoder = self._models[pid[1]]
        return decoder if pid[0] == "decoder" else decoder.model.get_submodule(pid[2])


@dataclass
class _Follower:
    """What another process knows."""

    shard: Shard
    models: dict[int, Decoder] = field(default_factory=dict)

    def receive(self) -> tuple[str, bytes, Tensors, int]:
        """The next message with its tensors."""
        box: list[Any] = [None]
        with exchanging():
            torch.distributed.broadcast_object_list(box, src=0)
        kind, body, about, key = box[0]
        tensors = []
        for shape, dtype, device, index, gradient in about:
            tensor = torch.empty(shape, dtype=dtype)
            with exchanging():
                if tensor.numel():
                    torch.distributed.broadcast(_bytes(tensor), src=0)
            tensor = tensor.to(_own(device, index))
            tensors.append(tensor if gradient is None else nn.Parameter(tensor, gradient))
        return kind, body, tensors, key

    def unpacked(self, body: bytes, tensors: Tensors) -> Any:
        return _Unpickler(body, tensors, self.models).load()

    def called(self, body: bytes, tensors: Tensors) -> Any:
        """Make a call."""
        function, args = self.unpacked(body, tensors)
        return function(self.shard, *args, progress=None)


def _follow(shard: Shard) -> Any:
    """Make the first process's calls until it is done."""
    from transformers.dynamic_module_utils import init_hf_modules

    init_hf_modules()  # models with code of their own are found by name
    follower = _Follower(shard)
    while True:
        kind, body, tensors, key = follower.receive()
        if kind == "call":
            try:
                gathered(shard, partial(follower.called, body, tensors))
            except Exception:  # the first process raises it too, and decides what becomes of it
                logger.debug("a call failed on process %d", shard.rank, exc_info=True)
        elif kind == "model":
            try:
                follower.models[key] = Decoder(follower.unpacked(body, tensors))
            except Exception:  # the call that needs it fails, and all are informed
                logger.warning("process %d cannot build a model", shard.rank, exc_info=True)
        elif kind == "forget":
            for gone in follower.unpacked(body, tensors):
                follower.models.pop(gone, None)
        elif kind == "failed":
            why = follower.unpacked(body, tensors)
            raise StreamlineError(f"the first of {shard.size} processes failed: {why}")
        else:
            return follower.unpacked(body, tensors)


def _decoders(value: Any) -> list[Decoder]:
    """The models that some arguments depend on, each once."""
    found: dict[int, Decoder] = {}
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, (list, tuple)):
            found |= {id(decoder): decoder for decoder in _decoders(item)}
        elif isinstance(item, Decoder):
            found[id(item)] = item
        elif isinstance(getattr(item, "decoder", None), Decoder):
            found[id(item.decoder)] = item.decoder
    return list(found.values())


def _gradient(tensor: Tensor) -> bool | None:
    return tensor.requires_grad if isinstance(tensor, nn.Parameter) else None


def _bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as bytes."""
    return tensor.reshape(-1).view(torch.uint8)


def _own(device: str, index: int) -> torch.device:
    """This process's device of a kind."""
    if device != "cuda":
        return torch.device(device)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", (index + local) % torch.cuda.device_count())
