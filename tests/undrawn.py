"""Reports whose figures stay blank: everything else of them is made, in a fraction of the time."""

from __future__ import annotations

from collections.abc import Callable

from streamline.report import pages, report
from streamline.report.figures.figure import Drawn, Figure

__all__ = ["leave_blank"]


def leave_blank(put: Callable[[object, str, object], None]) -> None:
    """Have no figure drawn.

    Args:
        put: ``setattr``, or a test's own that is undone.
    """
    put(report, "drawn", _blank)
    put(pages, "script", lambda: "")


def _blank(figure: Figure) -> list[Drawn]:
    return [
        Drawn(figure=figure, view=one, svg='<svg width="1" height="1"></svg>', pdf=b"%PDF-1.4")
        for one in figure.views
    ]
