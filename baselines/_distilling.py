"""Distilling one inserted module from the dense model's own most likely next tokens.

Everything else is frozen. The layers before the cut are run once for teacher and student, and the
teacher's logits are computed again for each batch, so nothing is kept on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.plan import Span
from streamline.training.schedule import Schedule, data_order

#: The learning rate falls to this fraction of its peak, as in the code released with LinearPatch.
_LAST_FRACTION = 1 / 20
_WEIGHT_DECAY = 1e-4


def top_divergence(teacher: Tensor, student: Tensor, top_k: int) -> Tensor:
    """Mean over tokens of the divergence KL(teacher, student) among the teacher's likeliest tokens.

    Both distributions are normalised among those alone.

    Args:
        teacher: Logits, [..., V].
        student: Logits, [..., V].
        top_k: How many tokens of the vocabulary count.

    Returns:
        A scalar, float32.
    """
    best = teacher.float().topk(min(top_k, teacher.shape[-1]), dim=-1)
    wanted = best.values.log_softmax(-1)
    found = student.float().gather(-1, best.indices.to(student.device)).log_softmax(-1)
    wanted = wanted.to(found.device)
    return (wanted.exp() * (wanted - found)).sum(-1).mean()


@dataclass(frozen=True)
class Distillation:
    """One module that replaces a span and learns from the dense model.

    Attributes:
        decoder: The dense model; left as it was.
        span: The layers that the module replaces.
        module: What is trained, in place, in float32.
        top_k: How many tokens of the vocabulary count.
    """

    decoder: Decoder
    span: Span
    module: nn.Module
    top_k: int

    def train(
        self, tokens: Tensor, *, epochs: int, learning_rate: float, step_tokens: int, seed: int
    ) -> dict[str, Any]:
        """Fit the module; the last weights are kept.

        Args:
            tokens: Token ids, [N, T].
            epochs: Passes over them.
            learning_rate: Peak of AdamW's learning rate; it falls by a cosine.
            step_tokens: Tokens of an optimiser step, rounded down to whole sequences.
            seed: Seed of the order.

        Returns:
            The divergence before and after, steps and trained parameters.
        """
        size = max(1, step_tokens // tokens.shape[1])
        steps = [
            indices
            for epoch in range(epochs)
            for indices in torch.split(data_order(len(tokens), seed, epoch), size)
        ]
        schedule = Schedule(
            n_steps=len(steps), peak=learning_rate, final=learning_rate * _LAST_FRACTION
        )
        parameters = list(self.module.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=_WEIGHT_DECAY)
        with self._only_module():
            before = self.divergence(tokens, size)
            for number, indices in enumerate(steps, start=1):
                for group in optimiser.param_groups:
                    group["lr"] = schedule.at(number)
                with torch.enable_grad():
                    loss = self._loss(tokens[indices])
                    loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            after = self.divergence(tokens, size)
        return {
            "before": before,
            "after": after,
            "n_steps": len(steps),
            "tokens": sum(len(indices) for indices in steps) * tokens.shape[1],
            "trained_parameters": sum(p.numel() for p in parameters),
        }

    @torch.no_grad()
    def divergence(self, tokens: Tensor, size: int) -> float:
        """The mean divergence over all tokens."""
        parts = torch.split(tokens, size)
        return sum(float(self._loss(part)) * len(part) for part in parts) / len(tokens)

    def _loss(self, ids: Tensor) -> Tensor:
        decoder = self.decoder
        with torch.no_grad():
            entry = decoder.enter(ids)
            cut = hidden = entry.hidden
            for index, layer in enumerate(decoder.layers):
                if index == self.span.start:
                    cut = hidden
                hidden = decoder.run(layer, hidden, entry, index)
            teacher = decoder.leave(hidden)
        state = decoder.run(self.module, cut.float(), entry, self.span.start).to(cut.dtype)
        for index in range(self.span.stop, decoder.n_layers):
            state = decoder.run(decoder.layers[index], state, entry, index)
        return top_divergence(teacher, decoder.leave(state), self.top_k)

    @contextmanager
    def _only_module(self) -> Iterator[None]:
        """Only the module gets gradients within the block."""
        thawed = [p for p in self.decoder.model.parameters() if p.requires_grad]
        try:
            self.decoder.model.requires_grad_(False)
            self.module.requires_grad_(True)
            yield
        finally:
            self.module.requires_grad_(False)
            for parameter in thawed:
                parameter.requires_grad_(True)
