"""Calibration: one streaming pass over a model that serves every depth criterion at every sparsity.

Text becomes packed token batches; the dense path runs once, and from its states at every depth the
mean token cosine between *every* pair of depths is kept (so block influence and the score of every
span of every length are entries of one matrix), and the mean angle at the last token. Memory does
not grow with the number of samples, unless layers are read one at a time.

Example:
    calibration = measure(decoder, batches)
    calibration.cosine[i, i + n]        # mean cosine over the span [i, i + n)
    calibration.influence               # 1 - cosine of each layer's input and output

Depth 0 is the input of layer 0 and depth i the raw output of layer i - 1, never after the final
norm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.engine.finite import blame
from streamline.engine.forward import Depths, run
from streamline.engine.paths import dense_path, prefix_paths
from streamline.engine.transfer import Later
from streamline.errors import ConfigError, NotFiniteError
from streamline.kept import kept_tensors, read_tensors, write_tensors
from streamline.plan import Span
from streamline.progress import tell

BATCH_TOKENS = 4096
"""Tokens of one forward pass that measures."""
#: Tokens whose states are multiplied at once: bounds the float32 error of one product.
_CHUNK = 256
_FILE = "calibration.safetensors"
_OF = "cosine of "  # a text, in the extras
_STATES = 2 << 30  # bytes of the states of one batch, in float32


@dataclass(frozen=True)
class Calibration:
    """What one pass over the dense model found; L layers, so L + 1 depths.

    Attributes:
        cosine: Mean token cosine between every pair of depths, [L + 1, L + 1], float64.
        angle: Mean angle at the last token over pi, [L + 1, L + 1], float64, in [0, 1].
        n_tokens: Tokens averaged over.
        n_samples: Sequences averaged over.
        extras: Further statistics that a method measured, by name.
        facts: Further JSON facts (sources, costs).
    """

    cosine: Tensor
    angle: Tensor
    n_tokens: int
    n_samples: int
    extras: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        """Number of layers, L."""
        return self.cosine.shape[0] - 1

    @property
    def influence(self) -> Tensor:
        """Block influence of every layer, ``1 - cosine(input, output)``, [L], float64.

        Reference:
            ShortGPT, arXiv:2403.03853, "block influence".
        """
        return 1.0 - self.cosine.diagonal(1)

    def ranked_spans(self, length: int) -> list[tuple[Span, float]]:
        """Every span of a length with its cosine, most similar first.

        Args:
            length: Layers in the span, 1 to L.

        Returns:
            ``(span, cosine)`` pairs; equal cosines in order of their start.

        Raises:
            ConfigError: If no span has that length.

        Reference:
            arXiv:2403.19135, equations 4 and 5.
        """
        if not 1 <= length <= self.n_layers:
            raise ConfigError(f"a span of {length} layers does not fit in {self.n_layers} layers")
        scores = self.cosine.diagonal(length).tolist()
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        return [(Span(i, i + length), scores[i]) for i in order]

    def beside(self, others: Mapping[str, Calibration]) -> Calibration:
        """These statistics with the cosines of other texts, as ``extras["cosine of NAME"]``.

        Args:
            others: Those of other texts, by name; the costs of all are in the facts.
        """
        found = [self.facts, *(one.facts for one in others.values())]
        costs: dict[str, Any] = {
            "seconds": sum(one.get("seconds") or 0.0 for one in found),
            "other_tokens": sum(one.n_tokens for one in others.values()),
        }
        for name, merge in (("flops", sum), ("peak_memory_bytes", max)):
            known = [one[name] for one in found if one.get(name) is not None]
            costs[name] = merge(known) if len(known) == len(found) else None
        cosines = {f"{_OF}{name}": one.cosine for name, one in others.items()}
        return replace(self, extras=self.extras | cosines, facts=self.facts | costs)

    @property
    def cosines(self) -> list[Tensor]:
        """The cosines of all texts that were measured, this one's first, [L + 1, L + 1] each."""
        return [self.cosine, *(own for name, own in self.extras.items() if name.startswith(_OF))]

    def save(self, folder: Path) -> None:
        """Write ``calibration.safetensors``, with its checksum, whole or not at all."""
        tensors = {"cosine": self.cosine, "angle": self.angle} | {
            f"extras.{name}": value for name, value in self.extras.items()
        }
        facts = {"n_tokens": self.n_tokens, "n_samples": self.n_samples, "facts": self.facts}
        write_tensors(folder / _FILE, tensors, {"facts": json.dumps(facts, allow_nan=False)})

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: If it is not there.
            Damaged: If it is not what was written.
        """
        return cls._of(*read_tensors(folder / _FILE))

    @classmethod
    def kept(cls, folder: Path) -> Calibration | None:
        """The same, or None if it is not there; a damaged file is set aside."""
        found = kept_tensors(folder / _FILE)
        return None if found is None else cls._of(*found)

    @classmethod
    def _of(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Calibration:
        extras = {
            name.removeprefix("extras."): value
            for name, value in tensors.items()
            if name.startswith("extras.")
        }
        facts = json.loads(metadata["facts"])
        return cls(cosine=tensors["cosine"], angle=tensors["angle"], extras=extras, **facts)


def measure(
    decoder: Decoder,
    batches: Tensor,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> Calibration:
    """Run the dense path once and average cosines and angles between all depths.

    Args:
        decoder: The dense model; left as it was.
        batches: Token ids, [N, T], int64.
        batch_tokens: Tokens of one forward pass (at least one sequence); fewer where the states of
            all depths would need more than 2 GiB.

    Returns:
        The statistics, on the CPU.

    Raises:
        NotFiniteError: If a state of the model is NaN or infinite.
    """
    depths = decoder.n_layers + 1
    batch_tokens = min(batch_tokens, _STATES // (4 * depths * decoder.hidden_size))
    cosine = torch.zeros(depths, depths, dtype=torch.float64)
    angle = torch.zeros(depths, depths, dtype=torch.float64)
    rows = max(1, batch_tokens // batches.shape[1])
    jobs = [_Similarities(tokens) for tokens in torch.split(batches, rows)]
    for _, (cosines, angles) in run(prefix_paths(decoder, range(depths)), jobs, progress=tell):
        cosine += cosines
        angle += angles
    broken = (~torch.isfinite(cosine.diagonal())).nonzero()
    if len(broken):
        where = blame(dense_path(decoder), int(broken[0]))
        raise NotFiniteError(f"calibration: the cosine of two depths is not finite: {where}")
    cosine /= batches.numel()
    cosine.fill_diagonal_(1.0)
    angle /= len(batches)
    angle.fill_diagonal_(0.0)
    return Calibration(cosine, angle, batches.numel(), len(batches))


class _Similarities(Depths):
    """Some sequences, [B, T]: the summed cosines and angles between all depths."""

    def split(self) -> Sequence[_Similarities]:
        """Half of the sequences each, or nothing for one."""
        return self.halves()

    def answer(self, decoder: Decoder, kept: Tensor) -> Tensor:
        """Unit states, [B, T, D], float32."""
        return torch.nn.functional.normalize(kept.float(), dim=-1)

    def combine(self, answers: list[Any]) -> Later:
        """Cosines over tokens and angles at the last, [L + 1, L + 1] each, float64, on the CPU."""
        n_depths = len(answers)

        def made(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
            last = torch.stack(tensors[:n_depths], 1).double()  # [B, L + 1, D]
            pairs = torch.einsum("bid,bjd->bij", last, last).clamp(-1.0, 1.0)
            total = torch.zeros(n_depths, n_depths, dtype=torch.float64)
            for cosines in tensors[n_depths:]:
                total += cosines.double()
            return total, torch.arccos(pairs).sum(0) / torch.pi

        return Later([*(state[:, -1] for state in answers), *_token_cosines(answers)], made)


def _token_cosines(states: list[Tensor]) -> list[Tensor]:
    """Sums over some tokens of the cosines between all depths, [L + 1, L + 1] each, float32.

    For unit vectors the sum over tokens and features is one matrix product of each depth's states
    laid out flat: no token-by-token similarity matrix is ever built.

    Args:
        states: Unit hidden states of every depth, [B, T, D] each, float32.
    """
    n_depths, width = len(states), states[0].shape[-1]
    flat = [state.reshape(-1, width) for state in states]
    found = []
    for start in range(0, flat[0].shape[0], _CHUNK):
        rows = torch.stack([f[start : start + _CHUNK].to(flat[0].device) for f in flat])
        rows = rows.reshape(n_depths, -1)
        found.append(rows @ rows.T)
    return found
