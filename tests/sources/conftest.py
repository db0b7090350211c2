from __future__ import annotations

from pathlib import Path

import pytest

from streamline.sources.hub import commits


@pytest.fixture(autouse=True)
def kept_rows_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rows that stand in for the hub's are neither kept in the user's cache nor read from it."""
    monkeypatch.setattr(commits, "cache_dir", lambda: tmp_path)
