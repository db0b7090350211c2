"""Recovery of variants, one by one: LoRA fine-tuning, or distillation from the dense model.

Example::

    variant = fine_tune(variant, dense, batches, LoraSettings(), Recipe(), texts=..., folder=f)
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from streamline.api.training import trained
from streamline.api.variants import Dense, Variant
from streamline.distributed.work import shared
from streamline.engine.assemble import applications, assemble
from streamline.engine.decoder import Decoder
from streamline.errors import UnsupportedModelError
from streamline.evaluation.generation.own_answers import own_answers
from streamline.progress import Progress
from streamline.sources.batches import TokenBatches
from streamline.sources.instructions import Example
from streamline.streaming.decoder import StreamedDecoder
from streamline.training import lora
from streamline.training.distillation.settings import DistillationSettings
from streamline.training.distillation.teacher import Distillation
from streamline.training.flops import adapting_flops, distilling_flops
from streamline.training.lora_recipe import LoraSettings, recipe_of
from streamline.training.student import Recipe

__all__ = ["RECOVERIES", "fine_tune", "tuning_data"]

#: Stages after pruning that train a model as it is then.
RECOVERIES = frozenset({"lora", "kd"})


def tuning_data(
    batches: TokenBatches, settings: LoraSettings, recipe: Recipe, texts: str, seed: int
) -> tuple[Tensor | list[Example], Tensor | list[Example] | None]:
    """What a whole model is fine-tuned on, and what its validation loss is of, if there is one.

    Args:
        batches: The model's token batches.
        settings: What LoRA is to do.
        recipe: Says what the settings leave open: text, length and amount.
        texts: The text where neither names one.
        seed: Seed of the draw.
    """
    amount = settings.amount(recipe)
    return batches.fine_tuning(
        settings.texts or recipe.texts or texts,
        n_tokens=amount.n_tokens,
        n_documents=amount.n_documents,
        validation_tokens=settings.validation_tokens,
        length=recipe.length,
        seed=seed,
    )


def fine_tune(
    variant: Variant,
    dense: Dense,
    batches: TokenBatches,
    settings: LoraSettings,
    recipe: Recipe,
    *,
    kd: DistillationSettings | None = None,
    texts: str,
    folder: Path,
    divided: bool | None = None,
    progress: Progress,
) -> Variant:
    """Train a pruned model once more, as its target's ``recovery`` says: on text, or as the dense.

    Args:
        variant: The model, trained where it had something to train.
        dense: The dense model; tensors that both share are not written to.
        batches: The model's token batches.
        settings: What LoRA is to do; of distillation the preset, the text and the amount.
        recipe: Says what the settings leave open: text, length and number of tokens.
        kd: How it learns from the dense model, where the recovery is ``kd``. Answers of its own are
            written once for all variants; each counts them among its costs.
        texts: The text where neither names one.
        folder: Where its state is kept: a killed fine-tuning resumes.
        divided: Whether each of several processes holds a part of the layers; as
            :func:`streamline.training.lora.fine_tune` has it.
        progress: Where to report what is being done.

    Returns:
        The variant as a model of its own, with what it cost beside what it had cost.

    Raises:
        UnknownNameError: If there is no such preset.
        ConfigError: If the text cannot be used, or the model has no linear map to adapt.
        UnsupportedModelError: If the dense model is to write answers and cannot, or nothing can
            learn.
    """
    pruned, taught = variant.pruned, None
    stage = "kd" if variant.target.recovery == "kd" else "lora"
    if stage == "kd":
        taught = Distillation(dense.decoder, dense.fingerprint, kd or DistillationSettings())
    noun = "LoRA fine-tuning" if taught is None else "distillation"
    progress.stage(f"{noun} of {variant.target.name}")
    data, validation = shared(
        lambda: tuning_data(batches, settings, recipe, texts, variant.target.seed)
    )
    own_budget = settings.amount(recipe) is settings
    seen = settings.n_tokens if own_budget else recipe.seen_tokens
    if not own_budget and recipe.n_documents is not None:
        # What documents hold is counted; examples are seen as often as the preset says.
        seen = recipe.counted(data.numel()).seen_tokens if isinstance(data, Tensor) else None
    own = None
    if taught is not None and taught.settings.own_answers:
        progress.stage(f"own answers of {dense.name}")
        own = own_answers(
            dense.decoder,
            dense.fingerprint,
            data,
            dense.tokenizer,
            taught.settings,
            length=recipe_of(settings.preset, settings.trained_parameters).length,
            seed=variant.target.seed,
            folder=folder,
            progress=lambda done, n: progress.step(done, n, "answers"),
        )
        progress.stage(f"{noun} of {variant.target.name}")
    source = _source(variant, dense)
    with nullcontext() if source is None else source.held():
        result = lora.fine_tune(
            pruned.model or assemble(pruned.path(dense.decoder)),
            data if own is None else own.sequences,
            tokenizer=dense.tokenizer,
            validation=validation,
            preset=settings.preset,
            token_budget=seen,
            trained_parameters=settings.trained_parameters,
            seed=variant.target.seed,
            directory=folder / stage / variant.target.label,
            progress=progress.step,
            distillation=taught,
            divided=divided,
            dense=(dense.decoder, dense.fingerprint),
        )
    made = replace(pruned, model=result.model)
    if source is not None:  # a way through the streamed model still, by layers that were changed
        made = replace(pruned, changed=dict(enumerate(Decoder(result.model).layers)))
    costs = {
        "train_s": result.seconds + (own.seconds if own else 0.0),
        "train_tokens": result.tokens,
        "train_flops": _recovery_flops(result, dense.decoder) + (own.flops if own else 0.0),
        "train_steps": result.n_steps,
    }
    summary = result.summary() | ({"own_answers": own.summary()} if own else {})
    return trained(variant, made, costs, 1, result.peak_memory_bytes, {stage: summary})


def _source(variant: Variant, dense: Dense) -> StreamedDecoder | None:
    """Where the weights of a model are whose layers come one at a time; None if in memory."""
    decoder, pruned = dense.decoder, variant.pruned
    if not isinstance(decoder, StreamedDecoder):
        return None
    nodes = () if pruned.model is not None else pruned.path(decoder).nodes
    if not nodes or any(len(applications(node.module)) > 1 for node in nodes):
        raise UnsupportedModelError(
            f"{variant.target.method.name} makes more of {dense.name} than its layers one by one, "
            f"which {variant.target.recovery} needs where they are streamed; run without --stream"
        )
    return decoder


def _recovery_flops(result: lora.FineTuned, dense: Decoder) -> float:
    """FLOPs of a recovery, those of its teacher included."""
    settings, model = result.distillation, result.model
    if settings is None:
        return adapting_flops(model, result.trained_parameters, result.tokens)
    adapters = result.trained_parameters if settings.trainees == "lora" else 0
    return distilling_flops(
        model, dense, result.tokens, shared=result.shared_layers, adapters=adapters
    )
