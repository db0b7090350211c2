"""Row: four replacements at two spans, against four separate trainings with states in memory.

Float32 masters on both sides, computed in the model's dtype by autocast.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamline.benchmarks.gpu.bench import Bench
from streamline.benchmarks.speed.common import Outcome, require_close
from streamline.methods.replacement import make
from streamline.plan import Span
from streamline.training.fit import fit
from streamline.training.objectives import mixed
from streamline.training.schedule import BatchSchedule, Schedule
from streamline.training.student import Recipe, Student

__all__ = ["run"]

_KINDS = ("ffn", "layer")
_BATCH = 4
"""Sequences of a step, and of a forward pass on both sides."""
_HELD_OUT = 2
_EXACT = 1e-4
_ROUNDED = 0.02
"""Relative difference of a loss, by dtype."""

Losses = list[list[float]]
"""Per replacement: validation loss before, then the loss of each step."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be trained.

    Attributes:
        starts: Untrained networks with the spans that they replace; copied before training.
        train: Token ids, [N, T].
        held_out: Token ids, [M, T].
        recipe: Learning rates, batch, clipping.
    """

    starts: list[tuple[Span, nn.Module]]
    train: Tensor
    held_out: Tensor
    recipe: Recipe

    @classmethod
    def of(cls, bench: Bench) -> Work:
        """The row's work: networks of two kinds at two overlapping spans."""
        n, length = bench.sizes.train_tokens
        tokens = bench.inputs.tokens(n + _HELD_OUT, length)
        layers = bench.decoder.n_layers
        spans = (
            Span(layers // 2, layers // 2 + layers // 4),
            Span(layers // 2 + 1, layers // 2 + 1 + max(2, layers // 8)),
        )
        starts = [
            (span, make(kind, bench.decoder, span, init="first" if kind == "layer" else "random"))
            for span in spans
            for kind in _KINDS
        ]
        recipe = Recipe(
            n_tokens=n * length,
            length=length,
            epochs=1,
            batch_tokens=_BATCH * length,
            learning_rate=1e-4,
            final_learning_rate=5e-5,
            validation_tokens=_HELD_OUT * length,
            evaluations=1,
            normalize=False,
        )
        return cls(
            starts=starts, train=tokens[_HELD_OUT:], held_out=tokens[:_HELD_OUT], recipe=recipe
        )

    @property
    def schedule(self) -> BatchSchedule:
        """The batches of the steps."""
        return BatchSchedule(
            n_sequences=len(self.train), batch_sequences=_BATCH, epochs=1, evaluations=1
        )


def ours(bench: Bench, work: Work) -> Losses:
    """All of them beside one teacher."""
    wanted = [Student(span, copy.deepcopy(module), work.recipe) for span, module in work.starts]
    found = fit(
        bench.decoder,
        wanted,
        work.train,
        work.held_out,
        autocast=None if bench.exact else bench.decoder.dtype,
        micro_batch=_BATCH * work.train.shape[1],
    )
    return [[each.before, *(float(row["train_loss"]) for row in each.rows[1:])] for each in found]


def theirs(bench: Bench, work: Work) -> Losses:
    """One training after the other."""
    return [_alone(bench, work, span, copy.deepcopy(module)) for span, module in work.starts]


@torch.no_grad()
def _states(bench: Bench, tokens: Tensor, span: Span) -> tuple[Tensor, Tensor]:
    """Hidden states around a span for all sequences, [N, T, D] each, held in memory.

    As released: the whole model is called and asked for all its hidden states, two are kept.
    """
    before, after = [], []
    for part in tokens.split(_BATCH):
        states = bench.model(
            part.to(bench.device), output_hidden_states=True, use_cache=False
        ).hidden_states
        before.append(states[span.start].clone())
        after.append(states[span.stop].clone())
    return torch.cat(before), torch.cat(after)


def _alone(bench: Bench, work: Work, span: Span, module: nn.Module) -> list[float]:
    """A plain training of one network on stored hidden states."""
    decoder, how = bench.decoder, work.recipe
    stored = _states(bench, work.train, span)
    held = _states(bench, work.held_out, span)
    module.float().eval().requires_grad_(True)
    rates = Schedule(
        n_steps=work.schedule.n_steps,
        peak=how.learning_rate,
        final=how.final_learning_rate,
        warmup_steps=int(how.warmup * work.schedule.n_steps),
    )
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=rates.at(1), betas=how.betas, weight_decay=how.weight_decay
    )

    def error(ids: Tensor, before: Tensor, after: Tensor) -> Tensor:
        with torch.no_grad():
            entry = decoder.enter(ids)
        with mixed(bench.device, None if bench.exact else decoder.dtype):
            output = decoder.run(module, before.float(), entry, span.start)
        return (output.float() - after.float()).square().mean()

    with torch.no_grad():
        losses = [float(error(work.held_out, *held))]
    for step, indices in work.schedule.batches(seed=0):
        there = indices.to(bench.device)
        loss = error(work.train[indices], stored[0][there], stored[1][there])
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = rates.at(step)
        nn.utils.clip_grad_norm_(module.parameters(), how.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return losses


def run(bench: Bench) -> Outcome:
    """Time the row."""
    work = Work.of(bench)
    n, length = work.train.shape
    outcome = Outcome(
        name="students",
        work=f"{len(work.starts)} replacements trained ({' and '.join(_KINDS)} at two spans), "
        f"{n * length:,} tokens, sequences of {length}",
        against="separate trainings, the hidden states of all samples in memory",
        target=4.0,
        notes=["The peer runs the whole model for hidden states, head included, as released."],
    )

    def same(mine: Losses, other: Losses) -> dict[str, Any]:
        tolerance = _EXACT if bench.exact else _ROUNDED
        worst = max(
            require_close(f"losses of replacement {i}", a, b, tolerance, relative=True)
            for i, (a, b) in enumerate(zip(mine, other, strict=True))
        )
        return {"max_relative_difference": worst, "steps": len(mine[0]) - 1}

    ours(bench, Work(**vars(work) | {"starts": work.starts[:1], "train": work.train[:_BATCH]}))
    bench.race(outcome, 1, lambda: ours(bench, work), lambda: theirs(bench, work), same)
    outcome.facts["tokens_per_second"] = n * length / outcome.races[0].wall_s["ours"]
    return outcome
