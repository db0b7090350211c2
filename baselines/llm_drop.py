"""LLM-Drop: remove the attentions and MLPs that turn the residual stream least, all at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from streamline.calibration import Calibration, measure
from streamline.engine.budget import Effort, check_sparsity, reading_flops, statistics_flops
from streamline.engine.decoder import Decoder
from streamline.engine.kernels import FastLinears
from streamline.engine.transfer import Later
from streamline.errors import UnsupportedModelError
from streamline.method import Method, Pruned
from streamline.methods.sublayers import SUBLAYERS, Sublayers, Unit
from streamline.plan import Plan


@dataclass(frozen=True, kw_only=True)
class LLMDrop(Method):
    """Remove the attentions and MLPs that change least.

    The score of a sublayer is ``1 - cos(x, x + f(x))``, where ``x`` is the residual stream before
    its norm and ``x + f(x)`` the stream after it. Scores are measured once; sublayers are removed
    in their order while the next one brings the removed parameters nearer to the target.

    Attributes:
        target: ``"all"`` ranks attentions and MLPs together ("joint layer drop"), ``"attention"``
            or ``"mlp"`` one kind alone. Attentions alone cannot meet high sparsities.

    Reference:
        What Matters in Transformers? Not All Attention is Needed, arXiv:2406.15786, section 3.

    Differs from the paper:
        The run's calibration texts instead of C4. The default is the joint form, because the
        attentions of many models hold too few parameters for common sparsities. The number of
        sublayers is solved from counted parameters; it is an argument of the released code.
    """

    name: ClassVar[str] = "llm-drop"
    paper: ClassVar[str] = "arXiv:2406.15786"

    target: Literal["all", "attention", "mlp"] = "all"

    def calibration_key(self) -> str:
        """The similarities of all sublayers do not depend on the fields."""
        return self.name

    def calibrate(self, decoder: Decoder, batches: Tensor) -> Calibration:
        """Measure the cosine across each sublayer, as well as the shared statistics."""
        extras = {"cosines": sublayer_cosines(decoder, batches)}
        return replace(measure(decoder, batches), extras=extras)

    def order(self, calibration: Calibration) -> list[Unit]:
        """Every sublayer of the targeted kind, most similar first."""
        cosines = calibration.extras["cosines"].tolist()
        units: list[Unit] = [
            (index, sublayer)
            for sublayer in SUBLAYERS
            for index in range(len(cosines))
            if self.target in ("all", sublayer)
        ]
        return sorted(units, key=lambda unit: -cosines[unit[0]][SUBLAYERS.index(unit[1])])

    def prune(
        self,
        decoder: Decoder,
        calibration: Calibration,
        sparsity: float,
        batches: Tensor,
        seed: int,
    ) -> Pruned:
        """Remove sublayers in their order.

        Raises:
            UnsupportedModelError: If all sublayers of the kind together hold too few parameters.
        """
        if check_sparsity(sparsity) == 0.0:
            return Pruned(Plan.dense(decoder.n_layers))
        sublayers = Sublayers(decoder)
        dense = decoder.n_parameters()
        order, gone = self.order(calibration), list[Unit]()
        most = sublayers.n_removed(order) / dense
        if sparsity > most + 0.5 / (decoder.n_layers * 2) * most:
            raise UnsupportedModelError(
                f"{self.name} with target={self.target!r} removes at most {most:.1%} of the "
                f"parameters of {decoder.name}, not {sparsity:.1%}; choose a lower "
                "sparsity, or use target='all'"
            )
        for unit in order:
            if not sublayers.nearer(gone, unit, sparsity * dense):
                break
            gone.append(unit)
        notes: dict[str, Any] = {
            "order": [list(unit) for unit in order],
            "cosines": calibration.extras["cosines"].tolist(),
        }
        return sublayers.pruned(gone, notes)

    def effort(self, decoder: Decoder, sparsity: float, shape: tuple[int, int]) -> Effort:
        """The statistics, and each layer whole and without one or both of its sublayers."""
        tokens = math.prod(shape)
        layers = 2.0 if decoder.family.parallel else 1.4  # the attention alone is run again
        scored = layers * reading_flops(decoder, tokens)
        return Effort(statistics_flops(decoder, tokens) + scored)


@torch.no_grad()
def sublayer_cosines(decoder: Decoder, batches: Tensor, *, batch_tokens: int = 4096) -> Tensor:
    """Mean token cosine of the residual stream before and after each sublayer.

    What a sublayer adds is read off the layer without the other one, so no family's internals are
    touched. Where both read the layer's input (parallel residual), both are compared with it.

    Args:
        decoder: The dense model; left as it was.
        batches: Token ids, [N, T].
        batch_tokens: Tokens per forward pass.

    Returns:
        Cosines, [L, 2] (attention, MLP), float64.
    """
    sublayers = Sublayers(decoder)
    total = torch.zeros(decoder.n_layers, 2, dtype=torch.float64)
    called = [unit for unit in sublayers.units if unit[1] == "mlp" or decoder.family.parallel]
    parts = [sublayers.layer_without(unit) for unit in called]
    fast = FastLinears([*decoder.layers, *parts], decoder.model)
    rows = max(1, batch_tokens // batches.shape[1])
    found = []
    for tokens in torch.split(batches, rows):
        with fast.active():
            found.append(Later(_cosines(decoder, sublayers, tokens), _summed))
    for sums in found:  # when all batches are on their way
        total += sums.value()
    return total / batches.numel()


def _cosines(decoder: Decoder, sublayers: Sublayers, tokens: Tensor) -> list[Tensor]:
    """Each token's cosine across attention and MLP of each layer in turn, [B, T] each."""
    found = []
    entry = decoder.enter(tokens)
    hidden = entry.hidden
    for index, layer in enumerate(decoder.layers):
        between = decoder.run(sublayers.layer_without((index, "mlp")), hidden, entry, index)
        after = decoder.run(layer, hidden, entry, index)
        found.append(_cosine(hidden, between))
        if decoder.family.parallel:
            alone = decoder.run(sublayers.layer_without((index, "attention")), hidden, entry, index)
            found.append(_cosine(hidden, alone))
        else:
            found.append(_cosine(between, after))
        hidden = after
    return found


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return torch.cosine_similarity(x.float(), y.float().to(x.device), dim=-1)


def _summed(cosines: list[Tensor]) -> Tensor:
    """Their sums over tokens, [L, 2], float64."""
    return torch.stack([each.double().sum() for each in cosines]).reshape(-1, 2)
