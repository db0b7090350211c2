"""Groups of cells as tasks of other processes, whoever starts these: what all executors share.

A task works a shard of the run in the run's folder and leaves its records there; the process that
started it takes them up when all have ended. A task that ends with an error fails its cells; of one
whose process dies again and again each cell is tried by itself, so that only the one that kills it
fails.

Example::

    tasks = Tasks(config, progress, total=8)
    for part in tasks.parts:
        start(work_task, config, part, str(Path.cwd()))
    ...
    tasks.failed(part, error)
    records = tasks.records()
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from streamline.progress import Progress
from streamline.results.record import Record
from streamline.results.record_file import by_identity, find, recorded
from streamline.run.cell import Cell, all_cells, cell_job, expand, unfinished
from streamline.run.config import RunConfig
from streamline.run.executors.local import LocalExecutor
from streamline.run.executors.lost import holds, lost_cells
from streamline.run.executors.matrix import Matrix
from streamline.run.folder import kept_sources
from streamline.run.inputs import settle, shared_inputs
from streamline.run.planning.fitting import memory_plan
from streamline.run.shards.dividing import divided
from streamline.run.shards.merging import merge
from streamline.run.shards.part import Part, working
from streamline.run.shards.telling import Telling
from streamline.sources.hub.commits import pinned

__all__ = [
    "Tasks",
    "described",
    "main_memory",
    "plugin_folders",
    "task_environment",
    "work_task",
]

log = logging.getLogger(__name__)

_PASSED = ("STREAMLINE_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "OMP_", "MKL_")


def work_task(config: RunConfig, part: Part, place: str) -> int:
    """Work some cells of a run in a process of its own; what becomes of them lies in its folder.

    Args:
        config: The run.
        part: Its part.
        place: Where relative paths begin, if this machine has it.

    Returns:
        The number of cells.

    Raises:
        Exception: Whatever ends the work of the run's only model.
    """
    if Path(place).is_dir():
        os.chdir(place)
    config = config.model_copy(update={"executor": "local"})  # whose memory is this machine's
    with working(config.out, part):
        sources = settle(config, kept_sources(config))
        with pinned(sources.models):
            told = Telling(part.folder(config.out))
            return len(LocalExecutor().run(config, told, part))


class Tasks:
    """The tasks of a run.

    Args:
        config: The run; its folder has its settings already.
        progress: Where to report what has become of them.
        total: How many there are to be.
    """

    def __init__(self, config: RunConfig, progress: Progress, total: int) -> None:
        self.config = config
        self.progress = progress
        self.cells = all_cells(config)
        self.parts = [
            Part(f"{number}-of-{total}", frozenset(cells))
            for number, cells in enumerate(divided(config, total), start=1)
            if cells
        ]
        self._all = list(self.parts)
        self._stale = self._made_otherwise()
        self._matrix = Matrix(config, self.cells, self.parts, progress)

    def show(self) -> None:
        """Report how many cells have ended, and how long the others will take."""
        self._matrix.show(self._open(self.cells))

    def failed(self, part: Part, error: Exception) -> None:
        """Record what is left of a part as failed."""
        for model in self.config.models:
            if part.of(expand(self.config.for_model(model), model)):
                lost_cells(self.config, model, error, self.progress, part)

    def alone(self, part: Part) -> list[Part]:
        """What is left of a part, each cell as a part of its own; none if it has only one."""
        left = self._open(part.of(self.cells))
        if len(part.cells or ()) == 1:
            return []
        made = [Part(f"{part.name}-{n}", frozenset([cell])) for n, cell in enumerate(left, 1)]
        self._all += made
        return made

    def records(self) -> list[Record]:
        """The records of all cells, after what the tasks have left is put together."""
        found = merge(self.config.out).records
        records = [find(found, *cell.identity) for cell in self.cells]
        return [record for record in records if record is not None]

    def _open(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of some cells that have not ended yet."""
        out = self.config.out
        there = (r for r in recorded(out) if r.status != "failed" and not r.notes.get("memory"))
        found = by_identity(r for r in there if self._stale.get(r.identity) != r.key)
        for part in self._all:
            found |= by_identity(recorded(part.folder(out)))
        return unfinished(cells, found)

    def _made_otherwise(self) -> dict[tuple[Any, ...], str | None]:
        """The keys of records that are there, of cells that are made with other settings now."""
        there = by_identity(recorded(self.config.out))
        found = {}
        for model in dict.fromkeys(record.model for record in there.values()):
            own = self.config.for_model(model)
            shared = shared_inputs(own, "", settle(own, kept_sources(own)))
            for cell in [one for one in self.cells if one.model == model]:
                record = there.get(cell.identity)
                if record is not None and not holds(record, cell_job(cell, shared)):
                    found[cell.identity] = record.key
        return found


def main_memory(config: RunConfig) -> int:
    """Bytes of main memory that a task on a CPU holds at its peak, as far as that is planned."""
    peaks = [0]
    for model in config.models:
        try:
            peaks.append(memory_plan(config.for_model(model), model).peak)
        except Exception:  # its cells fail with it
            log.debug("%s cannot be planned", model, exc_info=True)
    return max(peaks)


def task_environment() -> dict[str, str]:
    """What tasks on other machines need of this process's environment."""
    found = {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}
    ours = [str(Path(place or ".").resolve()) for place in sys.path if _is_own(place)]
    return found | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(ours))}


def plugin_folders(methods: Sequence[str]) -> list[str]:
    """The packages of methods that are named by their module and not installed.

    Args:
        methods: Method specs, such as ``mine.pruning:Mine``.
    """
    found: dict[str, None] = {}
    for spec in methods:
        name = spec.partition("+")[0]
        top = name.partition(":")[0].partition(".")[0] if ":" in name else ""
        module = find_spec(top) if top else None
        for place in (module.submodule_search_locations or ()) if module else ():
            if _is_own(str(Path(place).parent)):
                found[str(Path(place).resolve())] = None
    return list(found)


def _is_own(place: str) -> bool:
    """Whether a folder is neither Python's nor an environment's."""
    path = Path(place or ".").resolve()
    libraries = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    installed = {"site-packages", "dist-packages"} & {*path.parts}
    return path.is_dir() and not installed and not libraries & {path, *path.parents}


def described(error: BaseException) -> Exception:
    """What a task raised, out of what another process wraps it in."""
    cause: Any = getattr(error, "cause", None)
    found = cause if isinstance(cause, Exception) else error
    return found if isinstance(found, Exception) else RuntimeError(str(found))
