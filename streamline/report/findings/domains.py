"""What the texts of a run were made of beside what their mixtures promise.

Example::

    table = domains_table(records)      # None where no text is a mixture
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from streamline.report.published import published_rows
from streamline.report.table import Table, percent
from streamline.results.record import Record

__all__ = ["domains_table"]

_PRINTED = "v1_table7_domains"
#: SlimPajama's names of its domains, and the paper's.
_NAMES = {"CommonCrawl": "CC", "Github": "GitHub", "Wikipedia": "Wiki"}
_PREFIX = "RedPajama"


def domains_table(records: Sequence[Record]) -> Table | None:
    """Promised and drawn fractions of each domain, a row each, beside the printed ones.

    Args:
        records: Of one model. A text that was drawn several times, for other seeds, is shown once.

    Returns:
        The table; None if no record says what a mixture promises.
    """
    texts: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    draws: dict[tuple[str, str, str], set[str]] = {}
    for text in (text for record in records for text in record.texts):
        if text.get("promised"):
            key = (str(text["use"]), str(text["name"]), str(text["part"]))
            texts.setdefault(key, text)
            draws.setdefault(key, set()).add(str(text["sha256"]))
    if not texts:
        return None
    rows: list[tuple[str, ...]] = []
    sections, notes = set[int](), list[str]()
    mixed = {domain for text in texts.values() for domain in text["promised"]}
    printed = _printed() if any(domain.startswith(_PREFIX) for domain in mixed) else {}
    for (use, name, part), drawn in texts.items():
        if rows:
            sections.add(len(rows))
        what = use if part in ("train", "heldout") else f"{use}, {part}"
        documents = drawn.get("counts") or {}
        total = sum(documents.values())
        by_rows = drawn.get("counted") == "rows"
        for domain, promised in drawn["promised"].items():
            count = documents.get(domain, 0)
            rows.append(
                (
                    what, name, _short(domain), "documents" if by_rows else "tokens",
                    percent(promised),
                    percent(count / total if total else None),
                    percent(drawn["domains"].get(domain, 0.0)),
                    f"{count:,}",
                    *(percent(printed[kind].get(_short(domain))) for kind in printed),
                )
            )  # fmt: skip
        for domain, had in (drawn.get("spent") or {}).items():
            notes.append(f"{what}: {_short(domain)} ran out after {had:,} documents.")
    if any(len(prints) > 1 for prints in draws.values()):
        notes.append("Of the draws of several seeds the first is shown.")
    model = records[0].model
    return Table(
        name=f"domains-{model}",
        title=f"{model}: what texts are made of, in percent",
        columns=(
            "use", "text", "domain", "counted\nby", "promised", "drawn\ndocuments",
            "drawn\ntokens", "documents", *(f"v1, Table 7\n{kind}" for kind in printed),
        ),
        rows=tuple(rows),
        keys=4,
        words=4,
        sections=frozenset(sections),
        notes=(
            "Promised fractions are of documents or of tokens, as the mixture counts; a document "
            "counts where any of its tokens were drawn.",
            *notes,
        ),
    )  # fmt: skip


def _printed() -> dict[str, dict[str, float | None]]:
    """The paper's two mixtures: domain -> fraction."""
    return {
        row.method: {
            domain: None if value is None else value / 100 for domain, value in row.values.items()
        }
        for row in published_rows(_PRINTED)
    }


def _short(domain: str) -> str:
    """A domain as the paper calls it."""
    own = domain.removeprefix(_PREFIX)
    return _NAMES.get(own, own)
