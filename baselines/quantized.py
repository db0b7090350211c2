"""A control: all layers of the dense model with fewer bits for each weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from streamline.calibration import Calibration
from streamline.engine.assemble import assemble
from streamline.engine.budget import Effort, check_sparsity, statistics_flops
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.paths import dense_path
from streamline.engine.stored import Stored, mark
from streamline.fields import Count
from streamline.method import Method, Pruned, Size
from streamline.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_BESIDE = 4 + 1  # bytes of a group's scale and zero


@dataclass(frozen=True, kw_only=True)
class Quantized(Method):
    """Keep every layer and store weights in fewer bits.

    A group of weights ``w`` of one row, next to each other, is stored as integers ``q`` of ``bits``
    bits with a scale ``s`` and a zero ``z``: ``s = (max(w, 0) - min(w, 0)) / (2^bits - 1)``,
    ``z = -2^(bits - 1) - round(min(w, 0) / s)``, ``q = clamp(round(w / s) + z)``; what is computed
    with is ``(q - z) s``. The linear maps of all layers are, embeddings, norms and biases stay.
    No parameter goes, whatever the target (but at 0 nothing is done): what such a model is
    compared by is its bytes. These are ``bits`` for each weight, four bytes for each scale and one
    for each zero. Calibration is not used. It is no part of ``all``.

    The model is evaluated with weights brought back to its number format, so its answers are those
    of the stored weights, and its speed is not measured. A checkpoint of it is not written.

    Attributes:
        bits: Bits of each weight.
        group_size: Weights with one scale and zero; None for a whole row.
        head: Whether the output head is stored so too; not where it is tied to the embeddings.

    Reference:
        None: a control. Rounds as torchao's ``IntxWeightOnlyConfig`` does, asymmetric, in float32:
        a test compares the two where torchao is installed.
    """

    name: ClassVar[str] = "quantized"
    paper: ClassVar[str] = "control: the dense model in fewer bits"
    returns_model: ClassVar[bool] = True
    trainable: ClassVar[bool] = False
    in_all: ClassVar[bool] = False

    bits: Literal[4, 8] = 4
    group_size: Count | None = 64
    head: bool = False

    @property
    def way(self) -> str:
        """The format in words."""
        group = "rows" if self.group_size is None else f"groups of {self.group_size}"
        return f"{self.bits} bits a weight in {group}"

    def unsupported(self, decoder: Decoder) -> str | None:
        """Models with other maps than the format holds."""
        head = submodule(decoder.model, decoder.family.head)
        table = decoder.model.get_input_embeddings()
        if self.head and head.weight is cast("nn.Embedding", table).weight:
            return (
                f"{self.name}+head=true stores the head in integers, and that of {decoder.name} is "
                "its table of embeddings, from which rows are looked up; leave the head as it is"
            )
        for name, module in self._places(decoder.model, decoder):
            for parameter in module.parameters(recurse=False):
                if parameter.dim() < 2:
                    continue
                if not isinstance(module, nn.Linear):
                    return (
                        f"{self.name} stores linear maps, and {name} of {decoder.name} is a "
                        f"{type(module).__name__} with weights of shape {tuple(parameter.shape)}"
                    )
                width = parameter.shape[1]
                if self.group_size is not None and width % self.group_size:
                    fits = [size for size in (256, 128, 64, 32, 16) if width % size == 0]
                    return (
                        f"group_size={self.group_size} of {self.name} does not divide the {width} "
                        f"columns of {name} of {decoder.name}; take "
                        f"{' or '.join(map(str, [*fits[:2], 'null']))} (null: one group a row)"
                    )
        return super().unsupported(decoder)

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """The dense plan, with the model of the stored weights."""
        plan = Plan.dense(decoder.n_layers)
        if check_sparsity(sparsity) == 0.0:
            return Pruned(plan)
        model = assemble(dense_path(decoder))
        held = _bytes(model)
        saved = sum(self._store(module) for module in self._maps(model, decoder))
        mark(model, Stored(way=self.way, saved=saved))
        left = (held - saved) / held
        notes: dict[str, Any] = {
            "stored": self.way,
            "stored_bytes": held - saved,
            "dense_bytes": held,
            "flag": f"no parameter goes: {self.way} leave {left:.1%} of the dense model's bytes",
        }
        return Pruned(plan, model=model, notes=notes)

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The shared calibration, which it does not look at; weights alone are rounded."""
        return Effort(statistics_flops(decoder, math.prod(shape)))

    def size(self, decoder: Decoder, sparsity: float) -> Size:
        """Every parameter remains."""
        return Size(decoder.n_parameters(), decoder.n_parameters(), 0)

    def _places(self, model: PreTrainedModel, decoder: Decoder) -> list[tuple[str, nn.Module]]:
        """The modules whose matrices are stored, with their names."""
        roots = [decoder.family.layers, *([decoder.family.head] if self.head else [])]
        return [
            (name, module)
            for root in roots
            for name, module in submodule(model, root).named_modules(prefix=root)
        ]

    def _maps(self, model: PreTrainedModel, decoder: Decoder) -> list[nn.Linear]:
        found = [module for _, module in self._places(model, decoder)]
        return [module for module in found if isinstance(module, nn.Linear)]

    def _store(self, linear: nn.Linear) -> int:
        """Give a map the weights that are read back from the stored ones; the bytes saved."""
        weight = linear.weight
        group = weight.shape[1] if self.group_size is None else self.group_size
        read = read_back(weight.detach(), self.bits, group)
        linear.weight = nn.Parameter(read, requires_grad=weight.requires_grad)
        codes = -(-weight.numel() * self.bits // 8)
        return weight.numel() * weight.element_size() - codes - weight.numel() // group * _BESIDE


def read_back(weight: Tensor, bits: int, group: int) -> Tensor:
    """What is left of weights that were stored in integers.

    Args:
        weight: [rows, columns].
        bits: Of each integer.
        group: Neighbours of a row with one scale and one zero; divides the columns.

    Returns:
        The weights read back, in the format of those given.
    """
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    groups = weight.float().reshape(len(weight), -1, group)  # [rows, columns / group, group]
    least = groups.amin(-1, keepdim=True).clamp(max=0.0)
    most = groups.amax(-1, keepdim=True).clamp(min=0.0)
    scale = ((most - least) / (high - low)).clamp(min=torch.finfo(torch.float32).smallest_normal)
    zero = (low - torch.round(least / scale)).clamp(low, high)
    codes = (torch.round(groups * (1.0 / scale)) + zero).clamp(low, high)
    read: Tensor = ((codes - zero) * scale).reshape(weight.shape)
    return read.to(weight.dtype)


def _bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, a shared one once."""
    own = {id(tensor): tensor for tensor in model.parameters()}
    return sum(tensor.numel() * tensor.element_size() for tensor in own.values())
