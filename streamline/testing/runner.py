"""Run the checks on each family and report how each ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from streamline.engine.model_state import ModelState
from streamline.errors import reason
from streamline.method import Method, Unmade
from streamline.testing.checks import CHECKS, Violation, check_declaration, check_refusal
from streamline.testing.subject import Subject

__all__ = ["CONFORMANCE_FAMILIES", "Outcome", "check_method"]

CONFORMANCE_FAMILIES = ("opt", "llama", "qwen3")


@dataclass(frozen=True)
class Outcome:
    """How one check ended on one family.

    Attributes:
        family: The tiny model's family; ``-`` for checks that need none.
        check: The check's name.
        status: ``refused`` where the method does not support the family.
        detail: The violation, the error, or the reason why it is unsupported; empty when passed.
    """

    family: str
    check: str
    status: Literal["passed", "failed", "refused"]
    detail: str = ""


def check_method(
    method: Method, families: Sequence[str] = CONFORMANCE_FAMILIES
) -> Iterator[Outcome]:
    """Run every check on every family, one outcome at a time.

    Args:
        method: The method, with the fields to be tested.
        families: Families of :data:`streamline.testing.models.FAMILIES`.

    Yields:
        One outcome for each family and check; one alone for an unsupported family, and for a
        method that its own code cannot make.
    """
    yield _attempt("-", "declaration", partial(check_declaration, method))
    if isinstance(method, Unmade):
        return
    for family in families:
        subject = Subject(method, family)
        state = ModelState(subject.decoder)
        outcome = _attempt(family, "refusal", partial(check_refusal, subject))
        state.restore()
        if outcome.status == "passed" and outcome.detail:
            yield replace(outcome, status="refused")
            continue
        yield outcome
        for name, check in CHECKS.items():
            yield _attempt(family, name, partial(check, subject))
            state.restore()  # hooks and settings that were left must not fail the next check


def _attempt(family: str, name: str, check: Callable[[], str | None]) -> Outcome:
    """Run a check; whatever a plugin raises is its failure and not the end of the run."""
    try:
        detail = check() or ""
    except Violation as error:
        return Outcome(family, name, "failed", str(error))
    except (Exception, SystemExit) as error:
        return Outcome(family, name, "failed", reason(error))
    return Outcome(family, name, "passed", detail)
