"""The pieces of a run's work as they are rehearsed, and what is counted without rehearsal.

Example::

    rehearsal.peak(scoring(4, 512, decoder), own=True)          # bytes of a batch
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamline.engine.decoder import Decoder
from streamline.engine.forward import attempt
from streamline.engine.kernels import LARGEST_COPY
from streamline.engine.paths import dense_path
from streamline.evaluation.efficiency.decoding import prefill, prompt
from streamline.evaluation.efficiency.measure import Sizes as Measured
from streamline.evaluation.scoring.score import RequestBatch
from streamline.evaluation.scoring.token_budget import synthetic
from streamline.method import Method, Size
from streamline.plan import Span
from streamline.run.config import RunConfig
from streamline.run.planning.plan import Row
from streamline.run.planning.rehearsal import Rehearsal
from streamline.run.planning.tuning import tune
from streamline.sources.instructions import is_instructions
from streamline.streaming.decoder import EMBEDDING, HEAD, grouped
from streamline.training.lora_recipe import recipe_of
from streamline.training.next_token import NextToken
from streamline.training.objectives import HiddenStates, StudentGroup
from streamline.training.student import Recipe

__all__ = [
    "ALONE", "Step", "added", "cached", "filling", "generation", "laid_out", "own_texts", "reading",
    "resident", "scoring", "spread", "streamed_parameters", "training_step", "tuning", "writing",
]  # fmt: skip

_MICRO_TOKENS = 4096  # of a forward pass in training
_WRITTEN, _PROMPT = 512, 1024  # tokens that a text may have, and its prompt
_DRAWN = 20  # bytes for each number of a distribution: logits, what is made of them, sums
#: Of a variant's layers, what no other shares; 0.55 and 0.59 in the embedded suites.
ALONE = 0.6


def resident(decoder: Decoder, dtype: torch.dtype, *, streamed: bool) -> int:
    """Bytes of the dense model's weights that are always there.

    Args:
        decoder: The model; its weights may lie on the meta device.
        dtype: Of the weights.
        streamed: Whether layers are read one at a time.
    """
    n = streamed_parameters(decoder) if streamed else decoder.n_parameters()
    return n * dtype.itemsize


def spread(decoder: Decoder, dtype: torch.dtype, devices: int) -> int:
    """Bytes of weights on the fullest of several devices, at most, as accelerate balances them.

    Each but the last one takes its share and room for a layer and a quarter, so that none splits.

    Args:
        decoder: The model.
        dtype: Of the weights.
        devices: How many.
    """
    whole = decoder.n_parameters()
    largest = max(map(decoder.layer_parameters, range(decoder.n_layers)))
    return min(whole, whole // devices + 5 * largest // 4) * dtype.itemsize


def laid_out(decoder: Decoder, dtype: torch.dtype, weights: int) -> int:
    """Bytes of the weights that a CPU holds a second time, laid out for its products.

    Args:
        decoder: The model.
        dtype: Of the weights.
        weights: Their bytes.
    """
    if weights > LARGEST_COPY or dtype == torch.float16:
        return 0
    modules = decoder.model.modules()
    linear = {m.weight: m.weight.numel() for m in modules if type(m) is nn.Linear}
    return sum(linear.values()) * dtype.itemsize


def streamed_parameters(decoder: Decoder) -> int:
    """Parameters in memory at once where layers are streamed: two layers, and what always stays."""
    groups = {name: sum(p.numel() for p in own) for name, own in grouped(decoder).items()}
    stays = groups.pop(None)
    order = [groups[name] for name in (EMBEDDING, *range(decoder.n_layers), HEAD)]
    return stays + max(a + b for a, b in zip(order, order[1:], strict=False))


def added(row: Row, decoder: Decoder) -> int:
    """Parameters that a row's replacement brings."""
    if row.pruned is None or row.n_removed is None:
        return 0
    return max(0, row.pruned - Size.without(decoder, row.n_removed).pruned)


def scoring(rows: int, width: int, decoder: Decoder) -> Callable[[Decoder], object]:
    """Scoring one batch of full rows along the dense path.

    Args:
        rows: Rows of the batch.
        width: Tokens of each.
        decoder: Says how many tokens there are.
    """
    batch = synthetic(rows, width, int(decoder.config.vocab_size), tree=True)
    return lambda few: attempt([dense_path(few)], RequestBatch(batch, {}, False))


@dataclass(frozen=True)
class Step:
    """What training a cell's networks takes.

    Attributes:
        networks: Parameters of each network that has an optimiser of its own.
        added: Bytes that a step adds beside weights, gradients, moments and the best.
    """

    networks: tuple[int, ...]
    added: int


