"""What a run leaves to the program is decided once, with the reason, and kept in ``run.json``.

A setting that is ``auto`` gets its value for each model when the run starts; everything after that
sees plain values, so a cell's key, its record and a plan hold what was decided. A run that is gone
on with keeps to it, whatever the device or the hub say by then; but with another training budget
the recipe is decided anew, since it is that of the budget.

Example::

    found = decided(build_config({"models": "llama2-7b", "methods": "all"}))
    found.config.dtype                      # "float16" on an accelerator
    found.remarks()                         # one line for each reason
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from streamline.errors import ConfigError
from streamline.report.artifacts import run_settings
from streamline.run.checks.errors import errors_text
from streamline.run.checks.merge import merge
from streamline.run.config import RunConfig
from streamline.run.deciding.choices import Choices, choose
from streamline.run.folder import kept_sources
from streamline.run.stage_config import AUTO

__all__ = ["Decided", "decided", "decided_for", "remarks"]

_BUDGET = ("n_tokens", "n_documents", "epochs", "texts")  # of a training, which its recipe goes by


@dataclass(frozen=True)
class Decided:
    """A run without a setting that is ``auto``.

    Attributes:
        config: The run, with plain values.
        choices: For each model what was decided: setting -> ``{"value", "why"}``.
        expected: For each model how long its cells are planned to take, in seconds; None where that
            is not known.
    """

    config: RunConfig
    choices: dict[str, Choices]
    expected: Mapping[str, float | None] = field(default_factory=dict)

    def to_json(self, kept: Mapping[str, Any] | None) -> dict[str, Choices]:
        """What ``run.json`` keeps of it, beside what it holds already.

        Args:
            kept: Its ``sources``.
        """
        before: Mapping[str, Choices] = (kept or {}).get("settings", {})
        models = dict.fromkeys([*before, *self.choices])
        return {m: {**before.get(m, {}), **self.choices.get(m, {})} for m in models}

    def remarks(self) -> list[str]:
        """A line for each reason, of each model where there are several."""
        several = len(self.config.models) > 1
        return [
            f"{model}: {line}" if several else line
            for model, found in self.choices.items()
            for line in remarks(found)
        ]


def remarks(choices: Choices) -> list[str]:
    """What was decided, a line for each reason."""
    lines: dict[str, list[str]] = {}
    for path, choice in choices.items():
        value, (block, _, name) = choice["value"], path.rpartition(".")
        shown = f"{value:,}" if isinstance(value, int) and value > 9_999 else str(value).lower()
        said = lines.setdefault(choice["why"], [])
        again = bool(block) and any(one.startswith(f"{block}.") for one in said)
        said.append(f"{name if again else path} {shown}")
    return [f"{', '.join(settings)}: {why}" for why, settings in lines.items()]


def decided(config: RunConfig) -> Decided:
    """Decide what a run leaves open; what its folder has decided before stays.

    Args:
        config: The run. One that leaves nothing open is given back as it is.

    Raises:
        ConfigError: If ``run.json`` is damaged, or what is decided contradicts other settings.
    """
    left = {model: _open(config.for_model(model)) for model in config.models}
    if not any(left.values()):
        return Decided(config, {})
    kept: Mapping[str, Choices] = (kept_sources(config) or {}).get("settings", {})
    before = run_settings(config.out) if kept else {}
    choices: dict[str, Choices] = {}
    for model, paths in left.items():
        own = config.for_model(model)
        still = _still(kept.get(model, {}), before, own, model)
        known = {path: one for path, one in still.items() if path in paths}
        if set(known) != set(paths):
            known = {**choose(own, model, known), **known}
        choices[model] = {path: known[path] for path in paths}
    try:
        return Decided(RunConfig.model_validate(_with(config, choices)), choices)
    except ValidationError as error:
        raise ConfigError(f"bad settings: {errors_text(error.errors(), RunConfig)}") from error


def decided_for(config: RunConfig, model: str) -> tuple[RunConfig, Choices]:
    """A run as one model has it, and what of it was decided, now or when its folder was made.

    Args:
        config: The run.
        model: One of its models.

    Raises:
        ConfigError: As :func:`decided`.
    """
    found = decided(config)
    kept: Mapping[str, Choices] = (kept_sources(config) or {}).get("settings", {})
    own = found.config.for_model(model)
    values, choices = own.model_dump(mode="json"), found.choices.get(model) or kept.get(model, {})
    return own, {path: one for path, one in choices.items() if _at(values, path) == one["value"]}


def _still(
    kept: Choices, before: Mapping[str, Any], own: RunConfig, model: str
) -> Mapping[str, dict[str, Any]]:
    """What was decided and stays: the recipe of a training does for the same budget alone.

    Args:
        kept: What was decided for the model.
        before: The settings of the folder's run, with that in them.
        own: The run, as the model has it, with what it leaves open.
        model: The model.
    """
    if not kept:
        return {}
    differing: Mapping[str, Any] = (before.get("per_model") or {}).get(model, {})
    then = merge(before.get("training") or {}, differing.get("training") or {})
    decided_then = {path.removeprefix("training."): one["value"] for path, one in kept.items()}
    open_then = {n for n in _BUDGET if n in decided_then and decided_then[n] == then.get(n)}
    now = own.training.model_dump(mode="json")
    same = all(now[n] == ("auto" if n in open_then else then.get(n)) for n in _BUDGET)
    return {path: one for path, one in kept.items() if same or not path.startswith("training.")}


def _open(own: RunConfig) -> list[str]:
    """The settings of a model that are ``auto``."""
    values = own.model_dump(mode="json")
    return [path for path in AUTO if _at(values, path) == "auto"]


def _at(values: Mapping[str, Any], path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def _given(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    found: dict[str, Any] = value
    return found


def _with(config: RunConfig, choices: Mapping[str, Choices]) -> dict[str, Any]:
    """A run's values with what was decided: for all models where they agree, else for each."""
    values = config.model_dump()
    per_model = dict(values.pop("per_model"))
    for path in AUTO:
        found = {model: own[path]["value"] for model, own in choices.items() if path in own}
        if len(set(map(repr, found.values()))) == 1 and _at(values, path) == "auto":
            values = merge(values, _given(path, next(iter(found.values()))))
            per_model = {model: _without(own, path) for model, own in per_model.items()}
            continue
        for model, value in found.items():
            per_model[model] = merge(per_model.get(model, {}), _given(path, value))
    return values | {"per_model": per_model}


def _without(values: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Settings without one of them where it is ``auto``, as it was decided for all models."""
    name, _, rest = path.partition(".")
    found = dict(values)
    if rest and isinstance(found.get(name), Mapping):
        found[name] = _without(found[name], rest)
    elif found.get(name) == "auto":
        del found[name]
    return found
