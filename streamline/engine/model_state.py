"""The state of a model that whoever works with it must leave as it was: what changed, put back.

Nothing is copied but a few thousand values of each tensor: what is written to in place shows in
torch's own count of writes, and in these values where it goes past that count (``.data``). Objects
are put back as they were; values have to come from where the model came from.

Example::

    state = ModelState(decoder)
    method.prune(decoder, ...)
    state.changes()             # ["the hooks of model.layers.1"]; [] if all is as it was
    state.restore()
    state.written()             # {"model.layers.2.mlp.up_proj.weight"}: to be copied back
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from streamline.engine.decoder import Decoder
from streamline.engine.seed import RandomStates

__all__ = ["ModelState"]

#: Values of each tensor that are looked at.
_VALUES = 4096
#: Of a module's own attributes those that decide what it computes, whoever changed them.
_NAMED = {
    "training": "training mode",
    "forward": "forward",
    "_parameters": "parameters",
    "_modules": "modules",
}
#: What torch and Python hold for all models: a name, how to read it, how to write it.
_GLOBAL: tuple[tuple[str, Callable[[], Any], Callable[[Any], Any]], ...] = (
    ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("whether torch keeps gradients", torch.is_grad_enabled, torch.set_grad_enabled),
    ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    (
        "torch's precision of products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
)


@dataclass
class _Tensor:
    """A parameter or buffer as it was; ``alias`` is a second name of its memory."""

    tensor: Tensor
    alias: Tensor
    version: int
    requires_grad: bool
    grad: Tensor | None
    hooks: dict[Any, Any]
    values: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Tensor:
        alias = tensor.detach()
        version = -1 if tensor.is_inference() else tensor._version
        hooks = dict(tensor._backward_hooks or {})
        return cls(
            tensor, alias, version, tensor.requires_grad, tensor.grad, hooks, _some_values(alias)
        )

    def moved(self) -> bool:
        """Whether the tensor has other memory, or another shape, than it had."""
        now, then = self.tensor, self.alias
        return (now.data_ptr(), now.shape, now.dtype) != (then.data_ptr(), then.shape, then.dtype)

    def written(self) -> bool:
        """Whether its memory was written to, as far as this can be seen."""
        if self.version >= 0 and self.alias._version != self.version:
            return True
        return not _equal(_some_values(self.alias), self.values)


@dataclass
class _Module:
    """A module as it was: its attributes, of tables their entries."""

    name: str
    module: nn.Module
    kind: type
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, module: nn.Module) -> _Module:
        return cls(name or "the model itself", module, type(module), _attributes(module))

    def changed(self) -> list[str]:
        """Names of the attributes that are others."""
        now, then = vars(self.module), self.facts
        found = [name for name in then if not _same(then[name], now.get(name, _MISSING))]
        found += [name for name in now if name not in then]
        if "_parameters" in found and self._offloaded():  # new objects each time it is called
            found.remove("_parameters")
        return found

    def _offloaded(self) -> bool:
        return any(p is not None and p.is_meta for p in self.facts["_parameters"].values())

    def faults(self) -> list[str]:
        """Changes of what decides what it computes, in words."""
        found = [] if type(self.module) is self.kind else [f"the class of {self.name}"]
        for name in self.changed():
            if "_hook" in name:
                found.append(f"the hooks of {self.name}")
            elif name in _NAMED:
                found.append(f"the {_NAMED[name]} of {self.name}")
            elif name == "_buffers" and not _same(
                self._kept(self.facts), self._kept(vars(self.module))
            ):
                found.append(f"the buffers of {self.name}")
        return list(dict.fromkeys(found))

    def _kept(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The buffers that belong to the model's weights."""
        passing = self.module._non_persistent_buffers_set
        return {name: value for name, value in facts["_buffers"].items() if name not in passing}

    def restore(self) -> None:
        """Put attributes back."""
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        own = self.module.__dict__
        for name in self.changed():
            if name not in self.facts:
                own.pop(name, None)
            elif isinstance(self.facts[name], dict) and isinstance(own.get(name), dict):
                own[name].clear()
                own[name].update(self.facts[name])
            else:
                own[name] = self.facts[name]


