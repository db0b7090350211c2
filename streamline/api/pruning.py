"""Pruning: one calibration for the methods that share it, then every method decides, once.

Takes as many variants as there are and hands back, for each, what has become of it and what it
cost, or the error that ended it: an error of one method loses no other variant.

Example::

    target = Target(label="short", method=ShortGPT(), sparsity=0.25)
    [short] = prune([target], dense, tokens, folder, Silent())
    path = short.pruned.path(dense.decoder)
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamline.api.guards import Watch, calibration_key, checked, own_copy, require_intact
from streamline.api.kept_prunings import another, pruning_file, read_pruning, write_pruning
from streamline.api.made import require_alike, require_finite
from streamline.api.spending import costs_of, spending, with_share
from streamline.api.variants import Dense, Failure, Target, Variant, unsupported_reason
from streamline.calibration import Calibration
from streamline.distributed.team import leads
from streamline.distributed.work import agreed, broadcast, led, shared
from streamline.engine.decoder import Decoder
from streamline.engine.finite import bad_weight
from streamline.errors import MethodError, NotFiniteError, UnsupportedModelError
from streamline.hashing import content_key, program
from streamline.method import Method, Pruned
from streamline.methods.teacher_fits import Fit, together
from streamline.methods.unfinished import forget_unfinished, resuming
from streamline.plan import Plan
from streamline.progress import Progress, clock, portions, showing, tell
from streamline.sharing.once import turn
from streamline.sources.batches import TokenBatches, batches_fingerprint, domain_batches

__all__ = ["calibrate", "prune"]

log = logging.getLogger(__name__)

_WORTH_SAYING = 1.0  # seconds


def calibrate(method: Method, dense: Dense, tokens: Tensor, folder: Path) -> Calibration:
    """What a method decides by, from disk or measured now and kept.

    Args:
        method: Any of the methods with its calibration key.
        dense: The model.
        tokens: Calibration tokens, [N, T], int64.
        folder: Where calibrations are kept.

    Returns:
        The statistics; ``facts`` has the seconds, FLOPs and peak of memory of their measuring.

    Raises:
        NotFiniteError: If one of them is not finite; nothing is kept then.
    """
    key = content_key(
        [
            *program(),
            dense.fingerprint,
            str(dense.decoder.dtype),
            batches_fingerprint(tokens),
            calibration_key(method),
        ]
    )
    place = folder / "calibration" / key[:16]
    waiting = turn(f"calibration-{key[:16]}", lambda: tell(0, 1, "another process is making it"))
    with led(waiting):
        kept = shared(lambda: Calibration.kept(place))
        if kept is not None:
            return _checked(kept, method)
        return _measured(method, dense, tokens, place, key)


def _measured(method: Method, dense: Dense, tokens: Tensor, place: Path, key: str) -> Calibration:
    """What a method decides by, measured now and kept in a place."""
    doing, search = f"{method.name}: calibrate", place.parent / f"{key[:32]}.search.json"
    watched, searching = Watch(dense.decoder, dense).over(doing), resuming(search)
    with spending(dense.decoder) as spent, watched, searching:
        found = method.calibrate(dense.decoder, tokens.clone())
    if not isinstance(found, Calibration):
        raise MethodError(f"{doing} must return a Calibration, got {found!r:.200}")
    found = _checked(found, method)
    found = broadcast(replace(found, facts=found.facts | spent | {"model": dense.name}))
    if leads():
        found.save(place)
    forget_unfinished(search)
    return found


def _checked(found: Calibration, method: Method) -> Calibration:
    """Statistics that are finite; minus infinity may stand for what was not measured."""
    named = {"cosine": found.cosine, "angle": found.angle}
    extras = {
        name: value.nan_to_num(torch.nan, torch.nan, 0.0) for name, value in found.extras.items()
    }
    bad = bad_weight(named | extras)
    if bad is not None:
        raise NotFiniteError(
            f"calibration for {method.name}: the statistic {bad} is not finite; the weights or the "
            "activations of the model overflow (float16: take bfloat16), or the method divides by 0"
        )
    return found


def prune(
    targets: Sequence[Target],
    dense: Dense,
    tokens: Callable[[int], Tensor],
    folder: Path,
    progress: Progress,
    expected: Mapping[str, float] | None = None,
    *,
    apart: bool = False,
) -> list[Variant | Failure]:
    """Calibrate once for each calibration key and seed, then let every method decide.

    Targets that differ in their recovery alone are decided once, in several processes too.

    Args:
        targets: What is wanted.
        dense: The model; it is not changed.
        tokens: Calibration tokens of a seed, [N, T], int64.
        folder: Where calibrations and what was decided are kept.
        progress: Where to report what is being done.
        expected: How long each takes compared with the others, by label; all alike if not given.
        apart: Whether each sums by itself over the model's states, where memory does not hold the
            sums of all.

    Returns:
        What became of each, in order.

    Raises:
        MethodError: If a method has written over weights of the model before.
    """
    require_intact(dense)
    watch = Watch(dense.decoder, dense)
    found: dict[int, Variant | Failure] = {}
    groups: dict[tuple[int, str], list[int]] = {}
    for index, target in enumerate(targets):
        try:
            reason, key = agreed(partial(_about, target, dense, watch))
        except Exception as error:  # of this method, and no other
            log.debug("%s failed", target.name, exc_info=True)
            found[index] = Failure(target, error)
            continue
        if reason is not None:
            found[index] = Failure(target, UnsupportedModelError(reason))
        elif not target.sparsity:
            found[index] = Variant(target=target, pruned=Pruned(Plan.dense(dense.decoder.n_layers)))
        else:
            groups.setdefault(key, []).append(index)
    each = {target.label: 1.0 for target in targets} | dict(expected or {})
    places = portions([sum(each[targets[i].label] for i in own) for own in groups.values()])
    for ((seed, _), members), place in zip(groups.items(), places, strict=True):
        with place:
            chosen = [targets[i] for i in members]
            made = _group(chosen, seed, dense, watch, tokens, folder, progress, apart)
            found |= dict(zip(members, made, strict=True))
    return [found[index] for index in range(len(targets))]


def _about(target: Target, dense: Dense, watch: Watch) -> tuple[str | None, tuple[int, str]]:
    """Why a variant cannot be had, or None; and what it shares a calibration by."""
    with watch.over(f"{target.method.name}: unsupported or size"):
        reason = unsupported_reason(
            target.method, dense.decoder, target.sparsity, recovery=target.recovery
        )
        return reason, (target.seed, calibration_key(target.method))


def _group(
    targets: Sequence[Target],
    seed: int,
    dense: Dense,
    watch: Watch,
    tokens: Callable[[int], Tensor],
    folder: Path,
    progress: Progress,
    apart: bool,
) -> list[Variant | Failure]:
    """Calibrate once for some targets and prune each."""
    names = ", ".join(dict.fromkeys(target.method.name for target in targets))
    progress.stage(f"calibrate for {names}")
    start = time.perf_counter()
    try:
        batches = shared(partial(tokens, seed))
        with showing(progress):
            calibration = agreed(
                lambda: calibrate(targets[0].method, dense, batches, folder),
            )
    except Exception as error:  # all that need this calibration, and no other
        log.debug("calibration for %s failed", names, exc_info=True)
        traceback.clear_frames(error.__traceback__)  # their tensors are not needed any more
        return [Failure(target, error) for target in targets]
    seconds = time.perf_counter() - start
    if seconds >= _WORTH_SAYING:
        progress.say(f"calibrated in {clock(seconds)} for {names}")
    found: list[Variant | Failure] = []
    first: dict[str, Variant | Failure] = {}
    many = {} if apart else {target.decision: target for target in reversed(targets)}
    wider = cache(partial(_by_domain, targets[0].method, calibration, dense, batches, seed, folder))
    with ExitStack() as stack:
        shares = _summed(stack, many.values(), dense, watch, calibration, batches, folder, progress)
        for target in targets:
            one = first.get(target.decision)
            if isinstance(one, Failure):
                found.append(replace(one, target=target))
                continue
            progress.stage(f"prune {target.name}")
            try:
                require_intact(dense)
                with showing(progress):
                    if one is None:
                        own = agreed(wider) if target.method.by_domain else calibration
                        share = shares.get(target.label, (0.0, 1))
                        work = partial(_pruned, target, dense, watch, own, batches, folder, share)
                    else:
                        work = partial(another, one, target, dense.decoder)
                    variant = agreed(work)
            except Exception as error:  # an error of one method loses no other variant
                log.debug("%s failed", target.name, exc_info=True)
                traceback.clear_frames(error.__traceback__)
                found.append(Failure(target, error))
            else:
                summary = _summary(variant, dense.decoder, calibration)
                progress.say(summary if one is None else f"{target.name}: as {one.target.name}")
                found.append(variant)
            first.setdefault(target.decision, found[-1])
    return found


def _by_domain(
    method: Method, own: Calibration, dense: Dense, tokens: Tensor, seed: int, folder: Path
) -> Calibration:
    """A calibration with the cosines of each domain of the packaged text."""
    batches, (n, length) = TokenBatches(dense.tokenizer), tokens.shape
    domains = shared(lambda: domain_batches(batches, n_samples=n, length=length, seed=seed))
    others = {name: calibrate(method, dense, part, folder) for name, part in domains.items()}
    return own.beside(others)


def _summed(
    stack: ExitStack,
    targets: Iterable[Target],
    dense: Dense,
    watch: Watch,
    calibration: Calibration,
    tokens: Tensor,
    folder: Path,
    progress: Progress,
) -> dict[str, tuple[float, int]]:
    """Sum what several targets that are still to be pruned will fit in one pass.

    Returns:
        By label its seconds' share of each, and how many they are.
    """
    wanted: dict[str, Sequence[Fit]] = {}
    for target in targets:
        if type(target.method).fits is Method.fits:
            continue
        try:
            named = agreed(partial(_fits_of, target, dense, watch, calibration))
            if named and not shared(pruning_file(target, dense, tokens, folder).exists):
                wanted[target.label] = named
        except Exception:  # it will fail by itself with that
            log.debug("fits of %s failed", target.name, exc_info=True)
    if len(wanted) < 2:
        return {}
    progress.stage(f"fit to the dense model's states for {len(wanted)} variants")
    start = time.perf_counter()
    fits = [fit for named in wanted.values() for fit in named]
    try:
        with showing(progress):
            agreed(lambda: stack.enter_context(together(dense.decoder, fits, tokens)))
    except Exception:  # each fails, or not, by itself
        log.debug("fitting together failed", exc_info=True)
        return {}
    return dict.fromkeys(wanted, ((time.perf_counter() - start) / len(wanted), len(wanted)))


def _fits_of(target: Target, dense: Dense, watch: Watch, calibration: Calibration) -> Sequence[Fit]:
    with watch.over(f"{target.method.name}: fits"):
        return target.method.fits(dense.decoder, own_copy(calibration), target.sparsity)


def _pruned(
    target: Target,
    dense: Dense,
    watch: Watch,
    calibration: Calibration,
    tokens: Tensor,
    folder: Path,
    share: tuple[float, int],
) -> Variant:
    """What one method decided, from disk or now; ``share`` are seconds it has cost, with others."""
    file = pruning_file(target, dense, tokens, folder)
    name = f"pruning-{file.stem[-32:]}"
    with led(turn(name, lambda: tell(0, 1, "another process is deciding it"))):
        kept = read_pruning(file, dense.decoder)
        if kept is not None:
            pruned, spent = kept
        else:
            search = file.with_suffix(".search.json")
            with resuming(search):
                pruned, spent = _decided(target, dense.decoder, watch, calibration, tokens)
            spent = broadcast(with_share(spent, *share))
            require_alike(target, pruned, dense.decoder)
            if write_pruning(file, pruned, dense.decoder, spent):
                forget_unfinished(search)
    n_tokens = tokens.numel() + calibration.facts.get("other_tokens", 0)
    costs = costs_of(calibration.facts, spent) | {"calibrate_tokens": n_tokens}
    return Variant(target=target, pruned=pruned, costs=costs)


def _decided(
    target: Target, decoder: Decoder, watch: Watch, calibration: Calibration, tokens: Tensor
) -> tuple[Pruned, dict[str, Any]]:
    """Let one method decide, and say what that took."""
    doing = f"{target.method.name}: prune"
    with spending(decoder) as spent, watch.over(doing):
        pruned = target.method.prune(
            decoder, own_copy(calibration), target.sparsity, tokens.clone(), target.seed
        )
    pruned = checked(pruned, decoder, doing)
    require_finite(target, pruned, decoder)
    return pruned, spent


def _summary(found: Variant, decoder: Decoder, calibration: Calibration) -> str:
    """A line on a pruned variant; its own time, if it took any."""
    removed = found.pruned.plan.removed_layers
    seconds = found.costs["calibrate_s"] - calibration.facts.get("seconds", 0.0)
    parts = [f"pruned in {clock(seconds)}"] if seconds >= _WORTH_SAYING else []
    parts += [f"{len(removed)} of {decoder.n_layers} layers out"] if removed else []
    return f"{found.target.name}: {', '.join(parts) or 'pruned'}"
