"""The work on one model: calibrate once, prune each cell, train and evaluate them together.

Cells are worked side by side because they share almost everything: the calibration pass, the
teacher of the training, and the layers before the first difference in evaluation. What is dear is
kept in ``DIR/cache`` under a content key as soon as it is done (calibrations, training states,
answers task by task), so a killed run goes on where it stopped, and a cell whose record is there
with the same key is never touched again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from streamline import __version__
from streamline.calibration import Calibration
from streamline.engine.decoder import Decoder
from streamline.engine.memory import free_memory
from streamline.engine.paths import Path as LayerPath
from streamline.engine.paths import dense_path
from streamline.environment import (
    peak_memory_bytes,
    pick_device,
    restart_peak_memory,
    versions,
)
from streamline.errors import StreamlineError, UnsupportedModelError
from streamline.evaluation.session import Session
from streamline.files import content_key, write_json_atomic
from streamline.method import Method, Pruned
from streamline.plan import Plan
from streamline.progress import Progress, clock, showing
from streamline.registry import build_method
from streamline.results.assess import assess
from streamline.results.record import Record
from streamline.results.record_file import FILE_NAME, find, load
from streamline.run.cell import Cell, cell_key, expand
from streamline.run.config import RunConfig
from streamline.run.inputs import Materials
from streamline.run.recorder import Recorder
from streamline.run.train import CellTraining
from streamline.run.work import Built, Work
from streamline.sources.batches import batches_fingerprint
from streamline.sources.models import load_model, model_fingerprint

log = logging.getLogger(__name__)


class ModelRun:
    """All cells of one model.

    Args:
        config: The run.
        name: One of its models.
        progress: Where to say what is being done.
    """

    def __init__(self, config: RunConfig, name: str, progress: Progress) -> None:
        self.config = config.for_model(name)
        self.name = name
        self.progress = progress
        self.cache_dir = config.out / "cache"
        self.fingerprint = model_fingerprint(name)
        self.recorder = Recorder(self.config, name, self.fingerprint, progress)
        self.training = CellTraining(self.config, name, self.fingerprint, progress)

    def run(self) -> list[Record]:
        """Work every cell that has no record yet.

        Returns:
            The records of all cells of this model, in the order of
            :func:`streamline.run.cell.expand`.
        """
        cells = expand(self.config, self.name)
        works = [self._work(cell) for cell in cells]
        missing = [
            work
            for work, record in zip(works, self._records(cells), strict=True)
            if record is None or record.key != work.key or record.status == "failed"
        ]
        if missing:
            self._compute(missing, dense=works[0])
        else:
            self.progress.say(f"{self.name}: all {len(cells)} cells are done already")
        return [record for record in self._records(cells) if record is not None]

    def build(self, method: str, sparsity: float) -> Built:
        """Prune and train one cell, without evaluating it.

        Args:
            method: Method spec.
            sparsity: Share of parameters to remove.

        Returns:
            The pruned model, the dense one, and how it was made.

        Raises:
            UnsupportedModelError: If the method cannot work on this model.
        """
        seed = self.config.seeds[0]
        recovery = self.config.recovery[0]
        work = self._work(Cell(self.name, method, sparsity, seed, recovery))
        decoder, tokenizer = self._load()
        reason = self._unfit(work, decoder)
        if reason is not None:
            raise UnsupportedModelError(reason)
        materials = Materials(self.config, tokenizer)
        self.progress.stage(f"{self.name}: prune {work.cell.label}")
        self._prune_one(work, decoder, materials)
        self.training.fit([work], decoder, materials, seed)
        if recovery == "lora":
            work.pruned = self.training.heal(work, decoder, materials)
        provenance = {
            "cell": work.cell.record(),
            "key": work.key,
            "method": repr(work.method),
            "notes": work.built.notes,
            "training": work.trained,
            "versions": versions(self.config.device),
            "model_sha256": self.fingerprint,
            "texts": materials.facts(),
        }
        return Built(work.built, decoder, tokenizer, provenance)

    def _load(self) -> tuple[Decoder, Any]:
        """The dense model and its tokenizer on the run's device."""
        self.progress.stage(f"{self.name}: load")
        if self.config.stream:
            from streamline.streaming.opening import load_streamed

            return load_streamed(
                self.name,
                device=pick_device(self.config.device),
                dtype=self.config.dtype,
                trust_remote_code=self.config.trust_remote_code,
            )
        model, tokenizer = load_model(
            self.name,
            device=pick_device(self.config.device),
            dtype=self.config.dtype,
            device_map=self.config.device_map,
            trust_remote_code=self.config.trust_remote_code,
        )
        return Decoder(model), tokenizer

    def _unfit(self, work: Work, decoder: Decoder) -> str | None:
        """Why a cell cannot be worked on this model, or None."""
        reason = work.method.unsupported(decoder)
        if reason is None and decoder.streamed:
            from streamline.streaming.opening import refusal

            return refusal(work.method, work.cell.recovery)
        return reason

    def _work(self, cell: Cell) -> Work:
        method = build_method(cell.method)
        return Work(cell, method, cell_key(cell, self.config, repr(method), self.fingerprint))

    def _records(self, cells: list[Cell]) -> list[Record | None]:
        """The cells' records as they lie in the folder, read once; None where there is none."""
        out = self.config.out
        records = load(out) if (out / FILE_NAME).is_file() else []
        return [find(records, c.model, c.method, c.sparsity, c.seed, c.recovery) for c in cells]

    def _compute(self, works: list[Work], dense: Work) -> None:
        decoder, tokenizer = self._load()
        materials = Materials(self.config, tokenizer)
        evaluation = Session(self.config, tokenizer, materials, self.cache_dir, self.progress)
        whole = [w for w in works if w.method.returns_model]  # models of their own, one at a time
        works = self._prune([w for w in works if w not in whole], decoder, materials)
        works = self._train(works, decoder, materials)
        shared = [w for w in works if w.built.model is None and w.cell.recovery == "none"]
        lost = dense not in shared and not evaluation.answered(dense.key, decoder)
        if lost and (works or whole):
            shared.insert(0, dense)  # finished before, but its answers are gone
            dense.pruned = Pruned(Plan.dense(decoder.n_layers))
        self._together(shared, decoder, evaluation, dense)
        for work in works:
            if work not in shared:
                self._alone(work, decoder, materials, evaluation, dense)
        for work in whole:
            if self._prune([work], decoder, materials):
                self._alone(work, decoder, materials, evaluation, dense)

    def _guard(self, work: Work, action: Callable[[], None]) -> bool:
        """Run one cell's step; a failure becomes its record and the others go on."""
        try:
            action()
        except Exception as error:  # any fault of one method must not lose the other cells
            log.debug("%s failed", work.cell.label, exc_info=True)
            self.recorder.failed(work, error)
            return False
        return True

    def _prune(self, works: list[Work], decoder: Decoder, materials: Materials) -> list[Work]:
        """Calibrate once for each key, then let every method decide."""
        kept = []
        for number, work in enumerate(works, 1):
            count = f"{number} of {len(works)}: " if len(works) > 1 else ""
            self.progress.stage(f"{self.name}: prune {count}{work.cell.label}")
            reason = self._unfit(work, decoder)
            if reason is not None:
                self.recorder.skipped(work, reason)
                continue

            def action(work: Work = work) -> None:
                self._prune_one(work, decoder, materials)

            if self._guard(work, action):
                kept.append(work)
        return kept

    def _prune_one(self, work: Work, decoder: Decoder, materials: Materials) -> None:
        cell = work.cell
        if cell.sparsity == 0.0:
            work.pruned = Pruned(Plan.dense(decoder.n_layers))
            return
        batches = materials.calibration(cell.seed)
        start = time.perf_counter()
        with showing(self.progress):
            calibration = self._calibration(work.method, decoder, batches)
            work.pruned = work.method.prune(decoder, calibration, cell.sparsity, batches, cell.seed)
        seconds = time.perf_counter() - start
        removed = work.pruned.plan.removed_layers
        layers = f", {len(removed)} of {decoder.n_layers} layers out" if removed else ""
        self.progress.say(f"{self.name}: {cell.label}: pruned in {clock(seconds)}{layers}")
        work.cost["calibrate_s"] = seconds + calibration.facts.get("seconds", 0.0)
        notes = {"cell": cell.record(), "method": repr(work.method), **work.pruned.notes}
        plan = work.pruned.plan.to_json() | {"notes": notes}
        write_json_atomic(self.config.out / "plans" / f"{cell.slug}.json", plan)

    def _calibration(self, method: Method, decoder: Decoder, batches: torch.Tensor) -> Calibration:
        """The method's calibration from disk, or measured now and kept."""
        key = content_key(
            [
                __version__,
                self.fingerprint,
                self.config.dtype,
                batches_fingerprint(batches),
                method.calibration_key(),
            ]
        )
        folder = self.cache_dir / "calibration" / key[:16]
        if (folder / "calibration.json").is_file():
            return Calibration.load(folder)
        start = time.perf_counter()
        found = method.calibrate(decoder, batches)
        seconds = time.perf_counter() - start
        facts = found.facts | {"seconds": seconds, "model": self.name}
        replace(found, facts=facts).save(folder)
        return replace(found, facts=facts | {"seconds": 0.0})

    def _train(self, works: list[Work], decoder: Decoder, materials: Materials) -> list[Work]:
        """Fit the replacements of all cells of a seed in one pass of the teacher."""
        for seed in self.config.seeds:
            owners = [w for w in works if w.cell.seed == seed and w.built.students]
            try:
                self.training.fit(owners, decoder, materials, seed)
            except Exception as error:  # one training for all of them: they fail together
                log.debug("training failed", exc_info=True)
                for work in owners:
                    self.recorder.failed(work, error)
                works = [work for work in works if work not in owners]
        return works

    def _together(
        self, works: list[Work], decoder: Decoder, evaluation: Session, dense: Work
    ) -> None:
        """Evaluate cells that share the dense model's layers in one walk.

        If that fails they are evaluated one by one, so that a fault stays with its cell; what was
        answered before is not asked again.
        """
        try:
            self._evaluate(works, decoder, evaluation, dense)
            return
        except Exception:  # whose fault it is shows when each is alone
            log.debug("evaluating together failed", exc_info=True)
        # Outside the handler, so that the failed walk's tensors are free.
        free_memory()
        for work in works:

            def action(work: Work = work) -> None:
                self._evaluate([work], decoder, evaluation, dense)

            self._guard(work, action)

    def _alone(
        self,
        work: Work,
        decoder: Decoder,
        materials: Materials,
        evaluation: Session,
        dense: Work,
    ) -> None:
        """Heal and evaluate a cell that is a model of its own, and let it go afterwards."""

        def action() -> None:
            pruned = work.built
            if work.cell.recovery == "lora":
                work.pruned = pruned = self.training.heal(work, decoder, materials)
            own = Decoder(pruned.model) if pruned.model is not None else decoder
            self._evaluate([work], own, evaluation, dense)

        self._guard(work, action)
        work.pruned = None

    def _evaluate(
        self, works: list[Work], decoder: Decoder, evaluation: Session, dense: Work
    ) -> None:
        """Answer all questions for all cells at once and write each cell's record."""
        if not works:
            return
        paths: list[LayerPath] = [
            dense_path(decoder, w.cell.label)
            if w.built.model is not None
            else w.built.path(decoder, w.cell.label)
            for w in works
        ]
        restart_peak_memory()
        results = evaluation.run({w.key: path for w, path in zip(works, paths, strict=True)})
        if not evaluation.has(dense.key):
            raise StreamlineError("the dense model could not be evaluated; see its own record")
        reference = evaluation.stored(dense.key)
        for work, path in zip(works, paths, strict=True):
            result = results[work.key]
            work.cost["eval_s"] = result.seconds
            work.cost["peak_memory_bytes"] = peak_memory_bytes(decoder.device)
            assessment = assess(result, reference)
            evaluation.write_samples(work.cell, result)
            self.recorder.done(work, path, assessment, evaluation.facts())
