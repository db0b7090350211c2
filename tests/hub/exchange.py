"""One request to the loopback hub, and what may go wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["status", "cut", "reset", "slow", "damage"]


@dataclass
class Fault:
    """What goes wrong with the requests that match.

    Attributes:
        match: Regular expression searched in ``METHOD /path``.
        kind: ``status`` answers with ``status``; ``cut`` and ``reset`` end the connection after
            ``after`` bytes of the body, in good order or not; ``slow`` waits ``seconds`` first;
            ``damage`` flips one bit.
        times: How often it happens; None for always.
    """

    match: str
    kind: Kind = "status"
    status: int = 500
    code: str = ""
    after: int = 0
    seconds: float = 0.0
    times: int | None = None


@dataclass(frozen=True)
class Asked:
    """One request that was answered."""

    method: str
    path: str
    status: int
    sent: int
