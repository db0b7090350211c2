"""The training loop: a step per pupil and batch, validations and saved states between.

Pupils of one run share teacher passes but nothing else. One that is ahead, because it was saved
later before a kill, waits until the others have caught up.

Example::

    run(setting, pupils, show=lambda n_tokens, text: None)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamline.engine.decoder import Decoder
from streamline.files import content_key
from streamline.training.activations import ActivationCache, Shelf
from streamline.training.next_token import NextToken
from streamline.training.objectives import HiddenStates, Objective, Pupil
from streamline.training.schedule import Clock
from streamline.training.state import digest
from streamline.training.student import Recipe

__all__ = ["Setting", "fingerprint", "run"]

#: Validation activations up to this size are kept in memory between evaluations.
KEEP_VALIDATION_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Setting:
    """The arguments of :func:`streamline.training.fit.fit` that its parts share."""

    decoder: Decoder
    train: Tensor
    validation: Tensor
    directory: Path | None
    seed: int
    autocast: torch.dtype | None
    micro_batch: int
    cache: ActivationCache | None
    save_seconds: float
    losses: Path | None
    teacher: str

    def held_out(self, recipe: Recipe) -> Tensor:
        """The validation sequences of a recipe."""
        return self.validation[: math.ceil(recipe.validation_tokens / self.validation.shape[1])]

    def micro(self, indices: Tensor, length: int) -> tuple[Tensor, ...]:
        """Indices of sequences in parts that fit one forward pass."""
        return torch.split(indices, max(1, self.micro_batch // length))

    def tokens(self, clock: Clock) -> int:
        """Training tokens of a run, epochs counted."""
        return clock.n_sequences * clock.epochs * self.train.shape[1]


def fingerprint(decoder: Decoder) -> str:
    """A key of a model: its config and the first weights of every parameter."""
    samples = [p.flatten()[:256] for p in decoder.model.parameters() if p.device.type != "meta"]
    config = decoder.config.to_diff_dict()
    config.pop("_name_or_path", None)
    return content_key([str(sorted(config.items(), key=str)), digest(samples)])


def run(setting: Setting, pupils: list[Pupil], show: Callable[[int, str], None]) -> None:
    """Train pupils of one clock, each from where it stands, to the end."""
    for pupil in pupils:
        pupil.trainee.resume()
    waiting = [pupil for pupil in pupils if not pupil.trainee.done]
    if waiting:
        _steps(setting, waiting, show)
    for pupil in pupils:
        pupil.trainee.finish()


def _steps(setting: Setting, pupils: list[Pupil], show: Callable[[int, str], None]) -> None:
    """Make the optimiser steps that are left; a pupil that is ahead waits for the others."""
    clock, recipe = pupils[0].clock, pupils[0].recipe
    length = setting.train.shape[1]
    objective: Objective = (
        HiddenStates(setting.decoder, setting.autocast)
        if recipe.objective == "mse"
        else NextToken(setting.decoder, setting.autocast)
    )
    held_out = setting.held_out(recipe)
    shelf, validation_shelf = _shelves(setting, objective, pupils, held_out)

    def validate(active: list[Pupil]) -> None:
        if active:
            _validate(setting, objective, active, held_out, validation_shelf)

    started = saved = time.monotonic()
    fresh = [pupil for pupil in pupils if not pupil.trainee.rows]
    validate(fresh)
    _spent(fresh, started)
    first = min(pupil.trainee.step for pupil in pupils) + 1
    seen = clock.sequences_before(first) * length
    for step, indices in clock.batches(setting.seed, first):
        started = time.monotonic()
        active = [pupil for pupil in pupils if pupil.trainee.step == step - 1]
        sums = {id(pupil): 0.0 for pupil in active}
        terms = len(indices) * objective.n_terms(length)

        def learn(
            pupil: Pupil,
            error: Tensor,
            dropped: Tensor | None,
            terms: int = terms,
            sums: dict[int, float] = sums,
        ) -> None:
            loss = error / terms
            loss.backward()  # type: ignore[no-untyped-call]
            sums[id(pupil)] += float(loss.detach())

        for part in setting.micro(indices, length):
            with torch.enable_grad():
                objective.walk(setting.train[part], part, active, learn, shelf)
            seen += len(part) * length
            show(seen, _text(step, active))
        for pupil in active:
            pupil.trainee.update(sums[id(pupil)], len(indices) * length)
        if clock.due(step):
            validate(active)
        _spent(active, started)
        if step < clock.n_steps and time.monotonic() - saved >= setting.save_seconds:
            for pupil in active:
                pupil.trainee.save()
            saved = time.monotonic()


def _shelves(
    setting: Setting, objective: Objective, pupils: list[Pupil], held_out: Tensor
) -> tuple[Shelf | None, Shelf | None]:
    """Where training and validation activations are kept, if anywhere."""
    depths, width = objective.depths(pupils), setting.decoder.hidden_size
    if not depths:
        return None, None
    keep, shelf = None, None
    shape = (len(held_out), held_out.shape[1], width)
    if math.prod(shape) * len(depths) * setting.decoder.dtype.itemsize <= KEEP_VALIDATION_BYTES:
        keep = Shelf(depths, shape, setting.decoder.dtype)
    if setting.cache is not None:
        data = setting.train[: pupils[0].clock.n_sequences]
        key = content_key([setting.teacher, str(setting.decoder.dtype), digest([data])])
        shelf = setting.cache.shelf(key, depths, (len(data), data.shape[1], width))
    return shelf, keep


def _validate(
    setting: Setting,
    objective: Objective,
    pupils: list[Pupil],
    held_out: Tensor,
    shelf: Shelf | None,
) -> None:
    """Measure the validation loss of some pupils in one pass."""
    errors = {id(pupil): 0.0 for pupil in pupils}
    drops: dict[int, float] = {}

    def note(pupil: Pupil, error: Tensor, dropped: Tensor | None) -> None:
        errors[id(pupil)] += float(error)
        if dropped is not None:
            drops[id(pupil)] = drops.get(id(pupil), 0.0) + float(dropped)

    length = held_out.shape[1]
    with torch.no_grad():
        for part in setting.micro(torch.arange(len(held_out)), length):
            objective.walk(held_out[part], part, pupils, note, shelf)
    terms = len(held_out) * objective.n_terms(length)
    for pupil in pupils:
        pupil.trainee.validated(errors[id(pupil)] / terms)
        if id(pupil) in drops:
            pupil.trainee.dropping = drops[id(pupil)] / terms


def _spent(pupils: list[Pupil], since: float) -> None:
    for pupil in pupils:
        pupil.trainee.spent((time.monotonic() - since) / len(pupils))


def _text(step: int, pupils: list[Pupil]) -> str:
    """One line for the progress display: the last validation loss of the first few pupils."""
    parts = []
    for pupil in pupils[:4]:
        known = [r["validation_loss"] for r in pupil.trainee.rows if r["validation_loss"]]
        kind = type(pupil.modules[0]).__name__
        loss = f"{known[-1]:.4g}" if known else "-"
        parts.append(f"{kind} {pupil.spans[0].start}-{pupil.spans[-1].stop}: {loss}")
    more = f" and {len(pupils) - 4} more" if len(pupils) > 4 else ""
    return f"step {step}/{pupils[0].clock.n_steps}, validation {', '.join(parts)}{more}"
