"""What the parts of a run agree on before they begin: its settings, and what their names mean.

The first one decides where questions, texts and models come from and writes it down; the others go
on with that, and one with other settings is refused.

Example::

    with working(config.out, part):
        sources = agreed(config, part)
"""

from __future__ import annotations

import json
from typing import Any

from streamline.errors import ConfigError
from streamline.report.artifacts import run_settings
from streamline.run.config import RunConfig
from streamline.run.deciding.decide import Decided
from streamline.run.folder import keep_settings, kept_sources
from streamline.run.inputs import Sources, settle
from streamline.run.shards.part import Part, claims_of, part_folders
from streamline.sharing.claims import held

__all__ = ["agreed", "plain_settings"]

# How and where cells are run: it decides none of their numbers, and which of them not either.
_MACHINERY = {
    "dry_run", "executor", "device", "device_map", "skip_missing", "shard", "shards",
    "ray_address", "slurm", "memory", "plan_for",
}  # fmt: skip
_MAY_DIFFER = {"out", "sources", "suite"}


def plain_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a run that its folder keeps, as plain values."""
    return config.model_dump(mode="json", exclude=_MACHINERY)


def agreed(found: Decided, part: Part) -> Sources:
    """What the names in a run's settings mean, for all of its parts.

    Args:
        found: The run, and what it has decided of what was left open.
        part: The part that begins.

    Raises:
        ConfigError: If parts that lie there have other settings, or are of another division.
        StreamlineError: As :func:`streamline.run.inputs.settle`.
    """
    config = found.config
    now = plain_settings(config)
    with held(claims_of(config.out) / "settings"):
        there = [folder.name for folder in part_folders(config.out)]
        if there:
            _refuse_others(config, part, there, run_settings(config.out), now)
        kept = kept_sources(config)
        sources = settle(config, kept)
        now["sources"] = sources.to_json(kept) | {"settings": found.to_json(kept)}
        keep_settings(config.out, now)
        part.folder(config.out).mkdir(exist_ok=True)
    return sources


def _refuse_others(
    config: RunConfig, part: Part, others: list[str], before: dict[str, Any], now: dict[str, Any]
) -> None:
    """Refuse a part that does not belong to those that lie there.

    Raises:
        ConfigError: If it does not.
    """
    advice = (
        f"Give all shards of a run the same settings, or put those that are there together first: "
        f"streamline-bench merge {config.out}"
    )
    total = part.name.rpartition("-")[2]
    foreign = [name for name in others if name.rpartition("-")[2] != total]
    if foreign:
        raise ConfigError(
            f"{config.out} holds {', '.join(foreign[:3])}, parts of another division than "
            f"{part.name}. {advice}"
        )
    names = [n for n in {**before, **now} if n not in _MAY_DIFFER and before.get(n) != now.get(n)]
    if names:
        shown = "; ".join(
            f"{name} was {json.dumps(before.get(name), ensure_ascii=False)[:120]}, is "
            f"{json.dumps(now.get(name), ensure_ascii=False)[:120]}"
            for name in names
        )
        raise ConfigError(
            f"{config.out} holds {', '.join(others[:3])} with other settings than {part.name}: "
            f"{shown}. {advice}"
        )
