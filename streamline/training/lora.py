"""Recovery of a pruned model: train adapters (LoRA) and merge them, or weights of its own.

A stage of a run that can follow every method: same data, same tokens, merged before evaluation.
What it learns is the next token of the text, or what the dense model predicts there
(:mod:`streamline.training.distillation`). Only this file imports peft.

Example::

    result = fine_tune(model, batches, preset="llm-pruner", token_budget=100_000, directory=out)
    result.model, result.trained_parameters, result.seconds
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from streamline.distributed.sums import alike
from streamline.distributed.team import team
from streamline.distributed.work import agreed
from streamline.engine.decoder import Decoder, submodule
from streamline.engine.seed import seeded
from streamline.environment import peak_memory_bytes, restart_peak_memory
from streamline.errors import ConfigError
from streamline.hashing import content_key, program
from streamline.training.digest import digest
from streamline.training.distillation.settings import Trainees
from streamline.training.distillation.teacher import Distillation, Teacher
from streamline.training.distillation.trainees import divided_among, weights
from streamline.training.loop import fingerprint
from streamline.training.lora_loop import LoraLoop, Noise, SequenceDropout, plan_batches
from streamline.training.lora_recipe import PRESETS, LoraRecipe, Targets, recipe_of
from streamline.training.losses import FineTuned
from streamline.training.parts.changed import change
from streamline.training.parts.frozen import Source, frozen, lent
from streamline.training.parts.shares import Shares
from streamline.training.schedule import Schedule
from streamline.training.sequences import Sequences, TrainingData, as_sequences
from streamline.training.state import TrainingState

__all__ = ["PRESETS", "FineTuned", "LoraRecipe", "fine_tune", "matched_rank", "target_modules"]


def fine_tune(
    model: PreTrainedModel,
    data: TrainingData,
    *,
    tokenizer: Any = None,
    preset: str | LoraRecipe = "default",
    token_budget: int | None = None,
    trained_parameters: int | None = None,
    validation: TrainingData | None = None,
    evaluations: int = 4,
    seed: int = 0,
    directory: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    autocast: torch.dtype | None = None,
    micro_batch: int = 4096,
    save_seconds: float = 30.0,
    distillation: Distillation | None = None,
    divided: bool | None = None,
    dense: tuple[Decoder, str] | None = None,
) -> FineTuned:
    """Train LoRA adapters on a model and merge them; or distil the dense model into it.

    Tensors that the model shares with another (the dense one) are not written to: merged and
    trained weights are new tensors. Only the adapters' dropout is on.

    Args:
        model: Any pruned model of a known family.
        data: Token batches, [N, T], int64, with loss on every token; or examples with
            ``instruction``, ``input`` (may be missing) and ``output``, with loss on the output.
        tokenizer: Needed for examples.
        preset: A name from :data:`PRESETS` or a recipe.
        token_budget: Training tokens to see in all, in place of the recipe's epochs and steps, so
            that every method gets the same; the data is repeated or cut to it.
        trained_parameters: Solve the rank so that about as many parameters are trained.
        validation: Held-out data; with it the weights of the lowest loss are kept.
        evaluations: How often its loss is measured, beside before, if the recipe does not say.
        seed: Seed of the data order, the adapters' start and their dropout.
        directory: For state and losses; a killed training resumes, a finished one is loaded.
        progress: Called with tokens done, tokens in all, and a line.
        autocast: ``torch.bfloat16`` for mixed precision. Adapters are always float32.
        micro_batch: Tokens per forward pass, padding included.
        save_seconds: How often the state is written; less often where that takes long, and after
            each step for 0.
        distillation: Learn what the dense model predicts, in place of the text's tokens; the
            batches are the same. None for no teacher.
        divided: Whether each of several processes holds a part of the layers' weights; None
            where all learn and would take half of a GPU's memory.
        dense: The dense model of which it was made, with the content key of its weights: those
            that are its own are told by name. Where its layers come one at a time, each of several
            processes holds a part of them, and adapters are merged whenever the model runs
            (:mod:`streamline.training.parts.changed`); embeddings and head are to be in memory.

    Returns:
        The merged model, on the device and in the dtype it came in, and what it cost.

    Raises:
        UnknownNameError: If there is no such preset.
        ConfigError: If the data cannot be used, ``matched`` has no number to match, or the model
            has no linear map to adapt.
        UnsupportedModelError: If what a model inserts is to learn, and it inserts nothing.

    Reference:
        LoRA, arXiv:2106.09685; the presets after arXiv:2305.11627, arXiv:2401.15024 and
        arXiv:2403.17887.

    Differs from the papers:
        The warm-up is at most a tenth of the run; ``uidl`` adapts unquantised weights.
    """
    recipe = recipe_of(preset, trained_parameters)
    decoder = Decoder(model)
    trainees: Trainees = "lora"
    streamed = dense is not None and dense[0].layer_order is not None
    if distillation is not None:
        trainees, recipe = distillation.settings.trainees, distillation.settings.recipe(recipe)
        autocast = autocast or distillation.autocast()
    targets = target_modules(decoder, recipe.targets) if trainees == "lora" else {}
    if not targets and trainees == "lora":
        raise ConfigError(
            f"{decoder.name} has no linear map among the LoRA targets {recipe.targets!r}; "
            "choose other targets"
        )
    if trained_parameters is not None and targets:
        rank = matched_rank(targets.values(), trained_parameters)
        recipe = replace(recipe, rank=rank, alpha=2 * rank)
    sequences = as_sequences(data, tokenizer, recipe.length)
    held_out = None if validation is None else as_sequences(validation, tokenizer, recipe.length)
    batches = plan_batches(sequences, recipe, token_budget, seed)
    schedule = Schedule(
        n_steps=len(batches),
        peak=recipe.learning_rate,
        final=recipe.final_learning_rate,
        warmup_steps=min(recipe.warmup_steps, len(batches) // 10),
        shape=recipe.shape,
    )
    taught = None
    if distillation is not None:
        taught = [distillation.fingerprint, distillation.settings.model_dump(mode="json")]
    key = content_key(
        {
            "program": program(),
            "recipe": asdict(recipe),
            "model": fingerprint(decoder, dense),
            "data": _digest(sequences),
            "validation": None if held_out is None else [_digest(held_out), evaluations],
            "seed": seed,
            "batches": digest(batches),
            "autocast": str(autocast),
            **({} if taught is None else {"taught": taught}),
        }
    )
    restart_peak_memory()
    noise, shares = Noise(seed), None
    if trainees == "all" and not streamed and divided_among(decoder, divided):
        shares = agreed(lambda: Shares(decoder))
    trained = (
        _adapters(model, targets, recipe, seed, noise)
        if distillation is None or trainees == "lora"
        else weights(decoder, distillation.dense, trainees, shares)
    )

    with trained as (parameters, dropouts):
        if shares is None:
            alike(parameters.values())
        state = TrainingState(
            label="lora" if distillation is None else "kd",
            key=key,
            parameters=parameters,
            schedule=schedule,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            clip=recipe.clip,
            directory=directory,
            shares=shares,
        )
        state.resume()

        def learn(parts: Sequence[Sequence[nn.Module]] | None = None) -> int:
            """Train, and say how many layers ran once for both models."""
            layers, own = parts or (None if shares is None else shares.layers, None)
            teacher = None
            if distillation is not None:
                teacher = Teacher.of(distillation, decoder, autocast, layers, own)
            loop = LoraLoop(
                decoder, sequences, held_out, batches, dropouts, noise, recipe, autocast,
                micro_batch, teacher, layers,
            )  # fmt: skip
            loop.train(state, evaluations, progress, save_seconds)
            agreed(state.finish)  # writing takes longer than parts are waited for
            return 0 if teacher is None else teacher.shared

        models = [decoder.layers, [] if distillation is None else distillation.dense.layers]
        given = (parameters.values(), dropouts, noise.again)
        if dense is not None and streamed and not state.finished:
            n_shared = frozen(models, cast("Source", dense[0]), learn, *given)
        elif divided and shares is None and team().size > 1 and not state.finished:
            n_shared = lent(models, decoder.device, learn, *given)
        else:
            n_shared = learn()
        _merge(model)
    return FineTuned(
        model=model,
        recipe=recipe,
        trained_parameters=state.n_parameters,
        tokens=state.n_tokens,
        n_steps=state.step,
        seconds=state.seconds,
        peak_memory_bytes=peak_memory_bytes(decoder.device),
        losses=state.rows,
        before=None if held_out is None else state.rows[0]["validation_loss"],
        after=None if held_out is None else state.best_loss,
        distillation=None if distillation is None else distillation.settings,
        shared_layers=n_shared,
        skipped_steps=state.skipped_steps,
    )


def target_modules(decoder: Decoder, targets: Targets) -> dict[str, nn.Module]:
    """The linear maps of a model's layers, replacements included, by their full names.

    Args:
        decoder: The model.
        targets: Which of them; those of attention are known from the table of families.
    """
    family = decoder.family
    attention = {name for name in (family.q, family.k, family.v, family.qkv, family.o) if name}
    found: dict[str, nn.Module] = {}
    for index, layer in enumerate(decoder.layers):
        for name, module in layer.named_modules():
            wanted = targets == "all" or (targets == "attention") == (name in attention)
            if wanted and isinstance(module, (nn.Linear, Conv1D)) and _new(module, found):
                found[f"{family.layers}.{index}.{name}" if name else f"{family.layers}.{index}"] = (
                    module
                )
    return found


def matched_rank(targets: Iterable[nn.Module], trained_parameters: int) -> int:
    """The rank whose adapters train most nearly a number of parameters, at least 1."""
    per_rank = sum(sum(cast("Tensor", module.weight).shape) for module in targets)
    return max(1, round(trained_parameters / per_rank))


def _new(module: nn.Module, found: Mapping[str, nn.Module]) -> bool:
    """Whether a module has not been met yet: one that is applied twice gets one adapter."""
    return all(module is not other for other in found.values())


def _digest(sequences: Sequences) -> str:
    return digest([sequences.ids, sequences.lengths, sequences.first])


@contextmanager
def _adapters(
    model: PreTrainedModel,
    targets: Mapping[str, nn.Module],
    recipe: LoraRecipe,
    seed: int,
    noise: Noise,
) -> Iterator[tuple[dict[str, nn.Parameter], list[nn.Module]]]:
    """Add adapters to some linear maps, train nothing else, and remove them again."""
    from peft import LoraConfig, inject_adapter_in_model

    gradients = {p: p.requires_grad for p in model.parameters()}
    by_name = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    attributes = set(vars(model))
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(targets),
    )
    try:
        with seeded(seed), _standing_in(model, targets.values()), warnings.catch_warnings():
            # peft remarks on each transposed map among plain ones and handles both.
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out")
            inject_adapter_in_model(config, model)
        model.eval()
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for parameter in parameters.values():
            parameter.data = parameter.data.float()
        dropouts = [layer.lora_dropout for layer in _lora_layers(model).values()]
        if recipe.dropout:
            for dropout in dropouts:
                dropout["default"] = SequenceDropout(recipe.dropout, noise).eval()
        yield parameters, dropouts
    finally:
        for name, module in _lora_layers(model).items():
            parent, _, leaf = name.rpartition(".")
            setattr(submodule(model, parent), leaf, module.get_base_layer())
        for name in set(vars(model)) - attributes:
            delattr(model, name)
        for parameter, flag in gradients.items():
            parameter.requires_grad_(flag)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(by_name[name])
        for name, module in model.named_modules():
            module.training = modes[name]


@contextmanager
def _standing_in(model: PreTrainedModel, modules: Iterable[nn.Module]) -> Iterator[None]:
    """Zeros that need no memory for weights that are not there: adapters come to be beside them."""
    places = [(m, weight) for m in modules if (weight := cast("Tensor", m.weight)).is_meta]
    device = Decoder(model).device
    for module, weight in places:
        nothing = torch.zeros((), dtype=weight.dtype, device=device).expand(weight.shape)
        module.weight = nn.Parameter(nothing, requires_grad=False)
    try:
        yield
    finally:
        for module, weight in places:
            module.weight = cast("nn.Parameter", weight)


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


@torch.no_grad()
def _merge(model: nn.Module) -> None:
    """Add each adapter to its map, as a new tensor: the old one may be shared, or not be there."""
    for layer in _lora_layers(model).values():
        base = layer.get_base_layer()
        old = base.weight
        if old.is_meta:
            factors = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            change(base, *factors, layer.scaling["default"])
            continue
        merged = old.float() + layer.get_delta_weight("default").float()
        base.weight = nn.Parameter(merged.to(old.dtype), requires_grad=old.requires_grad)
