"""What every block of a record has in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Block"]


class Block(BaseModel):
    """A block of a record: known keys are typed, further keys are kept as they are."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    def extra(self, name: str) -> Any:
        """The value of a further key, or None if the block does not have it."""
        return (self.model_extra or {}).get(name)
