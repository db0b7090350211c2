"""What decides a cell's numbers, by content, and the keys made of it.

Texts, questions, models and code are in a key as what they hold, never as a path or a name, so
what has changed is computed again and what was only moved is not. A record keeps these values
beside its key, so that a later run can say what has changed.

Example::

    shared = shared_inputs(config, fingerprint, settle(config))
    inputs = cell_inputs(cell.record(), shared, method)
    inputs.key, inputs.model_key        # of all of it; of what makes the model, for its answers
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from streamline.api.named import read_content, read_models
from streamline.errors import AssetError, ConfigError
from streamline.evaluation.origins import Origins, find_origins, repositories_of
from streamline.evaluation.prompting import Prompting
from streamline.evaluation.tasks.catalogue import resolve
from streamline.hashing import FORMAT, content_key
from streamline.method import Method
from streamline.registry import build_method, source_key
from streamline.run.config import RunConfig
from streamline.run.measuring.text_content import hub_repository, text_content
from streamline.run.settings import names
from streamline.sources.hub.commits import data_revisions, dataset_commit, pinned
from streamline.sources.hub.own_code import model_commits
from streamline.sources.models import model_fingerprint, resolve_model
from streamline.sources.texts import REPOSITORIES

__all__ = [
    "CellInputs",
    "Sources",
    "cell_inputs",
    "changes",
    "fingerprint_of",
    "settle",
    "shared_inputs",
]

log = logging.getLogger(__name__)

_STREAMED = frozenset(REPOSITORIES.values())
_ASKED = ("limit", "tasks", "prompting", "perplexity")  # of a model; all else makes the model
_OF_RECOVERY = {"none": (), "lora": ("lora",), "kd": ("lora", "kd")}  # what each stage reads


@dataclass(frozen=True)
class CellInputs:
    """What decides a cell's numbers: JSON, by name.

    Attributes:
        model: What makes the model, and how it is run.
        asked: What it is asked.
    """

    model: dict[str, Any]
    asked: dict[str, Any]

    @property
    def key(self) -> str:
        """64 hexadecimal digits; equal keys mean that the cell need not be computed again."""
        return content_key([self.model, self.asked])

    @property
    def model_key(self) -> str:
        """The key of the model alone: an answer to an equal question need not be asked again."""
        return content_key(self.model)

    def to_json(self) -> dict[str, Any]:
        """All values by name, for a record."""
        return self.model | self.asked


@dataclass(frozen=True)
class Sources:
    """What the names in a run's settings mean: decided once, kept in ``run.json``.

    Attributes:
        origins: Where the questions of its tasks come from.
        revisions: Commits of the texts on the hub, by repository; None where nobody knows.
        models: Commits of the models on the hub, those that methods name among them, by
            ``ORG/NAME`` or ``ORG/NAME@REVISION``; without those that cannot be had.
    """

    origins: Origins
    revisions: dict[str, str | None]
    models: dict[str, str] = field(default_factory=dict)

    def to_json(self, kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Plain values, for ``run.json``.

        Args:
            kept: What it holds already; what cannot be had now stays in it.
        """
        now: dict[str, Mapping[str, Any]] = {
            "tasks": self.origins.to_json(),
            "texts": self.revisions,
            "models": self.models,
        }
        return {name: {**(kept or {}).get(name, {}), **found} for name, found in now.items()}


def fingerprint_of(model: str, config: RunConfig) -> str:
    """The key for the content of a run's model, its own code included where that runs."""
    return model_fingerprint(model, trust_remote_code=config.trust_remote_code)


def settle(config: RunConfig, kept: Mapping[str, Any] | None = None) -> Sources:
    """Decide where a run's questions, texts and models come from; nothing is loaded.

    Args:
        config: The run.
        kept: What :meth:`Sources.to_json` gave when the folder was made; it is gone on with.

    Raises:
        AssetError: If a revision of a data set that the run asks for cannot be had.
        ConfigError: If the run does not read it.
    """
    asked = dict(name.split("@", 1) for name in config.data_revisions or ())
    with data_revisions(asked):
        found = _settled(config, kept)
    read = {*found.revisions}
    for source in found.origins.found.values():
        read |= {*repositories_of(source)} if source.kind == "hub" else set()
    for repository, revision in asked.items():
        if repository in read and found.revisions.get(repository, "") is not None:
            continue
        with data_revisions(asked):
            there = dataset_commit(repository, kept=repository in _STREAMED) is not None
        if not there:
            raise AssetError(
                f"Data set {repository!r} has no revision {revision!r} on the hub, or it cannot be "
                "asked and no copy of that commit is here: name a branch, tag or commit that it "
                "has (offline a commit)."
            )
        if repository not in read:
            raise ConfigError(
                f"data_revisions names {repository}, which this run does not read from the hub; it "
                f"reads {', '.join(sorted(read)) or 'nothing there'}. Name one of these, or leave "
                "it out."
            )
    return found


