"""Row: four students at two spans, against four separate trainings with their states in memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from streamline.benchmarks.speed.common import (
    Options,
    Outcome,
    contest,
    loaded,
    peaks,
    require_close,
)
from streamline.benchmarks.speed.spans import samples
from streamline.engine.decoder import Decoder
from streamline.methods.replacement import make
from streamline.plan import Span
from streamline.training.fit import fit
from streamline.training.schedule import Clock, Schedule
from streamline.training.student import Recipe, Student

__all__ = [
    "TOKENS", "measure_ours", "measure_theirs", "ours", "run", "same", "students", "train_alone",
]  # fmt: skip

TOKENS = {"quick": (1024, 256), "default": (3072, 512), "full": (100_000, 512)}
"""Training tokens of each repetition, and the length of a sequence."""
SPANS = (Span(11, 19), Span(12, 17))
KINDS = ("ffn", "layer")
TOLERANCE = 1e-4
_MICRO = 1024  # tokens of a forward pass, on both sides
_VALIDATION = 512

Start = list[tuple[Span, nn.Module]]
Losses = list[list[float]]
"""Per student: validation loss before, then the loss of each step, then validation loss after."""


def recipe(n_tokens: int, length: int) -> Recipe:
    """One epoch in steps of 1,024 tokens."""
    return Recipe(
        n_tokens=n_tokens, length=length, epochs=1, batch_tokens=1024, learning_rate=1e-3,
        final_learning_rate=2.5e-4, validation_tokens=_VALIDATION, evaluations=1,
    )  # fmt: skip


def students(decoder: Decoder, spans: tuple[Span, ...] = SPANS) -> Start:
    """Untrained networks of two kinds for each span."""
    return [
        (span, make(kind, decoder, span, init="first" if kind == "layer" else "random", seed=0))
        for span in spans
        for kind in KINDS
    ]


def ours(
    decoder: Decoder, start: Start, train: Tensor, validation: Tensor, how: Recipe, seed: int
) -> Losses:
    """All students beside one teacher."""
    wanted = [Student(span, copy.deepcopy(module), how) for span, module in start]
    found = fit(decoder, wanted, train, validation, seed=seed, micro_batch=_MICRO)
    return [
        [one.before, *(float(row["train_loss"]) for row in one.rows[1:]), one.after]
        for one in found
    ]


def theirs(
    decoder: Decoder, start: Start, train: Tensor, validation: Tensor, how: Recipe, seed: int
) -> Losses:
    """One training after the other."""
    return [
        train_alone(decoder, span, copy.deepcopy(module), train, validation, how, seed)
        for span, module in start
    ]


@torch.no_grad()
def _states(decoder: Decoder, tokens: Tensor, span: Span) -> tuple[Tensor, Tensor]:
    """Hidden states around a span for all sequences, [N, T, D] each, held in memory.

    As released: the whole model is called and asked for all its hidden states, two are kept.
    """
    before, after = [], []
    for part in tokens.split(max(1, _MICRO // tokens.shape[1])):
        states = decoder.model(part, output_hidden_states=True, use_cache=False).hidden_states
        before.append(states[span.start].clone())
        after.append(states[span.stop].clone())
    return torch.cat(before), torch.cat(after)


def train_alone(
    decoder: Decoder,
    span: Span,
    module: nn.Module,
    train: Tensor,
    validation: Tensor,
    how: Recipe,
    seed: int,
) -> list[float]:
    """A plain training of one network on stored hidden states.

    Args:
        decoder: The teacher, which also gives masks and positions.
        span: What the network stands for; it ends before the last layer.
        module: The network; trained in place.
        train: Training tokens, [N, T].
        validation: Held-out tokens, [M, T].
        how: Learning rates, batch, clipping.
        seed: Seed of the data order.

    Returns:
        Validation loss before, the mean loss of every step, validation loss after.
    """
    length, width = train.shape[1], decoder.hidden_size
    stored, held = _states(decoder, train, span), _states(decoder, validation, span)
    clock = Clock(
        n_sequences=len(train), batch_sequences=round(how.batch_tokens / length), epochs=how.epochs,
        evaluations=1,
    )  # fmt: skip
    rates = Schedule(
        n_steps=clock.n_steps, peak=how.learning_rate, final=how.final_learning_rate,
        warmup_steps=int(how.warmup * clock.n_steps),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=rates.at(1), betas=how.betas, weight_decay=how.weight_decay
    )

    def error(ids: Tensor, before: Tensor, after: Tensor) -> Tensor:
        with torch.no_grad():
            entry = decoder.enter(ids)
        return (decoder.run(module, before, entry, span.start) - after).square().sum()

    def validate() -> float:
        with torch.no_grad():
            return float(error(validation, *held)) / (validation.numel() * width)

    module.eval().requires_grad_(True)
    losses = [validate()]
    for step, indices in clock.batches(seed):
        terms = len(indices) * length * width
        total = 0.0
        for part in indices.split(max(1, _MICRO // length)):
            loss = error(train[part], stored[0][part], stored[1][part]) / terms
            loss.backward()
            total += float(loss.detach())
        for group in optimiser.param_groups:
            group["lr"] = rates.at(step)
        nn.utils.clip_grad_norm_(module.parameters(), how.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(total)
    return [*losses, validate()]


def same(results: dict[str, Any]) -> dict[str, Any]:
    """Compare every loss of every student."""
    mine, other = results["ours"], results["theirs"]
    worst = 0.0
    for index, (a, b) in enumerate(zip(mine, other, strict=True)):
        gap = require_close(f"losses of student {index}", a, b, TOLERANCE, relative=True)
        worst = max(worst, gap)
    return {
        "max_relative_difference": worst,
        "validation": [[losses[0], losses[-1]] for losses in mine],
        "steps": len(mine[0]) - 2,
    }


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = loaded(options.model)
    decoder = Decoder(model)
    n_tokens, length = TOKENS[options.size]
    n = math.ceil(n_tokens / length)
    held = math.ceil(_VALIDATION / length)
    repeats = options.few_repeats
    batches = samples(tokenizer, n * repeats + held, length)
    validation, cuts = batches[:held], batches[held:].split(n)
    how, start = recipe(n * length, length), students(decoder)
    outcome = Outcome(
        name="students",
        work=f"four students ({' and '.join(KINDS)} at layers "
        f"{' and '.join(f'[{s.start}, {s.stop})' for s in SPANS)}), {n * length:,} tokens each "
        f"repetition, sequences of {length}",
        against="four separate trainings, the hidden states of all samples in memory",
        target=2.5,
        notes=[
            "The peer runs the whole model for hidden states, head included, as released, and "
            "keeps those at its span for all samples."
        ],
    )
    if options.size != "full":
        outcome.notes.append("--full takes 100,000 tokens in each repetition.")
    outcome.again = lambda: ours(decoder, start, cuts[0], validation, how, seed=0)
    outcome.races = contest(
        repeats,
        {
            "ours": lambda i: ours(decoder, start, cuts[i], validation, how, seed=i),
            "theirs": lambda i: theirs(decoder, start, cuts[i], validation, how, seed=i),
        },
        same,
    )
    if options.memory:
        outcome.memory = peaks("students", options.model, (2 * _MICRO, 6 * _MICRO), length)
    return outcome


def measure_ours(ready: Callable[[], None], name: str, n_tokens: int, length: int) -> None:
    """All students beside one teacher, for its peak memory."""
    decoder, start, train, validation, how = _prepared(name, n_tokens, length)
    ready()
    ours(decoder, start, train, validation, how, seed=0)


def measure_theirs(ready: Callable[[], None], name: str, n_tokens: int, length: int) -> None:
    """One separate training, for its peak memory."""
    decoder, start, train, validation, how = _prepared(name, n_tokens, length)
    ready()
    theirs(decoder, start[:1], train, validation, how, seed=0)


def _prepared(
    name: str, n_tokens: int, length: int
) -> tuple[Decoder, Start, Tensor, Tensor, Recipe]:
    model, tokenizer = loaded(name)
    decoder = Decoder(model)
    held = math.ceil(_VALIDATION / length)
    batches = samples(tokenizer, n_tokens // length + held, length)
    return decoder, students(decoder), batches[held:], batches[:held], recipe(n_tokens, length)
