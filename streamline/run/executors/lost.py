"""A model that cannot be worked: its cells are failed, those of the other models go on."""

from __future__ import annotations

import logging

from streamline.errors import AssetError, UnsupportedModelError
from streamline.progress import Progress
from streamline.results.record import Record
from streamline.results.record_file import find, load, recorded
from streamline.run.cell import cell_job, expand
from streamline.run.config import RunConfig
from streamline.run.folder import kept_sources
from streamline.run.inputs import settle, shared_inputs
from streamline.run.recorder import Recorder

__all__ = ["lost_model"]

log = logging.getLogger(__name__)


def lost_model(config: RunConfig, model: str, error: Exception, progress: Progress) -> list[Record]:
    """Record every cell of a model as failed, but those that are done.

    Args:
        config: The run.
        model: The model that could not be worked.
        error: Why.
        progress: Where to report it.

    Returns:
        The records of its cells, in their order.

    Raises:
        Exception: ``error`` itself where it is the run's only model: then nothing is left to do.
    """
    if len(config.models) == 1:
        raise error
    log.debug("%s cannot be worked", model, exc_info=error)
    if isinstance(error, UnsupportedModelError):  # of a method it would be a cell to skip
        error = AssetError(str(error)).with_traceback(error.__traceback__)
    own = config.for_model(model)
    recorder = Recorder(own, model, "", progress)
    cells = expand(own, model)
    shared = shared_inputs(own, "", settle(own, kept_sources(own)))
    there = recorded(own.out)
    for cell in cells:
        record = find(there, *cell.identity)
        if record is None or record.status == "failed":
            recorder.failed(cell_job(cell, shared), error, {})
    records = load(own.out)
    found = [find(records, *cell.identity) for cell in cells]
    return [record for record in found if record is not None]
