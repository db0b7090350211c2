"""A model whose layers are never all in memory: they come one at a time from its safetensors.

The model is built without weights; what is small (final norm, position table, tied embeddings)
stays in memory, and embeddings, layers and head are read when their turn comes, the next one in a
thread while the present one computes. So at most two are in memory, on the device or the machine,
and a pass over any amount of text reads each weight once. What is kept between layers are hidden
states (:mod:`streamline.streaming.states`); what runs when is :mod:`streamline.streaming.order`.

Calibration, scoring, perplexity and sums over states are called as with any model. What needs a
layer outside a forward pass of the engine has it read (:meth:`StreamedDecoder.each`), or is
refused.

Example::

    decoder, tokenizer = load_streamed("llama2-70b", device="cuda", dtype="bfloat16")
    calibration = measure(decoder, batches)                     # one pass
    answers = score([dense_path(decoder), pruned.path(decoder)], requests)     # another
    decoder.source.bytes_read
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder, Entry, submodule
from streamline.errors import UnsupportedModelError
from streamline.sources.accounting import account
from streamline.sources.weights import WeightSource
from streamline.streaming.order import EMBEDDING, HEAD, layer_by_layer
from streamline.streaming.states import StateStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["EMBEDDING", "HEAD", "STATE_BYTES", "StreamedDecoder", "grouped"]

STATE_BYTES = 2 << 30
"""Most bytes of waiting hidden states in memory."""


class StreamedDecoder(Decoder):
    """A decoder whose layers are on the meta device except while their turn lasts.

    Args:
        model: A model whose parameters are on the meta device, from
            :func:`streamline.streaming.opening.empty_model`.
        source: Its weights. It is closed by whoever opened it.
        device: Where the weights compute.
        state_bytes: Most bytes of waiting hidden states in memory; the rest goes to a file.
        scratch: Folder of that file.

    Attributes:
        source: The weights; counts what was read.
        peak_state_bytes: Most bytes of waiting hidden states in memory.
        state_file_bytes: Largest size of their file.

    Raises:
        AssetError: If the source does not hold exactly the model's tensors.
        UnsupportedModelError: If the family is unknown.
    """

    layer_order = staticmethod(layer_by_layer)

    def __init__(
        self,
        model: PreTrainedModel,
        source: WeightSource,
        *,
        device: str | torch.device = "cpu",
        state_bytes: int = STATE_BYTES,
        scratch: Path | None = None,
    ) -> None:
        super().__init__(model)
        self.source = source
        self.state_bytes = state_bytes
        self.scratch = scratch
        self.peak_state_bytes = 0
        self.state_file_bytes = 0
        self._device = torch.device(device)
        places = account(model, source)
        named = model.named_parameters(remove_duplicate=False)
        self._names = {id(parameter): places[name] for name, parameter in named}
        self._groups = grouped(self)
        self._layer_of = {id(p): i for i in range(self.n_layers) for p in self._groups[i]}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self._device)
        for name, buffer in model.named_buffers():
            if name in places:
                buffer.copy_(source.read(places[name]))
        _exchange(self._read(None))

    @property
    def device(self) -> torch.device:
        """Where the weights compute."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights in memory."""
        return next(self.layers[0].parameters()).dtype

    def key_of(self, parameter: Tensor) -> str | None:
        """Name in the source of a weight that is streamed or was read at the start, else None."""
        return self._names.get(id(parameter))

    def layers_of(self, module: nn.Module) -> set[int]:
        """The layers whose streamed weights a module uses; empty for modules in memory."""
        found = {self._layer_of.get(id(parameter)) for parameter in module.parameters()}
        return {layer for layer in found if layer is not None}

    def states(self) -> StateStore:
        """A new store for hidden states, with this decoder's budget and folder."""
        return StateStore(self.state_bytes, self.scratch)

    def note(self, store: StateStore) -> None:
        """Take over what a store needed, for :attr:`peak_state_bytes`."""
        self.peak_state_bytes = max(self.peak_state_bytes, store.peak_bytes)
        self.state_file_bytes = max(self.state_file_bytes, store.file_bytes)

    def each(self, groups: Sequence[Hashable]) -> Generator[Any, None, None]:
        """Bring groups of weights into memory, one after the other.

        Args:
            groups: :data:`EMBEDDING`, indices of layers, :data:`HEAD`; each is read once.

        Yields:
            The group whose weights are in memory until the next one is requested. Close the
            iterator to let go early.

        Raises:
            AssetError: If a weight cannot be read.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="streamline-weights") as reader:
            coming = reader.submit(self._read, groups[0])
            for place, group in enumerate(groups):
                weights = coming.result()
                if place + 1 < len(groups):
                    coming = reader.submit(self._read, groups[place + 1])
                else:
                    del coming
                _exchange(weights)
                try:
                    yield group
                finally:
                    _exchange(weights)
                    weights.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Embeddings and head in memory for a while.

        Raises:
            AssetError: If a weight cannot be read.
        """
        weights = [pair for group in (EMBEDDING, HEAD) for pair in self._read(group)]
        _exchange(weights)
        try:
            yield
        finally:
            _exchange(weights)

    def enter(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Entry:
        """As in memory, while the embeddings are there.

        Raises:
            UnsupportedModelError: Outside the engine's forward pass.
        """
        self._require(self.model.get_input_embeddings(), "the embeddings")
        return super().enter(input_ids, attention_mask, position_ids)

    def again(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Entry:
        """The layers' calls for a batch that was entered before; needs no embeddings.

        Masks and positions do not depend on the states, so between layers only states are kept.

        Returns:
            An entry whose hidden states mean nothing.
        """
        entry = Entry(hidden=torch.empty(0))
        width = int(self.model.get_input_embeddings().embedding_dim)  # type: ignore[arg-type]
        nothing = torch.zeros(1, dtype=self.dtype, device=self.device)
        options: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": False}
        if position_ids is not None:
            options["position_ids"] = position_ids.to(self.device)
        if attention_mask is not None:
            options["attention_mask"] = attention_mask.to(self.device)
        with self._recording(entry):
            base = submodule(self.model, self.family.base)
            base(inputs_embeds=nothing.expand(*input_ids.shape, width), **options)
        return entry

    def run(self, module: nn.Module, hidden: Tensor, entry: Entry, layer: int) -> Tensor:
        """As in memory, while the module's weights are there.

        Raises:
            UnsupportedModelError: If they are not.
        """
        self._require(module, f"layer {layer}")
        return super().run(module, hidden, entry, layer)

    def leave(self, hidden: Tensor) -> Tensor:
        """As in memory, while the head is there.

        Raises:
            UnsupportedModelError: Outside the engine's forward pass.
        """
        head = submodule(self.model, self.family.head)
        self._require(head, "the head")
        return super().leave(hidden)

    def _require(self, module: nn.Module, what: str) -> None:
        if any(parameter.is_meta for parameter in module.parameters()):
            raise UnsupportedModelError(
                f"{what} of {self.name} is not in memory: its layers are streamed, and only "
                "calibration statistics, scoring, perplexity, sums over states and single layers "
                "can be had of such a model; load it whole, without --stream"
            )

    def _read(self, group: Hashable) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Read a group; each weight beside the parameter that it belongs to."""
        found = []
        for parameter in self._groups[group]:
            value = self.source.read(self._names[id(parameter)], parameter.dtype)
            value = value.to(self._device)
            found.append((parameter, nn.Parameter(value, requires_grad=False)))
        return found


def grouped(decoder: Decoder) -> dict[Hashable, list[nn.Parameter]]:
    """The weights that come together: embeddings, each layer, the head.

    Args:
        decoder: Any decoder, on the meta device too.

    Returns:
        Parameters by :data:`EMBEDDING`, index of layer and :data:`HEAD`; under None those that
        stay in memory: what is neither, and embeddings that are the head as well.
    """
    groups: dict[Hashable, list[nn.Parameter]] = {}
    seen: set[int] = set()

    def add(group: Hashable, parameters: Iterable[nn.Parameter]) -> None:
        groups[group] = [p for p in parameters if id(p) not in seen]
        seen.update(id(p) for p in groups[group])

    for index, layer in enumerate(decoder.layers):
        add(index, layer.parameters())
    embedding = decoder.model.get_input_embeddings()
    head = submodule(decoder.model, decoder.family.head)
    both = {id(p) for p in embedding.parameters()} & {id(p) for p in head.parameters()}
    add(EMBEDDING, (p for p in embedding.parameters() if id(p) not in both))
    add(HEAD, (p for p in head.parameters() if id(p) not in both))
    add(None, decoder.model.parameters())
    return groups


def _exchange(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Put weights into their parameters, or remove them again.

    The parameter objects stay the same, so that whatever shares them sees their weights too.
    """
    swap: Any = torch.utils.swap_tensors
    with torch.inference_mode(False):
        for parameter, value in pairs:
            swap(parameter, value)
