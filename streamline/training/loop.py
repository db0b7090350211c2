"""The training loop: a step per group and batch, validations and saved states between.

Groups of one run share teacher passes but nothing else. One that is ahead, because it was saved
later before a kill, waits until the others have caught up. Several processes share the sequences of
each step and sum their gradients: batches and order are those of one.

Example::

    run(args, groups, show=lambda n_tokens, text: None)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from streamline.distributed.exchange import coming
from streamline.distributed.sums import reduced
from streamline.distributed.team import Shard, local, team
from streamline.distributed.work import agreed, broadcast, in_turn
from streamline.engine.decoder import Decoder
from streamline.engine.transfer import summed
from streamline.hashing import content_key, program
from streamline.training.activations import ActivationCache, ActivationStore
from streamline.training.digest import digest
from streamline.training.next_token import NextToken
from streamline.training.objectives import HiddenStates, Objective, StudentGroup
from streamline.training.parts.frozen import Source, frozen, lent
from streamline.training.schedule import BatchSchedule
from streamline.training.student import Recipe

__all__ = ["FitArguments", "fingerprint", "run"]

#: Validation activations up to this size are kept in memory between evaluations.
KEEP_VALIDATION_BYTES = 256 * 2**20


@dataclass(frozen=True)
class FitArguments:
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
    divided: bool

    def held_out(self, recipe: Recipe) -> Tensor:
        """The validation sequences of a recipe."""
        return self.validation[: math.ceil(recipe.validation_tokens / self.validation.shape[1])]

    def micro(
        self, indices: Tensor, length: int, *, evenly: bool = False
    ) -> list[tuple[Tensor, float]]:
        """This process's indices of sequences, in parts that fit one forward pass.

        Args:
            indices: All of them.
            length: Tokens of each.
            evenly: As many parts on all processes: one that has less to do runs the first sequence
                again, which counts nothing.

        Returns:
            Each part with its weight.
        """
        size, mine = max(1, self.micro_batch // length), team().rows(indices)
        found = [(part, 1.0) for part in torch.split(mine, size) if len(part)]
        most = math.ceil(len(Shard(0, team().size).rows(indices)) / size)
        return found + [(indices[:1], 0.0)] * (evenly * (most - len(found)))

    def tokens(self, batch_schedule: BatchSchedule) -> int:
        """Training tokens of a run, epochs counted."""
        return batch_schedule.n_sequences * batch_schedule.epochs * self.train.shape[1]


def fingerprint(decoder: Decoder, dense: tuple[Decoder, str] | None = None) -> str:
    """A content key of a model: its config and the weights that are in memory.

    Args:
        decoder: The model.
        dense: The model that it was made of, with its key: weights that are that one's own, in
            memory or not, are told by their names, and the config by what the layers are.
    """
    if dense is None:
        weights = [p for p in decoder.model.parameters() if p.device.type != "meta"]
        config = decoder.config.to_diff_dict()
        config.pop("_name_or_path", None)
        return content_key([str(sorted(config.items(), key=str)), digest(weights)])
    names = {id(p): name for name, p in dense[0].model.named_parameters()}
    own = decoder.model.named_parameters(remove_duplicate=False)
    told = [(name, names.get(id(p)) or digest([p])) for name, p in own]
    kinds = [[type(part).__name__ for part in layer.modules()] for layer in decoder.layers]
    return content_key([dense[1], str(decoder.dtype), kinds, told])


def run(args: FitArguments, groups: list[StudentGroup], show: Callable[[int, str], None]) -> None:
    """Train groups of one batch_schedule, each from where it stands, to the end.

    One whose validation loss is not finite ends there. It leaves no weights behind, and neither
    does one that had no finite gradient at more than half of its steps.
    """
    for group in groups:
        group.state.resume()
    _finish([group for group in groups if group.state.done])
    waiting = [group for group in groups if not group.state.done]
    if not waiting:
        return
    streamed, lm = args.decoder.layer_order is not None, waiting[0].recipe.objective == "lm"
    if not streamed and not (args.divided and lm and team().size > 1):
        _steps(args, waiting, show)
        return
    modules = _objective(args, waiting).modules(waiting)

    def work(made: list[list[nn.Module]]) -> None:
        _steps(args, waiting, show, dict(zip(map(id, modules), chain(*made), strict=True)))

    # Of several pruned models no layer is always followed by the same one.
    orders = [[module] for module in modules] if lm and len(waiting) > 1 else [modules]
    if streamed:
        frozen(orders, cast("Source", args.decoder), work)
    else:
        lent(orders, args.decoder.device, work)


def _objective(
    args: FitArguments, groups: list[StudentGroup], parts: Mapping[int, nn.Module] | None = None
) -> Objective:
    """What groups of one objective minimise."""
    if groups[0].recipe.objective == "mse":
        return HiddenStates(args.decoder, args.autocast, parts)
    return NextToken(args.decoder, args.autocast, parts)


def _finish(groups: list[StudentGroup]) -> None:
    """Leave the best weights of what has been trained, and none of what came to nothing."""
    for group in groups:
        if group.state.not_finite is None:
            group.state.finish()
        else:
            group.state.write_rows()


def _steps(
    args: FitArguments,
    groups: list[StudentGroup],
    show: Callable[[int, str], None],
    parts: Mapping[int, nn.Module] | None = None,
) -> None:
    """Make the optimiser steps that are left; a group that is ahead waits for the others."""
    batch_schedule, recipe = groups[0].batch_schedule, groups[0].recipe
    length = args.train.shape[1]
    objective, evenly = _objective(args, groups, parts), parts is not None
    held_out = args.held_out(recipe)
    depths: set[int] = set() if evenly else objective.depths(groups)
    store, validation_store = _stores(args, groups, held_out, depths)

    def validate(active: list[StudentGroup]) -> None:
        if active:
            with coming():
                _validate(args, objective, active, held_out, validation_store, evenly)

    started = saved = time.monotonic()
    fresh = [group for group in groups if not group.state.rows]
    validate(fresh)
    _spent(fresh, started)
    first = min(group.state.step for group in groups) + 1
    seen = batch_schedule.sequences_before(first) * length
    for step, indices in batch_schedule.batches(args.seed, first):
        started = time.monotonic()
        active = [
            group
            for group in groups
            if group.state.step == step - 1 and group.state.failed_step is None
        ]
        if not active:
            continue
        losses: dict[int, list[Tensor]] = {id(group): [] for group in active}
        terms = len(indices) * objective.n_terms(length)

        def learn(
            group: StudentGroup,
            error: Tensor,
            dropped: Tensor | None,
            terms: int = terms,
            losses: dict[int, list[Tensor]] = losses,
            *,
            weight: float,
        ) -> None:
            loss = error / terms * weight
            loss.backward()  # type: ignore[no-untyped-call]
            losses[id(group)].append(loss.detach())

        done = seen
        seen += len(indices) * length
        for part, weight in args.micro(indices, length, evenly=evenly):
            with torch.enable_grad(), local(), coming():
                count = partial(learn, weight=weight)
                objective.errors(args.train[part], part, active, count, store)
            done += len(part) * length * team().size  # as the others, which are as far
            show(min(done, seen), _text(step, active))
        parameters = [p for group in active for p in group.state.parameters.values()]
        with coming():
            read = [summed(losses[id(group)]) for group in active]
        totals = reduced(parameters, read)
        for group, total in zip(active, totals, strict=True):
            group.state.update(total, len(indices) * length)
        if batch_schedule.due(step):
            validate(active)
        _spent(active, started)
        due = step < batch_schedule.n_steps and time.monotonic() - saved >= args.save_seconds
        if broadcast(due) if evenly else due:
            for group in active:
                agreed(group.state.save) if evenly else group.state.save()
            saved = time.monotonic()
    agreed(lambda: _finish(groups))  # before frozen weights that are in parts come back


def _stores(
    args: FitArguments, groups: list[StudentGroup], held_out: Tensor, depths: set[int]
) -> tuple[ActivationStore | None, ActivationStore | None]:
    """Where training and validation activations of some depths are kept, if anywhere."""
    width = args.decoder.hidden_size
    if not depths:
        return None, None
    keep, store = None, None
    shape = (len(held_out), held_out.shape[1], width)
    if math.prod(shape) * len(depths) * args.decoder.dtype.itemsize <= KEEP_VALIDATION_BYTES:
        keep = ActivationStore(depths, shape, args.decoder.dtype)
    cache = args.cache
    if cache is not None:
        data = args.train[: groups[0].batch_schedule.n_sequences]
        key = content_key([*program(), args.teacher, str(args.decoder.dtype), digest([data])])
        whole = (len(data), data.shape[1], width)
        store = in_turn(lambda: cache.store(key, depths, whole))
    return store, keep


def _validate(
    args: FitArguments,
    objective: Objective,
    groups: list[StudentGroup],
    held_out: Tensor,
    store: ActivationStore | None,
    evenly: bool,
) -> None:
    """Measure the validation loss of some groups in one pass."""
    errors: dict[int, list[Tensor]] = {id(group): [] for group in groups}
    drops: dict[int, list[Tensor]] = {id(group): [] for group in groups}

    def note(group: StudentGroup, error: Tensor, dropped: Tensor | None, *, weight: float) -> None:
        errors[id(group)].append(error * weight)
        if dropped is not None:
            drops[id(group)].append(dropped * weight)

    length = held_out.shape[1]
    micro = args.micro(torch.arange(len(held_out)), length, evenly=evenly)
    with torch.no_grad(), local():
        for part, weight in micro:
            count = partial(note, weight=weight)
            objective.errors(held_out[part], part, groups, count, store)
    terms = len(held_out) * objective.n_terms(length)
    totals = reduced((), [summed(errors[id(group)]) for group in groups])
    dropped = reduced((), [summed(drops[id(group)]) for group in groups])
    for group, total, left_out in zip(groups, totals, dropped, strict=True):
        group.state.validated(total / terms)
        if group.recipe.objective == "mse":
            group.state.dropping = left_out / terms


def _spent(groups: list[StudentGroup], since: float) -> None:
    for group in groups:
        group.state.spent((time.monotonic() - since) / len(groups))


def _text(step: int, groups: list[StudentGroup]) -> str:
    """One line for the progress display: the last validation loss of the first few groups."""
    parts = []
    for group in groups[:4]:
        known = [r["validation_loss"] for r in group.state.rows if r["validation_loss"]]
        kind = type(group.modules[0]).__name__
        loss = f"{known[-1]:.4g}" if known else "-"
        parts.append(f"{kind} {group.spans[0].start}-{group.spans[-1].stop}: {loss}")
    more = f" and {len(groups) - 4} more" if len(groups) > 4 else ""
    return f"step {step}/{groups[0].batch_schedule.n_steps}, validation {', '.join(parts)}{more}"
