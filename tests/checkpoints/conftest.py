"""What a fresh process does, done here: a process that imports transformers takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamline.checkpoints import checkpoint, fresh
from streamline.modeling import modeling_streamline

Reports = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def compared_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Reports:
    """Reports on folders, made in this process; saves use them too."""
    modeling_streamline.register()
    own = str(Path(modeling_streamline.__file__).parent)

    def reports(*folders: Path, trust_remote_code: bool = False) -> list[dict[str, Any]]:
        scratch = str(tmp_path_factory.mktemp("scratch"))
        return [
            {"folder": str(folder), **fresh.compare(str(folder), False, own, scratch)}
            for folder in folders
        ]

    monkeypatch.setattr(checkpoint, "fresh_reports", reports)
    return reports
