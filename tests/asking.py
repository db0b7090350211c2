"""Counts what a program asks an accelerator for while it works; each time the device stands still.

Example::

    with asked() as questions:
        score(paths, requests)
    questions.now, questions.late
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from streamline.engine.transfer import Later

ASKING = {"_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero"}


class Asked(TorchDispatchMode):
    """Counts operations that ask a device for a value, or for how many there are.

    Attributes:
        now: Their names, in order.
        late: How often what was copied beside other work was read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: list[str] = []
        self.late = 0
        self._copied = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__.split(".")[0] in ASKING and not self._copied:
            self.now.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def read(self, value: Callable[[Later], Any], later: Later) -> Any:
        """A value of tensors that were copied: whatever is asked for here asks no device."""
        self.late, self._copied = self.late + 1, True
        try:
            return value(later)
        finally:
            self._copied = False


@contextmanager
def asked() -> Iterator[Asked]:
    """Within it questions are counted."""
    value = Later.value
    with pytest.MonkeyPatch.context() as patch, Asked() as found:
        patch.setattr(Later, "value", lambda later: found.read(value, later))
        yield found
