"""The dense model beside a pruned one that learns from it.

Both are ways through the dense model's layers: the first ones, as far as nothing of them is changed
or trained, run once for both. No logits are kept: the head gives them for a few positions at a time
(:func:`streamline.engine.head.summed_divergence`).

Example::

    teacher = Teacher.of(dense, student, DistillationSettings(top_k=100), autocast=None)
    teacher.divergence(ids, scored).backward()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamline.distributed.team import local
from streamline.engine.decoder import Decoder, Entry
from streamline.engine.forward import Depths, run
from streamline.engine.head import summed_divergence
from streamline.engine.paths import Path, dense_path
from streamline.errors import UnsupportedModelError
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.objectives import as_dtype, mixed

__all__ = ["Distillation", "Teacher"]


@dataclass(frozen=True)
class Distillation:
    """From whom a model is to learn, and how.

    Attributes:
        dense: The model that teaches; it is not changed.
        fingerprint: Content key of its weights.
        settings: How.
    """

    dense: Decoder
    fingerprint: str
    settings: DistillationSettings

    def autocast(self) -> torch.dtype | None:
        """The dtype of mixed precision: weights are trained in float32, adapters beside them."""
        plain = self.settings.trainees == "lora" or self.dense.dtype == torch.float32
        return None if plain else torch.bfloat16


@dataclass(frozen=True)
class Teacher:
    """A dense model, the pruned one that learns, and what both have in common.

    Attributes:
        dense: The teacher.
        student: The model that learns; what of it is trained needs gradients already.
        settings: Temperature and logits that count.
        autocast: Dtype of the student's mixed precision; None for none.
        shared: First layers that both have alike and that no training changes.
        layers: What runs in the place of the student's layers, if not these.
        own: Likewise in the place of the teacher's.
    """

    dense: Decoder
    student: Decoder
    settings: DistillationSettings
    autocast: torch.dtype | None
    shared: int
    layers: Sequence[nn.Module] | None = None
    own: Sequence[nn.Module] | None = None

    @classmethod
    def of(
        cls,
        distillation: Distillation,
        student: Decoder,
        autocast: torch.dtype | None = None,
        layers: Sequence[nn.Module] | None = None,
        own: Sequence[nn.Module] | None = None,
    ) -> Teacher:
        """A teacher for a model whose trained parameters need gradients already.

        Args:
            distillation: From whom it learns, and how.
            student: The model.
            autocast: As the attribute.
            layers: Likewise.
            own: Likewise.

        Raises:
            UnsupportedModelError: If the two predict another number of tokens.
        """
        dense = distillation.dense
        widths = [int(one.config.vocab_size) for one in (dense, student)]
        if widths[0] != widths[1]:
            raise UnsupportedModelError(
                f"distillation compares predictions of the same tokens, and {dense.name} has "
                f"{widths[0]:,} of them, the model that learns {widths[1]:,}; take recovery lora"
            )
        shared = _shared(dense, student)
        return cls(dense, student, distillation.settings, autocast, shared, layers, own)

    def divergence(self, ids: Tensor, scored: Tensor) -> Tensor:
        """Summed KL(dense || student) of the predictions of some tokens, in nats, or with text.

        Args:
            ids: Tokens, [B, T], int64.
            scored: Which tokens' predictions count, [B, T], bool; the first of a row never does.

        Returns:
            A scalar; gradients as the caller has set them.
        """
        dense, student = self.dense, self.student
        with torch.no_grad():
            entry = dense.enter(ids)
            hidden, wanted = self._taught(ids, entry)
        with mixed(student.device, self.autocast):
            own = student.enter(ids)
            found = hidden if self.shared else own.hidden
            layers = student.layers if self.layers is None else self.layers
            for index in range(self.shared, student.n_layers):
                found = self._run(layers[index], found, own, index)
            return summed_divergence(
                (dense, wanted),
                (student, found),
                ids,
                scored,
                temperature=self.settings.temperature,
                top_k=self.settings.top_k,
                text=self.settings.text,
            )

    def _taught(self, ids: Tensor, entry: Entry) -> tuple[Tensor, Tensor]:
        """The dense model's states behind the layers that both share, and behind the last one."""
        dense = self.dense
        if self.own is None:
            whole = dense_path(dense)
            paths = [Path(dense, whole.nodes[: self.shared]), whole]
            with local():
                ((_, (hidden, wanted)),) = run(paths, [Depths(ids, entry, for_training=True)])
            return hidden, wanted
        hidden = found = entry.hidden
        for index, layer in enumerate(self.own):
            found = dense.run(layer, found, entry, index)
            if index < self.shared:
                hidden = found
        return hidden, found

    def _run(self, layer: nn.Module, hidden: Tensor, entry: Entry, index: int) -> Tensor:
        """One layer in the dtype of its weights: a trained one is in float32."""
        dtype = next((p.dtype for p in layer.parameters()), hidden.dtype)
        call = as_dtype(entry, index, dtype)
        return self.student.run(layer, hidden.to(dtype), call, index).to(hidden.dtype)


def _shared(dense: Decoder, student: Decoder) -> int:
    """How many of the first layers of two models are one, with the way in, and are not trained."""
    ways = [
        [p for name, p in one.model.named_parameters() if not _after(name, one)]
        for one in (dense, student)
    ]
    if not _same(*ways):
        return 0
    for index, (layer, own) in enumerate(zip(dense.layers, student.layers, strict=False)):
        parts = [[type(part) for part in one.modules()] for one in (layer, own)]
        tensors = [[*one.parameters(), *one.buffers()] for one in (layer, own)]
        if parts[0] != parts[1] or not _same(*tensors):
            return index
    return min(dense.n_layers, student.n_layers)


def _after(name: str, decoder: Decoder) -> bool:
    """Whether a parameter lies in a layer or behind the last one."""
    family = decoder.family
    places = (family.layers, family.norm, family.head, family.project_out)
    return any(place and name.startswith(f"{place}.") for place in places)


def _same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether they are the same tensors, and none of them is trained."""
    pairs = list(zip(tensors, others, strict=False))
    alike = len(tensors) == len(others) and all(a is b for a, b in pairs)
    return alike and not any(tensor.requires_grad for tensor in others)
