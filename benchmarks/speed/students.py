"""Row: four students at two spans, against four separate trainings with their states in memory."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamline.benchmarks.speed import common
from streamline.benchmarks.speed.common import Options, Outcome, contest, require_close
from streamline.engine.decoder import Decoder
from streamline.methods.replacement import make
from streamline.plan import Span
from streamline.training.fit import fit
from streamline.training.schedule import BatchSchedule, Schedule
from streamline.training.student import Recipe, Student

__all__ = ["TOKENS", "Task", "ours", "run", "same", "theirs", "untrained"]

TOKENS = {"quick": (1024, 256), "default": (3072, 512), "full": (100_000, 512)}
"""Training tokens of each repetition, and the length of a sequence."""
SPANS = (Span(11, 19), Span(12, 17))
KINDS = ("ffn", "layer")
VALIDATION_TOKENS = 512
BATCH_TOKENS = 1024
TOLERANCE = 1e-4
MICRO_BATCH = 1024
"""Tokens of a forward pass, on both sides."""

Losses = list[list[float]]
"""Per student: validation loss before, then the loss of each step, then validation loss after."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be trained.

    Attributes:
        students: Untrained networks with the spans that they replace; copied before training.
        train: Token ids, [N, T].
        validation: Held-out token ids, [M, T].
        recipe: Learning rates, batch, clipping.
        seed: Seed of the data order.
    """

    students: list[tuple[Span, nn.Module]]
    train: Tensor
    validation: Tensor
    recipe: Recipe
    seed: int


def untrained(decoder: Decoder, spans: tuple[Span, ...]) -> list[tuple[Span, nn.Module]]:
    """Untrained networks of two kinds for each span."""
    return [
        (span, make(kind, decoder, span, init="first" if kind == "layer" else "random", seed=0))
        for span in spans
        for kind in KINDS
    ]


def ours(decoder: Decoder, task: Task) -> Losses:
    """All students beside one teacher."""
    wanted = [Student(span, copy.deepcopy(m), task.recipe) for span, m in task.students]
    found = fit(
        decoder, wanted, task.train, task.validation, seed=task.seed, micro_batch=MICRO_BATCH
    )
    return [
        [one.before, *(float(row["train_loss"]) for row in one.rows[1:]), one.after]
        for one in found
    ]


def theirs(decoder: Decoder, task: Task) -> Losses:
    """One training after the other."""
    return [_train_alone(decoder, span, copy.deepcopy(m), task) for span, m in task.students]


@torch.no_grad()
def _states(decoder: Decoder, tokens: Tensor, span: Span) -> tuple[Tensor, Tensor]:
    """Hidden states around a span for all sequences, [N, T, D] each, held in memory.

    As released: the whole model is called and asked for all its hidden states, two are kept.
    """
    before, after = [], []
    for part in tokens.split(max(1, MICRO_BATCH // tokens.shape[1])):
        states = decoder.model(part, output_hidden_states=True, use_cache=False).hidden_states
        before.append(states[span.start].clone())
        after.append(states[span.stop].clone())
    return torch.cat(before), torch.cat(after)


def _train_alone(decoder: Decoder, span: Span, module: nn.Module, task: Task) -> list[float]:
    """A plain training of one network on stored hidden states; the span ends before the last layer.

    Returns:
        Validation loss before, the mean loss of every step, validation loss after.
    """
    how, length, width = task.recipe, task.train.shape[1], decoder.hidden_size
    stored, held = _states(decoder, task.train, span), _states(decoder, task.validation, span)
    order = BatchSchedule(
        n_sequences=len(task.train), batch_sequences=round(how.batch_tokens / length),
        epochs=how.epochs, evaluations=1,
    )  # fmt: skip
    rates = Schedule(
        n_steps=order.n_steps, peak=how.learning_rate, final=how.final_learning_rate,
        warmup_steps=int(how.warmup * order.n_steps),
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
            return float(error(task.validation, *held)) / (task.validation.numel() * width)

    module.eval().requires_grad_(True)
    losses = [validate()]
    for step, indices in order.batches(task.seed):
        terms = len(indices) * length * width
        total = 0.0
        for part in indices.split(max(1, MICRO_BATCH // length)):
            loss = error(task.train[part], stored[0][part], stored[1][part]) / terms
            loss.backward()
            total += float(loss.detach())
        for group in optimiser.param_groups:
            group["lr"] = rates.at(step)
        nn.utils.clip_grad_norm_(module.parameters(), how.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(total)
    return [*losses, validate()]


def same(ours: Losses, theirs: Losses) -> dict[str, Any]:
    """Compare every loss of every student."""
    worst = 0.0
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        gap = require_close(f"losses of student {index}", mine, other, TOLERANCE, relative=True)
        worst = max(worst, gap)
    return {
        "max_relative_difference": worst,
        "validation": [[losses[0], losses[-1]] for losses in ours],
        "steps": len(ours[0]) - 2,
    }


def run(options: Options) -> Outcome:
    """Time the row."""
    model, tokenizer = common.loaded(options.model)
    decoder = Decoder(model)
    n_tokens, length = TOKENS[options.size]
    n, held = math.ceil(n_tokens / length), math.ceil(VALIDATION_TOKENS / length)
    repeats = options.few_repeats
    batches = common.samples(tokenizer, n * repeats + held, length)
    recipe = Recipe(
        n_tokens=n * length, length=length, epochs=1, batch_tokens=BATCH_TOKENS, learning_rate=1e-3,
        final_learning_rate=2.5e-4, validation_tokens=VALIDATION_TOKENS, evaluations=1,
        normalize=False,
    )  # fmt: skip
    students = untrained(decoder, SPANS)
    tasks = [
        Task(students=students, train=train, validation=batches[:held], recipe=recipe, seed=seed)
        for seed, train in enumerate(batches[held:].split(n))
    ]
    outcome = Outcome(
        name="students",
        work=f"four students ({' and '.join(KINDS)} at layers "
        f"{' and '.join(f'[{s.start}, {s.stop})' for s in SPANS)}), {n * length:,} tokens, "
        f"sequences of {length}",
        against="four separate trainings, the hidden states of all samples in memory",
        target=2.5,
        notes=[
            "The peer runs the whole model for hidden states, head included, as released, and "
            "keeps those at its span for all samples."
        ],
    )
    if options.size != "full":
        outcome.notes.append("--full takes 100,000 tokens in each repetition.")
    outcome.races = contest(
        repeats, lambda i: ours(decoder, tasks[i]), lambda i: theirs(decoder, tasks[i]), same
    )
    return outcome
