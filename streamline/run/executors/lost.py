"""Cells that cannot be worked: they are failed, the others go on."""

from __future__ import annotations

import logging

from streamline.errors import AssetError, UnsupportedModelError
from streamline.hashing import content_key
from streamline.progress import Progress
from streamline.results.record import Record
from streamline.results.record_file import find
from streamline.run.cell import CellJob, cell_job, expand
from streamline.run.config import RunConfig
from streamline.run.folder import kept_sources
from streamline.run.inputs import settle, shared_inputs
from streamline.run.recorder import Recorder
from streamline.run.shards.part import WHOLE, Part

__all__ = ["holds", "lost_cells", "lost_model"]

log = logging.getLogger(__name__)


def holds(record: Record | None, job: CellJob) -> bool:
    """Whether a cell is done as the run wants it, as far as that is known without its model.

    Args:
        record: The cell's record, if there is one.
        job: The cell, of a model whose content is the empty text.
    """
    before = None if record is None or record.status == "failed" else record.extra("inputs")
    if not isinstance(before, dict):
        return False
    return content_key({**before, "model": ""}) == content_key(job.inputs.to_json())


def lost_model(
    config: RunConfig, model: str, error: Exception, progress: Progress, part: Part = WHOLE
) -> list[Record]:
    """Record every cell of a model as failed, but those that are done.

    Args:
        config: The run.
        model: The model that could not be worked.
        error: Why.
        progress: Where to report it.
        part: The part of the run whose cells they are.

    Returns:
        The records of its cells, in their order.

    Raises:
        Exception: ``error`` itself where it is the run's only model: then nothing is left to do.
    """
    if len(config.models) == 1:
        raise error
    return lost_cells(config, model, error, progress, part)


def lost_cells(
    config: RunConfig, model: str, error: Exception, progress: Progress, part: Part
) -> list[Record]:
    """Record the cells of a model in a part of the run as failed, but those that are done.

    Args:
        config: The run.
        model: The model.
        error: Why they could not be worked.
        progress: Where to report it.
        part: The part.

    Returns:
        The records of these cells, in their order.
    """
    log.debug("%s cannot be worked", model, exc_info=error)
    if isinstance(error, UnsupportedModelError):  # of a method it would be a cell to skip
        error = AssetError(str(error)).with_traceback(error.__traceback__)
    own = config.for_model(model)
    here = own.model_copy(update={"device": "auto"})  # the run's may be on other machines alone
    recorder = Recorder(here, model, "", progress, part)
    cells = part.of(expand(own, model))
    shared = shared_inputs(own, "", settle(own, kept_sources(own)))
    there = part.records(own.out)
    for cell in cells:
        job = cell_job(cell, shared)
        if not holds(find(there, *cell.identity), job):
            recorder.failed(job, error, {})
    records = part.records(own.out)
    found = [find(records, *cell.identity) for cell in cells]
    return [record for record in found if record is not None]
