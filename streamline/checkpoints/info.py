"""What is written in a checkpoint about itself, beside the weights.

Example::

    info = read_info("out/short")
    info.plan.removed_layers, info.provenance["cell"]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamline.errors import AssetError, reason
from streamline.plan import Plan
from streamline.reading import read_json

__all__ = ["PLAN", "PROVENANCE", "CheckpointInfo", "read_info"]

PLAN, PROVENANCE = "plan.json", "provenance.json"


@dataclass(frozen=True)
class CheckpointInfo:
    """What is written in a checkpoint about itself.

    Attributes:
        plan: Which layers of the dense model stayed, went, or were replaced.
        provenance: How the model was made.
        plain: Whether transformers alone loads the folder, without this package's code.
    """

    plan: Plan
    provenance: dict[str, Any]
    plain: bool


def read_info(folder: str | Path) -> CheckpointInfo:
    """What is written in a checkpoint about itself, without its weights.

    Raises:
        AssetError: If the folder is no checkpoint, or what is written is damaged.
    """
    path = Path(folder)
    missing = [n for n in ("config.json", PLAN, PROVENANCE) if not (path / n).is_file()]
    if missing:
        raise AssetError(
            f"{path} is no checkpoint of this package: {', '.join(missing)} missing; "
            "make one with 'streamline-bench prune'"
        )
    try:
        plan, provenance = (read_json(path / name) for name in (PLAN, PROVENANCE))
        return CheckpointInfo(Plan.from_json(plan), provenance, provenance["plain"])
    except (ValueError, TypeError, LookupError) as error:
        why = reason(error).rstrip(".")
        raise AssetError(f"checkpoint {path} is damaged: {why}; make it again") from error
