"""Fit replacements: one streamed teacher pass feeds any number of students.

A student learns to replace a span of layers. With the objective ``"mse"`` (the paper) it maps the
hidden states at the span's start to those at its stop; the teacher is the dense path, run once per
batch for all students, as deep as the last stop. With ``"lm"`` it learns from the next-token loss
of the whole pruned model (:mod:`streamline.training.next_token`). Each student has its own
optimiser, schedule and files, is called with the masks and positions of use, and comes out the same
whatever is trained beside it. Where memory does not hold all of them at once, they are trained in
waves (:func:`streamline.training.schedule.waves`).

Example::

    students = [Student(Span(8, 12), FFN(576), Recipe(learning_rate=1e-3))]
    losses = fit(decoder, students, train, validation, directory=Path("out"), seed=0)
    losses[0].relative                      # validation MSE over that of leaving the span out
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from streamline.distributed.sums import alike
from streamline.engine.decoder import Decoder, eval_mode, module_device
from streamline.engine.kernels import FastLinears
from streamline.engine.paths import Node, Path
from streamline.errors import ConfigError
from streamline.hashing import content_key, program
from streamline.training.activations import ActivationCache
from streamline.training.digest import digest
from streamline.training.loop import FitArguments
from streamline.training.loop import fingerprint as weights_fingerprint
from streamline.training.loop import run as train_run
from streamline.training.losses import Losses
from streamline.training.next_token import holds
from streamline.training.objectives import StudentGroup
from streamline.training.schedule import (
    BatchSchedule,
    Schedule,
    taking_turns,
    training_bytes,
    waves,
)
from streamline.training.state import TrainingState
from streamline.training.student import Student

__all__ = ["Losses", "OnStep", "fit"]

#: Called with tokens done, tokens in all, and a line on the losses.
OnStep = Callable[[int, int, str], None]


def fit(
    decoder: Decoder,
    students: Sequence[Student],
    train: Tensor,
    validation: Tensor,
    *,
    labels: Sequence[str] | None = None,
    directory: FilePath | None = None,
    losses: FilePath | None = None,
    fingerprint: str | None = None,
    seed: int = 0,
    progress: OnStep | None = None,
    autocast: torch.dtype | None = None,
    micro_batch: int = 4096,
    cache: ActivationCache | None = None,
    paths: Sequence[Path] | None = None,
    save_seconds: float = 30.0,
    memory: int | None = None,
    divided: bool = False,
) -> list[Losses]:
    """Train students in place; each ends with the weights of its lowest validation loss.

    The weights are trained in float32 and handed back, frozen, in the model's dtype.
    Dropout is off.

    Args:
        decoder: The dense model; its weights are not changed.
        students: What to train, by one or several recipes and objectives.
        train: Training tokens, [N, T], int64; a recipe with fewer ``n_tokens`` uses the first.
        validation: Held-out tokens, [M, T], likewise cut to ``validation_tokens``.
        labels: Names of the students' files; by default made from kind, span and content key.
        directory: For state, losses and results. Called again with the same arguments, a killed
            training resumes to the same bits and a finished one is only loaded.
        losses: Folder of the losses' JSON lines, if not ``directory/losses``.
        fingerprint: Content key of the dense weights; made if not given and something is kept.
        seed: Seed of the data order.
        progress: Called after each micro-batch.
        autocast: ``torch.bfloat16`` for mixed precision; None computes in float32.
        micro_batch: Tokens per forward pass, rounded down to whole sequences.
        cache: Keeps the teacher's activations on disk between epochs, rounded to its dtype.
        paths: For the LM objective, the pruned model of each student; students of one path are
            trained together. By default each student's span is replaced in the dense model.
        save_seconds: How often the state is written.
        memory: Bytes that the students of a wave may hold beside their own activations: weights,
            gradients, moments and the best weights; None trains all at once.
        divided: For the LM objective, whether each of several processes holds a part of the frozen
            layers' weights meanwhile. They always do of a model whose layers come one at a time;
            its embeddings and head are to be in memory, and nothing is cached.

    Returns:
        One summary per student, in order; ``not_finite`` says why one came to nothing.

    Raises:
        ConfigError: If tokens, spans, labels or paths do not fit, or autocast is neither None nor
            bfloat16.

    Reference:
        LLM-Streamline, arXiv:2403.19135, section 3.4.

    Differs from the paper:
        As released, the student sees no causal mask in training, the schedule stops far from its
        end and the best weights are no copy; here all three are as the paper means them.
    """
    _check(train, validation, autocast)
    if labels is not None and len(set(labels)) != len(students):
        raise ConfigError(f"{len(students)} students need as many different labels, got {labels}")
    together = _together(students, paths)
    alike(tensor for student in students for tensor in student.module.parameters())
    cache = cache if decoder.layer_order is None else None
    if fingerprint is None and (directory or losses or cache):
        fingerprint = weights_fingerprint(decoder)
    args = FitArguments(
        decoder, train, validation, directory, seed, autocast, micro_batch, cache, save_seconds,
        losses, fingerprint or "", divided,
    )  # fmt: skip
    names = [None if labels is None else labels[members[0]] for members in together]
    turns = _turns(decoder, students, memory)
    with _teaching(decoder), _fast(decoder, students), _trainable(decoder, students):
        groups = []
        for members, name in zip(together, names, strict=True):
            own = [students[i] for i in members]
            for student in own:
                student.module.to(_home(decoder, student))  # what it starts from is hashed there
            groups.append(_group(args, own, paths[members[0]] if paths else None, name))
            for student in own if turns else ():
                student.module.to("cpu")
        first: dict[str, StudentGroup] = {}
        for group in groups:
            first.setdefault(group.state.key, group)
        runs = [wave for run in _runs(list(first.values())) for wave in waves(run, memory)]
        total, done = sum(args.tokens(run[0].batch_schedule) for run in runs), 0
        for run, _ in zip(runs, taking_turns(runs, turns), strict=True):

            def show(n_tokens: int, text: str, done: int = done) -> None:
                if progress is not None:
                    progress(done + n_tokens, total, text)

            train_run(args, run, show)
            done += args.tokens(run[0].batch_schedule)
        for group in groups:
            if group is not first[group.state.key]:
                group.state.resume()
                if not group.state.done:
                    group.state.adopt(first[group.state.key].state)
                if group.state.not_finite is None:
                    group.state.finish()
    results: dict[int, Losses] = {}
    for members, group in zip(together, groups, strict=True):
        spans = [[span.start, span.stop] for span in group.spans]
        summary = group.state.losses(group.recipe.objective, spans)
        results |= {index: summary for index in members}
    return [results[index] for index in range(len(students))]


def _check(train: Tensor, validation: Tensor, autocast: torch.dtype | None) -> None:
    for name, tokens in (("train", train), ("validation", validation)):
        if tokens.dim() != 2 or tokens.dtype != torch.int64 or not len(tokens):
            raise ConfigError(
                f"{name} tokens must be a non-empty int64 tensor [N, T], got "
                f"{tokens.dtype} {tuple(tokens.shape)}"
            )
        if tokens.shape[1] < 2:
            raise ConfigError(f"{name} sequences need at least 2 tokens, got {tokens.shape[1]}")
    if autocast not in (None, torch.bfloat16):
        raise ConfigError(f"autocast must be None or torch.bfloat16, got {autocast}")


def _together(students: Sequence[Student], paths: Sequence[Path] | None) -> list[list[int]]:
    """Indices of students that share an optimiser: those of one path under the LM objective."""
    if paths is None:
        return [[index] for index in range(len(students))]
    if len(paths) != len(students):
        raise ConfigError(f"{len(students)} students need as many paths, got {len(paths)}")
    groups: dict[int, list[int]] = {}
    for index, (student, path) in enumerate(zip(students, paths, strict=True)):
        shared = id(path) if student.recipe.objective == "lm" else -1 - index
        groups.setdefault(shared, []).append(index)
        if student.recipe != students[groups[shared][0]].recipe:
            raise ConfigError("students of one path must have one recipe, got two that differ")
    return list(groups.values())


@contextmanager
def _teaching(decoder: Decoder) -> Iterator[None]:
    """The dense model without dropout and without gradients of its own, for a while."""
    had_gradient = [p for p in decoder.model.parameters() if p.requires_grad]
    with eval_mode(decoder.model):
        try:
            decoder.model.requires_grad_(False)
            yield
        finally:
            for parameter in had_gradient:
                parameter.requires_grad_(True)


def _fast(decoder: Decoder, students: Sequence[Student]) -> AbstractContextManager[None]:
    """Faster products for a teacher that no gradient passes through."""
    if any(student.recipe.objective != "mse" for student in students):
        return nullcontext()
    deepest = max((student.span.stop for student in students), default=0)
    return FastLinears(decoder.layers[:deepest], decoder.model).active()


@contextmanager
def _trainable(decoder: Decoder, students: Sequence[Student]) -> Iterator[None]:
    """Students in float32 where their layers are; afterwards in the model's dtype."""
    for student in students:
        span = student.span
        if not len(span) or span.stop > decoder.n_layers:
            raise ConfigError(
                f"span {span} does not fit a model of {decoder.n_layers} layers: "
                "give 0 <= start < stop <= layers"
            )
    try:
        for student in students:
            student.module.to(dtype=torch.float32).requires_grad_(True).eval()
        yield
    finally:
        for student in students:
            home = _home(decoder, student)
            student.module.to(dtype=decoder.dtype).to(device=home).requires_grad_(False)


