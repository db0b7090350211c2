"""The conformance tests: what every method promises, tried on tiny models in memory.

Plugin authors run them with ``streamline-bench validate METHOD``; this package's own tests run
them over all built-in methods.

Example::

    for outcome in check_method(ShortGPT()):
        print(outcome.family, outcome.check, outcome.status, outcome.detail)
"""

from __future__ import annotations

from streamline.testing.checks import CHECKS, Violation
from streamline.testing.runner import CONFORMANCE_FAMILIES, Outcome, check_method
from streamline.testing.subject import SPARSITY, Subject

__all__ = [
    "CHECKS",
    "CONFORMANCE_FAMILIES",
    "SPARSITY",
    "Outcome",
    "Subject",
    "Violation",
    "check_method",
]
