"""What all cells of a model share while they are run.

Example::

    job = model.job(variant)
    model.answered(job)         # whether it has nothing to be asked any more
"""

from __future__ import annotations

from dataclasses import dataclass

from streamline.api.variants import Dense, Failure, Variant
from streamline.distributed.work import shared
from streamline.evaluation.answer_store import AnswerStore
from streamline.evaluation.questions import Questions
from streamline.evaluation.scoring.token_budget import TokenBudget
from streamline.method import Pruned
from streamline.plan import Plan
from streamline.progress import Progress
from streamline.run.cell import CellJob
from streamline.run.config import RunConfig
from streamline.run.measuring.speeds import Speeds
from streamline.run.planning.plan import MemoryPlan
from streamline.run.preparation import Preparation
from streamline.run.recorder import Recorder
from streamline.run.shards.dense import DenseTurn
from streamline.run.shards.part import Part
from streamline.sources.batches import TokenBatches

__all__ = ["OneModel"]


@dataclass(frozen=True, kw_only=True)
class OneModel:
    """What all cells of a model share."""

    config: RunConfig
    dense: Dense
    ready: Preparation
    store: AnswerStore
    budget: TokenBudget
    recorder: Recorder
    speeds: Speeds
    jobs: dict[str, CellJob]
    reference: CellJob
    part: Part
    turn: DenseTurn
    progress: Progress
    memory: MemoryPlan

    @property
    def batches(self) -> TokenBatches:
        """The model's token batches."""
        return self.ready.batches

    @property
    def questions(self) -> Questions:
        """What every cell is asked."""
        return self.ready.questions

    def job(self, variant: Variant | Failure) -> CellJob:
        """The cell that a variant belongs to."""
        return self.jobs[variant.target.label]

    def unpruned(self) -> Variant:
        """The dense model as a variant."""
        plan = Plan.dense(self.dense.decoder.n_layers)
        return Variant(target=self.reference.target, pruned=Pruned(plan))

    def in_parts(self, variant: Variant) -> bool:
        """Whether each of several processes holds a part of its frozen layers in training."""
        return self.job(variant).cell.label in self.memory.in_parts

    def answered(self, job: CellJob) -> bool:
        """Whether all answers of a cell are there."""
        return shared(lambda: self.store.has(job.model_key, self.questions.places))