def _settled(config: RunConfig, kept: Mapping[str, Any] | None) -> Sources:
    tasks, texts, models = ((kept or {}).get(name, {}) for name in ("tasks", "texts", "models"))
    origins = find_origins(
        resolve(config.tasks, config.include_path),
        source=config.data,
        data_dir=config.data_dir,
        kept=tasks,
    )
    own = (config, *map(config.for_model, config.per_model))
    named = [
        text
        for one in own
        for text in (
            one.calibration.texts,
            one.training.texts,
            one.perplexity.texts if one.perplexity.n_tokens else None,
            one.lora.texts if one.fine_tunes() else None,
        )
        if text is not None
    ]
    repositories = dict.fromkeys(found for text in named if (found := hub_repository(text)))
    return Sources(
        origins,
        {
            name: texts.get(name) or dataset_commit(name, kept=name in _STREAMED)
            for name in repositories
        },
        _model_commits(config, models),
    )


def _model_commits(config: RunConfig, kept: Mapping[str, str]) -> dict[str, str]:
    """Commits of the models on the hub that a run names; what cannot be had is left out."""
    found: dict[str, str] = {}
    with pinned(kept):
        for name in dict.fromkeys([*config.models, *_read_models(config)]):
            try:
                trusted = config.trust_remote_code
                found |= model_commits(resolve_model(name), trust_remote_code=trusted)
            except AssetError:  # its cells will fail with that
                log.debug("no commit of %s", name, exc_info=True)
    return found


def _read_models(config: RunConfig) -> Iterator[str]:
    """The models that methods load beside those of the run."""
    for model in config.models:
        own = config.for_model(model)
        for spec in own.methods:
            try:
                method = build_method(spec)
            except Exception:  # of this method: its cells fail with it
                log.debug("%s cannot be built", spec, exc_info=True)
                continue
            per_method = own.per_method.get(spec)
            for sparsity in (per_method and per_method.sparsities) or own.sparsities:
                yield from read_models(method, model, sparsity)


def shared_inputs(config: RunConfig, fingerprint: str, sources: Sources) -> dict[str, Any]:
    """What decides the numbers of every cell of a model: JSON, by name.

    Args:
        config: The run, as the model has it.
        fingerprint: Content key of the dense model.
        sources: What its names mean.

    Raises:
        AssetError: If a text is not there any more.
    """
    found: dict[str, Any] = {"format": FORMAT, "model": fingerprint}
    for name in (*names(RunConfig, "keyed"), *_OF_RECOVERY["kd"]):
        value = getattr(config, name)
        if name == "tasks":
            found[name] = _questions(config, sources.origins)
        elif isinstance(value, Prompting):
            found[name] = value.model_dump()
        elif isinstance(value, BaseModel):
            found[name] = _stage(value, config, sources.revisions)
        else:
            found[name] = value
    return found


def cell_inputs(cell: Mapping[str, Any], shared: Mapping[str, Any], method: Method) -> CellInputs:
    """What decides the numbers of one cell.

    Args:
        cell: Its ``model``, ``sparsity``, ``seed`` and ``recovery``.
        shared: From :func:`shared_inputs`.
        method: The method.
    """
    asked = {name: shared[name] for name in _ASKED}
    others = {*_ASKED, *_OF_RECOVERY["kd"]} - {*_OF_RECOVERY[cell["recovery"]]}
    if not cell["sparsity"] and cell["recovery"] == "none":
        others |= {"calibration", "training"}
    read = read_content(method, cell["model"], cell["sparsity"])
    model = {
        "method": repr(method),
        "source": source_key(method),
        **({"files": read} if read else {}),
        **{name: cell[name] for name in ("sparsity", "seed", "recovery")},
        **{name: value for name, value in shared.items() if name not in others},
    }
    return CellInputs(model, asked)


def _questions(config: RunConfig, origins: Origins) -> dict[str, str | None]:
    """The content of each row's questions; None for those that nobody has."""
    found = {}
    for entry in resolve(config.tasks, config.include_path):
        content = origins.content(entry)
        found[entry.name] = None if content is None else content_key(content)[:16]
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the inputs of two cells, in words.

    Args:
        before: From a record.
        now: Of today.
    """
    return [
        text
        for name in now
        if name in before and before[name] != now[name]
        for text in _difference(name, before[name], now[name])
    ]


def _difference(name: str, before: Any, now: Any) -> list[str]:
    """How one value differs; what is known by its content has no words but that it changed."""
    if name in _BY_CONTENT:
        return [_BY_CONTENT[name]]
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        inner = [key for key in dict.fromkeys([*now, *before]) if before.get(key) != now.get(key)]
        if name == "tasks":
            return [f"the questions of {', '.join(inner)}"]
        return [
            f"the text of {name}" if key == "texts" else _words(f"{name}.{key}", before, now, key)
            for key in inner
        ]
    return [_words(name, {name: before}, {name: now}, name)]


_BY_CONTENT = {
    "format": "this project's way of computing",
    "model": "the model's files",
    "source": "the source of the method",
    "files": "files that the method names",
}


def _words(name: str, before: Mapping[str, Any], now: Mapping[str, Any], key: str) -> str:
    shown = [json.dumps(values.get(key), ensure_ascii=False) for values in (before, now)]
    return f"{name} was {shown[0]}, is {shown[1]}"


def _stage(
    stage: BaseModel, config: RunConfig, revisions: Mapping[str, str | None]
) -> dict[str, Any]:
    """The settings of a stage, its text by content; that of calibration where it names none."""
    values = stage.model_dump(mode="json")
    if values.get("cache_bytes"):
        values["cache_bytes"] = 1  # kept states are rounded, however many are kept
    if "texts" in values:
        texts = values["texts"] or config.calibration.texts
        values["texts"] = content_key(text_content(texts, revisions))[:16]
    return values
