"""The architecture seam: enter a model, run its layers one by one, leave it.

Everything above this file sees a causal language model as *enter, a list of layers, leave*. How a
family builds masks and positions is left to the model itself: on entering, its own forward runs
with every layer replaced by a recorder, so each layer's arguments are exactly those that the model
would have passed.

Example:
    decoder = Decoder(model)
    entry = decoder.enter(input_ids)
    hidden = entry.hidden
    for i, layer in enumerate(decoder.layers):
        hidden = decoder.run(layer, hidden, entry, i)
    logits = decoder.leave(hidden)          # equals model(input_ids).logits

Notation: B batch, T tokens, D hidden size, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from streamline.engine.families import Family, family_of
from streamline.engine.meter import entered
from streamline.engine.transfer import onto, repeated, single_sequences, to_device
from streamline.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


#: Packages whose modules leave their input as it is, and which modules hold code of others.
_KNOWN = {"streamline", "torch", "transformers"}
_UNKNOWN: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def submodule(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path; the root itself for the empty path."""
    return root.get_submodule(path) if path else root


@dataclass
class Entry:
    """A batch as it stands before the first layer.

    Attributes:
        hidden: Input of layer 0, [B, T, D].
        calls: For each original layer the further positional and keyword arguments of its call.
    """

    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)


