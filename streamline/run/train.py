"""The training of a model's cells: replacements side by side, recovery cell by cell."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from streamline.engine.decoder import Decoder
from streamline.method import Pruned
from streamline.progress import Progress
from streamline.run.config import RunConfig
from streamline.run.inputs import Materials
from streamline.run.work import Work
from streamline.training.student import Recipe, Student

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: What the files of a second training are told apart by.
POST = "-post"


class CellTraining:
    """What is trained after pruning, kept on disk while it goes on.

    Args:
        config: The run, as the model has it.
        name: The model.
        fingerprint: Content hash of its weights.
        progress: Where to say what is being done.
    """

    def __init__(self, config: RunConfig, name: str, fingerprint: str, progress: Progress) -> None:
        self.config, self.name = config, name
        self.fingerprint, self.progress = fingerprint, progress
        self.cache_dir = config.out / "cache"

    def fit(self, works: list[Work], decoder: Decoder, materials: Materials, seed: int) -> None:
        """Train the replacements of some cells together, in place, stage after stage."""
        owners = [(work, student) for work in works for student in work.built.students]
        if not owners:
            return
        few = self.config.training.too_few(decoder.n_parameters())
        if few is not None:
            self.progress.say(f"{self.name}: {few}")
        stages = self.config.training.stages()
        for recipe, suffix in zip(stages, ("", POST), strict=False):
            what = "post-train" if suffix else "train"
            self.progress.stage(f"{self.name}: {what} {len(owners)} replacements")
            self._fit_stage(owners, recipe, suffix, decoder, materials, seed)

    def _fit_stage(
        self,
        owners: list[tuple[Work, Student]],
        recipe: Recipe,
        suffix: str,
        decoder: Decoder,
        materials: Materials,
        seed: int,
    ) -> None:
        """Train replacements by one recipe; what a killed stage had done is taken up."""
        from streamline.training.activations import ActivationCache
        from streamline.training.fit import fit

        train, validation = materials.training(seed)
        labels = []
        for work, student in owners:
            student.take(recipe)
            several = f"-{student.span.start}" if len(work.built.students) > 1 else ""
            labels.append(work.cell.slug + several + suffix)
        cache_bytes = self.config.training.cache_bytes
        # One path object per cell: replacements of one path are trained as one under the LM loss.
        paths = {work.key: work.built.path(decoder) for work, _ in owners}
        results = fit(
            decoder,
            [student for _, student in owners],
            train,
            validation,
            labels=labels,
            directory=self.cache_dir / "training",
            losses=self.config.out / "losses",
            fingerprint=self.fingerprint,
            seed=seed,
            progress=self.progress.step,
            autocast=None if self.config.dtype == "float32" else torch.bfloat16,
            cache=ActivationCache(self.cache_dir / "activations", cache_bytes)
            if cache_bytes
            else None,
            paths=[paths[work.key] for work, _ in owners] if recipe.objective == "lm" else None,
        )
        before = {work.key: work.cost.get("train_tokens", 0) for work, _ in owners}
        for (work, _), result in zip(owners, results, strict=True):
            if result.label not in work.trained:  # students of one path have one result
                work.cost["train_s"] = work.cost.get("train_s", 0.0) + result.seconds
            work.cost["train_tokens"] = before[work.key] + result.tokens
            work.trained[result.label] = result.summary()

    def heal(self, work: Work, decoder: Decoder, materials: Materials) -> Pruned:
        """Post-train a pruned model with LoRA."""
        from streamline.engine.assemble import assemble
        from streamline.training.lora import heal

        self.progress.stage(f"{self.name}: LoRA {work.cell.label}")
        pruned = work.built
        model: PreTrainedModel = pruned.model or assemble(pruned.path(decoder))
        data, validation = materials.recovery(work.cell.seed)
        result = heal(
            model,
            data,
            tokenizer=materials.tokenizer,
            validation=validation,
            preset=self.config.lora.preset,
            token_budget=self.config.lora.n_tokens or self.config.training.seen_tokens,
            trained_parameters=self.config.lora.trained_parameters,
            seed=work.cell.seed,
            directory=self.cache_dir / "healing" / work.key[:16],
            progress=self.progress.step,
        )
        work.cost["train_s"] = work.cost.get("train_s", 0.0) + result.seconds
        work.cost["train_tokens"] = work.cost.get("train_tokens", 0) + result.tokens
        work.trained["lora"] = result.summary()
        return replace(pruned, model=result.model)
