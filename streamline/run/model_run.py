"""The run of one model's cells: prune, train, evaluate and record them side by side.

A thin caller of the stages of :mod:`streamline.api`, with files: whatever is expensive is kept in
``DIR/cache`` under a content key as soon as it is done (calibrations, training states, answers task
by task), so a killed run resumes, and a cell whose record is there with the same key is not run
again. A cell that fails is recorded and the others continue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from streamline.api.guards import no_exit, require_intact
from streamline.api.pruning import prune
from streamline.api.recovery import fine_tune
from streamline.api.training import train
from streamline.api.variants import Dense, Failure, Variant, load_dense
from streamline.distributed.work import agreed, shared
from streamline.engine.memory import free_memory
from streamline.engine.paths import Path as LayerPath
from streamline.environment import peak_memory_bytes, restart_peak_memory
from streamline.errors import NotFiniteError, StreamlineError
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.evaluate import evaluate, stored
from streamline.evaluation.harness import max_length
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.progress import Prefixed, Progress, portions
from streamline.results.assess import CellResult, assess
from streamline.results.record import Record
from streamline.run.cell import CellJob, replaced, unrecorded
from streamline.run.config import RunConfig
from streamline.run.deciding.decide import decided_for
from streamline.run.folder import kept_sources
from streamline.run.inputs import Sources, settle
from streamline.run.measuring.dropped import dropped_perplexities
from streamline.run.measuring.speeds import Speeds, measure_done, seconds_of, unmeasured
from streamline.run.measuring.texts import calibration_tokens, cell_texts
from streamline.run.one_model import OneModel
from streamline.run.planning.amounts import STAGES
from streamline.run.planning.fitting import kept_plan, possible
from streamline.run.planning.hours import TimePlan, cell_times
from streamline.run.preparation import cell_facts, loading, preparation, todo
from streamline.run.recorder import Recorder
from streamline.run.shards.dense import DenseTurn
from streamline.run.shards.part import WHOLE, Part
from streamline.sources.hub.commits import pinned

__all__ = ["run_model"]

log = logging.getLogger(__name__)


def run_model(config: RunConfig, name: str, progress: Progress, part: Part = WHOLE) -> list[Record]:
    """Run every cell of a model that has no record yet.

    Args:
        config: The run.
        name: One of its models.
        progress: Where to report what is being done.
        part: The part of the run whose cells are meant.

    Returns:
        The records of these cells, in the order of :func:`streamline.run.cell.expand`.

    Raises:
        StreamlineError: If the model, a text or all questions cannot be had.
    """
    return agreed(lambda: _run_model(config, name, progress, part))


def _run_model(config: RunConfig, name: str, progress: Progress, part: Part) -> list[Record]:
    if len(config.models) > 1:
        progress = Prefixed(progress, name)
    given = config
    config, choices = shared(lambda: decided_for(given, name))
    sources = shared(lambda: settle(config, kept_sources(config)))

    def left() -> tuple[str, list[CellJob], list[CellJob], list[tuple[CellJob, Record]]]:
        fingerprint, jobs, missing = todo(config, name, sources, part)
        mine = [job for job in jobs if part.has(job.cell) and job not in missing]
        for remark in replaced(missing, part.found(config.out, missing)):
            progress.say(remark)
        return fingerprint, jobs, missing, unmeasured(config, mine, part)

    with pinned(sources.models):
        fingerprint, jobs, missing, slow = shared(left)
        mine = [job for job in jobs if part.has(job.cell)]
        if missing or slow:
            recorder = Recorder(config, name, fingerprint, progress, part, choices)
            dense = load_dense(name, fingerprint, progress, **loading(config))
            if missing:
                with recorder:
                    _run(config, name, dense, sources, jobs, missing, recorder, part)
            if slow:
                measure_done(config, name, dense, sources, slow, progress, part)
        else:
            progress.say(f"all {len(mine)} cells are done already")
    return shared(lambda: [one for one in part.found(config.out, mine) if one is not None])


def _run(
    config: RunConfig,
    name: str,
    dense: Dense,
    sources: Sources,
    jobs: Sequence[CellJob],
    missing: Sequence[CellJob],
    recorder: Recorder,
    part: Part,
) -> None:
    """Run the cells that are missing."""
    cache, progress = config.out / "cache", recorder.progress
    memory = kept_plan(config, name, dense.decoder)
    longest = max_length(dense.decoder.config, dense.tokenizer)
    ready = preparation(config, name, dense.tokenizer, longest, sources, progress)
    model = OneModel(
        config=config,
        dense=dense,
        ready=ready,
        store=AnswerStore(cache / "answers"),
        budget=TokenBudget(config.batch_tokens or memory.batch_tokens, cache / "batch_tokens"),
        recorder=recorder,
        speeds=Speeds(config, name, dense, missing, progress, part),
        jobs={job.target.label: job for job in jobs},
        reference=jobs[0],
        part=part,
        turn=DenseTurn(jobs[0].model_key, progress),
        progress=progress,
        memory=memory,
    )
    recorder.begin(unrecorded(missing, part.found(config.out, missing)))
    missing = shared(partial(possible, memory, missing, recorder, progress))
    joined = [job for job in missing if not job.target.method.returns_model]
    own = [job for job in missing if job.target.method.returns_model]
    times = cell_times(config, missing, model.questions, memory, progress, part)
    *_, alone = times.places(joined, own)
    rest = _in_layers(model, joined, own, times)
    alike: dict[str, list[CellJob]] = {}  # models of their own, made one at a time
    for job in own:
        alike.setdefault(job.target.decision, []).append(job)
    sizes = [times.of([model.job(one).cell], "recover", "evaluate", "speed") for one in rest]
    sizes += [times.of([job.cell for job in group], *STAGES) for group in alike.values()]
    works = [partial(_alone, model, rest.pop(0)) for _ in list(rest)]
    works += [partial(_own, model, group, times) for group in alike.values()]
    with alone:
        for place in portions(sizes):
            with place:
                works.pop(0)()  # memory holds what is still to be done, and no more


def _in_layers(
    model: OneModel, jobs: Sequence[CellJob], own: Sequence[CellJob], times: TimePlan
) -> list[Variant]:
    """Prune, train and evaluate cells that share layers, with the dense model if it is needed.

    Returns:
        What is still to be done by itself; the others' networks are let go.
    """
    pruning, training, jointly, _ = times.places(jobs, own)
    with pruning:
        variants = _pruned(model, jobs, times)
    with training:
        variants = _trained(model, variants)
    layered = [variant for variant in variants if variant.pruned.model is None]
    joint = [one for one in layered if model.job(one).cell.recovery == "none"]
    if (variants or own) and not model.answered(model.reference):
        others = [variant for variant in joint if model.job(variant) is not model.reference]
        if not model.turn.attempt():  # another process answers for the dense model
            joint = others
        elif len(joint) == len(others):  # another part's cell, or its answers are gone
            joint = [model.unpruned(), *others]
    with jointly, model.turn:
        _jointly(model, joint)
    return [variant for variant in variants if not any(variant is other for other in joint)]


def _pruned(model: OneModel, jobs: Sequence[CellJob], times: TimePlan) -> list[Variant]:
    """Prune some cells and write down what was decided."""
    targets, folder = [job.target for job in jobs], model.config.out / "cache"
    tokens = partial(calibration_tokens, model.config, model.batches)
    shares = {j.target.label: times.of([j.cell], "calibrate", "prune") for j in jobs}
    apart, shown = model.memory.apart, model.progress
    made = prune(targets, model.dense, tokens, folder, shown, shares, apart=apart)
    variants = _kept(model, made)
    for variant in variants:
        model.memory.park(variant.pruned.students)
    model.recorder.pruned((model.job(variant), variant) for variant in variants)
    return variants


def _trained(model: OneModel, variants: Sequence[Variant]) -> list[Variant]:
    """Train the replacements of some cells, together unless each is to be trained by itself."""
    config, made = model.config, list[Variant | Failure]()
    for group in [[one] for one in variants] if config.one_by_one else [variants]:
        made += train(
            group,
            model.dense,
            model.batches,
            config.training,
            texts=config.calibration.texts,
            folder=config.out / "cache",
            losses=config.out / "losses",
            activations=config.out / "cache" / "activations" / model.part.name,
            progress=model.progress,
            memory=model.memory.students,
            divided=any(model.in_parts(one) for one in group),
        )
    return _kept(model, made)


def _kept(model: OneModel, made: Sequence[Variant | Failure]) -> list[Variant]:
    """What succeeded; what failed is recorded."""
    for one in made:
        if isinstance(one, Failure):
            model.recorder.failed(model.job(one), one.error, one.costs)
    return [one for one in made if isinstance(one, Variant)]


def _jointly(model: OneModel, variants: Sequence[Variant]) -> None:
    """Evaluate cells that share the dense model's layers in one forward pass.

    If that fails they are evaluated one by one, so that an error stays with its cell; what was
    answered before is not computed again.
    """
    try:
        agreed(partial(_evaluate, model, variants))
        return
    except Exception:  # which cell it is shows when each is alone
        log.debug("evaluating jointly failed", exc_info=True)
    # Outside the handler, so that the tensors of the failed pass are free.
    free_memory()
    for variant in variants:
        _guarded(model, variant, partial(_evaluate, model, [variant]))


def _alone(model: OneModel, variant: Variant) -> None:
    """Fine-tune a cell that needs it, evaluate it by itself, and let it go."""
    config, found = model.config, variant

    def tune() -> None:
        nonlocal found
        if model.job(variant).cell.recovery != "none":
            found = fine_tune(
                variant,
                model.dense,
                model.batches,
                config.lora,
                config.training,
                kd=config.kd,
                texts=config.calibration.texts,
                folder=config.out / "cache",
                divided=model.in_parts(variant) or None,
                progress=model.progress,
            )

    if _guarded(model, variant, tune):
        with model.turn:  # to be given up, if it was waited for
            _guarded(model, found, partial(_evaluate, model, [found]))


def _own(model: OneModel, jobs: Sequence[CellJob], times: TimePlan) -> None:
    """Run cells of one decision whose method returns a model of its own."""
    variants = _pruned(model, jobs, times)
    for place in portions([1.0] * len(variants)):
        with place:
            _alone(model, variants.pop(0))  # what recovery makes of it is let go


def _guarded(model: OneModel, variant: Variant, action: Callable[[], None]) -> bool:
    """Run one cell's step; a failure becomes its record, the others continue, and it is False."""
    try:
        agreed(action)
    except Exception as error:  # an error of one method must not lose the other cells
        log.debug("%s failed", variant.target.name, exc_info=True)
        model.recorder.failed(model.job(variant), error, variant.costs)
        return False
    return True