def _home(decoder: Decoder, student: Student) -> torch.device:
    """Where a student belongs: where the layers are that it replaces."""
    device = module_device(decoder.layers[student.span.start])
    return decoder.device if device is None or device.type == "meta" else device


def _turns(
    decoder: Decoder, students: Sequence[Student], memory: int | None
) -> torch.device | None:
    """The device on which students take turns; None where all may be there at once."""
    n_parameters = sum(p.numel() for student in students for p in student.module.parameters())
    if memory is None or decoder.device.type == "cpu" or training_bytes(n_parameters) <= memory:
        return None
    return decoder.device


def _group(
    args: FitArguments,
    members: list[Student],
    path: Path | None,
    label: str | None,
) -> StudentGroup:
    """Students with one optimiser, named by everything that decides what they become."""
    recipe, length = members[0].recipe, args.train.shape[1]
    batch_schedule = BatchSchedule(
        n_sequences=min(len(args.train), math.ceil(recipe.distinct_tokens / length)),
        batch_sequences=max(1, round(recipe.batch_tokens / length)),
        epochs=recipe.epochs,
        evaluations=recipe.evaluations,
    )
    schedule = Schedule(
        n_steps=batch_schedule.n_steps,
        peak=recipe.learning_rate,
        final=recipe.final_learning_rate,
        warmup_steps=int(recipe.warmup * batch_schedule.n_steps),
    )
    modules = nn.ModuleList([student.module for student in members])
    parameters = dict(modules.named_parameters())
    spans = [student.span for student in members]
    kinds = [type(student.module).__name__.lower() for student in members]
    rounded = args.cache is not None and recipe.objective == "mse"
    key = content_key(
        {
            "recipe": recipe.decisive(),
            "spans": [[span.start, span.stop] for span in spans],
            "kinds": kinds,
            "start": digest(parameters.values()),
            "teacher": [args.teacher, str(args.decoder.dtype), *program()],
            "path": None if path is None else _describe(path, members),
            "train": digest([args.train[: batch_schedule.n_sequences]]),
            "validation": digest([args.held_out(recipe)]),
            "seed": args.seed,
            "autocast": str(args.autocast),
            "rounded": str(args.cache.dtype) if rounded and args.cache else None,
        }
    )
    state = TrainingState(
        label=label or f"{recipe.objective}-{kinds[0]}-{spans[0].start}-{spans[-1].stop}-{key[:8]}",
        key=key,
        parameters=parameters,
        schedule=schedule,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        clip=recipe.clip,
        directory=args.directory,
        losses=args.losses,
    )
    return StudentGroup(spans, modules, recipe, batch_schedule, state, path)


def _describe(path: Path, members: list[Student]) -> list[list[Any]]:
    """A path as JSON: for each node its layer and, unless it is trained or dense, its weights.

    Raises:
        ConfigError: If a student does not lie on the path.
    """
    modules = [student.module for student in members]
    on_path = {id(part) for node in path.nodes for part in node.module.modules()}
    for student in members:
        if id(student.module) not in on_path:
            raise ConfigError(f"the student of {student.span} does not lie on its path {path.name}")
    dense = {id(layer) for layer in path.decoder.layers}

    def what(node: Node) -> str:
        if id(node.module) in dense:
            return "dense"
        return "student" if holds(node, modules) else digest(node.module.parameters())

    return [[node.layer, what(node)] for node in path.nodes]


def _runs(groups: list[StudentGroup]) -> list[list[StudentGroup]]:
    """Groups that share teacher passes: same objective, batch_schedule and validation."""
    runs: dict[tuple[Any, ...], list[StudentGroup]] = {}
    for group in groups:
        shared = (group.recipe.objective, group.batch_schedule, group.recipe.validation_tokens)
        runs.setdefault(shared, []).append(group)
    return list(runs.values())
