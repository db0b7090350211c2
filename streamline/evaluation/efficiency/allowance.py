"""The time that measuring the speed of one model's cells may take, unless a run says how much.

Example::

    max(QUICK_SECONDS, QUICK_SHARE * cost)
"""

__all__ = ["IN_WORDS", "QUICK_SECONDS", "QUICK_SHARE"]

QUICK_SECONDS = 60
"""What quick measuring may take of one model's run, ..."""
QUICK_SHARE = 0.05
"""... or this share of it, where that is more."""
IN_WORDS = f"{QUICK_SECONDS} s, or {100 * QUICK_SHARE:.0f} % of a longer run"
"""Both, as a setting says it."""
