"""What the cells of a model take, stage by stage, in floating-point operations and bytes.

The one place that says so, from shapes: how a run is divided into parts, what a dry run shows, how
long the run will take and which share of it a stage is all go by these numbers.

Example::

    amounts = Amounts(decoder, methods, own, asked_of(own))
    works = {row.cell.label: amounts.of(row) for row in rows}
    once(works)                     # what cells share is there once
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from streamline.api.guards import Watch, calibration_key
from streamline.engine.budget import Effort, head_weights, statistics_flops, weights
from streamline.engine.decoder import Decoder
from streamline.evaluation.generation.engine import ROWS
from streamline.method import Method
from streamline.run.config import RunConfig
from streamline.run.planning.asked import Asked
from streamline.run.planning.plan import MemoryPlan, Row
from streamline.run.planning.work import ALONE, added, own_texts
from streamline.training.flops import (
    adapters_token,
    again_token,
    distilled_token,
    loss_token,
    states_token,
    writing_flops,
)
from streamline.training.lora import target_modules
from streamline.training.lora_recipe import recipe_of
from streamline.training.student import Recipe

__all__ = ["STAGES", "TEACHER", "Amounts", "Work", "once"]

log = logging.getLogger(__name__)

#: What trainings share.
TEACHER = "the teacher"
#: The stages of a run, in their order.
STAGES = ("calibrate", "prune", "train", "recover", "evaluate", "speed")

_OPTIMISER = 40  # bytes that a step of AdamW reads and writes for a parameter in float32
_ROUNDS = {True: (512, 8, 32), False: (64, 4, 12)}  # of measuring speed: length, prefills, steps
_SPEED_ROWS = 9  # of the two batches that speed is measured at


@dataclass(frozen=True)
class Work:
    """Some work of one stage.

    Attributes:
        stage: One of :data:`STAGES`.
        of: Whose it is: a method, or a cell.
        flops: Operations in products of matrices.
        algebra: Operations in decompositions of matrices, in float64.
        moved: Bytes that are read and written beside them; all weights for each step of generation.
        fetched: Bytes of weights that are read from a disk, where layers are read one at a time.
        launches: Times that a layer is run for so few tokens that the call itself takes longest.
        shared: What it is done once for, however many cells need it; None for one cell alone.
        divided: Whether several processes each do a part of it; else each of them, or one, does it.
    """

    stage: str
    of: str
    flops: float = 0.0
    algebra: float = 0.0
    moved: float = 0.0
    fetched: float = 0.0
    launches: int = 0
    shared: Hashable | None = None
    divided: bool = True


def once(works: Mapping[str, Sequence[Work]]) -> dict[str, list[Work]]:
    """Works of several cells by their labels; what they share is with the first of them."""
    found: dict[str, list[Work]] = {}
    seen: set[Hashable] = set()
    for label, own in works.items():
        found[label] = [work for work in own if work.shared is None or work.shared not in seen]
        seen |= {work.shared for work in own}
    return found


class Amounts:
    """What the cells of one model take.

    Args:
        decoder: The model; its weights may lie on the meta device.
        methods: Each cell's method by its spec.
        config: The run, as the model has it.
        asked: What every model is asked.
        accelerator: Whether the device is one.
        together: Models that answer side by side, those of their own apart.
        alone: Share of a variant's layers that no other model runs too.
        memory: How the stages are made to fit: how often a teacher is run, and the cells whose
            frozen layers are in parts; None for once, and those of a streamed model.

    Attributes:
        untold: Methods that do not tell what their search takes.
        resident: Bytes of the model's weights.
    """

    def __init__(
        self,
        decoder: Decoder,
        methods: Mapping[str, Method],
        config: RunConfig,
        asked: Asked,
        *,
        accelerator: bool = False,
        together: int = 1,
        alone: float = ALONE,
        memory: MemoryPlan | None = None,
    ) -> None:
        self.decoder, self.methods, self.config = decoder, methods, config
        self.asked, self.accelerator, self.together = asked, accelerator, max(1, together)
        self.alone, self.memory = alone, memory or MemoryPlan("", None)
        self.untold: dict[str, None] = {}
        self._layers = weights(decoder, decoder.layers)
        self._head = head_weights(decoder)
        self._all = sum(map(decoder.layer_parameters, range(decoder.n_layers)))
        self.resident = (
            decoder.n_parameters() * getattr(torch, config.dtype, torch.float32).itemsize
        )
        self._streamed = self.resident if config.stream else 0
        self._watch = Watch(decoder)

    def of(self, row: Row) -> list[Work]:
        """What one cell takes; nothing if it cannot be had."""
        if row.reason is not None:
            return []
        method, found = self.methods[row.cell.method], list[Work]()
        if row.cell.sparsity:
            found += self._deciding(row, method)
            if method.trains:
                for number, stage in enumerate(self.config.training.stages()):
                    found += self._training(row, stage, number)
        if row.cell.recovery == "kd" and self.config.kd.own_answers:
            found.append(self._writing(row, self.config.kd.own_answers))
        if row.cell.recovery != "none":
            found.append(self._recovering(row))
        return [*found, *self._evaluating(row, method), *self._measuring(row, method)]

    # Stages --------------------------------------------------------------------------------------

    def _deciding(self, row: Row, method: Method) -> list[Work]:
        """Calibration and pruning."""
        c, cell = self.config.calibration, row.cell
        told: Effort | None = None
        key: Hashable = cell.method
        try:
            with self._watch.over(f"{method.name}: effort"):
                told = method.effort(self.decoder, cell.sparsity, (c.n_samples, c.length))
                key = calibration_key(method)
            if not isinstance(told, Effort | None):
                raise TypeError(f"effort gave {told!r:.200}")
        except Exception:  # of this method's code, and its cells may do without it
            log.debug("%s does not tell its effort", method.name, exc_info=True)
            told = None
        if told is None:
            self.untold[cell.method] = None
            told = Effort(statistics_flops(self.decoder, c.n_samples * c.length))
        place = ("calibration", cell.model, cell.seed, key)
        streamed, whose = self._streamed, "all" if key == "shared" else cell.method
        return [
            Work("calibrate", whose, told.calibrate, fetched=streamed, shared=place),
            Work(
                "prune",
                cell.label,
                told.prune,
                told.algebra,
                fetched=streamed * told.passes,
                shared=("decision", *cell.identity[:-1]),  # whatever recovers it
                divided=not method.returns_model,
            ),
        ]

    def _training(self, row: Row, recipe: Recipe, number: int) -> list[Work]:
        """One training of a cell's networks, and of several its share of the teacher."""
        cell, own, tokens = row.cell, float(added(row, self.decoder)), recipe.seen_tokens
        looks = (recipe.evaluations + 1) * recipe.validation_tokens
        steps = math.ceil(tokens / recipe.batch_tokens)
        moved = float(_OPTIMISER * own * steps)
        place: Hashable = ("teacher", cell.model, cell.seed, number)
        alike: Hashable = ("networks", *cell.identity[:-1], number)  # whatever recovers them
        if self.config.one_by_one:
            place = alike = None
        if recipe.objective == "lm":
            layers = self._weights(row)
            whole = layers + self._head
            each = loss_token(whole, ALONE * whole, own)
            each += again_token(self._again(row, ALONE * layers - own))
            flops = tokens * each + 2 * looks * whole
            return [Work("train", cell.label, flops, moved=moved, shared=alike)]
        read = tokens // recipe.epochs if recipe.cache_bytes else tokens
        read = self.memory.waves * (read + recipe.validation_tokens)
        teacher = states_token(self._layers, 0.0) * read
        fetched = self._streamed * recipe.epochs
        student = states_token(0.0, own) * tokens + 2 * own * looks
        return [
            Work("train", TEACHER, teacher, fetched=fetched, shared=place),
            Work("train", cell.label, student, moved=moved, shared=alike),
        ]

    def _writing(self, row: Row, most: int) -> Work:
        """The dense model's own answers, on which all that is distilled learns."""
        n_texts, length = own_texts(self.config)
        new = min(most, length - 1)
        steps = math.ceil(n_texts / ROWS[self.accelerator]) * new
        return Work(
            "recover",
            "own answers",
            writing_flops(self.decoder, n_texts * (length - new), n_texts * new),
            moved=steps * self.resident,
            launches=steps * self.decoder.n_layers,
            shared=("own answers", row.cell.model, row.cell.seed),
        )

    def _recovering(self, row: Row) -> Work:
        """LoRA or distillation of a whole model."""
        config, layers = self.config, self._weights(row)
        whole = layers + self._head
        tokens = config.lora.planned_tokens(config.training)
        if row.cell.recovery == "kd":
            trained = {"all": whole, "replacement": float(added(row, self.decoder)), "lora": 0.0}
            learns = config.kd.trainees
            adapters = self._adapters(row) if learns == "lora" else 0.0
            teacher = self._layers + self._head
            each = distilled_token(teacher, whole, adapters, trained[learns])
            again = 0.0 if learns == "all" else layers + adapters - trained[learns]
        else:
            adapters = self._adapters(row)
            each, again = adapters_token(whole, adapters), layers + adapters
        each += again_token(self._again(row, again))
        return Work("recover", row.cell.label, tokens * each)

    def _again(self, row: Row, weights: float) -> float:
        """Of some weights in a cell's layers, those that run once more for their gradients."""
        in_parts = self.config.stream or row.cell.label in self.memory.in_parts
        return max(0.0, weights) if in_parts else 0.0

    def _adapters(self, row: Row) -> float:
        """Weights of the adapters, as many of them as layers stay."""
        settings = self.config.lora
        if settings.preset == "matched":
            return float(settings.trained_parameters or 0)
        recipe = recipe_of(settings.preset, settings.trained_parameters)
        maps = target_modules(self.decoder, recipe.targets).values()
        sides = sum(sum(module.weight.shape) for module in maps)  # type: ignore[misc,arg-type]
        return float(recipe.rank * sides) * self._weights(row) / max(1, self._layers)

    def _evaluating(self, row: Row, method: Method) -> list[Work]:
        """Reading all that is asked, the part that no other model shares, and writing texts."""
        cell, asked = row.cell, self.asked
        own_model = method.returns_model or cell.recovery != "none"
        alone = 1.0 if own_model or cell.is_dense else self.alone
        layers = self._weights(row)
        flops = 2.0 * (asked.read * layers * alone + asked.scored * self._head)
        written = asked.prompts * asked.written
        beside = 1 if own_model else self.together  # a model of its own answers by itself
        batches = math.ceil(asked.prompts / max(1, ROWS[self.accelerator] // beside))
        steps = batches * asked.written
        flops += 2.0 * written * (layers + self._head)
        size = self.resident * layers / max(1, self._layers)
        launches = steps * self.decoder.n_layers
        found = [Work("evaluate", cell.label, flops, moved=steps * size, launches=launches)]
        if self._streamed:  # layers are read once for all that answer together
            once_read = ("read", cell.model)
            found += [Work("evaluate", cell.label, fetched=self._streamed, shared=once_read)]
        return found

    def _measuring(self, row: Row, method: Method) -> list[Work]:
        """The speed of a model beside the dense one, once for each shape."""
        if self.config.efficiency == "off" or self.config.stream:
            return []
        length, prefills, steps = _ROUNDS[self.accelerator]
        share = 1 + self._weights(row) / max(1, self._layers)
        flops = 2.0 * self._layers * share * (prefills + 1) * length * _SPEED_ROWS
        n = 2 * (steps + 2)
        moved, launches = n * share * self.resident, round(n * share * self.decoder.n_layers)
        own = row.cell.label if method.trains or method.returns_model else ""
        shape = ("speed", row.cell.model, row.n_removed, row.pruned, own)
        return [
            Work(
                "speed",
                "models",
                flops,
                moved=moved,
                launches=launches,
                shared=shape,
                divided=False,
            )
        ]

    def _weights(self, row: Row) -> float:
        """About how many weights of a cell's layers a token meets."""
        gone = row.dense - (row.dense if row.pruned is None else row.pruned)
        if row.pruned is None:  # only a run shows it: as much as was asked for
            gone = round(row.cell.sparsity * row.dense)
        return self._layers * max(0.0, 1.0 - gone / max(1, self._all))
