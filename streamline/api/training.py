"""Training of the replacements of variants, side by side.

Each stage hands back variants with what they cost added to what they had cost.

Example::

    variants = train(variants, dense, batches, Recipe(n_tokens=30_000), texts="packaged", folder=f)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.api.guards import no_exit, require_intact
from streamline.api.variants import Dense, Failure, Variant
from streamline.distributed.work import agreed, broadcast, shared
from streamline.environment import peak_memory_bytes, restart_peak_memory
from streamline.errors import NotFiniteError
from streamline.method import Pruned
from streamline.progress import Progress
from streamline.sources.batches import TokenBatches
from streamline.streaming.decoder import StreamedDecoder
from streamline.training.activations import ActivationCache
from streamline.training.fit import fit
from streamline.training.flops import replacing_flops
from streamline.training.student import Recipe

__all__ = ["train", "trained", "training_data"]

log = logging.getLogger(__name__)

#: Ending of the names of a second training's files.
_POST = "-post"


def train(
    variants: Sequence[Variant],
    dense: Dense,
    batches: TokenBatches,
    recipe: Recipe | None,
    *,
    texts: str,
    folder: Path,
    losses: Path | None = None,
    activations: Path | None = None,
    memory: int | None = None,
    divided: bool = False,
    progress: Progress,
) -> list[Variant | Failure]:
    """Fit the replacements of all variants; those of one seed and recipe share their teacher.

    Args:
        variants: As :func:`prune` made them; their modules are trained in place. Those without
            replacements stay as they are.
        dense: The teacher; it is not changed.
        batches: The model's token batches.
        recipe: How they are trained; None for what each method recommends.
        texts: The text of a recipe that names none.
        folder: Where states are kept: a killed training resumes, a finished one is loaded.
        losses: Folder of the losses' JSON lines, if not in ``folder``.
        activations: Folder of the teacher's activations, of one process at a time; by default one
            in ``folder``.
        memory: Bytes that replacements trained at once may hold; None for all at once.
        divided: Whether each of several processes holds a part of the layers, for the LM objective.
        progress: Where to report what is being done.

    Returns:
        What became of each, in order; a training that fails ends all that shared it.
    """
    found: dict[int, Variant | Failure] = dict(enumerate(variants))
    groups: dict[tuple[int, Recipe], list[int]] = {}
    for index, variant in enumerate(variants):
        if variant.pruned.students:
            wanted = recipe or variant.pruned.students[0].recipe
            groups.setdefault((variant.target.seed, wanted), []).append(index)
    for (seed, wanted), members in groups.items():
        few = wanted.too_few(dense.decoder.n_parameters())
        if few is not None:
            progress.say(few)
        try:
            agreed(
                partial(
                    _train_in_stages,
                    *(members, found, dense, batches, wanted, texts, seed),
                    *(folder, losses, activations or folder / "activations", memory, divided),
                    progress,
                )
            )
        except Exception as error:  # one training for all of them: they fail together
            log.debug("training failed", exc_info=True)
            going = {i: variants[i] for i in members if not isinstance(found[i], Failure)}
            found |= {i: Failure(v.target, error, v.costs) for i, v in going.items()}
    return [found[index] for index in range(len(variants))]


def _train_in_stages(
    members: Sequence[int],
    found: dict[int, Variant | Failure],
    dense: Dense,
    batches: TokenBatches,
    recipe: Recipe,
    texts: str,
    seed: int,
    folder: Path,
    losses: Path | None,
    activations: Path,
    memory: int | None,
    divided: bool,
    progress: Progress,
) -> None:
    """Put what becomes of some variants of one seed and recipe in their place."""
    require_intact(dense)
    going = {i: one for i in members if isinstance(one := found[i], Variant)}
    names = " or ".join(variant.target.name for variant in going.values())
    data = shared(lambda: training_data(batches, recipe, texts, seed))
    places = (folder, losses, activations, broadcast(memory), broadcast(divided))
    for stage, suffix in zip(recipe.stages(), ("", _POST), strict=False):
        with no_exit(f"a student of {names}"):
            made = _train_together(
                list(going.values()), dense, data, stage, suffix, seed, *places, progress
            )
        found |= dict(zip(going, made, strict=True))
        going = {i: one for i in going if isinstance(one := found[i], Variant)}


def training_data(
    batches: TokenBatches, recipe: Recipe, texts: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Tokens that replacements are trained on, and those of their validation, [N, T] each.

    A second training takes the first of the same tokens.

    Args:
        batches: The model's token batches.
        recipe: How much, and of which text.
        texts: The text where it names none.
        seed: Seed of the draw.
    """
    return batches.training(
        recipe.texts or texts,
        n_tokens=recipe.n_tokens,
        n_documents=recipe.n_documents,
        validation_tokens=recipe.validation_tokens,
        length=recipe.length,
        seed=seed,
    )