def training_step(rehearsal: Rehearsal, method: Method, n_removed: int, recipe: Recipe) -> Step:
    """What training a method's networks takes.

    Args:
        rehearsal: Of the model.
        method: Says what is trained.
        n_removed: Layers that it replaces.
        recipe: How it is trained.

    Returns:
        Without networks for a method that does not tell them.
    """
    autocast = None if rehearsal.dtype == torch.float32 else torch.bfloat16

    def networks(few: Decoder) -> list[nn.Module]:
        found = list(method.networks(few, n_removed))
        if not all(isinstance(module, nn.Module) for module in found):
            raise TypeError(f"{method.name}: networks gave {found!r:.200}")
        return found

    own: list[nn.Module] = rehearsal.make(networks) or []
    made: list[nn.Module] = own or rehearsal.make(lambda few: [few.layers[0]]) or []
    ids = _micro_batch(rehearsal, recipe.batch_tokens, recipe.length)
    objectives = {stage.objective for stage in recipe.stages()}
    sizes = {sum(p.numel() for p in module.parameters()): module for module in made}
    found = [0]
    for n_parameters, module in sizes.items():
        module.requires_grad_(True)
        for objective in objectives:
            alone = objective == "mse"

            def step(few: Decoder, module: nn.Module = module, alone: bool = alone) -> None:
                group = _group(module, recipe)
                loss: Any = (HiddenStates if alone else NextToken)(few, autocast)
                for _ in range(2):  # with the gradients of the first
                    with torch.enable_grad():
                        loss.errors(ids, ids, [group], lambda _, error, __: error.backward(), None)

            size = rehearsal.peak(step, own=alone) or 0
            module.zero_grad(set_to_none=True)
            found.append(size - 4 * n_parameters)  # its gradient is counted elsewhere
    counts = [sum(p.numel() for p in module.parameters()) for module in own]
    return Step((sum(counts),) if counts and "lm" in objectives else tuple(counts), max(found))


def _group(module: nn.Module, recipe: Recipe) -> StudentGroup:
    nothing: Any = None
    return StudentGroup([Span(0, 1)], nn.ModuleList([module]), recipe, nothing, nothing)


def tuning(
    rehearsal: Rehearsal, config: RunConfig, recovery: str, *, parts: bool = False
) -> int | None:
    """Bytes that LoRA fine-tuning adds to a model: adapters, what trains them, merged weights.

    Of distillation also the teacher's states, and the logits of both for some positions.

    Args:
        rehearsal: Of the model.
        config: The run.
        recovery: Of which kind.
        parts: Whether layers are in parts: each runs once more for its gradients, and what is
            merged at the end is not counted.
    """
    settings = config.lora
    recipe = recipe_of(settings.preset, settings.trained_parameters)
    ids = _micro_batch(rehearsal, recipe.batch * recipe.length, config.training.length)
    kd = config.kd if recovery == "kd" else None
    return rehearsal.peak(lambda few: tune(few, recipe, ids, kd, parts=parts))


def _micro_batch(rehearsal: Rehearsal, batch_tokens: int, length: int) -> Tensor:
    """Token ids without values of one forward pass of a step, [B, T]."""
    return rehearsal.tokens(max(1, min(_MICRO_TOKENS, batch_tokens) // length), length)


def cached(decoder: Decoder, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token."""
    config: Any = decoder.config
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or decoder.hidden_size // heads)
    return 2 * decoder.n_layers * groups * width * dtype.itemsize


def reading(rows: int, width: int) -> Callable[[Decoder], object]:
    """Reading prompts along the dense path, of each of which the next token is wanted.

    Args:
        rows: How many.
        width: Tokens of each.
    """

    @torch.no_grad()
    def read(few: Decoder) -> Tensor:
        entry = few.enter(torch.zeros(rows, width, dtype=torch.int64))
        hidden = entry.hidden
        for index, layer in enumerate(few.layers):
            hidden = few.run(layer, hidden, entry, index)
        return few.leave(hidden[:, -1])

    return read


def filling(batch: int, sizes: Measured, *, accelerator: bool) -> Callable[[Decoder], object]:
    """The prompts of a measurement of speed, with the keys and values that are kept of them.

    Args:
        batch: Texts at once.
        sizes: How much is measured.
        accelerator: Whether caches are of fixed size, as they are on one.
    """
    way = "static-cache" if accelerator else "cache"

    @torch.no_grad()
    def fill(few: Decoder) -> object:
        ids = prompt(few.model, batch, sizes.length)
        return prefill(few.model, ids, room=sizes.room, way=way)

    return fill


def generation(decoder: Decoder, dtype: torch.dtype, models: int, rows: int) -> tuple[float, float]:
    """Bytes of keys and values of texts that are generated together: of prompts, and what is new.

    Args:
        decoder: The dense model.
        dtype: Of keys and values.
        models: Models that generate side by side.
        rows: Most texts at once.
    """
    texts = max(models, rows)
    prompts = (texts // models) * (1 + ALONE * (models - 1))  # behind where they part, each model's
    each = cached(decoder, dtype)
    return prompts * _PROMPT * each, float(texts * _WRITTEN * each)


def own_texts(config: RunConfig) -> tuple[int, int]:
    """About how many texts a dense model answers to be distilled on, and tokens of each."""
    recipe, lora = config.training, config.lora
    length = recipe.length
    if is_instructions(lora.texts or recipe.texts or config.calibration.texts):
        length = recipe_of(lora.preset, lora.trained_parameters).length
    tokens = recipe.distinct_tokens
    if lora.amount(recipe) is lora:
        tokens = lora.planned_tokens(recipe)
    return max(1, tokens // length), length


def writing(decoder: Decoder, dtype: torch.dtype, texts: int, length: int, limit: int) -> int:
    """Bytes of texts that one model writes: keys and values, and what next tokens are drawn from.

    Args:
        decoder: The dense model.
        dtype: Of keys and values.
        texts: How many it writes at once.
        length: Tokens of each, its prompt included.
        limit: Most bytes of keys and values.
    """
    kept = min(limit, texts * length * cached(decoder, dtype))
    return kept + _DRAWN * texts * int(decoder.config.vocab_size)
