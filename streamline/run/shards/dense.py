"""The dense model's answers, which every part of a run needs and one process gives.

Whoever comes first answers for the dense model together with its own cells, with which it shares
layers. The others evaluate their own cells meanwhile, and wait only when these are compared with
the dense model. If who was at it is gone, the next one does it.

Example::

    turn = DenseTurn(job.model_key, progress)
    if turn.attempt():              # nobody else is at it
        with turn:
            ...
    if turn.awaited(answered):      # somebody was, and is gone
        with turn:
            ...
"""

from __future__ import annotations

from collections.abc import Callable

from streamline.distributed.work import shared
from streamline.progress import Progress
from streamline.sharing.once import shared_claim

__all__ = ["DenseTurn"]


class DenseTurn:
    """The turn to answer for the dense model; always one's own where a run is not divided.

    Args:
        key: Key of the dense model.
        progress: Where to say that another process is waited for.
    """

    def __init__(self, key: str, progress: Progress) -> None:
        self._claim = shared_claim(f"answers-{key[:16]}")
        self._progress = progress

    def attempt(self) -> bool:
        """Take it unless another process has it; True where it is one's own then."""
        return shared(lambda: self._claim is None or self._claim.attempt())

    def wait(self) -> None:
        """Take it, after whoever has it."""
        shared(self._wait)

    def _wait(self) -> None:
        if self._claim is not None and not self._claim.holds:
            self._claim.acquire(
                lambda: self._progress.say(
                    "waiting for the dense model's answers, which another shard is making"
                )
            )

    def awaited(self, there: Callable[[], bool]) -> bool:
        """Whether the answers are to be made now, since the process that was to is gone.

        Args:
            there: Whether they are there. They are waited for, unless the turn is one's own.
        """
        return shared(lambda: self._awaited(there))

    def _awaited(self, there: Callable[[], bool]) -> bool:
        if self._claim is None or self._claim.holds or there():
            return False
        self._wait()
        if there():
            self._claim.release()
            return False
        return True

    def __enter__(self) -> DenseTurn:
        """Use the turn, if it is one's own."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give it up."""
        if self._claim is not None:
            self._claim.release()