def _evaluate(model: OneModel, variants: Sequence[Variant]) -> None:
    """Answer all questions for some cells and write each cell's record."""
    if not variants:
        return
    require_intact(model.dense)
    jobs = [model.job(variant) for variant in variants]
    paths = [v.pruned.path(model.dense.decoder, v.target.name) for v in variants]
    restart_peak_memory()
    if model.reference in jobs:
        model.turn.wait()
    with no_exit(f"a module of {' or '.join(variant.target.name for variant in variants)}"):
        results = evaluate(
            {job.model_key: path for job, path in zip(jobs, paths, strict=True)},
            model.questions,
            model.dense.tokenizer,
            model.store,
            batch_tokens=model.budget,
            compiled=model.config.compile,
            progress=model.progress,
            kept=lambda name, keys: model.recorder.reached(
                [job for job in jobs if job.model_key in keys], f"{name} answered"
            ),
        )
    if model.turn.awaited(lambda: model.answered(model.reference)):
        with model.turn:
            _evaluate(model, [model.unpruned()])
    shared(partial(_record, model, variants, paths, results))


def _record(
    model: OneModel,
    variants: Sequence[Variant],
    paths: Sequence[LayerPath],
    results: Mapping[str, CellResult | NotFiniteError],
) -> None:
    """Measure the speed of cells that have answered, and write their records."""
    jobs = [model.job(variant) for variant in variants]
    dense = model.answered(model.reference)
    reference = stored(model.reference.model_key, model.questions, model.store) if dense else None
    peak = peak_memory_bytes(paths[0].decoder.device)
    cells = {
        job.target.label: (job, path)
        for job, path in zip(jobs, paths, strict=True)
        if reference is not None and not isinstance(results[job.model_key], NotFiniteError)
    }
    speeds = model.speeds.of(cells, seconds_of(results.values(), variants))
    dropped = dropped_perplexities(model, variants)
    for job, variant, path in zip(jobs, variants, paths, strict=True):
        result = results[job.model_key]
        if not model.part.has(job.cell):  # the dense model, which another part records
            continue
        if isinstance(result, NotFiniteError):
            model.recorder.failed(job, result, variant.costs)
            continue
        if reference is None:
            error = StreamlineError("the dense model could not be evaluated; see its own record")
            model.recorder.failed(job, error, variant.costs)
            continue
        assessment = assess(result, reference)
        model.recorder.answered(job, result)
        costs = {**variant.costs, "eval_s": result.seconds, "peak_memory_bytes": peak}
        facts = cell_facts(job, model.ready, model.store, compiled=model.config.compile)
        texts = cell_texts(model.config, variant, model.ready.batches, model.questions)
        absent = model.questions.absent
        found = (speeds.get(job.target.label), dropped.get(job.target.label))
        model.recorder.done(job, variant, path, costs, assessment, facts, texts, absent, *found)