class Decoder:
    """A causal language model seen as enter, layers, leave.

    Args:
        model: A decoder-only model of one of the families in :mod:`streamline.engine.families`.

    Raises:
        UnsupportedModelError: If the family has no row in the table.
    """

    #: How jobs are run where layers come one at a time, each for all batches; None where the model
    #: is in memory and each batch goes through all layers (:mod:`streamline.engine.forward`).
    layer_order: ClassVar[Callable[..., Iterator[Any]] | None] = None

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config: PretrainedConfig = model.config
        self.family: Family = family_of(model.config.model_type)
        self.layers: list[nn.Module] = list(submodule(model, self.family.layers).children())

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> Decoder:
        """A decoder without weights (meta device) and without code of its own, for planning."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            return cls(AutoModelForCausalLM.from_config(config, trust_remote_code=False))

    @property
    def n_layers(self) -> int:
        """Number of layers, L."""
        return len(self.layers)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream, D."""
        return int(self.config.hidden_size)

    @property
    def name(self) -> str:
        """Hub id or folder that the model came from."""
        return str(getattr(self.config, "_name_or_path", "") or self.family.name)

    @property
    def device(self) -> torch.device:
        """Device of the input embeddings: where token ids go."""
        embeddings = self.model.get_input_embeddings()
        working = _working_device(embeddings)
        return next(embeddings.parameters()).device if working is None else working

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.layers[0].parameters()).dtype if self.layers else self.model.dtype

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the positions allow, or None if the config does not state it."""
        value = getattr(self.config, "max_position_embeddings", None)
        return None if value is None else int(value)

    def check_length(self, length: int, what: str) -> str | None:
        """Whether the model has positions for sequences of a length.

        Args:
            length: Tokens of a sequence.
            what: What is of this length, for the message.

        Returns:
            None, or a remark where positions are computed and go on beyond those of training.

        Raises:
            UnsupportedModelError: If positions are learned and there are fewer.
        """
        limit = self.max_length
        if limit is None or length <= limit:
            return None
        text = f"{what} of {length} tokens is longer than the {limit} positions of {self.name}"
        if self.family.positions:
            raise UnsupportedModelError(f"{text}, which has no others; take {limit} or fewer")
        return f"{text}; it goes on computing them, but was not trained so far"

    def enter(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Entry:
        """Embed a batch and record what each layer would be called with.

        Args:
            input_ids: Token ids, [B, T], int64.
            attention_mask: 2-D [B, T] with 1 for real tokens, or an additive 4-D mask
                [B, 1, T, T] in the model's dtype (families with ``tree``), or None for causal.
            position_ids: Positions, [B, T]; None lets the model number them.

        Returns:
            The hidden states before layer 0 and one call per layer.

        Raises:
            UnsupportedModelError: If the batch is longer than a table of learned positions.
        """
        if position_ids is None:  # a row of trees is longer than its positions are high
            self.check_length(input_ids.shape[-1], "a text")
        entered()
        entry = Entry(hidden=torch.empty(0))
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        options = {k: onto(value, self.device) for k, value in given.items() if value is not None}
        base, ids = submodule(self.model, self.family.base), onto(input_ids, self.device)
        with self._recording(entry), single_sequences(position_ids is None):
            base(ids, use_cache=False, **options)
        return entry

    def run(self, module: nn.Module, hidden: Tensor, entry: Entry, layer: int) -> Tensor:
        """Run one layer, or what replaces it.

        Args:
            module: A layer, or a module called like one.
            hidden: Hidden states, [B, T, D].
            entry: The batch, from :meth:`enter`.
            layer: Original index of the layer whose call arguments are to be used.

        Returns:
            Hidden states after the module, [B, T, D].
        """
        args, kwargs = entry.calls[layer]
        if not hasattr(module, "_hf_hook"):
            device = module_device(module)
            if device is not None:
                hidden = hidden.to(device)
                args, kwargs = to_device(args, device), to_device(kwargs, device)
        own = hidden.clone() if _unknown(module) else hidden
        output = module(own, *args, **kwargs)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def run_together(
        self, module: nn.Module, states: Sequence[Tensor], entry: Entry, layer: int
    ) -> Sequence[Tensor]:
        """:meth:`run` for several hidden states of one batch at once.

        Args:
            module: A layer, or a module called like one.
            states: Hidden states of several paths, [B, T, D] each.
            entry: The batch, from :meth:`enter`.
            layer: Original index of the layer whose call arguments are to be used.

        Returns:
            Hidden states after the module, [B, T, D] each.
        """
        if len(states) == 1:
            return (self.run(module, states[0], entry, layer),)
        n, rows = len(states), len(entry.hidden)
        call = repeated(entry.calls[layer], n, rows)
        together = torch.cat([hidden.to(states[0].device) for hidden in states])  # [n * B, T, D]
        return torch.split(self.run(module, together, Entry(together, [call]), 0), rows)

    def leave(self, hidden: Tensor) -> Tensor:
        """Final norm and output projection.

        Args:
            hidden: Hidden states after the last layer, [..., D].

        Returns:
            Logits, [..., V], in the model's dtype.
        """
        norm = self._optional(self.family.norm)
        hidden = hidden if norm is None else norm(hidden)
        project_out = self._optional(self.family.project_out) if self.family.project_out else None
        hidden = hidden if project_out is None else project_out(hidden)
        logits: Tensor = submodule(self.model, self.family.head)(hidden)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The model's logits by entering, running all layers and leaving, [B, T, V]."""
        entry = self.enter(input_ids, attention_mask)
        hidden = entry.hidden
        for index, layer in enumerate(self.layers):
            hidden = self.run(layer, hidden, entry, index)
        return self.leave(hidden)

    def trace(self, entry: Entry, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Run the dense path and give the hidden states at every depth.

        Depth 0 is the input of layer 0 and depth i the raw output of layer i - 1: never after the
        final norm, unlike the last entry of ``output_hidden_states``.

        Args:
            entry: The batch, from :meth:`enter`.
            stop: Last depth wanted; later layers are not run.

        Yields:
            ``(depth, hidden [B, T, D])`` in rising order.
        """
        hidden = entry.hidden
        yield 0, hidden
        last = self.n_layers if stop is None else stop
        for index in range(last):
            hidden = self.run(self.layers[index], hidden, entry, index)
            yield index + 1, hidden

    def n_parameters(self) -> int:
        """Parameters of the whole model; tied weights count once."""
        return count_parameters([self.model])

    def layer_parameters(self, index: int) -> int:
        """Parameters of one layer."""
        return count_parameters([self.layers[index]])

    def shell_parameters(self) -> list[nn.Parameter]:
        """Parameters outside the layers: embeddings, final norm, head (tied ones once)."""
        inside = {id(p) for layer in self.layers for p in layer.parameters()}
        return [p for p in self.model.parameters() if id(p) not in inside]

    def _optional(self, path: str) -> nn.Module | None:
        parent, _, leaf = path.rpartition(".")
        module = getattr(submodule(self.model, parent), leaf, None)
        return module if isinstance(module, nn.Module) else None

    @contextmanager
    def _recording(self, entry: Entry) -> Iterator[None]:
        """Let every layer record its call and hand its input on, then restore them."""
        saved = [layer.__dict__.get("forward") for layer in self.layers]

        def recorder(index: int) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                if index == 0:
                    entry.hidden = hidden_states
                entry.calls.append((args, kwargs))
                return (hidden_states,) if self.family.tuple_output else hidden_states

            return forward

        try:
            for index, layer in enumerate(self.layers):
                layer.__dict__["forward"] = recorder(index)
            yield
        finally:
            for layer, forward in zip(self.layers, saved, strict=True):
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.__dict__["forward"] = forward


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Models in eval mode for a while: no dropout; every module is as before afterwards."""
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def count_parameters(modules: Iterable[nn.Module]) -> int:
    """Distinct parameters of some modules together: one that is shared counts once."""
    seen = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(seen.values())


def _unknown(module: nn.Module) -> bool:
    """Whether a module holds code that might compute into its input, which other paths read."""
    if module not in _UNKNOWN:
        packages = {type(part).__module__.partition(".")[0] for part in module.modules()}
        _UNKNOWN[module] = not packages <= _KNOWN
    return _UNKNOWN[module]


def module_device(module: nn.Module) -> torch.device | None:
    """Device of a module's first parameter, or None if it has none."""
    parameter = next(module.parameters(), None)
    return None if parameter is None else parameter.device


def _working_device(module: nn.Module) -> torch.device | None:
    """Where accelerate brings an offloaded module's weights to work; None if it has no hook."""
    hook = getattr(module, "_hf_hook", None)
    for part in (hook, *getattr(hook, "hooks", ())):
        device = getattr(part, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None