def _train_together(
    variants: list[Variant],
    dense: Dense,
    data: tuple[Tensor, Tensor],
    recipe: Recipe,
    suffix: str,
    seed: int,
    folder: Path,
    losses: Path | None,
    activations: Path,
    memory: int | None,
    divided: bool,
    progress: Progress,
) -> list[Variant | Failure]:
    """Train all replacements of some variants by one recipe and objective."""
    if not variants:
        return []
    owners = [(v, student) for v in variants for student in v.pruned.students]
    noun = "replacement" if len(owners) == 1 else "replacements"
    progress.stage(f"{'post-train' if suffix else 'train'} {len(owners)} {noun}")
    tokens, validation = data
    if recipe.n_documents is not None:
        recipe = recipe.counted(tokens.numel())
    labels = []
    for variant, student in owners:
        student.apply(recipe)
        several = f"-{student.span.start}" if len(variant.pruned.students) > 1 else ""
        labels.append(variant.target.label + several + suffix)
    # One path object for each variant: replacements of one path are trained as one on the LM loss.
    paths = {v.target.label: v.pruned.path(dense.decoder) for v in variants}
    decoder, cache = dense.decoder, recipe.cache_bytes
    worked = False

    def step(done: int, total: int, text: str) -> None:
        nonlocal worked
        worked = True
        progress.step(done, total, text)

    autocast = None if decoder.dtype == torch.float32 else torch.bfloat16
    precision = {
        "teacher": str(decoder.dtype).removeprefix("torch."),
        "weights": "float32",
        "compute": str(autocast or torch.float32).removeprefix("torch."),
    }
    restart_peak_memory()
    streamed = decoder if isinstance(decoder, StreamedDecoder) else None
    with nullcontext() if streamed is None else streamed.held():
        results = fit(
            decoder,
            [student for _, student in owners],
            tokens,
            validation,
            labels=labels,
            directory=folder / "training",
            losses=losses,
            fingerprint=dense.fingerprint,
            seed=seed,
            progress=step,
            autocast=autocast,
            cache=ActivationCache(activations, cache) if cache else None,
            paths=[paths[v.target.label] for v, _ in owners] if recipe.objective == "lm" else None,
            memory=memory,
            divided=divided,
        )
    peak = peak_memory_bytes(decoder.device) if worked else None
    out: list[Variant | Failure] = []
    for variant in variants:
        own = [r for (v, _), r in zip(owners, results, strict=True) if v is variant]
        try:
            for result in own:
                result.require_finite(variant.target.name)
        except NotFiniteError as error:
            out.append(Failure(variant.target, error, variant.costs))
            continue
        by_label = {result.label: result for result in own}  # students of one path have one result
        flops = replacing_flops(
            decoder,
            variant.pruned.students,
            recipe.objective,
            own[-1].tokens,
            paths[variant.target.label],
        )
        steps = [int(row["step"]) for result in own for row in result.rows]
        costs = {
            "train_s": sum(result.seconds for result in by_label.values()),
            "train_tokens": own[-1].tokens,
            "train_flops": flops,
            "train_steps": max(steps, default=0),
        }
        summaries = {
            label: result.summary() | {"precision": precision} for label, result in by_label.items()
        }
        out.append(trained(variant, variant.pruned, costs, len(variants), peak, summaries))
    return out


def trained(
    variant: Variant,
    pruned: Pruned,
    costs: Mapping[str, float],
    together: int,
    peak: int | None,
    summaries: dict[str, dict[str, Any]],
) -> Variant:
    """A variant after one more training.

    Args:
        variant: As it was.
        pruned: Its plan and modules now.
        costs: What is added to what it had cost.
        together: Variants that were trained with it.
        peak: The most memory that was held, if it is known.
        summaries: Of its trainings.
    """
    now = dict(variant.costs)
    for name, value in costs.items():
        now[name] = now.get(name, 0) + value
    now["train_with"] = max(now.get("train_with", 1), together)
    if peak is not None:
        now["train_peak_memory_bytes"] = max(now.get("train_peak_memory_bytes", 0), peak)
    return replace(variant, pruned=pruned, costs=now, training={**variant.training, **summaries})