class ModelState:
    """A decoder's model as it is now, to compare and put back later.

    Tensors of a model whose layers are streamed, or offloaded, come and go and are not looked at.

    Args:
        decoder: The model.

    Attributes:
        random: The global random states.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._layers = list(decoder.layers)
        self._modules = [_Module.of(*named) for named in decoder.model.named_modules()]
        self._tensors = {name: _Tensor.of(tensor) for name, tensor in _tensors(decoder)}
        self._configs = [(name, config, _comparable(config)) for name, config in _configs(decoder)]
        self._hooks = [(table, dict(table)) for table in _global_hooks()]
        self._settings = [read() for _, read, _ in _GLOBAL]
        self.random = RandomStates.now()

    def changes(self) -> list[str]:
        """What is not as it was and must be, in words; empty if all is."""
        found = [] if _same_items(self.decoder.layers, self._layers) else ["the list of layers"]
        for module in self._modules:
            found += module.faults()
        for name, then in self._tensors.items():
            now = then.tensor
            if then.moved() or then.written():
                found.append(f"the weight {name}")
            elif now.requires_grad != then.requires_grad or now.grad is not then.grad:
                found.append(f"the gradient of {name}")
            if not _same(now._backward_hooks or {}, then.hooks):
                found.append(f"the hooks of {name}")
        found += [name for name, config, facts in self._configs if _other_facts(config, facts)]
        if not all(_same(table, entries) for table, entries in self._hooks):
            found.append("torch's hooks of all modules")
        settings = zip(_GLOBAL, self._settings, strict=True)
        return found + [name for (name, read, _), value in settings if read() != value]

    def traces(self) -> list[str]:
        """Attributes of modules that are not as they were and that :meth:`changes` leaves out.

        A model's own forward may keep something there, such as tables for longer positions;
        :meth:`restore` puts them back.
        """
        return [
            f"the attribute {name} of {module.name}"
            for module in self._modules
            for name in module.changed()
            if name not in _NAMED and "_hook" not in name
        ]

    def written(self) -> set[str]:
        """Names of tensors that have their memory, but perhaps not their values, as before."""
        return {name for name, then in self._tensors.items() if then.written()}

    def restore(self) -> None:
        """Put back everything but values that were written over."""
        self.decoder.layers[:] = self._layers
        for module in self._modules:
            module.restore()
        for then in self._tensors.values():
            if then.moved():
                then.tensor.data = then.alias
                then.alias = then.tensor.detach()
                then.version = then.version if then.version < 0 else then.alias._version
            then.tensor.requires_grad_(then.requires_grad)
            then.tensor.grad = then.grad
            then.tensor._backward_hooks = OrderedDict(then.hooks) or None
        for _, config, facts in self._configs:
            for name in _other_facts(config, facts):
                vars(config).pop(name, None)
                vars(config).update({name: copy.deepcopy(facts[name])} if name in facts else {})
        for table, entries in self._hooks:
            table.clear()
            table.update(entries)
        for (_, _, write), value in zip(_GLOBAL, self._settings, strict=True):
            write(value)
        self.random.restore()

    @torch.no_grad()
    def refill(self, name: str, values: Tensor) -> bool:
        """Write a tensor's values back.

        Args:
            name: One of :meth:`written`.
            values: What it held, of the same shape and dtype, on any device.

        Returns:
            Whether it held anything else.
        """
        then = self._tensors[name]
        values = values.to(then.alias)
        differed = not _equal(then.alias, values)
        if differed:
            then.alias.copy_(values)
        then.version = -1 if then.version < 0 else then.alias._version
        then.values = _some_values(then.alias)
        return differed


_MISSING = object()
_PLAIN = (bool, int, float, str, tuple)


def _tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that are in memory to stay."""
    if decoder.layer_order is not None:
        return
    for named in (decoder.model.named_parameters(), decoder.model.named_buffers()):
        yield from ((name, tensor) for name, tensor in named if not tensor.is_meta)


def _configs(decoder: Decoder) -> Iterator[tuple[str, Any]]:
    yield "the config", decoder.config
    generation = getattr(decoder.model, "generation_config", None)
    if generation is not None:
        yield "the generation config", generation


def _comparable(config: Any) -> dict[str, Any]:
    """A copy of a config's fields, without those that do not equal their own copy."""
    copied = copy.deepcopy(vars(config))
    return {name: value for name, value in copied.items() if value == vars(config)[name]}


def _other_facts(config: Any, then: Mapping[str, Any]) -> list[str]:
    """Names of fields that a config has otherwise than before."""
    now = _comparable(config)
    return [name for name in {**then, **now} if now.get(name, _MISSING) != then.get(name, _MISSING)]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes; of tables a copy."""
    return {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in module.__dict__.items()
    }


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if isinstance(old, dict) and isinstance(new, dict):
        if not old and not new:  # most tables of most modules
            return True
        return list(old) == list(new) and _same_items(old.values(), new.values())
    return isinstance(old, _PLAIN) and type(old) is type(new) and bool(old == new)


def _same_items(old: Any, new: Any) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return [id(value) for value in old] == [id(value) for value in new]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values; what is no number equals what is none."""
    if torch.equal(one, other):
        return True
    floating = one.is_floating_point()
    return floating and torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


def _some_values(tensor: Tensor) -> Tensor:
    """A copy of values spread over all rows and columns of a tensor, [at most 2 * _VALUES]."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
    step = max(1, flat.numel() // _VALUES)
    width = tensor.shape[-1] if tensor.dim() else 1
    while gcd(step, width) != 1:  # else the same columns of each row
        step -= 1
    return flat[::step].clone()


def _global_hooks() -> list[dict[Any, Any]]:
    """Torch's tables of hooks that are called for every module."""
    return [
        table
        for name, table in vars(torch_modules).items()
        if name.startswith("_global_") and isinstance(table, dict)
    ]
